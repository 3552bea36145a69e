"""Killed at any step and run again, every kind of run ends with the same weights bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from learnable import learnable_store, tiny_config

import training.loop
from training import TrainConfig, train
from training.checkpoint import load_checkpoint

MODEL = {"hidden": 6, "layers": 2, "dropout": 0.3, "noise": 0.1, "head": [4]}
WINDOWS = {"batch_size": 24, "windows": {"random_offset": True, "stride": 5}}
LANES = {"batches": "lanes", "batch_size": 4, "lanes": {"chunk": 12}, "steps_per_epoch": 5}
CASES: dict[str, dict[str, Any]] = {
    "windows": {"data": WINDOWS},
    "trials": {"data": {"batches": "trials", "batch_size": 3}, "model": MODEL},
    "lanes": {"data": LANES},
    "accumulate": {"data": LANES, "optimizer": {"accumulate": 2, "schedule": "cosine"}},
    "mixture": {"data": LANES, "mixture": {"stores": [{"store": "other"}], "by": [2, 1]}},
    "mixture of windows": {
        "data": WINDOWS, "mixture": {"stores": [{"store": "other"}], "by": "proportional"},
    },
    "fine-tuned": {"data": WINDOWS, "start": {
        "checkpoint": "first/last.ckpt", "freeze": ["layers.0"], "layer_decay": 0.5,
    }},
}  # fmt: skip


class Killed(BaseException):
    """Nothing in the loop may catch it, as nothing catches SIGKILL."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    learnable_store(folder / "store", "per_step", n_trials=15)
    learnable_store(folder / "other", "per_step", n_trials=10, seed=1)
    train(tiny_config(folder, out=folder / "first", epochs=1, model=MODEL))
    return folder


def config_of(folder: Path, case: str, out: str, **changes: Any) -> TrainConfig:
    fields = {"model": MODEL, "epochs": 2, **CASES[case], **changes}
    return tiny_config(folder, out=folder / case / out, **fields).resolve(folder)


def train_until_killed(config: TrainConfig, batch: int) -> None:
    """Train, and die before the loss of the `batch`-th batch of this call."""
    plain, calls = training.loop.step_loss, 0

    def deadly(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == batch:
            raise Killed
        return plain(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.loop, "step_loss", deadly)
        with pytest.raises(Killed):
            train(config)
    torch.manual_seed(99)  # another process knows nothing of this one's generators


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_ends_as_one_that_was_not(folder: Path, case: str) -> None:
    whole = config_of(folder, case, "whole", checkpoint_steps=None)
    n_batches = train(whole).steps
    assert n_batches > 5
    config = config_of(folder, case, "killed", checkpoint_steps=1)
    every = config.optimizer.accumulate
    train_until_killed(config, 4)
    saved = load_checkpoint(config.out / "last.ckpt")
    assert saved["state"]["step"] == 3 // every * every  # a checkpoint lies at a step's end
    if config.data.batches == "lanes":
        assert all(state.any() for state in saved["carry"].values())
        assert saved["carry"]["0"].shape == (2, 2, 4, 6)
    train_until_killed(config, n_batches - 4)  # nearly through
    result = train(config)
    assert (result.status, result.steps) == ("finished", n_batches)
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = (load_checkpoint(run.out / name) for run in (config, whole))
        for part in ("model", "carry"):
            assert ours[part].keys() == theirs[part].keys()
            assert all(torch.equal(ours[part][key], theirs[part][key]) for key in ours[part])
        assert ours["state"]["stream"] == theirs["state"]["stream"]
        assert ours["scheduler"] == theirs["scheduler"]
        losses = [
            [(row["train_loss"], row["val_loss"], row["lr"]) for row in saved["state"]["history"]]
            for saved in (ours, theirs)
        ]
        assert losses[0] == losses[1]
