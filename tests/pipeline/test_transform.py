"""New trials are treated as those of the build: the same bits, and the same refusals."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machinetrials import build_machines, machine_columns, raw_files, write_machines
from stores import make_store
from trialfolders import csv_text, write_spec, write_trial, write_trials

from loaders import TrialStream
from pipeline.build import build
from pipeline.spec import DatasetSpec
from pipeline.transform import Transform, TrialRefusedError
from pipeline.transformfiles import place_of
from pipeline.transformrecipe import inputs_only
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
    return got.dtype == wanted.dtype and got.shape == wanted.shape and (
        got.tobytes() == wanted.tobytes()
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
        assert (new.observed == np.unpackbits(packed, axis=1, count=len(store.manifest.channels), bitorder="little")).all()
        assert new.starts.tolist() == np.cumsum([0, *(s.n_rows for s in old.segments)])[:-1].tolist()
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
        for batch in TrialStream(store, split=split, batches="trials", batch_size=4, shuffle="none"):
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


@pytest.mark.parametrize("batches", ["windows", "trials", "lanes"])
def test_a_store_of_new_files_gives_the_batches_of_the_old_one(
    machines, store, transform, tmp_path, batches
):
    ids = ids_of_split(store, "test")
    files = [path for path in raw_files(machines) if path.name.split(".")[0] in ids]
    new = write_new_store(transform, files, tmp_path / "new", split="test")
    assert new.refusals == ()
    options = {"split": "test", "batches": batches, "batch_size": 4, "shuffle": "none"}
    if batches == "lanes":
        options["shuffle"] = "global"
    pairs = zip(TrialStream(store, **options), TrialStream(new.store, **options), strict=True)
    for old, fresh in pairs:
        for name in INPUTS:
            assert same_bits(getattr(fresh, name), getattr(old, name)), name
        assert fresh.targets.isnan().all()
    assert set(new.sources.values()) == set(map(str, files))


def ids_of_split(store: Store, split: str) -> set[str]:
    code = store.split_code(split)
    numbers = np.flatnonzero(store.index.split == code).tolist()
    return {store.index.id_of(number).partition("#")[0] for number in numbers}
