"""Two processes train what one does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from learnable import learnable_store, tiny_config

from training import train
from training.checkpoint import load_checkpoint

LANES = {"batches": "lanes", "batch_size": 5, "lanes": {"chunk": 10, "burn_in": 3},
         "steps_per_epoch": 8}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "windows": {},
    "trials": {"data": {"batches": "trials", "batch_size": 5, "weights": "trial"}},
    "lanes": {"data": LANES},
    "lanes that one process began": {"data": LANES},
    "mixture": {"data": LANES, "mixture": {"stores": [{"store": "other"}], "by": [2, 1]}},
    "accumulated": {"data": LANES, "optimizer": {
        "lr": 1e-3, "schedule": "cosine", "warmup": 0.2, "accumulate": 3,
    }},
}  # fmt: skip
COMMON: dict[str, Any] = {
    "model": {"hidden": 8, "dropout": 0.0, "layers": 1, "head": [4]},
    "optimizer": {"lr": 1e-3, "schedule": "constant"},
    "checkpoint_steps": 3,
}

# One pair of processes for all cases: to start it takes longer than to train.
SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from learnable import tiny_config
from training import evaluate, train
folder = Path({folder!r})
for case, changes in {cases!r}.items():
    def config(**more):
        fields = {common!r} | changes | more
        return tiny_config(folder, out=folder / case / "two", **fields).resolve(folder)
    two = {{"accelerator": "cpu", "devices": 2}}
    if case in ("windows", "lanes"):
        train(config(epochs=1, device=two))
    train(config(epochs=2, device=two))  # resumes what is there, on both ranks
    if case == "windows":
        evaluate(config(epochs=2))  # both ranks, without harm
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    learnable_store(folder / "store", "per_step", n_trials=20)
    learnable_store(folder / "other", "per_step", n_trials=10, seed=1)
    began = "lanes that one process began"
    train(config_of(folder, began, "two", epochs=1))
    script, here = folder / "two.py", str(Path(__file__).parent)
    script.write_text(SCRIPT.format(here=here, folder=str(folder), cases=CASES, common=COMMON))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    return folder


def config_of(folder: Path, case: str, out: str, epochs: int = 2) -> Any:
    changes = COMMON | CASES[case] | {"epochs": epochs}
    return tiny_config(folder, out=folder / case / out, **changes).resolve(folder)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_what_one_does(folder: Path, case: str) -> None:
    one = train(config_of(folder, case, "one"))
    two = load_checkpoint(folder / case / "two" / "last.ckpt")
    alone = load_checkpoint(folder / case / "one" / "last.ckpt")
    for name, tensor in alone["model"].items():
        torch.testing.assert_close(two["model"][name], tensor, rtol=1e-3, atol=1e-5)
    for ours, theirs in zip(two["state"]["history"], one.history, strict=True):
        assert abs(ours["train_loss"] / theirs["train_loss"] - 1) < 1e-4
        assert abs(ours["val_loss"] / theirs["val_loss"] - 1) < 1e-4
    assert two["carry"].keys() == alone["carry"].keys()
    assert len(alone["carry"]) == {"mixture": 2, "windows": 0, "trials": 0}.get(case, 1)
    for key, state in alone["carry"].items():
        torch.testing.assert_close(two["carry"][key], state, rtol=1e-3, atol=1e-4)


def test_both_ranks_may_evaluate(folder: Path) -> None:
    assert (folder / "windows" / "two" / "evaluation" / "metrics.json").exists()
