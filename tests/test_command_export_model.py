"""`trialshards export-model`: one file from a checkpoint, or a sentence."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent / "training"))
from learnable import learnable_store, tiny_config

from training import train
from trialshards.cli import main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    learnable_store(folder / "store", "per_step", n_trials=10)
    train(tiny_config(folder, epochs=1, model={"hidden": 4, "layers": 1, "head": []}))
    return folder / "run" / "best.ckpt"


def call(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["export-model", *map(str, arguments)])


def test_it_writes_a_program_beside_the_checkpoint_and_says_what_it_takes(checkpoint: Path) -> None:
    done = call(checkpoint, "--format", "torch")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].startswith(f"{checkpoint.with_suffix('.pt2')}: ")
    assert [line.split()[:2] for line in lines[1:]] == [
        ["input", "values"], ["input", "lengths"], ["output", "predicted"],
    ]  # fmt: skip
    program = torch.export.load(checkpoint.with_suffix(".pt2")).module()
    said = program(values=torch.zeros(1, 5, 2), lengths=torch.tensor([5]))
    assert said["predicted"].shape == (1, 5, 1)


def test_what_fails_is_a_sentence_and_leaves_no_file(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    done = call(tmp_path / "no.ckpt", "--out", out)
    assert done.exit_code == 1
    assert "Train first" in done.output
    done = call(checkpoint, "--out", out, "--store", tmp_path / "no")
    assert done.exit_code == 1
    assert str(tmp_path / "no") in done.output
    assert list(tmp_path.iterdir()) == []
