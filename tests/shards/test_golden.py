"""Golden stores: what format major 1 was when it was published is read the same for ever.

Made once by `tests/golden/make.py` and committed; `expected.json` holds the numbers that went in.
"""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zarr

from shards import Store
from shards.verify import verify_store

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
V1 = GOLDEN / "v1"
EXPECTED = json.loads((V1 / "expected.json").read_text(encoding="utf-8"))


def load_make():
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cases = pytest.mark.parametrize("case", EXPECTED)


def assert_pinned(rows, pin):
    assert rows.dtype.name == pin["dtype"]
    assert list(rows.shape) == pin["shape"]
    if "rows" in pin:
        assert [row.tobytes().hex() for row in rows] == pin["rows"]
    else:
        assert hashlib.sha256(rows.tobytes()).hexdigest() == pin["sha256"]


def test_the_cases_together_cover_what_the_format_can_say():
    manifests = [Store(V1 / case).manifest for case in EXPECTED]
    assert {m.target.kind for m in manifests} == {"forecast", "per_step", "per_trial"}
    assert {m.observed for m in manifests} == {True, False}
    assert {name for m in manifests for s in m.shards for name in s.arrays} == {
        "values", "observed", "targets",
    }  # fmt: skip
    assert max(a.n_inner for m in manifests for s in m.shards for a in s.arrays.values()) > 1
    assert max(len(m.shards) for m in manifests) > 1


@cases
def test_the_committed_bytes_are_untouched(case):
    assert load_make().file_hashes(V1 / case) == EXPECTED[case]["files"]


@cases
def test_every_promise_holds(case):
    assert verify_store(V1 / case) == []


@cases
def test_the_map_shows_the_numbers_that_went_in(case):
    store = Store(V1 / case)
    assert len(store.index) == len(EXPECTED[case]["trials"])
    for number, trial in enumerate(EXPECTED[case]["trials"]):
        assert store.trial_number(trial["id"]) == number
        for name, pin in trial["arrays"].items():
            assert_pinned(store.trial_rows(number, name), pin)


@cases
def test_zarr_and_arrow_alone_show_the_numbers_that_went_in(case):
    """No reader of ours: the JSON, Arrow IPC and Zarr that SPEC.md promises to everybody."""
    folder = V1 / case / "versions" / "v0001"
    manifest = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    with pa.OSFile(str(folder / "index.arrow")) as file:
        index = pa.ipc.open_file(file).read_all().to_pylist()
    for row, trial in zip(index, EXPECTED[case]["trials"], strict=True):
        assert row["id"] == trial["id"]
        assert row["n_windows"] == trial["n_windows"]
        assert manifest["splits"][row["split"]] == trial["split"]
        assert row["weight"] == trial["weight"]
        assert (None if np.isnan(row["label"]) else row["label"]) == trial["label"]
        shard = manifest["shards"][row["shard"]]
        group = zarr.open_group(V1 / case / "shards" / shard["digest"], mode="r")
        assert set(group.array_keys()) == set(trial["arrays"])
        for name, pin in trial["arrays"].items():
            rows = np.asarray(group[name][row["row_start"] : row["row_start"] + row["n_rows"]])
            assert_pinned(rows, pin)


@cases
def test_the_index_says_what_went_in(case):
    store, trials = Store(V1 / case), EXPECTED[case]["trials"]
    index, splits = store.index, store.manifest.splits
    assert [index.id_of(i) for i in range(len(index))] == [t["id"] for t in trials]
    assert index.n_rows.tolist() == [t["arrays"]["values"]["shape"][0] for t in trials]
    assert index.n_windows.tolist() == [t["n_windows"] for t in trials]
    assert [splits[code] for code in index.split] == [t["split"] for t in trials]
    assert index.weight.tolist() == [t["weight"] for t in trials]
    labels = [None if np.isnan(label) else float(label) for label in index.label]
    assert labels == [t["label"] for t in trials]


@cases
def test_the_reader_knows_the_content_by_its_pinned_names(case):
    assert load_make().identity(Store(V1 / case)) == EXPECTED[case]["identity"]


@cases
def test_todays_writer_gives_the_same_content_the_same_names(case, tmp_path):
    make = load_make()
    assert make.identity(make.build(tmp_path, case)) == EXPECTED[case]["identity"]


@cases
def test_todays_writer_writes_the_same_shards_byte_for_byte(case, tmp_path):
    make = load_make()
    make.build(tmp_path, case)
    today = make.file_hashes(tmp_path / "shards")
    pinned = EXPECTED[case]["files"]
    assert today == {
        name.removeprefix("shards/"): digest
        for name, digest in pinned.items()
        if name.startswith("shards/")
    }


def test_the_delivery_affine_of_a_golden_store_is_pinned_to_the_bit():
    offset, inv_scale = Store(V1 / "forecast").delivery_affine()
    assert offset.view(np.uint32).tolist() == [0x3DCCCCCD] * 9
    assert inv_scale.view(np.uint32).tolist() == [0x3EAAAAAB] * 9


def test_make_never_overwrites(tmp_path):
    shutil.copytree(
        GOLDEN, tmp_path / "tests" / "golden", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(GOLDEN.parent / "stores.py", tmp_path / "tests")
    before = load_make().file_hashes(tmp_path / "tests" / "golden" / "v1")
    done = subprocess.run(
        [sys.executable, tmp_path / "tests" / "golden" / "make.py"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "never overwritten" in done.stderr
    assert load_make().file_hashes(tmp_path / "tests" / "golden" / "v1") == before


def test_the_golden_stores_are_small_and_git_keeps_them():
    files = [p for p in V1.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 60_000
    assert all(any(folder.iterdir()) for folder in V1.rglob("*") if folder.is_dir())
    if not (GOLDEN.parents[1] / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no git checkout")
    ignored = subprocess.run(
        ["git", "check-ignore", "--stdin"], cwd=V1, capture_output=True, text=True,
        input="\n".join(p.relative_to(V1).as_posix() for p in files),
    )  # fmt: skip
    assert (ignored.returncode, ignored.stdout) == (1, "")
