"""New trials are treated as those of the build: the same bits, and the same refusals."""

from __future__ import annotations

import gzip
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from machinetrials import build_machines, machine_columns, raw_files
from trialfolders import csv_text, write_spec, write_trial, write_trials

from loaders import TrialStream
from pipeline.build import build
from pipeline.transform import Transform, TrialRefusedError
from pipeline.transformstore import write_new_store
from shards import InvalidSpecError, Store

INPUTS = ("values", "observed", "valid", "lengths", "codes", "statics", "static_codes")


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("machines")
    build_machines(folder)
    return folder


@pytest.fixture(scope="module")
def store(machines: Path) -> Store:
    return Store(machines / "store")


@pytest.fixture(scope="module")
def transform(machines: Path, store: Store) -> Transform:
    return Transform.load(store, dataset=machines / "dataset.yaml")


def frame_of(path: Path) -> pl.DataFrame:
    """Return what a user would hold in memory: typed by polars."""
    raw = path.read_bytes()
    return pl.read_csv(gzip.decompress(raw) if path.suffix == ".gz" else raw)


def same_bits(got: Any, wanted: Any) -> bool:
    got, wanted = np.asarray(got), np.asarray(wanted)
    return (
        got.dtype == wanted.dtype
        and got.shape == wanted.shape
        and (got.tobytes() == wanted.tobytes())
    )


# --- parity with the store ------------------------------------------------------------------------


def test_files_become_what_the_store_holds_to_the_bit(machines, store, transform):
    found = transform.read(raw_files(machines))
    assert found.refusals == ()
    assert {trial.id for trial in found.trials} == set(store.trials()["trial"].to_pylist())
    assert len(found.trials) == store.manifest.counts["trials"]
    for new in found.trials:
        old = store[new.id]
        assert same_bits(new.values, np.concatenate([store.trial_rows(n) for n in old.numbers]))
        packed = np.concatenate([store.trial_rows(n, "observed") for n in old.numbers])
        assert (
            new.observed
            == np.unpackbits(packed, axis=1, count=len(store.manifest.channels), bitorder="little")
        ).all()
        assert (
            new.starts.tolist() == np.cumsum([0, *(s.n_rows for s in old.segments)])[:-1].tolist()
        )
        assert np.allclose(new.time, old.time, rtol=0, atol=1e-9)
        assert new.attributes.items() <= old.attributes.items()


def test_windows_are_delivered_as_a_stream_delivers_them_to_the_bit(machines, store, transform):
    new = {trial.id: trial for trial in transform.read(raw_files(machines)).trials}
    seen = 0
    for split in ("train", "test"):
        for batch in TrialStream(store, split=split, batch_size=16, shuffle="none"):
            for row in np.flatnonzero(batch.trial >= 0).tolist():
                number, start, n = (int(x[row]) for x in (batch.trial, batch.start, batch.lengths))
                name, _, segment = store.index.id_of(number).partition("#")
                trial = new[name]
                first = start + int(trial.starts[int(segment or 1) - 1])
                assert same_bits(trial.deliver(first, 8), batch.values[row, :n])
                assert same_bits(trial.codes[first : first + n], batch.codes[row, :n])
                assert same_bits(trial.statics, batch.statics[row])
                assert same_bits(trial.static_codes, batch.static_codes[row])
                seen += 1
    assert seen == sum(store.manifest.counts["windows"].values())


def test_delivered_is_a_batch_of_whole_trials_but_for_window_scopes(machines, store, transform):
    at_rest = [i for i, (_, scope) in enumerate(store.entries) if scope != "window"]
    new = {trial.id: trial for trial in transform.read(raw_files(machines)).trials}
    for split in ("train", "test"):
        for batch in TrialStream(
            store, split=split, batches="trials", batch_size=4, shuffle="none"
        ):
            for row in np.flatnonzero(batch.trial >= 0).tolist():
                name, _, segment = store.index.id_of(int(batch.trial[row])).partition("#")
                first, n = int(new[name].starts[int(segment or 1) - 1]), int(batch.lengths[row])
                got = new[name].delivered[first : first + n, at_rest]
                assert same_bits(got.copy(), batch.values[row, :n, at_rest].numpy().copy())


def test_a_frame_becomes_what_its_file_becomes(machines, transform):
    for path in raw_files(machines):
        (want,) = transform.read(path).trials
        told = {"machine": want.attributes["machine"]}
        got = transform.apply(frame_of(path), trial=want.id, attributes=told)
        for name in ("values", "observed", "codes", "statics", "static_codes", "time", "starts"):
            assert same_bits(getattr(got, name), getattr(want, name)), name
        assert same_bits(got.delivered, want.delivered)
        assert got.attributes == want.attributes


@settings(max_examples=15)
@given(st.integers(100, 10**6))
def test_a_frame_in_memory_and_its_file_agree_whatever_is_in_them(transform, tmp_path, seed):
    columns = machine_columns(seed) | {"left": [0.0] * len(machine_columns(seed)["t"])}
    path = tmp_path / "raw" / "m1" / "r01.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(csv_text(columns))
    (want,) = transform.read(path).trials
    frame = pl.DataFrame(columns)
    got = transform.apply(frame, trial="r01", attributes={"machine": "m1"})
    assert same_bits(got.delivered, want.delivered)
    assert same_bits(got.codes, want.codes)


@pytest.mark.parametrize("batches", ["windows", "trials"])
def test_a_store_of_new_files_gives_the_batches_of_the_old_one(
    machines, store, transform, tmp_path, batches
):
    ids = ids_of_split(store, "test")
    files = [path for path in raw_files(machines) if path.name.split(".")[0] in ids]
    new = write_new_store(transform, files, tmp_path / "new", split="test")
    assert new.refusals == ()
    options = {"split": "test", "batches": batches, "batch_size": 4, "shuffle": "none"}
    pairs = zip(TrialStream(store, **options), TrialStream(new.store, **options), strict=True)
    for old, fresh in pairs:
        for name in INPUTS:
            assert same_bits(getattr(fresh, name), getattr(old, name)), name
        assert fresh.targets.isnan().all()
    assert {origin.source for origin in new.origins.values()} == set(map(str, files))
    for name, origin in new.origins.items():
        numbers = store[origin.trial].numbers
        starts = dict(
            zip(numbers, np.cumsum([0, *store.index.n_rows[list(numbers)]]), strict=False)
        )
        assert origin.first_row == starts[store.trial_number(name)]


def ids_of_split(store: Store, split: str) -> set[str]:
    code = store.split_code(split)
    numbers = np.flatnonzero(store.index.split == code).tolist()
    return {store.index.id_of(number).partition("#")[0] for number in numbers}


# --- refusals -------------------------------------------------------------------------------------

DRIFTS: dict[str, Any] = {
    "renamed": lambda text: text.replace("t,a,b", "t,A,b", 1),
    "missing": lambda text: "\n".join(line.rpartition(",")[0] for line in text.splitlines()) + "\n",
    "text": lambda text: text.replace("\n", "\n1,ten,1,1,1,run,a,1.0\n", 1),
    "static": lambda text: re.sub(r",\d\.\d{3}$", ",worn", text, flags=re.MULTILINE),
    "changing": lambda text: re.sub(r",\d\.\d{3}\n", ",9.999\n", text, count=1),
    "cut": lambda text: text[:-3],
    "empty": lambda text: "",
    "header": lambda text: text.splitlines()[0] + "\n",
    "backwards": lambda text: text.replace("\n", "\n9999,1,1,1,1,1,run,a,1.0\n", 1),
    "gap": lambda text: re.sub(
        r"^([\d.]+),.*(,\w*,\w*,[\d.]+)$", r"\1,,,,,\2", text, flags=re.MULTILINE
    ),
}


@pytest.fixture(scope="module")
def drifted(machines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same data set, with a bad copy of a file for each drift, as a build sees it."""
    folder = tmp_path_factory.mktemp("drifted")
    shutil.copytree(machines, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("store"))
    good = (folder / "raw/m0/r00.csv").read_text()
    for name, drift in DRIFTS.items():
        (folder / f"raw/m1/{name}.csv").write_text(drift(good))
    (folder / "raw/m2/both.csv").write_text(good)
    (folder / "raw/m2/both.csv.gz").write_bytes(gzip.compress(good.encode()))
    (folder / "raw/m2/lonely.csv").write_text(good)  # no table names it
    (folder / "raw/m9x.csv").write_text(good)  # no id
    (folder / "raw/m2/extra.csv").write_text(good.replace("t,a", "x,t,a").replace("\n0", "\n7,0"))
    (folder / "raw/m2/folder.csv").mkdir()
    for table in ("crews", "lives"):
        with (folder / f"{table}.csv").open("a") as file:
            value = {"crews": "red", "lives": "50"}[table]
            for name in [*DRIFTS, "both", "extra"]:
                file.write(f"{name},{value}\n")
    spec = yaml.safe_load((folder / "dataset.yaml").read_text()) | {"max_quarantined": 0.9}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return folder


def test_drifted_files_are_refused_as_a_build_refuses_them(store, drifted, tmp_path):
    build(drifted / "dataset.yaml", tmp_path / "store")
    wanted = pq.read_table(Store(tmp_path / "store").folder / "quarantine.parquet").to_pylist()
    files = list((drifted / "raw").rglob("*.csv*"))
    found = Transform.load(store, dataset=drifted / "dataset.yaml").read(files)
    compared = ("stage", "code", "message", "line", "column", "size_bytes", "trial")
    got = {
        Path(r.source).relative_to(drifted).as_posix(): [getattr(r, n) for n in compared]
        for r in found.refusals
    }
    assert got == {row["source"]: [row[name] for name in compared] for row in wanted}
    assert len(got) == len(DRIFTS) + 5
    codes = {code for _, code, *_ in got.values()}
    assert codes >= {"missing_column", "field_count", "duplicate_id", "no_table_row", "no_trial_id"}
    assert len(found.trials) == 15  # the good ones, and the one with a column that nobody needs


def test_one_frame_is_refused_with_the_code_of_a_build(machines, transform):
    frame = frame_of(machines / "raw/m0/r00.csv")
    for changed, code in (
        (frame.rename({"a": "A"}), "missing_column"),
        (frame.drop("mode"), "missing_column"),
        (frame.with_columns(b=pl.lit("ten")), "not_a_number"),
        (frame.with_columns(b=pl.lit([1.0])), "unsupported_type"),
        (frame.with_columns(t=pl.lit(1.0)), "time_duplicate"),
        (frame.clear(), "no_rows"),
    ):
        with pytest.raises(TrialRefusedError, match=code) as caught:
            transform.apply(changed, trial="r00", attributes={"machine": "m0"})
        assert caught.value.refusal.code == code
    with pytest.raises(TrialRefusedError, match="no_table_row"):
        transform.apply(frame, trial="r99", attributes={"machine": "m0"})
    told = {"machine": "m0", "crew": "blue"}
    assert transform.apply(frame, trial="r99", attributes=told).statics[1:].tolist() == [1, 0]


def test_an_input_that_nobody_tells_is_asked_for(machines, transform):
    frame = frame_of(machines / "raw/m0/r00.csv")
    with pytest.raises(InvalidSpecError, match=r"'machine' is an input .* attributes=\{'machine'"):
        transform.apply(frame, trial="r00")
    unknown = transform.apply(frame, trial="r00", attributes={"machine": None})
    assert unknown.static_codes.tolist() == [0]
    typed = transform.apply(frame, trial="r00", attributes={"machine": "m0", "wear": 1.058})
    assert typed.attributes["wear"] == "1.058"


def test_values_that_normalization_would_make_infinite_are_refused_by_themselves(tmp_path):
    write_trials(tmp_path, 4)
    build(write_spec(tmp_path, normalize={"scope": "train"}), tmp_path / "store")
    store = Store(tmp_path / "store")
    huge = write_trial(tmp_path, "new/huge", {"x": [1.0, 3e38], "y": [1.0, 2.0]})
    good = write_trial(tmp_path, "new/good", {"x": [1.0, 2.0], "y": [1.0, 2.0]})
    store.fit["normalize"]["scale"][0] = 1e-6
    found = Transform.load(store).read([huge, good])
    assert [(r.stage, r.code) for r in found.refusals] == [("normalize", "beyond_float32")]
    assert [trial.source for trial in found.trials] == [str(good)]
