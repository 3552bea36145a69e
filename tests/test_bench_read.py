"""`bench/read.py` in small: what counts as a window, who may run, and what the ratios are of."""

import importlib
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

BENCH = Path(__file__).parents[1] / "bench"
N_TRIALS = 40


@pytest.fixture(scope="module")
def bench():
    """A loader of scripts as modules, which leaves no name of theirs behind."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(BENCH) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def work(bench, tmp_path_factory):
    return bench("read_work").make_work(tmp_path_factory.mktemp("work"), N_TRIALS)


def state_of(child) -> str:
    stat = Path(f"/proc/{child._process.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0]


def test_work_is_the_windows_of_each_trial_and_of_no_two(work):
    first = work.ends - work.lengths
    trial = np.searchsorted(work.ends, work.windows, side="right")
    assert ((work.windows - first[trial]) % 16 == 0).all()
    assert (work.windows + 128 < work.ends[trial]).all()  # the target lies in the trial as well
    assert len(work.windows) == ((work.lengths - 129) // 16 + 1).sum()
    cut = np.concatenate([x for x, _ in work.cut()])
    assert np.array_equal(cut[-1].reshape(128, 16), work.rows[work.windows[-1] :][:128])


@pytest.mark.parametrize("name", ["tutorial", "parquet"])
def test_a_peer_reads_each_window_once_per_epoch(bench, work, name):
    judge = bench("read_work").Judge(work)
    batches = bench(f"peers.{name}").batches(work.folder, workers=0)
    seen = []
    for x, y in islice(batches, -(-len(work.windows) // 256)):
        seen += judge.starts(x, y)
    assert seen != sorted(seen)
    assert sorted(seen) == work.windows.tolist()


def test_a_wrong_window_or_target_is_noticed(bench, work):
    judge = bench("read_work").Judge(work)
    starts = work.windows[[3, 1]]
    x = torch.from_numpy(np.stack([work.rows[i : i + 128] for i in starts]))
    y = torch.from_numpy(work.rows[starts + 128, :1].copy())
    assert judge.starts(x, y) == starts.tolist()
    with pytest.raises(ValueError, match="target"):
        judge.starts(x, y.flip(0))
    x[1, 64] = x[0, 64]
    with pytest.raises(ValueError, match="no window"):
        judge.starts(x, y)


def test_methods_take_turns_and_all_others_stand_still(bench, work):
    turns = bench("read_turns")
    store = str(bench("read_store").make_store(work.folder / "store-3", work, 3))
    copy = {"source": "memory", "order": "random", "store": store, "warm_s": 0.1}
    children = {}
    try:
        for name, method, setting in (
            ("torch_3", "stream", {"store": store, "warm_s": 0.1}), ("block_copy", "copy", copy),
        ):  # fmt: skip
            env = {"TRIALSHARDS_FAST": "0"}
            children[name] = turns.Child(sys.executable, method, work.folder, setting, env)
        assert {state_of(child) for child in children.values()} == {"T"}
        rates = turns.take_turns(children, 2, 0.01)
        assert {state_of(child) for child in children.values()} == {"T"}
    finally:
        turns.close_all(list(children.values()))
    assert all(child._process.returncode == 0 for child in children.values())
    assert all(len(rates[name]) == 2 and min(rates[name]) > 0 for name in children)
    assert children["torch_3"].facts["compiled"] is False


def test_a_method_that_fails_says_why(bench, work):
    turns = bench("read_turns")
    setting = {"store": str(work.folder / "no_store"), "warm_s": 0}
    with pytest.raises(turns.MethodError, match=r"stream ended: .*no_store"):
        turns.Child(sys.executable, "stream", work.folder, setting)


def test_ratios_are_medians_over_rounds_of_what_was_measured_side_by_side(bench):
    read = bench("read")
    rates = {
        "torch_1": [40, 100, 20], "torch_100": [30, 30, 30], "compiled_1": [80, 80, 80],
        "block_copy": [40, 200, 20], "block_copy_memory": [80, 80, 80],
        "sequential_copy": [100, 100, 100],
        "fast": [10, 20, 10], "middle": [4, 4, 2], "slow": [2, 1, 2],
    }  # fmt: skip
    rows = {(r["path"], r["shards"]): r for r in read.summarize(rates, ["slow", "fast", "middle"])}
    first = rows["torch", 1]
    assert first["fastest_peer"] == "fast"
    assert first["over_fastest_peer"] == 4  # of 4, 5 and 2
    assert first["over_median_of_rest"] == 13.333  # 40 / 3, 100 / 2.5, 20 / 2
    assert first["over_block_copy"] == 1
    assert first["over_slow"] == 20
    goals = read.judge(list(rows.values()))
    assert goals["torch, over_fastest_peer"] == {"figure": 3, "goal": 3.5, "met": False}
    assert goals["compiled, over_fastest_peer"] == {"figure": 8, "goal": 5, "met": True}
    assert goals["compiled, over_block_copy"]["met"]


def test_a_peer_that_cannot_be_installed_is_named_and_the_rest_is_there(
    bench, tmp_path, monkeypatch
):
    peers = bench("read_peers")
    calls = []

    def run(command: list[str]) -> str:
        calls.append(command)
        return "no matching distribution" if any("litdata" in word for word in command) else ""

    monkeypatch.setattr(peers, "_run", run)
    made = peers.Environment(tmp_path / "venv")
    assert made.missing == {"litdata": "no matching distribution"}
    assert made.python == str(tmp_path / "venv" / "bin" / "python")
    n_first = len(calls)
    again = peers.Environment(tmp_path / "venv")  # tries what is missing, and nothing else
    assert again.missing == made.missing
    assert len(calls) == n_first + 1
    monkeypatch.setattr(peers, "_run", lambda command: "no network")
    alone = peers.Environment(tmp_path / "other")
    assert alone.python == sys.executable
    assert set(alone.missing) == {"datasets", "grain", "litdata"}


def test_every_peer_has_a_module_and_its_package_a_pin(bench):
    base, extras = bench("read_peers").read_requirements(BENCH / "peers" / "requirements.txt")
    assert all("==" in line for line in base + extras)
    assert "torch==2.13.0" in base
    peers = bench("peers").PEERS
    assert {peer.package for peer in peers.values() if peer.package} == {
        line.partition("==")[0] for line in extras
    }
    for name, peer in peers.items():
        assert (BENCH / "peers" / f"{name}.py").is_file()
        assert {setting["workers"] for setting in peer.settings} == {0, 2}
