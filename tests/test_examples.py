"""The examples train the same model on the same batches: their losses are equal, digit by digit.

Each is killed in the middle of an epoch, runs again, and goes on as if nothing had happened.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from stores import make_store

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
KILLED_AT, SAVED_AT = 12, 10  # the steps of the first epoch that were done and that were kept
N_STEPS = 13

SOAK = bool(os.environ.get("SOAK"))
# Each takes seconds to import; the recipes are killed and continued in
# tests/loaders/test_integrations.py. `make soak` kills all of these, the gate one.
KILLED = ("stateful_dataloader",)
ALONE = ("plain_loop", *KILLED, "accelerate_loop", "lightning_trainer")
AGAIN = {"stateful_dataloader": ["--workers", "2"]}  # other workers than before

# Runs an example; kills its process when it has said so many steps.
RUNNER = """
import builtins, os, runpy, signal, sys
n_left, plain = int(sys.argv[1]), print

def deadly(*args, **options):
    global n_left
    plain(*args, **options, flush=True)
    n_left -= str(args[0]).startswith("epoch ")
    if n_left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

builtins.print = deadly
sys.path.insert(0, os.path.dirname(sys.argv[2]))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    make_store(folder / "store", [300, 410, 400, 150, 300], n_shards=2, scale=(25e3, 15e3))
    (folder / "runner.py").write_text(RUNNER)
    return folder


def start(folder, name, *words, n_ranks=1, kill_at=0):
    """Start an example, on `n_ranks` processes; its checkpoints go to a folder of its own."""
    command = [sys.executable, str(folder / "runner.py")]
    if n_ranks > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_ranks}"]
        command = [sys.executable, *launch, str(folder / "runner.py")]
    out = folder / f"{name}-{n_ranks}"
    command += [str(kill_at), str(EXAMPLES / f"{name}.py"), str(folder / "store")]
    return subprocess.Popen(
        [*command, "--out", str(out), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def losses(process):
    """Return exit status and the lines `epoch e step s loss l` that a process said."""
    said, errors = process.communicate(timeout=300)
    lines = [line for line in said.splitlines() if line.startswith("epoch ")]
    return process.returncode, lines, errors


@pytest.fixture(scope="module")
def runs(folder):
    """What each example said until it was killed, and what when it ran again."""
    names = [(name, 1) for name in ALONE] + [("plain_ddp", 2)]
    first = {
        key: start(folder, key[0], n_ranks=key[1], kill_at=KILLED_AT)
        for key in names
        if SOAK or key[0] in KILLED
    }
    first = {key: losses(process) for key, process in first.items()}
    again = {key: start(folder, key[0], *AGAIN.get(key[0], []), n_ranks=key[1]) for key in names}
    again = {key: losses(process) for key, process in again.items()}
    return first, again


@pytest.fixture(scope="module")
def whole(folder, runs):
    """The losses of an uninterrupted run of two epochs."""
    status, lines, errors = runs[1]["plain_loop", 1]
    if SOAK:  # that one was killed
        status, lines, errors = losses(start(folder, "plain_loop", "--out", str(folder / "whole")))
    assert status == 0, errors
    assert [line.split()[1:4:2] for line in lines] == [
        [str(epoch), str(step)] for epoch in range(2) for step in range(N_STEPS)
    ]
    return lines


@pytest.mark.parametrize("name", ALONE if SOAK else KILLED)
def test_an_example_that_was_killed_goes_on_to_the_same_losses(runs, whole, name):
    (first, before, _), (again, after, errors) = (part[name, 1] for part in runs)
    assert first == -9
    assert before == whole[:KILLED_AT]
    assert again == 0, errors
    assert after == whole[SAVED_AT:]


@pytest.mark.skipif(SOAK, reason="killed and continued instead")
@pytest.mark.parametrize("name", sorted({*ALONE} - {*KILLED}))
def test_every_example_trains_the_same(runs, whole, name):
    status, lines, errors = runs[1][name, 1]
    assert status == 0, errors
    assert lines == whole


def test_two_processes_train_what_one_does(runs, whole):
    again, after, errors = runs[1]["plain_ddp", 2]
    assert again == 0, errors
    pairs = [(after, whole)]
    if SOAK:
        first, before, _ = runs[0]["plain_ddp", 2]
        assert first != 0
        pairs = [(before, whole[:KILLED_AT]), (after, whole[SAVED_AT:])]
    for got, want in pairs:
        assert [line.split()[:4] for line in got] == [line.split()[:4] for line in want]
        numbers = [[float(line.split()[-1]) for line in lines] for lines in (got, want)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-3)


def test_every_example_is_run_here():
    found = {path.stem for path in EXAMPLES.glob("*.py")} - {"model"}
    assert found == {*ALONE, "plain_ddp"}
