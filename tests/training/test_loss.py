"""Laws of the loss: padding, filler rows, missing targets and ranks change nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from loaders import Batch
from training.loss import row_losses, standardise, step_loss, to_target_units
from training.predict import select_rows
from training.target import Objective

B, L, C, K = 8, 6, 3, 2
KINDS = ("forecast", "per_step", "last", "per_trial", "class")


def objective(kind: str, loss: str | None = None) -> Objective:
    base = (0, 2) if kind == "forecast" else ()
    n = {"per_trial": 1, "class": 1}.get(kind, K)
    return Objective(
        kind="per_step" if kind == "last" else kind,
        columns=tuple("yz"[:n]),
        loss=loss or ("cross_entropy" if kind == "class" else "mse"),
        last_only=kind == "last",
        base=base,
        mean=(0.3,) * n,
        sd=((2.0,) * n,),
    )


def make_batch(kind: str) -> tuple[Batch, Tensor]:
    """Return a batch and outputs that need a gradient."""
    rng = torch.Generator().manual_seed(KINDS.index(kind))
    lengths = torch.tensor([6, 6, 3, 6, 1, 5, 6, 6])
    valid = torch.arange(L) < lengths[:, None]
    shape = {"forecast": (B, 2, K), "per_trial": (B,), "class": (B,)}.get(kind, (B, L, K))
    targets = torch.randn(shape, generator=rng)
    out_shape = {"per_trial": (B, 1), "class": (B, 3)}.get(kind, shape)
    if kind == "class":
        targets = torch.randint(0, 3, shape, generator=rng)
    elif len(shape) == 3 and kind != "forecast":
        targets[~valid] = torch.nan
    batch = Batch(
        values=torch.randn(B, L, C, generator=rng) * valid[:, :, None],
        targets=targets,
        observed=None,
        valid=valid,
        lengths=lengths,
        weights=torch.tensor([1.0, 2, 0.5, 1, 1, 3, 1, 1]),
        global_weight=10.5,
        trial=torch.arange(B),
        start=torch.zeros(B, dtype=torch.int64),
        epoch=0,
        step=0,
    )
    return batch, torch.randn(out_shape, generator=rng).requires_grad_()


def missing(kind: str) -> float:
    return -1 if kind == "class" else torch.nan


def gradient(batch: Batch, output: Tensor, goal: Objective, world: int = 1) -> tuple[Any, Any]:
    loss = step_loss(output, batch, goal, world)
    return loss.detach(), torch.autograd.grad(loss, output)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_filler_rows_change_nothing(kind: str) -> None:
    batch, output = make_batch(kind)
    loss, grad = gradient(batch, output, objective(kind))
    n = 3
    parts: dict[str, Any] = {
        name: torch.cat([x, torch.zeros(n, *x.shape[1:], dtype=x.dtype)])
        for name, x in vars(batch).items()
        if isinstance(x, Tensor)
    }
    parts["targets"][-n:] = missing(kind)
    parts["trial"][-n:] = -1
    longer = dataclasses.replace(batch, **parts)
    wild = torch.cat([output.detach(), torch.full((n, *output.shape[1:]), 1e30)]).requires_grad_()
    loss2, grad2 = gradient(longer, wild, objective(kind))
    assert loss2 == loss
    assert torch.equal(grad2[:-n], grad)
    assert not grad2[-n:].any()


@pytest.mark.parametrize("kind", ["per_step", "last"])
@pytest.mark.parametrize("junk", [1e30, float("inf"), float("nan")])
def test_padding_changes_nothing(kind: str, junk: float) -> None:
    batch, output = make_batch(kind)
    loss, grad = gradient(batch, output, objective(kind))
    with torch.no_grad():
        output[~batch.valid] = junk
    loss2, grad2 = gradient(batch, output, objective(kind))
    assert loss2 == loss
    assert torch.equal(grad2, grad)
    assert not grad2[~batch.valid].any()


@pytest.mark.parametrize("kind", KINDS)
def test_missing_targets_are_ignored_and_poison_nothing(kind: str) -> None:
    batch, output = make_batch(kind)
    whole, _ = row_losses(output, batch, objective(kind))
    batch.targets[3] = missing(kind)
    loss_B, there_B = row_losses(output, batch, objective(kind))
    assert loss_B[3] == 0
    assert there_B.tolist() == [row != 3 for row in range(B)]
    others = [row for row in range(B) if row != 3]
    assert torch.equal(loss_B[others], whole[others])
    loss, grad = gradient(batch, output, objective(kind))
    assert torch.isfinite(loss)
    assert torch.isfinite(grad).all()
    assert not grad[3].any()
    # The row's weight still counts: the other rows pull as hard as in any other batch.
    assert loss == pytest.approx(float((batch.weights * loss_B.detach()).sum() / 10.5))


def test_a_row_is_the_mean_over_its_valid_finite_elements() -> None:
    batch, output = make_batch("per_step")
    batch.targets[0, 2, 1] = torch.nan
    loss_B, _ = row_losses(output, batch, objective("per_step"))
    target = (batch.targets.numpy() - 0.3) / 2
    error = (output.detach().numpy() - target) ** 2
    np.testing.assert_allclose(loss_B.detach(), np.nanmean(error, axis=(1, 2)), rtol=1e-5)


def test_last_only_scores_the_last_valid_step() -> None:
    batch, output = make_batch("last")
    loss_B, _ = row_losses(output, batch, objective("last"))
    last = batch.lengths - 1
    target = (batch.targets[range(B), last] - 0.3) / 2
    want = (output[range(B), last] - target).square().mean(1)
    torch.testing.assert_close(loss_B, want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_average_to_the_single_gradient(kind: str, world: int) -> None:
    batch, output = make_batch(kind)
    weight = torch.randn(output.shape[-1], generator=torch.Generator().manual_seed(9))
    weight.requires_grad_()
    whole = torch.autograd.grad(step_loss(output * weight, batch, objective(kind)), weight)[0]
    mean = torch.zeros_like(weight)
    for rank in range(world):
        rows = torch.zeros(B, dtype=torch.bool)
        rows[rank * B // world : (rank + 1) * B // world] = True
        part = select_rows(batch, rows)
        loss = step_loss(output[rows] * weight, part, objective(kind), world)
        mean += torch.autograd.grad(loss, weight)[0] / world
    torch.testing.assert_close(mean, whole)


@pytest.mark.parametrize("kind", ["forecast", "per_step", "per_trial"])
def test_units_go_there_and_back(kind: str) -> None:
    batch, _ = make_batch(kind)
    back = to_target_units(standardise(batch, objective(kind)), batch, objective(kind))
    target = batch.targets[:, None] if kind == "per_trial" else batch.targets
    torch.testing.assert_close(back, target, equal_nan=True)


def test_a_forecast_is_a_change_from_the_last_valid_row() -> None:
    batch, _ = make_batch("forecast")
    last = batch.values[range(B), batch.lengths - 1][:, [0, 2]]
    want = (batch.targets - 0.3 - last[:, None]) / 2
    torch.testing.assert_close(standardise(batch, objective("forecast")), want)


def test_clip_bounds_training_targets() -> None:
    batch, _ = make_batch("per_step")
    goal = dataclasses.replace(objective("per_step"), clip=(-np.inf, 0.5))
    got = standardise(batch, goal) * 2 + 0.3
    assert float(got[batch.valid].max()) == pytest.approx(0.5)
    assert torch.equal(got.isnan(), batch.targets.isnan())


def test_huber_is_quadratic_inside_and_linear_outside() -> None:
    batch, _ = make_batch("per_trial")
    goal = objective("per_trial", "huber")
    output = standardise(batch, goal) + torch.tensor([0.5] * 4 + [-3.0] * 4)[:, None]
    loss_B, _ = row_losses(output, batch, goal)
    torch.testing.assert_close(loss_B, torch.tensor([0.125] * 4 + [2.5] * 4))


def test_a_batch_of_weight_zero_moves_nothing() -> None:
    batch, output = make_batch("per_step")
    empty = dataclasses.replace(batch, weights=torch.zeros(B), global_weight=0.0)
    loss, grad = gradient(empty, output, objective("per_step"))
    assert loss == 0
    assert not grad.any()
