"""The loss: masked, weighted, and the same for any padding and any number of ranks (law 6).

A row's loss is the mean over its valid, finite target elements, so a padded window counts as much
as a full one. A step's loss divides by the weight of *all* rows of the global batch, also of those
that have no target: each window then pulls with the same force whatever else is in its batch, and
the sum over an epoch is the objective times a constant.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from loaders import Batch
from training.model import last_seen
from training.target import BINARY, Objective


def step_loss(output: Tensor, batch: Batch, objective: Objective, world_size: int = 1) -> Tensor:
    """Return the loss of this rank's part of a step.

    `sum(w * l) * world / global_weight`: averaged over ranks, as DDP does with gradients, this is
    the mean over the global batch.
    """
    loss_B, _ = row_losses(output, batch, objective)
    scale = world_size / batch.global_weight if batch.global_weight else 0.0
    return (batch.weights * loss_B).sum() * scale


def row_losses(output: Tensor, batch: Batch, objective: Objective) -> tuple[Tensor, Tensor]:
    """Return `[B]` losses and `[B]` whether the row has any target; a row without one has loss 0.

    Args:
        output: What the model returns, standardised or as logits.
        batch: Its targets; NaN (or a negative class) is a missing target.
        objective: Which loss, in which units.
    """
    output = output.float()  # low precision is for the network; a mean of squares needs more
    if objective.kind == "class":
        there_B = batch.targets >= 0
        loss_B = functional.cross_entropy(output, batch.targets.clamp(min=0), reduction="none")
        return torch.where(there_B, loss_B, 0.0), there_B
    target = standardise(batch, objective)
    mask = torch.isfinite(target) & _wanted_steps(batch, objective)
    # Masked before the loss: the square of NaN has gradient NaN, whatever masks it later.
    said, target = (torch.where(mask, x, 0.0) for x in (output.reshape(target.shape), target))
    loss = torch.where(mask, _element_losses(said, target, objective.loss), 0.0)
    n_B = mask.flatten(1).sum(1)
    return loss.flatten(1).sum(1) / n_B.clamp(min=1), n_B > 0


def standardise(batch: Batch, objective: Objective) -> Tensor:
    """Return the batch's targets as the network shall say them: `[B, ..., K]`, NaN if missing."""
    target = batch.targets.unsqueeze(-1) if objective.kind == "per_trial" else batch.targets
    mean, sd = (target.new_tensor(part) for part in (objective.mean, objective.sd))
    return (target.clamp(*objective.clip) - mean - _base(batch, objective)) / sd


def to_target_units(output: Tensor, batch: Batch, objective: Objective) -> Tensor:
    """Undo `standardise`: what the network says `[B, ..., K]`, in the units of the targets.

    Of a binary target that is the probability of 1.
    """
    if objective.loss == BINARY:
        return output.sigmoid()
    mean, sd = (output.new_tensor(part) for part in (objective.mean, objective.sd))
    return output * sd + mean + _base(batch, objective)


def _base(batch: Batch, objective: Objective) -> Tensor | float:
    if not objective.base:
        return 0.0
    return last_seen(batch.values, batch.lengths, batch.observed, objective.base)[:, None]


def _wanted_steps(batch: Batch, objective: Objective) -> Tensor:
    """Return a mask that broadcasts over `[B, steps, K]`, `[B, L, K]` or `[B, 1]` targets."""
    if objective.kind == "forecast":
        return (batch.trial >= 0)[:, None, None]
    if objective.kind == "per_trial":
        return (batch.trial >= 0)[:, None]
    if not objective.last_only:
        return batch.valid[:, :, None]
    step_L = torch.arange(batch.valid.shape[1], device=batch.valid.device)
    return (step_L == batch.lengths[:, None] - 1)[:, :, None]


def _element_losses(said: Tensor, target: Tensor, loss: str) -> Tensor:
    if loss == BINARY:
        # From logits: log(sigmoid(-100)) is no number, softplus(100) is one.
        return functional.binary_cross_entropy_with_logits(said, target, reduction="none")
    return (said - target).square() if loss == "mse" else _huber(said - target)


def _huber(error: Tensor) -> Tensor:
    """Quadratic within one standard deviation, linear beyond (Huber 1964)."""
    size = error.abs()
    return torch.where(size <= 1, 0.5 * error.square(), size - 0.5)
