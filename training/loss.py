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
from training.target import Objective
from training.targetchecks import BINARY


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
        said = torch.where(there_B[:, None], output, 0.0)
        loss_B = functional.cross_entropy(
            said, batch.targets.clamp(min=0), reduction="none",
            label_smoothing=objective.label_smoothing,
        )  # fmt: skip
        return torch.where(there_B, loss_B, 0.0), there_B
    target = standardise(batch, objective)
    mask = torch.isfinite(target) & _wanted_steps(batch, objective)
    # Masked before the loss: the square of NaN has gradient NaN, whatever masks it later.
    target = torch.where(mask, target, 0.0)
    loss = torch.where(mask, _element_losses(output, target, mask, objective), 0.0)
    n_B = mask.flatten(1).sum(1)
    return loss.flatten(1).sum(1) / n_B.clamp(min=1), n_B > 0


def standardise(batch: Batch, objective: Objective) -> Tensor:
    """Return the batch's targets as the network shall say them: `[B, ..., K]`, NaN if missing."""
    target = batch.targets.unsqueeze(-1) if objective.kind == "per_trial" else batch.targets
    if objective.kind == "step_class":
        return target
    mean, sd = (target.new_tensor(part) for part in (objective.mean, objective.sd))
    return (target.clamp(*objective.clip) - mean - _base(batch, objective)) / sd


def to_target_units(output: Tensor, batch: Batch, objective: Objective) -> Tensor:
    """Undo `standardise`: what the network says, in the units of the targets, `[B, ..., K]`.

    Of a binary target that is the probability of 1; of quantiles the one nearest to .5.
    """
    if objective.loss == BINARY:
        return output.sigmoid()
    if objective.quantiles:
        return to_quantiles(output, batch, objective)[..., objective.middle]
    mean, sd = (output.new_tensor(part) for part in (objective.mean, objective.sd))
    return output * sd + mean + _base(batch, objective)


def to_quantiles(output: Tensor, batch: Batch, objective: Objective) -> Tensor:
    """Return all quantiles in the units of the targets: `[B, ..., K, Q]`, rising along Q."""
    shape = (*output.shape[:-1], len(objective.columns), len(objective.quantiles))
    said = output.view(shape)
    mean, sd = (output.new_tensor(part).unsqueeze(-1) for part in (objective.mean, objective.sd))
    base = _base(batch, objective)
    base = base.unsqueeze(-1) if isinstance(base, Tensor) else base
    # Quantiles that the network crosses are put in order (Chernozhukov 2010).
    return (said * sd + mean + base).sort(dim=-1).values


def _base(batch: Batch, objective: Objective) -> Tensor | float:
    if not objective.base:
        return 0.0
    if objective.dense:
        return batch.values[:, :, None, list(objective.base)]
    return last_seen(batch.values, batch.lengths, batch.observed, objective.base)[:, None]


def _wanted_steps(batch: Batch, objective: Objective) -> Tensor:
    """Return a mask that broadcasts over `[B, (L,) steps, K]`, `[B, L, K]` or `[B, 1]` targets."""
    counted_BL = batch.valid if batch.counts is None else batch.counts
    if objective.dense:
        return counted_BL[:, :, None, None]
    if objective.kind == "forecast":
        return (batch.trial >= 0)[:, None, None]
    if objective.kind == "per_trial":
        return (batch.trial >= 0)[:, None]
    if not objective.last_only:
        return counted_BL[:, :, None]
    step_L = torch.arange(batch.valid.shape[1], device=batch.valid.device)
    return (step_L == batch.lengths[:, None] - 1)[:, :, None]


def _element_losses(output: Tensor, target: Tensor, mask: Tensor, objective: Objective) -> Tensor:
    """Return the loss of each element of `target`; what is masked is finite, and no more."""
    if objective.kind == "step_class":
        said = torch.where(mask, output, 0.0)  # the mask is of the one column, [B, L, 1]
        loss = functional.cross_entropy(
            said.flatten(0, -2), target.flatten().long(), reduction="none",
            label_smoothing=objective.label_smoothing,
        )  # fmt: skip
        return loss.view_as(target)
    if objective.quantiles:
        level_Q = output.new_tensor(objective.quantiles)
        said = output.reshape(*target.shape, len(level_Q))
        error = torch.where(mask.unsqueeze(-1), target.unsqueeze(-1) - said, 0.0)
        return torch.maximum(level_Q * error, (level_Q - 1) * error).mean(-1)
    said = torch.where(mask, output.reshape(target.shape), 0.0)
    if objective.loss == BINARY:
        # From logits: log(sigmoid(-100)) is no number, softplus(100) is one.
        weight = output.new_tensor(objective.positive_weight)
        return functional.binary_cross_entropy_with_logits(
            said, target, reduction="none", pos_weight=weight
        )
    error = said - target
    if objective.loss == "mae":
        return error.abs()
    return error.square() if objective.loss == "mse" else _huber(error, objective.huber_delta)


def _huber(error: Tensor, delta: float) -> Tensor:
    """Quadratic within `delta` standard deviations, linear beyond (Huber 1964)."""
    size = error.abs()
    return torch.where(size <= delta, 0.5 * error.square(), delta * (size - 0.5 * delta))
