"""Two processes train what one does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from learnable import learnable_store, tiny_config

from training import train
from training.checkpoint import load_checkpoint

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from learnable import tiny_config
from training import evaluate, train
for epochs in (1, 2):  # the second call resumes the first, on both ranks
    train(tiny_config(Path({folder!r}), epochs=epochs, checkpoint_steps=3,
        device={{"accelerator": "cpu", "devices": 2}}, **{changes!r}))
evaluate(tiny_config(Path({folder!r}), epochs=2, **{changes!r}))  # both ranks, without harm
"""


def test_two_ranks_train_what_one_does(tmp_path: Path) -> None:
    learnable_store(tmp_path / "store", "per_step", n_trials=30)
    changes = {
        "model": {"hidden": 8, "dropout": 0.0, "layers": 1, "head": [4]},
        "optimizer": {"lr": 1e-3, "schedule": "constant"},
    }
    script = tmp_path / "two.py"
    folder, here = str(tmp_path), str(Path(__file__).parent)
    script.write_text(SCRIPT.format(here=here, folder=folder, changes=changes))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, timeout=180)
    assert done.returncode == 0, done.stderr.decode()
    one = train(tiny_config(tmp_path, out=tmp_path / "one", epochs=2, **changes))
    two = load_checkpoint(tmp_path / "run" / "last.ckpt")
    alone = load_checkpoint(tmp_path / "one" / "last.ckpt")
    assert (tmp_path / "run" / "evaluation" / "metrics.json").exists()
    for name, tensor in alone["model"].items():
        torch.testing.assert_close(two["model"][name], tensor, rtol=1e-3, atol=1e-5)
    for ours, theirs in zip(two["state"]["history"], one.history, strict=True):
        assert abs(ours["train_loss"] / theirs["train_loss"] - 1) < 1e-4
        assert abs(ours["val_loss"] / theirs["val_loss"] - 1) < 1e-4
