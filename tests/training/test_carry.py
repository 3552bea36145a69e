"""The hidden state of lanes: gathered from any ranks, given back to any other number of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loaders import Batch
from training.carry import Carry
from training.sections import ModelConfig

LAYERS, H = 2, 3
MODEL = ModelConfig(hidden=H, layers=LAYERS)


def ranks_of(n_ranks: int) -> list[Any]:
    device = torch.device("cpu")
    return [SimpleNamespace(world_size=n_ranks, global_rank=r, device=device)
            for r in range(n_ranks)]  # fmt: skip


def gather_all(carries: list[Carry]) -> list[dict[str, Tensor]]:
    """Return what each rank gathers, as if each ran in a process of its own."""
    fabrics = ranks_of(len(carries))
    parts = [carry.gather(ranks_of(1)[0]) for carry in carries]

    def exchange(every: list[Any], mine: Any) -> None:
        assert any(mine.keys() == part.keys() for part in parts)
        every[:] = parts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "all_gather_object", exchange)
        return [carry.gather(fabric) for carry, fabric in zip(carries, fabrics, strict=True)]


def restored(saved: dict[str, Tensor], n_ranks: int) -> list[Carry]:
    carries = []
    for fabric in ranks_of(n_ranks):
        carries.append(Carry(MODEL))
        carries[-1].restore(saved, fabric)
    return carries


def batch_of(n_lanes: int, reset: list[bool] | None = None, source: int | None = None) -> Batch:
    zeros = torch.zeros(n_lanes, dtype=torch.int64)
    return Batch(
        values=torch.zeros(n_lanes, 4, 2), targets=zeros.float(), observed=None,
        valid=torch.ones(n_lanes, 4, dtype=torch.bool), lengths=zeros + 4,
        weights=zeros + 1.0, global_weight=float(n_lanes), trial=zeros, start=zeros,
        epoch=0, step=0, source=source,
        reset=torch.tensor([False] * n_lanes if reset is None else reset),
    )  # fmt: skip


@settings(max_examples=30)
@given(
    lanes=st.lists(st.integers(3, 8), min_size=1, max_size=3),
    path=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_states_go_from_any_number_of_ranks_to_any_other(
    lanes: list[int], path: list[int], seed: int
) -> None:
    """Each source of a mixture has lanes of its own, and they need not divide by the ranks."""
    rng = torch.Generator().manual_seed(seed)
    whole = {
        str(source): torch.randn(2, LAYERS, n, H, generator=rng) for source, n in enumerate(lanes)
    }
    saved = dict(whole)
    for n_ranks in path:
        carries = restored(saved, n_ranks)
        for source, n in enumerate(lanes):
            for rank, carry in enumerate(carries):
                first, last = rank * n // n_ranks, (rank + 1) * n // n_ranks
                state = carry.before(batch_of(last - first, source=source))
                assert state is not None
                assert torch.equal(state, whole[str(source)][:, :, first:last])
        gathered = gather_all(carries)
        assert all(part.keys() == whole.keys() for part in gathered)
        saved = gathered[-1]
    assert all(torch.equal(saved[key], whole[key]) for key in whole)


def test_what_is_kept_is_detached_and_what_is_given_out_zero_at_a_reset() -> None:
    carry = Carry(MODEL)
    fresh = carry.before(batch_of(3))
    assert fresh is not None
    assert fresh.shape == (2, LAYERS, 3, H)
    assert not fresh.any()
    state = torch.randn(2, LAYERS, 3, H, requires_grad=True)
    carry.after(batch_of(3), state * 1)
    given_out = carry.before(batch_of(3, [False, True, False]))
    assert given_out is not None
    assert not given_out.requires_grad
    assert torch.equal(given_out[:, :, [0, 2]], state[:, :, [0, 2]])
    assert not given_out[:, :, 1].any()


def test_a_reset_forgets_even_what_is_no_number() -> None:
    carry = Carry(MODEL)
    carry.after(batch_of(2), torch.full((2, LAYERS, 2, H), torch.nan))
    state = carry.before(batch_of(2, [True, False]))
    assert state is not None
    assert not state[:, :, 0].any()


def test_windows_and_whole_trials_carry_nothing() -> None:
    carry, batch = Carry(MODEL), batch_of(2)
    batch.reset = None
    assert carry.before(batch) is None
    carry.after(batch, None)
    assert carry.gather(ranks_of(1)[0]) == {}
