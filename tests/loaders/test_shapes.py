"""The four shapes of a store deliver the same batches, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from batches import PER_STEP, assert_same, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import SHAPES, StoreShape, make_store

from loaders import TrialStream
from pipeline.codes import CATEGORIES
from shards import InvalidSpecError, Store, WindowSpec
from shards.identity import trial_digest
from shards.manifest import Channel, EncodedInput, TargetSchema
from shards.verify import verify_store
from shards.version import QUARANTINE_SCHEMA, VersionDraft, publish_version

WORDS = ("open", "close", "hold")
SITES = ("north", "south", None)
CLASSES = TargetSchema("per_trial", ("grade",), ("good", "poor"))
NUMBER = TargetSchema("per_trial", ("grade",))


@dataclass(frozen=True)
class Case:
    """A data set, whatever its shape."""

    lengths: tuple[int, ...]
    n_channels: int
    n_shards: int
    windows: WindowSpec
    target: TargetSchema
    scope: str
    masked: bool
    coded: bool
    seed: int

    @property
    def names(self) -> list[str]:
        return [f"c{j}" for j in range(self.n_channels)]


@st.composite
def cases(draw: Any) -> Case:
    n_channels = draw(st.integers(1, 10))
    names = [f"c{j}" for j in range(n_channels)]
    ahead = st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)
    forecast = ahead.map(lambda columns: TargetSchema("forecast", tuple(columns)))
    target = draw(st.one_of(forecast, st.sampled_from([PER_STEP, CLASSES, NUMBER])))
    steps = draw(st.integers(1, 9)) if target.kind == "forecast" else 0
    windows = WindowSpec(
        length=draw(st.integers(1, 8)),
        stride=draw(st.integers(1, 6)),
        horizon=draw(st.integers(1, 3)),
        steps=steps,
        short=draw(st.sampled_from(["pad", "drop"])),
    )
    return Case(
        lengths=tuple(draw(st.lists(st.integers(1, 40), min_size=1, max_size=8))),
        n_channels=n_channels,
        n_shards=draw(st.integers(1, 3)),
        windows=windows,
        target=target,
        scope=draw(st.sampled_from(["none", "train", "trial", "group:site", "window"])),
        masked=draw(st.booleans()),
        coded=draw(st.booleans()),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


def trial_arrays(case: Case, rng: np.random.Generator, n_rows: int) -> dict[str, Any]:
    values = rng.normal(3, 20, (n_rows, case.n_channels)).astype(np.float32)
    arrays: dict[str, Any] = {"values": values}
    if case.masked:
        seen = rng.random(values.shape) < 0.7
        values[~seen & (rng.random(values.shape) < 0.8)] = np.nan  # some were filled in
        arrays["observed"] = np.packbits(seen, axis=1, bitorder="little")
    if case.target.kind == "per_step":
        targets = rng.normal(size=(n_rows, 2)).astype(np.float32)
        targets[rng.random(targets.shape) < 0.2] = np.nan
        arrays["targets"] = targets
    if case.coded:
        arrays["codes"] = rng.integers(0, len(WORDS) + 1, (n_rows, 2)).astype(np.uint16)
    return arrays


def fit_of(case: Case) -> dict[str, Any]:
    n = case.n_channels
    fit: dict[str, Any] = {"method": "none", "scope": "none"}
    if case.scope != "none":
        fit = {"method": "zscore", "scope": case.scope}
    if case.scope in ("train", "group:site"):
        fit |= {"offset": [1.5] * n, "scale": [7.25] * n}
    if case.scope == "group:site":
        group = {"values": ["north"], "n_trials": [1], "offset": [[2.0] * n], "scale": [[0.3] * n]}
        fit["groups"] = {"site": group}
    return fit


def store_of(case: Case, path: Path, layout: str, container: str) -> Store:
    rng = np.random.default_rng(case.seed)
    codes = ("grip", "mode") if case.coded else ()
    shape = StoreShape(layout, container, case.windows, case.names, case.target, codes)
    trials = [trial_arrays(case, rng, n) for n in case.lengths]
    labels = [None if rng.random() < 0.2 else int(rng.integers(2)) for _ in trials]
    entries, rows = [], []
    for shard in range(case.n_shards):
        members = range(shard, len(trials), case.n_shards)
        if not members:
            continue
        entry, places = shape.write(path, [trials[i] for i in members])
        entries.append(entry)
        for i, place in zip(members, places, strict=True):
            rows.append(place | row_of(case, i, trials[i], labels[i]))
    draft = draft_of(case, pa.Table.from_pylist(rows), entries, codes)
    draft = replace(draft, layout=layout, container=container)
    return Store(path, publish_version(path, draft, after=None))


def row_of(case: Case, i: int, arrays: dict[str, Any], label: int | None) -> dict[str, Any]:
    name, own = f"t{i:04d}", label if case.target.kind == "per_trial" else None
    said: Any = own if own is None or case.target.classes is None else case.target.classes[own]
    site = SITES[i % 3]
    weight = 1.0 + i % 2
    digest = trial_digest(
        name, arrays, said, weight=weight,
        categories=[WORDS, WORDS] if case.coded else (), statics={"site": site},
    )  # fmt: skip
    row: dict[str, Any] = {
        "id": name, "digest": digest, "n_rows": len(arrays["values"]), "source": f"{name}.csv",
        "split": "test" if i % 4 == 3 else "train", "weight": weight,
        "label": own, "attributes": {"site": site, "grade": said if said is None else str(said)},
    }  # fmt: skip
    if case.coded:
        row["categories"] = [list(WORDS), list(WORDS)]
    if case.scope == "trial":
        row |= {"offset": [0.5 + i] * case.n_channels, "scale": [2.0] * case.n_channels}
    return row


def draft_of(case: Case, trials: pa.Table, entries: list[Any], codes: Any) -> VersionDraft:
    place = trials.schema.get_field_index("label")
    trials = trials.set_column(place, "label", trials["label"].cast(pa.float64()))
    if case.coded:
        place = trials.schema.get_field_index("categories")
        trials = trials.set_column(place, "categories", trials["categories"].cast(CATEGORIES))
    normalize = fit_of(case)
    fit = {
        "normalize": normalize,
        "categorical": [
            {"name": c, "encoding": "one_hot", "vocabulary": sorted(WORDS)[:2]} for c in codes
        ],
        "static": [{"name": "site", "encoding": "embed", "vocabulary": ["north", "south"]}],
    }
    return VersionDraft(
        name="shaped",
        channels=tuple(Channel(name) for name in case.names),
        target=case.target,
        windows=case.windows,
        splits=("train", "test"),
        observed=case.masked,
        normalization={k: normalize[k] for k in ("method", "scope")} | {"lookahead": []},
        counts={
            "files": len(case.lengths), "trials": len(case.lengths), "rows": sum(case.lengths),
            "has_missing": case.masked,
        },
        spec={},
        trials=trials,
        shards=tuple(entries),
        quarantine=QUARANTINE_SCHEMA.empty_table(),
        fit=fit,
        codes=tuple(EncodedInput(name, "one_hot") for name in codes),
        statics=(EncodedInput("site", "embed"),),
    )  # fmt: skip


def batches_of(store: Store, split: str, shuffle: str, batch_size: int) -> list[Any]:
    try:
        stream = TrialStream(store, split=split, shuffle=shuffle, batch_size=batch_size, seed=3)
    except InvalidSpecError as error:
        return [str(error).replace(str(store.path), "STORE")]
    return [*stream, *stream]  # two epochs


@settings(max_examples=25)
@given(
    case=cases(),
    split=st.sampled_from(["train", "test"]),
    shuffle=st.sampled_from(["global", "none"]),
    batch_size=st.integers(1, 9),
)
def test_all_shapes_deliver_the_same_batches(tmp_path_factory, case, split, shuffle, batch_size):
    """Short windows, masks, every kind of target and normalization, NaN, codes, many shards."""
    stores = [store_of(case, tmp_path_factory.mktemp("s"), *shape) for shape in SHAPES]
    wanted, *others = [batches_of(store, split, shuffle, batch_size) for store in stores]
    for store, got in zip(stores[1:], others, strict=True):
        assert store.manifest.fingerprints == stores[0].manifest.fingerprints
        assert len(got) == len(wanted)
        for mine, want in zip(got, wanted, strict=True):
            if isinstance(want, str):
                assert mine == want
            else:
                assert_same(mine, want)
    for store in stores:
        assert verify_store(store.path) == []


def test_batches_hold_every_tensor_of_the_kinds_compared(tmp_path):
    """The comparison above would say little if these were not there."""
    case = Case((30, 5, 12, 9), 3, 2, WindowSpec(6, 2), PER_STEP, "window", True, True, 1)
    batch = batches_of(store_of(case, tmp_path, "windows", "parquet"), "train", "none", 5)[0]
    assert tensors(batch).keys() >= {
        "values", "targets", "observed", "codes", "static_codes", "window_offset",
    }  # fmt: skip
    assert not torch.isnan(batch.values).any()
    assert torch.isnan(batch.targets).any()


@pytest.mark.parametrize("container", ["zarr", "parquet"])
@pytest.mark.parametrize(
    "change", [{"length": 5}, {"stride": 1}, {"horizon": 2}, {"steps": 2}, {"short": "drop"}]
)
def test_stored_windows_serve_no_other_windows(tmp_path, container, change):
    store = make_store(tmp_path / "s", [20, 9], layout="windows", container=container)
    wanted = replace(store.manifest.windows, **change)
    with pytest.raises(InvalidSpecError, match=r"layout 'windows'.*shards\.layout: rows"):
        TrialStream(store, windows=wanted)
    assert len(list(TrialStream(store, windows=store.manifest.windows, batch_size=4))) > 0


def test_rows_in_parquet_serve_any_windows(tmp_path):
    plain = make_store(tmp_path / "a", [20, 9, 31], n_shards=2)
    packed = make_store(tmp_path / "b", [20, 9, 31], n_shards=2, container="parquet")
    windows = WindowSpec(length=7, stride=3, horizon=2, steps=2)
    streams = [TrialStream(s, windows=windows, batch_size=4) for s in (plain, packed)]
    for want, got in zip(*streams, strict=True):
        assert_same(got, want)
