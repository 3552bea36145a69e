"""`trialshards plan` and `doctor`: what they print, exit codes, stable JSON keys."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from stores import make_store

from loaders import LaneBatches, TrialStream
from shards import WindowSpec
from shards.manifest import TargetSchema
from trialshards.cli import main

LENGTHS = [50, 7, 23, 90, 3, 41, 12, 66, 30, 18]
SPLITS = ["train"] * 9 + ["val"]
ROOT = Path(__file__).parents[1]


def run(*args, code=0):
    """Run the command; return what it printed, with white space made single."""
    result = CliRunner().invoke(main, [str(arg) for arg in args], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def planned(store, *args):
    return json.loads(run("plan", store, "--json", "--seconds", 0.01, *args))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "store"
    windows = WindowSpec(length=10, stride=3, steps=1, short="pad")
    make_store(path, LENGTHS, windows=windows, splits=SPLITS, n_shards=3)
    return path


# --- plan -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", ["global", "blocks", "none"])
@pytest.mark.parametrize("balance", ["window", "trial", "sqrt"])
@pytest.mark.parametrize("batches", ["windows", "trials", "lanes"])
def test_the_plan_says_what_an_epoch_then_delivers(store, batches, balance, shuffle):
    options = ["--batches", batches, "--shuffle", shuffle, "--balance", balance]
    about = planned(store, "--batch-size", 4, *options)
    stream = TrialStream(store, batch_size=4, batches=batches, shuffle=shuffle, balance=balance)
    epoch = list(stream)
    asked = {"batches": batches, "shuffle": shuffle, "balance": balance, "batch_size": 4}
    assert {name: about[name] for name in asked} == asked
    assert about["n_steps"] == len(epoch)
    assert about["n_trials"] == 9
    lengths = np.concatenate([batch.lengths.numpy() for batch in epoch])
    trial = np.concatenate([batch.trial.numpy() for batch in epoch])
    if batches != "lanes":
        assert about["n_draws"] == np.count_nonzero(trial >= 0)
    # Filler rows are no padding, but empty lanes are.
    rows = trial >= 0 if batches != "lanes" else slice(None)
    longest = np.concatenate([[batch.values.shape[1]] * len(batch) for batch in epoch])
    assert about["padding_share"] == pytest.approx(1 - lengths.sum() / longest[rows].sum())
    assert about["bytes"]["copied_per_epoch"] == lengths.sum() * 3 * 4
    assert about["memory"]["plan_bytes"] > 0
    assert about["probe"]["rows_per_second"] > 0


def test_the_plan_of_lanes_says_how_full_they_are_and_could_be(store):
    about = planned(store, "--batches", "lanes", "--batch-size", 6, "--chunk", 8)
    epoch = list(TrialStream(store, batch_size=6, batches=LaneBatches(chunk=8)))
    lanes = about["lanes"]
    busy = np.mean([(batch.trial >= 0).numpy() for batch in epoch])
    rows = np.mean([batch.lengths.numpy() / 8 for batch in epoch])
    assert (lanes["fill"], lanes["row_fill"]) == (pytest.approx(busy), pytest.approx(rows))
    assert lanes["fill"] <= lanes["fill_bound"] <= 1


@pytest.mark.parametrize("batches", ["windows", "trials", "lanes"])
def test_a_plan_balanced_by_class_is_that_of_its_epoch(tmp_path, batches):
    target = TargetSchema("per_trial", ("kind",), ("a", "b"))
    labels = [0, 0, 0, 1, 0, 0, 1, 0, 0, 0]
    make_store(tmp_path, LENGTHS, target=target, labels=labels)
    options = ["--batches", batches, "--balance", "class"]
    about = planned(tmp_path, "--batch-size", 4, *options)
    epoch = list(TrialStream(tmp_path, batch_size=4, batches=batches, balance="class"))
    assert about["n_steps"] == len(epoch)
    if batches != "windows":  # their trials differ by epoch, and with them how many are short
        n_rows = sum(int(batch.lengths.sum()) for batch in epoch)
        assert about["bytes"]["copied_per_epoch"] == n_rows * 3 * 4


def test_the_plan_names_the_nearest_number_of_lanes_that_is_about_the_fullest(tmp_path):
    # Twelve trials of one length: 4, 6 and 12 lanes hold them without rest, 5 do not.
    make_store(tmp_path, [16] * 12)
    lanes = ["--batches", "lanes", "--chunk", 4, "--seconds", 0.01]
    about = planned(tmp_path, *lanes, "--batch-size", 5)["lanes"]
    # The bound knows of chunks alone, not that those of a trial cannot be split.
    assert (about["fill"], about["fill_bound"]) == (48 / 60, 48 / 50)
    assert about["best"] == {"batch_size": 4, "fill": 1.0, "n_steps": 12}
    shown = run("plan", tmp_path, *lanes, "--batch-size", 5)
    assert "80.0% of their steps hold a chunk of 4, 96.0% at best; 4 would fill 100.0% in" in shown
    full = planned(tmp_path, *lanes, "--batch-size", 12)["lanes"]
    assert full["best"] == {"batch_size": 12, "fill": 1.0, "n_steps": 4}
    shown = run("plan", tmp_path, *lanes, "--batch-size", 12)
    assert "no number near theirs is much better" in shown


def test_the_plan_tells_a_shuffled_epoch_from_one_in_order(store):
    mixed, ordered = (
        planned(store, "--batch-size", 8, "--shuffle", shuffle)["quality"]
        for shuffle in ("global", "none")
    )
    assert mixed["distinct_trials_share"] > 0.7 > ordered["distinct_trials_share"]
    lanes = ["--batches", "trials", "--batch-size", 2]
    assert planned(store, *lanes)["quality"]["distinct_trials_share"] is None
    assert -1 <= planned(store, *lanes)["quality"]["length_correlation"] <= 1


def test_order_in_storage_shows_as_a_rank_correlation_of_one(tmp_path):
    # One shard: trials in the order of their ids, as an epoch without shuffle reads them.
    make_store(tmp_path, LENGTHS)
    assert planned(tmp_path, "--shuffle", "none")["quality"]["storage_correlation"] > 0.999
    assert abs(planned(tmp_path)["quality"]["storage_correlation"]) < 0.5


def test_the_bytes_of_stored_windows_are_those_of_the_windows(tmp_path):
    windows = WindowSpec(length=10, stride=5, steps=1, short="drop")
    stored = make_store(tmp_path, [30, 40], windows=windows, layout="windows")
    about = planned(tmp_path)
    n_windows = int(stored.index.n_windows.sum())
    assert about["n_draws"] == n_windows
    assert about["bytes"]["stored"] == about["bytes"]["copied_per_epoch"]
    assert about["bytes"]["stored"] == n_windows * (10 * 3 + 1) * 4


def test_the_keys_of_a_plan_are_stable(store):
    about = planned(store, "--workers", 1)
    assert set(about) == {
        "store", "version", "split", "batches", "batch_size", "shuffle", "balance", "n_trials",
        "n_windows", "n_draws", "n_steps", "padding_share", "lanes", "bytes", "memory", "quality",
        "probe",
    }  # fmt: skip
    assert about["lanes"] is None
    assert about["probe"]["n_workers"] == 1
    assert about["memory"]["batches_bytes"] == 3 * about["memory"]["batch_bytes"]


def test_a_plan_is_shown_to_people(store):
    shown = run("plan", store, "--split", "val", "--batch-size", 4, "--seconds", 0.01)
    assert "coded v0001" in shown
    assert "split val: 1 trials; 4 windows of 10 every 3 a step" in shown
    for title in ("epoch", "padding", "bytes", "memory", "shuffle", "probe"):
        assert f" {title} " in shown
    assert "windows/s in process" in shown


def test_what_a_plan_cannot_be_made_of_is_a_sentence(store, tmp_path):
    assert "no committed version" in run("plan", tmp_path / "none", code=1)
    assert "no split 'nope'" in run("plan", store, "--split", "nope", code=1)
    assert "--chunk goes with" in run("plan", store, "--chunk", 4, code=2)
    assert "--batches" in run("plan", store, "--batches", "days", code=2)


# --- doctor -----------------------------------------------------------------------------------

FAST = ["--seconds", 0.02, "--batch-size", 4]


def test_the_doctor_exits_by_its_findings_and_ignores_those_it_is_told_of(store, monkeypatch):
    monkeypatch.setenv("TRIALSHARDS_FAST", "0")
    said = json.loads(run("doctor", store, "--json", *FAST, code=1))
    states = {check["name"]: check["state"] for check in said["checks"]}
    findings = sorted(name for name, state in states.items() if state == "finding")
    assert said["n_findings"] == len(findings)
    assert {"fast path", "format"} <= set(findings)
    ignore = [part for name in findings for part in ("--ignore", name)]
    # What is measured may have become a finding, or be none any more.
    often = ["page cache", "disk", "threads", "waiting"]
    ignore += [part for name in often if name not in findings for part in ("--ignore", name)]
    shown = run("doctor", store, *ignore, *FAST)
    assert "fast path ignored TRIALSHARDS_FAST=0 switches it off -> unset" in shown
    assert shown.endswith(f"no findings in {len(states)} checks")


def test_the_doctor_looks_at_a_machine_alone(monkeypatch):
    monkeypatch.setenv("TRIALSHARDS_FAST", "0")
    said = json.loads(run("doctor", "--json", code=1))
    assert set(said) == {"n_findings", "ignored", "checks"}
    assert [check["name"] for check in said["checks"]] == [
        "threads", "omp", "cpu quota", "shared memory", "open files", "huge pages", "fast path",
    ]  # fmt: skip
    assert all(set(check) == {"name", "state", "seen", "remedy"} for check in said["checks"])


def test_the_doctor_looks_at_a_machine_without_pytorch(tmp_path):
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'loaders', 'polars']))\n"
        "from trialshards.cli import main; main(['doctor', '--json'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    threads = json.loads(done.stdout)["checks"][0]
    assert (threads["name"], threads["state"]) == ("threads", "not checked")


def test_the_doctor_counts_the_processes_that_it_is_told_of():
    shown = run("doctor", "--processes", 1000, "--ignore", "omp", code=1)
    assert "threads finding 1000 processes x (" in shown
    assert "-> export OMP_NUM_THREADS=1, and start fewer workers or processes" in shown


def test_what_the_doctor_cannot_look_at_is_a_sentence(store, tmp_path):
    assert "no committed version" in run("doctor", tmp_path / "none", code=1)
    assert "no split 'nope'" in run("doctor", store, "--split", "nope", code=1)
    assert "'headache' is no check here" in run("doctor", "--ignore", "headache", code=2)


def test_the_doctor_writes_nothing_into_a_store(store):
    def content():
        files = sorted(path for path in store.rglob("*") if path.is_file())
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    before = content()
    CliRunner().invoke(main, ["doctor", str(store), "--seconds", "0.02"])
    run("plan", store, "--seconds", 0.01)
    assert content() == before


# --- both -------------------------------------------------------------------------------------


def test_help_does_not_wait_for_the_rooms():
    for name in ("plan", "doctor"):
        assert len(run(name, "--help")) > 500
    heavy = ["torch", "polars", "zarr", "rich", "pydantic", "loaders"]
    program = (
        f"import sys, trialshards.cli; print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
