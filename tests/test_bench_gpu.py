"""`bench/gpu.py` runs where there is no GPU, and needs little more than PyTorch."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stores import make_store

from loaders import TrialStream
from shards import Store, TrialShardsError

ROOT = Path(__file__).parents[1]
HEAVY = ("dagster", "polars", "zarr", "llvmlite", "numba", "pydantic", "yaml", "rich", "click")
BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""
READ = """
import sys
from loaders import TrialStream
for resident in (False, True):
    stream = TrialStream(sys.argv[1], batch_size=4, seed=2, device="cpu", resident=resident)
    for batch in stream:
        print(batch.step, float(batch.values.double().sum()))
"""
RUN = """
import runpy, sys
sys.argv[0] = {script!r}
sys.path.insert(0, {folder!r})
runpy.run_path({script!r}, run_name="__main__")
"""


def run_without(absent: tuple[str, ...], code: str, *arguments: str) -> str:
    """Run code in a process that has none of some packages; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCK.format(names=set(absent)) + code, *arguments],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def bench():
    """A loader of scripts as modules, which leaves no name of theirs behind."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "bench")
        yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(ROOT / "bench") in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_uncompressed_rows_are_read_without_zarr_and_all_the_rest(tmp_path):
    store = make_store(tmp_path, [9, 14, 30], missing=True)
    said = run_without(HEAVY, READ, str(tmp_path)).splitlines()
    want = [
        f"{batch.step} {float(batch.values.double().sum())}"
        for batch in TrialStream(store, batch_size=4, seed=2)
    ]
    assert said == [*want, *want]
    assert len(want) > 3


def test_it_runs_with_pytorch_numpy_and_pyarrow_alone(tmp_path):
    results = ROOT / "bench" / "results" / "gpu.json"
    before = results.read_bytes() if results.exists() else None
    script = ROOT / "bench" / "gpu.py"
    code = RUN.format(script=str(script), folder=str(script.parent))
    said = run_without(
        (*HEAVY, "xxhash"), code, "--quick", "--device", "cpu", "--scratch", str(tmp_path),
        "--results", str(tmp_path / "results"), "--save",
    )  # fmt: skip
    assert "resident" in said
    assert (results.read_bytes() if results.exists() else None) == before
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["gpu.quick.json"]
    report = json.loads((tmp_path / "results" / "gpu.quick.json").read_text())
    assert {"host", "host_ahead", "resident", "blocks", "copy_to_device", "kernel_view"} <= set(
        report["batches"]["windows_per_s"]
    )
    assert min(report["batches"]["windows_per_s"].values()) > 0
    assert all(0 <= wait["share"] <= 1 for wait in report["waiting"].values())
    assert set(report["whole_trials"]) == {"padded", "packed", "lanes"}
    # Its digests are of another kind; where xxhash is there `make_store` makes it anew.
    with pytest.raises(TrialShardsError, match="xxh3_128 is not that of its content"):
        Store(tmp_path / "gpu-24" / "store-4")


def test_turns_alternate_and_the_first_does_not_count(bench):
    log = []
    turns = {name: lambda name=name: log.append(name) or len(log) for name in "abc"}
    found = bench("gpu").alternate(turns, 2)
    assert "".join(log) == "cba" + "abc" + "cba"
    assert found == {"a": [4, 9], "b": [5, 8], "c": [6, 7]}


def test_the_share_that_waits_is_what_lies_between_steps(bench, monkeypatch):
    steps = bench("gpu_steps")
    now = [0.0]
    monkeypatch.setattr(steps.time, "perf_counter", lambda: now[0])

    class Learner:
        def step_window(self, batch):
            now[0] += 3

    def batches():
        while True:
            now[0] += 1
            yield None

    share, step_s = steps.waiting(torch.device("cpu"), Learner(), batches(), 5)
    assert share == pytest.approx(1 / 4)
    assert step_s == pytest.approx(4)


def test_both_gathers_of_the_comparison_give_the_same(bench):
    turns = bench("gpu_steps").kernels(torch.device("cpu"), 50, 3, 8, 5)
    assert all(turn(2) > 0 for turn in turns.values())
