"""`shards.layout` and `shards.format`: what a build stores, and that its batches are the same."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from stores import SHAPES
from trialfolders import build_checked, draw_trial, make_spec, write_spec, write_trial, write_trials

from loaders import TrialStream
from pipeline.members import shard_form
from pipeline.spec import load_spec
from shards import InvalidSpecError, Store
from shards.cutting import stored_digest
from shards.windows import count_windows

FORECAST = {
    "length": 6, "stride": 4,
    "target": {"kind": "forecast", "channels": ["y", "x"], "horizon": 2, "steps": 3},
}  # fmt: skip
PER_STEP = {"kind": "per_step", "columns": ["y"], "channels": None}
PER_TRIAL = {"kind": "per_trial", "attribute": "group", "channels": None}
SPECS: dict[str, dict[str, Any]] = {
    "forecast": {"windows": FORECAST},
    "masked": {"windows": FORECAST, "normalize": {"scope": "train"}},
    "grouped": {"windows": FORECAST, "normalize": {"scope": "group:group"}},
    "robust": {"windows": FORECAST, "normalize": {"scope": "window", "method": "robust"}},
    "per_step": {"channels": ["x"], "windows": {"short": "drop", "target": PER_STEP}},
    "per_trial": {"windows": {"length": 30, "target": PER_TRIAL}},
}


def build_shapes(root: Path, sections: dict[str, Any], **shards: Any) -> list[Store]:
    stores = []
    for layout, form in SHAPES:
        spec = write_spec(root, **sections, shards={"layout": layout, "format": form, **shards})
        stores.append(build_checked(spec, root / f"store_{layout}_{form}")[1])
    return stores


@pytest.mark.parametrize("sections", SPECS.values(), ids=SPECS)
def test_every_shape_of_a_build_delivers_the_same(tmp_path, sections):
    write_trials(tmp_path, 12, missing=0.2)
    source = {"source": {"trial_id": r"(?P<group>g\d)/t\d+"}}
    stores = build_shapes(tmp_path, sections | source, target_bytes=1500, buckets=2)
    for store, (layout, form) in zip(stores, SHAPES, strict=True):
        assert (store.manifest.layout, store.manifest.container) == (layout, form)
        assert store.manifest.format_minor == 3
        assert store.manifest.fingerprints == stores[0].manifest.fingerprints
        assert len(store.manifest.shards) > 1
    filled = [split for split, n in stores[0].manifest.counts["windows"].items() if n]
    assert len(filled) > 1
    for split in filled:
        streams = [TrialStream(store, split=split, batch_size=7) for store in stores]
        for want, *others in zip(*streams, strict=True):
            for got, name in itertools.product(others, vars(want)):
                mine, wanted = getattr(got, name), getattr(want, name)
                same = mine == wanted if not hasattr(wanted, "numpy") else (
                    mine.numpy().tobytes() == wanted.numpy().tobytes()
                )  # fmt: skip
                assert same, name


def test_windows_are_packed_by_what_they_take(tmp_path):
    write_trials(tmp_path, 12, longest=60)
    shards = {"layout": "windows", "target_bytes": 6000, "buckets": 1}
    _, store = build_checked(write_spec(tmp_path, shards=shards), tmp_path / "store")
    row_bytes = sum(spec.row_bytes for spec in store.manifest.shards[0].arrays.values())
    alone = count_windows(store.index.n_rows, store.manifest.windows) * row_bytes
    for number, shard in enumerate(store.manifest.shards):
        members = store.index.shard == number
        assert shard.n_rows * row_bytes <= 6000 or members.sum() == 1
        assert shard.n_rows == max(1, alone[members].sum() // row_bytes)
    sizes = [shard.n_rows * row_bytes for shard in store.manifest.shards]
    first = {n: alone[store.index.shard == n][0] for n in range(len(sizes))}
    assert all(sizes[n] + first[n + 1] > 6000 for n in range(len(sizes) - 1))


def test_the_stored_digest_is_that_of_the_windows(tmp_path):
    write_trials(tmp_path, 5)
    spec = write_spec(tmp_path, shards={"layout": "windows"})
    _, store = build_checked(spec, tmp_path / "store")
    promised = store.cold("stored")["stored"].to_pylist()
    for number in range(len(store.index)):
        arrays = {
            name: store.trial_stored(number, name) for name in store.manifest.shards[0].arrays
        }
        assert stored_digest(arrays) == promised[number]


def test_a_data_set_of_trials_too_short_for_a_window_still_opens(tmp_path):
    for name in "ab":
        write_trial(tmp_path, name, draw_trial(np.random.default_rng(1), 3, ["x", "y"]))
    windows = {"length": 9, "short": "drop"}
    for store in build_shapes(tmp_path, {"windows": windows}):
        assert store.index.n_windows.tolist() == [0, 0]
        assert store.manifest.shards[0].n_rows == (6 if store.manifest.layout == "rows" else 1)
        if store.manifest.layout == "windows":
            assert store.index.row_start.tolist() == [0, 0]
            assert np.isnan(store.trial_rows(0)).all()


@pytest.mark.parametrize("form", ["zarr", "parquet"])
def test_irregular_times_are_kept_beside_the_rows(tmp_path, form):
    rng = np.random.default_rng(4)
    times = {"even": np.arange(20.0), "odd": np.cumsum(rng.random(15) + 0.1)}
    for name, time in times.items():
        columns = draw_trial(rng, len(time), ["x", "y"])
        write_trial(tmp_path, name, {"t": time, **columns})
    source = {"time": {"column": "t"}}
    spec = write_spec(tmp_path, source=source, shards={"format": form})
    _, store = build_checked(spec, tmp_path / "store")
    assert store.manifest.shards[0].arrays["time"].dtype == "float64"
    for name, time in times.items():
        got = store.trial_rows(store.trial_number(name), "time")
        assert got.tobytes() == time.tobytes()


def test_regular_times_take_no_room(tmp_path):
    columns = draw_trial(np.random.default_rng(4), 20, ["x", "y"])
    write_trial(tmp_path, "even", {"t": np.arange(20.0), **columns})
    spec = write_spec(tmp_path, source={"time": {"column": "t"}})
    _, store = build_checked(spec, tmp_path / "store")
    assert "time" not in store.manifest.shards[0].arrays
    assert store.cold("time_step")["time_step"].to_pylist() == [1.0]


def test_other_readers_open_what_is_stored(tmp_path):
    write_trials(tmp_path, 6)
    stores = dict(zip(SHAPES, build_shapes(tmp_path, {"windows": FORECAST}), strict=True))
    plain, packed = stores["windows", "zarr"], stores["windows", "parquet"]
    group = zarr.open_group(plain.path / "shards" / plain.manifest.shards[0].digest, mode="r")
    assert np.asarray(group["values"][:]).tobytes() == plain.shard_rows(0).tobytes()
    file = packed.path / "shards" / packed.manifest.shards[0].digest / "rows.parquet"
    rows = pq.read_table(file)["values"].combine_chunks().flatten().to_numpy()
    assert rows.tobytes() == plain.shard_rows(0).tobytes()


@pytest.mark.parametrize(
    "normalize",
    [
        {"method": "robust", "scope": "train"},
        {"method": "robust", "scope": "group:site"},
        {"channels": {"y": {"method": "robust", "scope": "train"}}},
        {"scope": "regime", "regimes": {"channels": ["x"], "count": 2}},
    ],
)
def test_statistics_of_all_rows_need_rows(normalize):
    make_spec(normalize=normalize)
    with pytest.raises(ValueError, match=r"shards\.layout: windows hold not all rows"):
        make_spec(normalize=normalize, shards={"layout": "windows"})


def test_an_unknown_shape_is_refused(tmp_path):
    path = write_spec(tmp_path, shards={"layout": "columns", "format": "csv"})
    with pytest.raises(InvalidSpecError, match=r"'rows' or 'windows'(.|\n)*'zarr' or 'parquet'"):
        load_spec(path)


def test_columns_are_named_for_other_readers():
    spec = make_spec(categorical={"mode": "embed"})
    assert shard_form(spec).columns == {"values": ["x", "y"], "targets": ("x",), "codes": ("mode",)}
