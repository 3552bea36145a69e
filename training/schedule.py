"""How the learning rate moves, step by step."""

from __future__ import annotations

import math

import torch
from torch.optim import lr_scheduler

from training.sections import OptimizerConfig


def build_schedule(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, *, epochs: int, steps: int
) -> lr_scheduler.LRScheduler:
    """Return the schedule of a run; each group of parameters moves from its own rate.

    Args:
        optimizer: With the highest rate in each group.
        config: Which schedule.
        epochs: Of the run.
        steps: Optimizer steps of each.
    """
    if config.schedule == "one_cycle":
        highest = [group["lr"] for group in optimizer.param_groups]
        return lr_scheduler.OneCycleLR(optimizer, max_lr=highest, total_steps=epochs * steps)

    def factor(step: int) -> float:
        return rate_factor(config, step, epochs=epochs, steps=steps)

    return lr_scheduler.LambdaLR(optimizer, factor)


def rate_factor(config: OptimizerConfig, step: int, *, epochs: int, steps: int) -> float:
    """Return the rate before a step, counted from 0, over the highest one."""
    total = epochs * steps
    n_warm = round(config.warmup * total)
    if step < n_warm:
        return (step + 1) / (n_warm + 1)
    if config.schedule == "cosine":
        done = (step - n_warm) / max(1, total - n_warm)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    if config.schedule == "exponential":
        return float(config.decay ** ((step - n_warm) // steps))
    return 1.0


def is_stretched(config: OptimizerConfig) -> bool:
    """Return whether the schedule depends on the number of epochs."""
    return config.schedule in ("one_cycle", "cosine") or config.warmup > 0
