"""Padding never enters: not the pools, not the second direction, not layer norm, not the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.model import TrialLSTM
from training.pooling import Pool, reverse_valid
from training.sections import ModelConfig

C, H = 3, 4
KINDS = ("last", "mean", "max", "mean_max", "attention")


def rows(lengths: list[int], seed: int, n_columns: int = C) -> tuple[Tensor, Tensor]:
    """Return `[B, L, columns]` with zeros behind, and the lengths."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(len(lengths), max([1, *lengths]), n_columns, generator=rng)
    lengths_B = torch.tensor(lengths)
    return x * (torch.arange(x.shape[1]) < lengths_B[:, None])[:, :, None], lengths_B


def with_junk(x: Tensor, lengths_B: Tensor, more: int, seed: int) -> Tensor:
    """Return the rows with `more` steps behind, and anything in their padding."""
    longer = torch.cat([x, x.new_zeros(len(x), more, x.shape[2])], dim=1)
    junk = 1e4 * torch.randn(longer.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(
        (torch.arange(longer.shape[1]) < lengths_B[:, None])[..., None], longer, junk
    )


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    more=st.integers(0, 5),
    seed=st.integers(0, 99),
    pool=st.sampled_from(KINDS),
    bidirectional=st.booleans(),
    layer_norm=st.booleans(),
    per_step=st.booleans(),
)
def test_no_padding_and_no_junk_in_it_changes_an_output(
    lengths: list[int], more: int, seed: int, pool: Any,
    *, bidirectional: bool, layer_norm: bool, per_step: bool,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    config = ModelConfig(
        hidden=H, layers=2, dropout=0.0, head=(5,), pool=pool, bidirectional=bidirectional,
        layer_norm=layer_norm,
    )  # fmt: skip
    model = TrialLSTM(C, 2, config, steps=0 if per_step else None)
    x, n = rows(lengths, seed)
    plain, dirty = model(x, n)[0], model(with_junk(x, n, more, seed), n)[0]
    assert torch.isfinite(plain).all()
    there = torch.arange(x.shape[1]) < n[:, None] if per_step else n > 0
    torch.testing.assert_close(dirty[:, : x.shape[1]][there] if per_step else dirty[there],
                               plain[there], rtol=1e-4, atol=1e-5)  # fmt: skip
    grads = torch.autograd.grad(plain[there].square().sum(), list(model.parameters()))
    other = model(with_junk(x, n, more, seed), n)[0]
    other = other[:, : x.shape[1]][there] if per_step else other[there]
    others = torch.autograd.grad(other.square().sum(), list(model.parameters()))
    for mine, theirs in zip(grads, others, strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_pools_are_what_numpy_says(kind: str) -> None:
    torch.manual_seed(1)
    pool = Pool(kind, H)
    x, n = rows([5, 1, 3, 0], 1, H)
    got = pool(with_junk(x, n, 2, 1), n).detach().numpy()
    assert got.shape == (4, pool.width)
    assert np.isfinite(got).all()
    for row, length in enumerate(n.tolist()[:3]):
        steps = x[row, :length].numpy()
        mean, top = steps.mean(0), steps.max(0)
        wanted = {
            "last": lambda s=steps: s[-1],
            "mean": lambda m=mean: m,
            "max": lambda t=top: t,
            "mean_max": lambda m=mean, t=top: np.concatenate([m, t]),
            "attention": lambda s=steps: attention(pool, s),
        }[kind]()
        np.testing.assert_allclose(got[row], wanted, rtol=1e-5, atol=1e-6)


def attention(pool: Pool, steps: Any) -> Any:
    w = {name: part.numpy() for name, part in pool.state_dict().items()}
    hidden = np.tanh(steps @ w["score.0.weight"].T + w["score.0.bias"])
    score = (hidden @ w["score.2.weight"].T + w["score.2.bias"])[:, 0]
    share = np.exp(score - score.max())
    return (share / share.sum()) @ steps


def test_only_valid_steps_are_reversed() -> None:
    x = torch.arange(8.0).reshape(2, 4, 1)
    back = reverse_valid(x, torch.tensor([3, 0]))
    assert back[..., 0].tolist() == [[2, 1, 0, 3], [4, 5, 6, 7]]


def test_the_second_direction_reads_the_trial_from_its_end() -> None:
    config = ModelConfig(hidden=H, layers=1, dropout=0.0, head=(), bidirectional=True)
    model = TrialLSTM(C, 2, config, steps=0)
    x, n = rows([6], 3)
    later = x.clone()
    later[:, 5] += 1
    a, b = model(x, n)[0], model(later, n)[0]
    assert (a != b).all()  # each step has seen the last one


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_without_a_valid_step_is_finite_and_so_are_its_gradients(kind: Any) -> None:
    model = TrialLSTM(C, 2, ModelConfig(hidden=H, layers=1, pool=kind, layer_norm=True))
    x, n = rows([0, 0], 0)
    out, _ = model(x, n)
    assert torch.isfinite(out).all()
    for grad in torch.autograd.grad(out.sum(), list(model.parameters()), allow_unused=True):
        assert grad is None or torch.isfinite(grad).all()
