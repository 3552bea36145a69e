"""Who only reads a config does not wait for torch."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import training

HEAVY = {"torch", "lightning_fabric", "matplotlib", "tensorboard", "loaders", "polars"}
DAGSTER = {"dagster", "dagster_pipes"}


@pytest.mark.parametrize(
    "program",
    [
        "import training",
        "from training.config import TrainConfig",
        "from training import TrainConfig; TrainConfig(store='s', out='o')",
        "import trialshards.cli",
        "import trialshards.pipes",
    ],
)
def test_a_config_needs_no_torch(program: str) -> None:
    code = f"{program}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & (HEAVY | DAGSTER)


def test_every_exported_name_is_there() -> None:
    for name in training.__all__:
        assert getattr(training, name).__name__ == name
        assert name in dir(training)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        training.trian  # noqa: B018


def test_no_module_takes_the_place_of_a_name() -> None:
    modules = {module.name for module in pkgutil.iter_modules(training.__path__)}
    assert not modules & set(training.__all__)
