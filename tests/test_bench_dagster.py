"""The parts of `bench/dagster.py` that only compute: sums of steps, medians, goals."""

import importlib.util
import sqlite3
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "bench" / "dagster.py"


@pytest.fixture(scope="module")
def bench():
    """The script as a module, under a name that hides no package."""
    spec = importlib.util.spec_from_file_location("bench_dagster", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(importlib.import_module("sys").modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


def one_side(bench, seconds):
    parts = dict.fromkeys(("start", *bench.PARTS, "between", "end"), seconds)
    return {
        "wall_s": seconds, "cpu_s": seconds, "parts_s": parts, "steps_s": {"catalog": seconds},
        "events": 88, "log_mb": 0.9,
    }  # fmt: skip


def test_overhead_is_the_median_of_differences_not_the_difference_of_medians(bench):
    pairs = [(10, 11), (20, 24), (1, 9)]
    rounds = [
        {"plain": {"first": one_side(bench, a)}, "graph": {"first": one_side(bench, b)}}
        for a, b in pairs
    ]
    summary = bench.summarize(rounds, "first")
    assert summary["wall_s"] == {"plain": 10, "graph": 11, "more": 4}
    assert summary["parts_s"]["build"]["more"] == 4


def test_a_goal_is_met_by_what_was_measured(bench):
    location = {"dg_check_defs_s": 4.0, "imported": {"torch": True}}
    goals = bench.judge(14.9, location)
    assert {name: goal["met"] for name, goal in goals.items()} == {
        "overhead_s": True,
        "dg_check_defs_s": False,
        "torch_imported": False,
    }


def test_steps_are_read_from_the_log_of_a_run(bench, tmp_path):
    rows = [
        (None, "RUN_START", "2026-01-01 00:00:00.000000"),
        ("bench__catalog", "STEP_START", "2026-01-01 00:00:01.500000"),
        ("bench__catalog", "ASSET_MATERIALIZATION", "2026-01-01 00:00:01.600000"),
        ("bench__catalog", "STEP_SUCCESS", "2026-01-01 00:00:02.000000"),
    ]
    with sqlite3.connect(tmp_path / "run.db") as log:
        log.execute("CREATE TABLE event_logs (step_key, dagster_event_type, timestamp)")
        log.executemany("INSERT INTO event_logs VALUES (?, ?, ?)", rows)
    spans, n_events = bench.read_log(tmp_path / "run.db")
    began, ended = spans["catalog"]
    assert (n_events, ended - began) == (4, 0.5)


def test_the_corpus_is_the_same_every_time(bench, tmp_path):
    for name in ("a", "b"):
        bench.write_trials(tmp_path / name, 3)
    files = sorted((tmp_path / "a").rglob("*.csv"))
    assert [f.name for f in files] == ["t000000.csv", "t000001.csv", "t000002.csv"]
    for file in files:
        lines = file.read_text().splitlines()
        assert lines[0] == "x,y,z,w"
        assert 61 <= len(lines) <= 201
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()


def test_every_step_of_the_graph_is_counted(bench):
    """A check or asset that is added to the room must be added to the plain side too."""
    orchestration = pytest.importorskip("pipeline.orchestration.checks")
    assert tuple(name for name, *_ in orchestration.STORE_CHECKS) == bench.CHECKS
