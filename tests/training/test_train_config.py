"""The file a person writes: defaults, paths, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
from learnable import learnable_store, tiny_config
from pydantic import ValidationError

from shards import InvalidSpecError, WindowSpec
from training import TrainConfig, train
from training.config import choose_windows


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    file = tmp_path / "jobs" / "arm.yaml"
    file.write_text("store: ../store\nout: runs/arm\noptimizer: {lr: 3e-3}\n")
    config = TrainConfig.read(file)
    assert config.store == tmp_path / "store"
    assert config.out == tmp_path / "jobs" / "runs" / "arm"
    assert config.optimizer.lr == 0.003
    assert config.epochs == 20


def test_a_typo_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "arm.yaml"
    file.write_text("store: s\nout: o\nmodel:\n  hiden: 3\n")
    with pytest.raises(InvalidSpecError, match=r"arm.yaml:4: model.hiden.*Did you mean 'hidden'"):
        TrainConfig.read(file)


def test_a_config_does_not_change() -> None:
    config = TrainConfig(store=Path("s"), out=Path("o"))
    with pytest.raises(ValidationError, match="frozen"):
        config.epochs = 3  # type: ignore[misc]


def test_clip_must_be_ordered(tmp_path: Path) -> None:
    file = tmp_path / "arm.yaml"
    file.write_text("store: s\nout: o\ntarget:\n  clip: [130, 1]\n")
    with pytest.raises(InvalidSpecError, match=r"arm.yaml:3: target.*clip is \[130.0, 1.0\]"):
        TrainConfig.read(file)


def test_own_windows_go_on_top_of_the_stored_ones(tmp_path: Path) -> None:
    stored = WindowSpec(16, 4, 2, 1)
    config = tiny_config(tmp_path, data={"windows": {"length": 8}})
    assert choose_windows(config, stored) == WindowSpec(8, 4, 2, 1)
    assert choose_windows(tiny_config(tmp_path), stored) == stored


@pytest.mark.parametrize(
    ("kind", "target", "message"),
    [
        ("forecast", {"clip": (None, 3)}, "target.clip is .* kind forecast"),
        ("forecast", {"loss_on": "last"}, "target.loss_on is 'last'"),
        ("class", {"loss": "mse"}, "kind class; wanted cross_entropy"),
        ("per_step", {"loss": "cross_entropy"}, "cross_entropy needs target.classes"),
    ],
)
def test_what_the_target_cannot_do_is_refused(
    tmp_path: Path, kind: str, target: dict[str, object], message: str
) -> None:
    learnable_store(tmp_path / "store", kind, n_trials=10)
    with pytest.raises(InvalidSpecError, match=message):
        train(tiny_config(tmp_path, target=target))
    assert not (tmp_path / "run").exists()
