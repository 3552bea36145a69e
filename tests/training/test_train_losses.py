"""Every loss against its definition in NumPy, and none of them poisoned by what is missing."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loaders import Batch
from training.loss import row_losses, standardise, step_loss, to_quantiles, to_target_units
from training.target import Objective

B, L, K = 4, 5, 2
QUANTILES = (0.05, 0.5, 0.9)
MEAN, SD = (0.3, -1.0), ((2.0, 0.5),)
ELEMENTS: dict[str, Any] = {
    "mse": lambda error: error**2,
    "mae": np.abs,
    "huber": lambda error: np.where(
        np.abs(error) <= 0.7, error**2 / 2, 0.7 * (np.abs(error) - 0.35)
    ),
}


def batch_of(targets: Tensor, lengths: list[int], **parts: Any) -> Batch:
    n = torch.tensor(lengths)
    fields: dict[str, Any] = {
        "values": torch.randn(B, L, 3, generator=torch.Generator().manual_seed(7)),
        "targets": targets, "observed": None, "valid": torch.arange(L) < n[:, None],
        "lengths": n, "weights": torch.tensor([1.0, 2.0, 0.5, 1.0]), "global_weight": 4.5,
        "trial": torch.arange(B), "start": torch.zeros(B, dtype=torch.int64),
        "epoch": 0, "step": 0,
    }  # fmt: skip
    return Batch(**{**fields, **parts})


def random(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mean_of_finite(element: Any) -> Any:
    """Return `[B]`, the mean of each row's finite elements, 0 of a row without one."""
    flat = element.reshape(len(element), -1)
    count = np.isfinite(flat).sum(1)
    return np.where(count, np.nansum(flat, 1) / np.maximum(count, 1), 0.0)


def holes(targets: Tensor, seed: int) -> Tensor:
    """Return the targets with a third missing, and all of the third row."""
    rng = torch.Generator().manual_seed(seed)
    targets = torch.where(torch.rand(targets.shape, generator=rng) < 0.3, torch.nan, targets)
    targets[2] = torch.nan
    return targets


@settings(max_examples=30)
@given(
    loss=st.sampled_from([*ELEMENTS, "quantile"]),
    kind=st.sampled_from(["per_step", "per_trial", "forecast", "dense"]),
    seed=st.integers(0, 999),
    lengths=st.lists(st.integers(1, L), min_size=B, max_size=B),
)
def test_losses_of_values_are_what_numpy_says(
    loss: str, kind: str, seed: int, lengths: list[int]
) -> None:
    n_columns = 1 if kind == "per_trial" else K
    shape = {"per_step": (B, L, K), "per_trial": (B,), "forecast": (B, 2, K),
             "dense": (B, L, 2, K)}[kind]  # fmt: skip
    base = (2, 0) if kind in ("forecast", "dense") else ()
    goal = Objective(
        kind="forecast" if kind == "dense" else kind, columns=("y", "z")[:n_columns], loss=loss,
        dense=kind == "dense", base=base, mean=MEAN[:n_columns], sd=(SD[0][:n_columns],),
        huber_delta=0.7, quantiles=QUANTILES if loss == "quantile" else (),
    )  # fmt: skip
    batch = batch_of(holes(random(*shape, seed=seed), seed), lengths)
    n_each = len(QUANTILES) if goal.quantiles else 1
    out_shape = (B, 1) if kind == "per_trial" else shape
    output = random(*out_shape[:-1], out_shape[-1] * n_each, seed=seed + 1)
    target = batch.targets.numpy().astype(np.float64)
    target = target[:, None] if kind == "per_trial" else target.copy()
    if kind in ("per_step", "dense"):
        target[~batch.valid.numpy()] = np.nan
    values = batch.values.numpy()
    if kind == "forecast":
        target -= values[range(B), batch.lengths - 1][:, [2, 0]][:, None]
    if kind == "dense":
        target -= values[:, :, None, [2, 0]]
    target = (target - goal.mean) / np.asarray(goal.sd)
    if loss == "quantile":
        error = target[..., None] - output.numpy().reshape(*target.shape, n_each)
        element = np.maximum(np.array(QUANTILES) * error, (np.array(QUANTILES) - 1) * error)
    else:
        element = ELEMENTS[loss](output.numpy() - target)
    loss_B, there_B = row_losses(output, batch, goal)
    np.testing.assert_allclose(loss_B, mean_of_finite(element), rtol=1e-4, atol=1e-5)
    counts = np.isfinite(element).reshape(B, -1).any(1)
    assert there_B.tolist() == counts.tolist()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["class", "step_class"])
def test_cross_entropy_is_what_numpy_says(kind: str, smoothing: float) -> None:
    n_classes = 3
    goal = Objective(kind=kind, columns=("y",), loss="cross_entropy", n_classes=n_classes,
                     label_smoothing=smoothing)  # fmt: skip
    rng = np.random.default_rng(1)
    codes = rng.integers(0, n_classes, (B, L, 1)).astype(np.float32)
    lengths = [5, 2, 4, 1]
    if kind == "class":
        codes = codes[:, 0, 0].astype(np.int64)
        codes[2] = -1
        output = random(B, n_classes)
    else:
        codes[0, 1], codes[2] = np.nan, np.nan
        output = random(B, L, n_classes)
    batch = batch_of(torch.from_numpy(codes), lengths)
    loss_B, there_B = row_losses(output, batch, goal)
    log_p = np.log(np.exp(output.numpy()) / np.exp(output.numpy()).sum(-1, keepdims=True))
    flat = codes.reshape(log_p.shape[:-1])
    known = np.isfinite(flat) & (flat >= 0)
    index = np.where(known, flat, 0).astype(int)[..., None]
    true = np.take_along_axis(log_p, index, -1)[..., 0]
    element = -(1 - smoothing) * true - smoothing * log_p.mean(-1)
    element = np.where(known, element, np.nan)
    if kind == "step_class":
        element[~batch.valid.numpy()] = np.nan
    np.testing.assert_allclose(loss_B, mean_of_finite(element), rtol=1e-5, atol=1e-6)
    assert there_B.tolist() == [True, True, False, True]


@pytest.mark.parametrize("weight", [1.0, 3.5])
def test_binary_cross_entropy_is_what_numpy_says(weight: float) -> None:
    goal = Objective(kind="per_step", columns=("y", "z"), loss="binary_cross_entropy",
                     positive_weight=weight)  # fmt: skip
    truth = holes((random(B, L, K) > 0).float(), 1)
    batch, output = batch_of(truth, [5, 5, 5, 2]), random(B, L, K, seed=2)
    p = 1 / (1 + np.exp(-output.numpy().astype(np.float64)))
    target = np.where(batch.valid[..., None], truth.numpy(), np.nan)
    element = -(weight * target * np.log(p) + (1 - target) * np.log(1 - p))
    np.testing.assert_allclose(row_losses(output, batch, goal)[0], mean_of_finite(element),
                               rtol=1e-5, atol=1e-6)  # fmt: skip


GOALS = {
    **{
        name: Objective("per_step", ("y", "z"), name, mean=MEAN, sd=SD)
        for name in ("mse", "mae", "huber", "binary_cross_entropy")
    },
    "quantile": Objective("per_step", ("y", "z"), "quantile", quantiles=QUANTILES),
    "step_class": Objective("step_class", ("y",), "cross_entropy", n_classes=3),
    "class": Objective("class", ("y",), "cross_entropy", n_classes=3, label_smoothing=0.1),
}


@pytest.mark.parametrize("name", GOALS)
@pytest.mark.parametrize("junk", [1e30, float("inf"), float("nan")])
def test_what_is_missing_or_padded_poisons_no_loss_and_no_gradient(name: str, junk: float) -> None:
    goal = GOALS[name]
    if name == "class":
        targets, gone = torch.tensor([0, 2, -1, 1]), torch.tensor([False, False, True, False])
        output = random(B, 3)
    else:
        targets = (random(B, L, len(goal.columns)) > 0).float()
        targets[2], targets[0, 1] = torch.nan, torch.nan
        output = random(B, L, goal.n_outputs)
        gone = torch.zeros(B, L, dtype=torch.bool)
        gone[2], gone[0, 1], gone[3, 2:] = True, True, True
    batch = batch_of(targets, [5, 5, 5, 2])
    plain = output.clone().requires_grad_()
    dirty = torch.where(gone.unsqueeze(-1), junk, output).requires_grad_()
    losses = [step_loss(said, batch, goal) for said in (plain, dirty)]
    assert losses[0] > 0
    assert torch.equal(*losses)
    grads = [
        torch.autograd.grad(loss, said)[0]
        for loss, said in zip(losses, (plain, dirty), strict=True)
    ]
    assert torch.equal(*grads)
    assert not grads[1][gone].any()


def test_steps_that_do_not_count_have_no_loss_and_no_gradient() -> None:
    goal = GOALS["mse"]
    counts = torch.zeros(B, L, dtype=torch.bool)
    counts[:, 3:] = True
    batch = batch_of(random(B, L, K), [5, 5, 5, 5], counts=counts)
    output = random(B, L, K, seed=3).requires_grad_()
    error = (output - standardise(batch, goal)).detach().numpy()[:, 3:]
    loss_B, _ = row_losses(output, batch, goal)
    np.testing.assert_allclose(loss_B.detach(), (error**2).mean((1, 2)), rtol=1e-5)
    (grad,) = torch.autograd.grad(step_loss(output, batch, goal), output)
    assert torch.equal(grad.any(-1), counts)


def test_quantiles_come_in_order_and_the_middle_one_is_the_prediction() -> None:
    goal = dataclasses.replace(GOALS["quantile"], mean=MEAN, sd=SD)
    batch, output = batch_of(random(B, L, K), [5] * B), random(B, L, K * 3, seed=5)
    said = to_quantiles(output, batch, goal)
    assert said.shape == (B, L, K, 3)
    assert (said.diff(dim=-1) >= 0).all()
    wanted = output.view(B, L, K, 3) * torch.tensor(SD)[..., None] + torch.tensor(MEAN)[:, None]
    torch.testing.assert_close(said, wanted.sort(-1).values)
    assert torch.equal(to_target_units(output, batch, goal), said[..., 1])


@pytest.mark.parametrize("level", [0.1, 0.5, 0.8])
def test_the_quantile_loss_is_least_at_the_quantile(level: float) -> None:
    sample = np.random.default_rng(3).exponential(size=2001).astype(np.float32)
    goal = Objective("per_trial", ("y",), "quantile", quantiles=(level,))
    n = len(sample)
    batch = batch_of(torch.from_numpy(sample), [1] * B, trial=torch.arange(n))
    said = np.quantile(sample, level) + np.linspace(-0.2, 0.2, 41)
    loss = [float(row_losses(torch.full((n, 1), float(x)), batch, goal)[0].mean()) for x in said]
    assert abs(int(np.argmin(loss)) - 20) <= 1
