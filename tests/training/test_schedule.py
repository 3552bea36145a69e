"""The learning rate, step by step, against its formulas."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from shards import InvalidSpecError
from training.config import TrainConfig
from training.schedule import build_schedule, is_stretched
from training.sections import OptimizerConfig

EPOCHS, STEPS = 4, 25
TOTAL = EPOCHS * STEPS


def rates(rate: float = 0.1, **fields: Any) -> list[list[float]]:
    """Return the rate of two groups at each step; the second one's highest is half as high."""
    config = OptimizerConfig(lr=rate, **fields)
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [w], "lr": config.lr / (1 + i)} for i, w in enumerate(weights)]
    optimizer = torch.optim.AdamW(groups)
    schedule = build_schedule(optimizer, config, epochs=EPOCHS, steps=STEPS)
    seen: list[list[float]] = [[], []]
    for _ in range(TOTAL):
        for own, group in zip(seen, optimizer.param_groups, strict=True):
            own.append(group["lr"])
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_cosine_falls_from_the_highest_rate_to_zero(warmup: float) -> None:
    first, second = rates(schedule="cosine", warmup=warmup)
    n_warm = round(warmup * TOTAL)
    rest = TOTAL - n_warm
    wanted = [0.1 * (i + 1) / (n_warm + 1) for i in range(n_warm)]
    wanted += [0.05 * (1 + math.cos(math.pi * i / rest)) for i in range(rest)]
    assert first == pytest.approx(wanted)
    assert second == pytest.approx([rate / 2 for rate in wanted])


def test_exponential_falls_once_per_epoch() -> None:
    first, _ = rates(schedule="exponential", decay=0.5)
    assert first == pytest.approx([0.1 * 0.5 ** (i // STEPS) for i in range(TOTAL)])


def test_a_warm_up_rises_in_a_line_and_the_rate_stays() -> None:
    first, _ = rates(schedule="constant", warmup=0.2)
    steps = [b - a for a, b in pairwise(first[:21])]
    assert steps == pytest.approx([0.1 / 21] * 20)
    assert first[20:] == [0.1] * 80
    assert rates(schedule="constant")[0] == [0.1] * TOTAL


def test_one_cycle_is_that_of_torch_and_each_group_has_its_own_highest_rate() -> None:
    first, second = rates(schedule="one_cycle")
    assert max(first) == pytest.approx(0.1)
    assert first[0] == pytest.approx(0.1 / 25)
    assert first.index(max(first)) == round(0.3 * TOTAL) - 1
    assert second == pytest.approx([rate / 2 for rate in first])


def test_one_cycle_and_another_warm_up_are_too_much() -> None:
    with pytest.raises(ValidationError, match="warmup with one_cycle"):
        OptimizerConfig(warmup=0.1)


@pytest.mark.parametrize(
    ("fields", "stretched"),
    [
        ({"schedule": "one_cycle"}, True),
        ({"schedule": "cosine"}, True),
        ({"schedule": "constant"}, False),
        ({"schedule": "exponential"}, False),
        ({"schedule": "exponential", "warmup": 0.1}, True),
    ],
)
def test_what_more_epochs_would_change_is_told(fields: dict[str, Any], stretched: bool) -> None:
    config = OptimizerConfig(**fields)
    assert is_stretched(config) is stretched


def test_an_unknown_schedule_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("store: s\nout: o\noptimizer:\n  schedule: cosin\n")
    with pytest.raises(InvalidSpecError, match=r"run.yaml:4: optimizer.schedule"):
        TrainConfig.read(file)
