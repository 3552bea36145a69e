"""One data set after the other: what goes on, what starts anew, and what the matrix says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learnable import learnable_store, tiny_config

import training.loop
import training.stages
import training.studyrun
from shards import InvalidSpecError, Store
from training import train
from training.checkpoint import load_checkpoint
from training.config import TrainConfig
from training.forgetting import Matrix
from training.stages import link_stage
from training.streams import open_stream
from training.studies import run_study
from training.study import plan_runs
from training.studyrun import Orders

HERE = Path(__file__).parent
STAGES = (
    {"name": "one", "store": "a", "optimizer": {"lr": 2e-2}},
    {"name": "two", "store": "b", "epochs": 2, "optimizer": {"schedule": "cosine", "lr": 5e-3}},
    {"name": "back", "store": "a", "epochs": 1, "data": {"windows": {"length": 9}}},
)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    learnable_store(folder / "a", "per_step", n_trials=20)
    learnable_store(folder / "b", "per_step", n_trials=30, seed=1)
    return folder


def sequence(stores: Path, out: Path, **changes: Any) -> TrainConfig:
    stages = [{**stage, "store": stores / str(stage["store"])} for stage in STAGES]
    asked: dict[str, Any] = {
        "store": stores / "a", "out": out, "stages": stages, "epochs": 1, "checkpoint_steps": 2,
        "model": {"hidden": 8, "layers": 1, "head": [4]},
    }  # fmt: skip
    return tiny_config(stores, **{**asked, **changes})


def same_weights(one: dict[str, Any], two: dict[str, Any]) -> bool:
    """Return whether two checkpoints hold the same weights, bit for bit."""
    return one["model"].keys() == two["model"].keys() and all(
        torch.equal(one["model"][name], tensor) for name, tensor in two["model"].items()
    )


@pytest.fixture(scope="module")
def whole(stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sequence with replay that ran through at once."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run_study(sequence(stores, out, replay=0.25))
    return out


def test_a_stage_starts_from_the_best_weights_with_all_else_anew(whole, stores, tmp_path):
    runs = plan_runs(sequence(stores, whole, replay=0.25))
    best = load_checkpoint(runs[0].config.out / "best.ckpt")
    linked, fresh = link_stage(runs, 1, replay=0.25)
    assert not fresh
    assert linked.config.start is not None
    started = load_checkpoint(linked.config.start.checkpoint)
    assert same_weights(started, best)
    alone = linked.config.model_copy(update={"out": tmp_path / "alone"})
    train(alone)
    ours = load_checkpoint(runs[1].config.out / "last.ckpt")
    assert same_weights(ours, load_checkpoint(alone.out / "last.ckpt"))
    rates = [row["lr"] for row in ours["state"]["history"]]
    assert rates[0] == pytest.approx(2.5e-3)  # half of the way down the cosine of its own
    assert rates[1] == pytest.approx(0, abs=1e-12)


def test_replay_takes_its_share_and_leaves_the_stage_a_whole_pass(whole, stores):
    runs = plan_runs(sequence(stores, whole, replay=0.25))
    assert link_stage(runs, 0, replay=0.25)[0].config.mixture is None
    assert link_stage(runs, 1, replay=0.0)[0].config.mixture is None
    mixed = link_stage(runs, 1, replay=0.25)[0].config
    assert mixed.mixture is not None
    assert mixed.mixture.stores[0].store == stores / "a"
    assert mixed.mixture.by == (0.75, 0.25)
    config = runs[1].config
    n_own = len(open_stream(Store(config.store), config, "train", train=True))
    n_mixed = load_checkpoint(config.out / "last.ckpt")["state"]["step"] / 2
    assert n_mixed == np.ceil(n_own / 0.75) > n_own


def test_replay_shares_among_the_earlier_data_sets_alike(stores, tmp_path):
    stages = [{"name": str(i), "store": stores / name} for i, name in enumerate("aba")]
    stages.append({"name": "3", "store": stores / "b", "data": {"where": "n_rows > 20"}})
    config = sequence(stores, tmp_path, stages=stages, replay=0.5)
    runs = plan_runs(config)
    train(runs[2].config.changed({"out": tmp_path / "2"}))
    mixture = link_stage(runs, 3, replay=0.5)[0].config.mixture
    assert mixture is not None
    assert [each.store for each in mixture.stores] == [stores / "a", stores / "b"]
    assert mixture.by == (0.5, 0.25, 0.25)


def test_every_data_set_is_scored_after_every_stage(whole, stores):
    document = json.loads((whole / "forgetting.json").read_text())
    assert document["data_sets"] == ["one", "two"]
    assert document["learned"] == ["one", "two", "one"]
    for t, stage in enumerate(document["stages"]):
        for d, name in enumerate(document["data_sets"]):
            scored = json.loads((whole / stage / "on" / name / "metrics.json").read_text())
            assert scored["metrics"]["rmse"] == document["values"][t][d]
    table = (whole / "forgetting.csv").read_text().splitlines()
    assert table[0] == "stage,learned,one,two"
    assert len(table) == 4
    assert (whole / "forgetting.png").read_bytes()[:4] == b"\x89PNG"


def test_what_ran_is_not_run_or_scored_again(whole, stores, monkeypatch):
    def never(*_: Any) -> None:
        raise AssertionError("scored again")

    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*.ckpt")}
    monkeypatch.setattr(training.stages, "score_on", never)
    again = run_study(sequence(stores, whole, replay=0.25))
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*.ckpt")} == before
    assert json.loads((whole / "study.json").read_text())["digest"] == again.digest


CHILD = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {here!r})
import training.loop
from test_stages import sequence
from training.studies import run_study
n_left, plain = int(sys.argv[1]), training.loop.step_loss

def deadly(*args):
    global n_left
    n_left -= 1
    if n_left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*args)

training.loop.step_loss = deadly
run_study(sequence(Path({stores!r}), Path({out!r}), replay=0.25))
"""


class Killed(BaseException):
    """Nobody catches it: what is on disk is all that is left, as after a kill."""


def dying(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, n_calls: int) -> None:
    """Let a function end the run when it is called for the n-th time."""
    plain, calls = getattr(module, name), []

    def deadly(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == n_calls:
            raise Killed
        return plain(*args)

    monkeypatch.setattr(module, name, deadly)


def check_same_study(out: Path, whole: Path) -> None:
    for name in ("one", "two", "back"):
        ours, theirs = (load_checkpoint(o / name / "last.ckpt") for o in (out, whole))
        assert same_weights(ours, theirs)
        losses = [[r["train_loss"] for r in s["state"]["history"]] for s in (ours, theirs)]
        assert losses[0] == losses[1]
    same = [(o / "forgetting.json").read_bytes() for o in (out, whole)]
    assert same[0] == same[1]


def test_a_killed_sequence_goes_on_to_the_same_weights_bit_for_bit(
    stores, whole, tmp_path, monkeypatch
):
    config = sequence(stores, tmp_path / "run", replay=0.25)
    n_first = load_checkpoint(whole / "one" / "last.ckpt")["state"]["step"]
    for module, name, n_calls in (
        (training.loop, "step_loss", n_first + 4),  # in stage two, after a checkpoint
        (training.stages, "score_on", 1),  # stage two is trained, and nothing of it is scored
        (training.studyrun, "replace_text", 2),  # scored twice, noted once
    ):
        with monkeypatch.context() as patch:
            dying(patch, module, name, n_calls)
            with pytest.raises(Killed):
                run_study(config)
    assert load_checkpoint(config.out / "two" / "last.ckpt")["state"]["epoch"] == 2
    assert not (config.out / "back").exists()
    run_study(config)
    check_same_study(config.out, whole)


@pytest.mark.skipif(not os.environ.get("SOAK"), reason="a process that imports torch: make soak")
def test_a_sequence_killed_for_real_goes_on_as_well(stores, whole, tmp_path):
    out = tmp_path / "run"
    n_first = load_checkpoint(whole / "one" / "last.ckpt")["state"]["step"]
    code = CHILD.format(here=str(HERE), stores=str(stores), out=str(out))
    killed = subprocess.run(
        [sys.executable, "-c", code, str(n_first + 4)], capture_output=True, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert 0 < load_checkpoint(out / "two" / "last.ckpt")["state"]["step"] <= 3
    run_study(sequence(stores, out, replay=0.25))
    check_same_study(out, whole)


def test_a_stage_whose_start_changed_starts_over(stores, whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    runs = plan_runs(sequence(stores, out))
    assert not link_stage(runs, 1, replay=0.0)[1]
    train(runs[0].config.changed({"seed": 9}), fresh=True)  # someone trains stage one again
    linked, fresh = link_stage(runs, 1, replay=0.0)
    assert fresh
    assert linked.config.start is not None
    assert list(linked.config.out.glob("start-*.ckpt")) == [linked.config.start.checkpoint]


def test_a_signal_ends_the_sequence_and_it_can_go_on(stores, tmp_path):
    stages = [{"name": name, "store": stores / "a", "epochs": 2} for name in ("one", "two")]
    config = sequence(stores, tmp_path / "run", stages=stages)
    stop = Orders(score=False, on_metrics=lambda *_: os.kill(os.getpid(), signal.SIGINT))
    first = run_study(config, stop)
    assert first.status == "interrupted"
    assert [row["status"] for row in first.rows] == ["interrupted"]
    done = run_study(config, Orders(score=False))
    assert [row["epochs"] for row in done.rows] == [2, 2]


def test_stores_that_no_network_shares_are_refused_before_any_training(stores, tmp_path):
    learnable_store(tmp_path / "other", "binary", n_trials=10)
    stages = [
        {"name": "one", "store": stores / "a"},
        {"name": "two", "store": tmp_path / "other"},
    ]
    with pytest.raises(InvalidSpecError, match="One network learns from stores of the same"):
        run_study(sequence(stores, tmp_path / "run", stages=stages))
    assert not (tmp_path / "run").exists()


# --- the matrix ---------------------------------------------------------------------------------


def matrix(metric: str, values: Any, learned: str = "abc", naive: Any = (10, 20, 30)) -> Matrix:
    names = tuple(dict.fromkeys(learned))
    return Matrix(
        tuple(f"s{i}" for i in range(len(learned))), tuple(learned), names, metric,
        np.array(values, float), np.array(naive[: len(names)], float),
    )  # fmt: skip


def test_transfer_and_forgetting_are_those_of_the_papers():
    values = [[4, 9, 30], [6, 5, 20], [7, 8, 3]]
    said = matrix("rmse", values).summary()
    assert said["mean_at_the_end"] == 6
    assert said["backward_transfer"] == ((4 - 7) + (5 - 8)) / 2
    assert said["forward_transfer"] == ((20 - 9) + (30 - 20)) / 2
    assert said["forgetting"] == ((7 - 4) + (8 - 5)) / 2
    better = matrix("accuracy", values).summary()
    assert better["backward_transfer"] == ((7 - 4) + (8 - 5)) / 2
    assert better["forgetting"] == ((6 - 7) + (9 - 8)) / 2


def test_the_colour_is_the_skill_of_each_metric():
    rmse = matrix("rmse", [[10, 5], [0, 40]], learned="ab", naive=(10, 20))
    assert rmse.skill().tolist() == [[0, 0.75], [1, 0]]
    right = matrix("accuracy", [[0.75, 0.2], [1, 0.25]], learned="ab", naive=(0.5, 0.25))
    assert right.skill().tolist() == [[0.5, 0], [1, 0]]
    assert matrix("rmse", [[3]], learned="a", naive=(0,)).skill().tolist() == [[0]]


def test_a_data_set_that_comes_back_counts_from_its_last_time():
    said = matrix("rmse", [[4, 9], [6, 5], [3, 7]], learned="aba").summary()
    assert said["backward_transfer"] == 5 - 7
    assert said["forward_transfer"] == 20 - 9
    assert said["forgetting"] == 7 - 5


def test_a_single_data_set_has_nothing_to_forget():
    said = matrix("auroc", [[0.5]], learned="a").summary()
    assert (said["forgetting"], said["forward_transfer"]) == (None, None)
