"""A run that is killed for real, twice, and goes on to the same weights bit for bit."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import torch
from learnable import learnable_store, tiny_config

from training import train
from training.checkpoint import load_checkpoint

HERE = Path(__file__).parent

# Dies at the given optimizer step, or while it writes the given checkpoint.
CHILD = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {here!r})
import training.loop, training.checkpoint
from learnable import tiny_config
where, number, calls = sys.argv[1], int(sys.argv[2]), 0
target, name = (training.loop, "step_loss") if where == "step" else (Path, "replace")
plain = getattr(target, name)

def deadly(*args):
    global calls
    calls += 1
    if calls == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*args)

setattr(target, name, deadly)
training.loop.train(tiny_config(Path({folder!r}), checkpoint_steps=4))
"""


def run_until_killed(folder: Path, where: str, number: int) -> None:
    code = CHILD.format(here=str(HERE), folder=str(folder))
    done = subprocess.run(
        [sys.executable, "-c", code, where, str(number)], capture_output=True, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def test_killed_runs_resume_bit_for_bit(tmp_path: Path) -> None:
    learnable_store(tmp_path / "store", "per_step")
    whole = tiny_config(tmp_path, out=tmp_path / "whole")
    n_steps = train(whole).steps
    config = tiny_config(tmp_path, checkpoint_steps=4)
    last = config.out / "last.ckpt"

    run_until_killed(tmp_path, "step", 6)  # step 5 is lost
    assert load_checkpoint(last)["state"]["step"] == 4
    run_until_killed(tmp_path, "save", 2)  # best is out, last is written but not yet renamed
    assert load_checkpoint(last)["state"]["step"] == 4
    assert load_checkpoint(config.out / ".tmp-last.ckpt")["state"]["step"] == n_steps // 3

    result = train(config)
    assert (result.status, result.steps) == ("finished", n_steps)
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = load_checkpoint(config.out / name), load_checkpoint(whole.out / name)
        assert ours["model"].keys() == theirs["model"].keys()
        for part, tensor in theirs["model"].items():
            assert torch.equal(ours["model"][part], tensor), part
        assert ours["state"]["stream"] == theirs["state"]["stream"]
        losses = [
            [(row["train_loss"], row["val_loss"]) for row in saved["state"]["history"]]
            for saved in (ours, theirs)
        ]
        assert losses[0] == losses[1]
