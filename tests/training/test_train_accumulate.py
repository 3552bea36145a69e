"""Gradients of several batches make one step; low precision and compiled networks learn alike."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from learnable import learnable_store, tiny_config

from shards import InvalidSpecError
from training import TrainResult, train
from training.checkpoint import load_checkpoint

MODEL = {"hidden": 6, "layers": 2, "dropout": 0.0, "head": [4]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("accumulate")
    learnable_store(folder / "store", "per_step", n_trials=20)
    return folder


def run(folder: Path, name: str, **changes: Any) -> TrainResult:
    fields = {"model": MODEL, "epochs": 2, **changes}
    return train(tiny_config(folder, out=folder / name, **fields))


def gradients(folder: Path, name: str, monkeypatch: Any, **changes: Any) -> list[list[Any]]:
    """Return the gradient of each optimizer step of an epoch, at weights that never move."""
    seen: list[list[Any]] = []

    def keep(self: Any, **_: Any) -> None:
        group = self.param_groups[0]["params"]
        seen.append([p.grad.clone() for p in group])

    monkeypatch.setattr(torch.optim.AdamW, "step", keep)
    optimizer = {"clip_norm": None, "schedule": "constant"} | changes.pop("optimizer", {})
    run(folder, name, epochs=1, optimizer=optimizer, **changes)
    return seen


def test_k_batches_of_b_are_one_of_k_times_b(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"weights": "own"}
    small = {"batch_size": 8, "steps_per_epoch": 6}
    large = {"batch_size": 24, "steps_per_epoch": 2}
    ours = gradients(folder, "small", monkeypatch, data=data | small,
                     optimizer={"accumulate": 3})  # fmt: skip
    theirs = gradients(folder, "large", monkeypatch, data=data | large)
    assert len(ours) == len(theirs) == 2
    for mine, others in zip(ours, theirs, strict=True):
        for a, b in zip(mine, others, strict=True):
            assert a.any()
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_what_is_left_of_an_epoch_is_a_step_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five batches in threes: a step of three and one of two, each the mean of its batches."""
    data = {"batch_size": 8, "steps_per_epoch": 5}
    single = gradients(folder, "single", monkeypatch, data=data)
    grouped = gradients(folder, "grouped", monkeypatch, data=data, optimizer={"accumulate": 3})
    assert (len(single), len(grouped)) == (5, 2)
    for group, mean in ((single[:3], grouped[0]), (single[3:], grouped[1])):
        for wanted, got in zip(zip(*group, strict=True), mean, strict=True):
            torch.testing.assert_close(got, torch.stack(wanted).mean(0), rtol=1e-4, atol=1e-6)


def test_the_schedule_counts_steps_of_the_optimizer(folder: Path) -> None:
    data = {"batch_size": 8, "steps_per_epoch": 5}
    optimizer = {"accumulate": 2, "schedule": "one_cycle", "lr": 1e-2}
    result = run(folder, "schedule", data=data, optimizer=optimizer)
    saved = load_checkpoint(result.out / "last.ckpt")
    assert result.steps == 10  # batches
    assert saved["scheduler"]["last_epoch"] == 2 * 3


@pytest.mark.parametrize("batches", ["windows", "lanes"])
def test_bfloat16_learns_what_full_precision_does(folder: Path, batches: str) -> None:
    data = {"batches": batches, "batch_size": 8, "lanes": {"chunk": 10}, "steps_per_epoch": 12}
    full = run(folder, f"full {batches}", data=data)
    half = run(folder, f"half {batches}", data=data,
               device={"accelerator": "cpu", "precision": "bf16-mixed"})  # fmt: skip
    for ours, theirs in zip(half.history, full.history, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=0.05)
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=0.05)
    saved = load_checkpoint(half.out / "last.ckpt")
    assert {part.dtype for part in saved["model"].values()} == {torch.float32}
    assert full.history[-1]["val_loss"] < full.history[0]["val_loss"]


@pytest.mark.skipif(not os.environ.get("SOAK"), reason="compiling takes a minute: SOAK=1")
@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++"))
    or not importlib.util.find_spec("torch._inductor"),
    reason="no C++ compiler on this machine",
)
@pytest.mark.parametrize("batches", ["windows", "lanes"])
def test_a_compiled_network_learns_what_the_plain_one_does(folder: Path, batches: str) -> None:
    data = {"batches": batches, "batch_size": 8, "lanes": {"chunk": 10}, "steps_per_epoch": 6}
    plain = run(folder, f"plain {batches}", data=data)
    device = {"accelerator": "cpu", "compile": True}
    compiled = run(folder, f"compiled {batches}", data=data, device=device)
    for ours, theirs in zip(compiled.history, plain.history, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)
    saved = [load_checkpoint(result.out / "last.ckpt")["model"] for result in (compiled, plain)]
    assert saved[0].keys() == saved[1].keys()  # either goes on, or is evaluated, without the other


def test_an_epoch_in_which_nothing_counts_says_so(folder: Path) -> None:
    data = {"batches": "lanes", "batch_size": 4, "steps_per_epoch": 1,
            "lanes": {"chunk": 4, "burn_in": 8}}  # fmt: skip
    with pytest.raises(InvalidSpecError, match=r"no step that counts.*burn_in"):
        run(folder, "nothing", data=data)


def test_a_network_in_lanes_pools_nothing_but_the_last_step(tmp_path: Path) -> None:
    learnable_store(tmp_path / "store", "class", n_trials=10)
    data = {"batches": "lanes", "batch_size": 4}
    with pytest.raises(InvalidSpecError, match=r"model.pool is 'mean'.*a chunk is"):
        run(tmp_path, "run", data=data, model=MODEL | {"pool": "mean"})
