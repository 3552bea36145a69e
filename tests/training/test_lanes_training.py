"""Lanes say what whole trials say, and nothing crosses from one trial into another."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learnable import tiny_config
from stores import make_store
from torch import Tensor

from loaders import Batch
from shards import Store, WindowSpec
from shards.manifest import TargetSchema
from training.build import build_model, model_inputs
from training.carry import Carry, run_model
from training.loss import row_losses, step_loss
from training.model import TrialLSTM
from training.sections import ModelConfig
from training.streams import open_stream
from training.target import choose_objective

LENGTHS = (7, 1, 12, 2, 5, 9, 3, 20)
KINDS = ("windows", "trials", "lanes")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("ragged")
    target = TargetSchema("per_step", ("y0", "y1"))
    return make_store(
        folder / "store", LENGTHS, target=target, scale=(40_000.0, 20_000.0),
        windows=WindowSpec(length=4, stride=2),
    )  # fmt: skip


def config_of(store: Store, batches: str, **changes: Any) -> Any:
    data = {"batches": batches, "batch_size": 3, **changes.pop("data", {})}
    return tiny_config(store.path.parent, data=data, **changes)


def network(store: Store, config: Any, seed: int = 0) -> tuple[TrialLSTM, Any]:
    torch.manual_seed(seed)
    objective = choose_objective(config, open_stream(store, config, "train", train=True))
    return build_model(store, config, objective).eval(), objective


@settings(max_examples=15)
@given(
    lanes=st.integers(1, 9),
    chunk=st.integers(1, 21),
    layers=st.integers(1, 3),
    layer_norm=st.booleans(),
    seed=st.integers(0, 99),
)
def test_lanes_say_what_whole_trials_say(
    store: Store, lanes: int, chunk: int, layers: int, seed: int, *, layer_norm: bool
) -> None:
    sizes = {"hidden": 5, "layers": layers, "layer_norm": layer_norm, "head": (4,)}
    data = {"batch_size": lanes, "lanes": {"chunk": chunk}, "seed": seed}
    config = config_of(store, "lanes", model=sizes, data=data)
    model, objective = network(store, config, seed)
    carry, seen = Carry(config.model), dict.fromkeys(range(len(LENGTHS)), 0)
    losses, weights = np.zeros(len(LENGTHS)), np.zeros(len(LENGTHS))
    whole = whole_trials(store, model)
    with torch.no_grad():
        for batch in open_stream(store, config, "train", train=True):
            output = run_model(model, batch, carry)
            loss_B, _ = row_losses(output, batch, objective)
            for row, trial in enumerate(batch.trial.tolist()):
                start, n = int(batch.start[row]), int(batch.lengths[row])
                if trial < 0:
                    continue
                assert seen[trial] == start  # its chunks come in order
                seen[trial] += n
                torch.testing.assert_close(
                    output[row, :n], whole[trial][start : start + n], rtol=1e-4, atol=1e-5
                )
                losses[trial] += float(batch.weights[row] * loss_B[row])
                weights[trial] += float(batch.weights[row])
    assert tuple(seen.values()) == LENGTHS
    np.testing.assert_allclose(losses / weights, whole_losses(store, config, model), rtol=1e-4)
    # Each step of each trial weighs alike, whatever the chunk.
    np.testing.assert_allclose(weights * chunk, LENGTHS, rtol=1e-5)


def whole_trials(store: Store, model: TrialLSTM) -> list[Tensor]:
    offset, scale = store.physical_affine()
    with torch.no_grad():
        return [
            model(torch.from_numpy((store.trial_rows(i) - offset) / scale).float()[None],
                  torch.tensor([n]))[0][0]
            for i, n in enumerate(LENGTHS)
        ]  # fmt: skip


@torch.no_grad()
def whole_losses(store: Store, lanes: Any, model: TrialLSTM) -> list[float]:
    """Return the loss of each trial by batches of whole trials."""
    config = lanes.changed({"data.batches": "trials"})
    _, objective = network(store, config)
    losses = [0.0] * len(LENGTHS)
    for batch in open_stream(store, config, "train"):
        loss_B, _ = row_losses(run_model(model, batch, Carry(config.model)), batch, objective)
        for trial, loss in zip(batch.trial.tolist(), loss_B.tolist(), strict=True):
            if trial >= 0:
                losses[trial] = loss
    return losses


class Attached(Carry):
    """Keeps the gradient between chunks, so that only `reset` is left to cut it."""

    def after(self, batch: Batch, state: Tensor | None) -> None:
        if state is not None:
            self._states[batch.source or 0] = state


def leaves(store: Store, config: Any) -> list[Batch]:
    """Return the batches of an epoch with values whose gradient can be asked for."""
    batches = list(open_stream(store, config, "train", train=True))
    return [dataclasses.replace(b, values=b.values.clone().requires_grad_()) for b in batches]


@pytest.mark.parametrize("batches", KINDS)
@pytest.mark.parametrize("carrying", [Carry, Attached])
def test_no_gradient_crosses_a_trial(store: Store, batches: str, carrying: type[Carry]) -> None:
    config = config_of(store, batches, data={"batch_size": 2, "lanes": {"chunk": 4}})
    model, objective = network(store, config)
    epoch, carry = leaves(store, config), carrying(config.model)
    losses = [row_losses(run_model(model, b, carry), b, objective)[0] for b in epoch]
    for wanted, length in enumerate(LENGTHS):
        # Of lanes only the last chunk, so that the chunks before must be reached, or not.
        last = (length - 1) // 4 * 4
        loss = torch.zeros(())
        for batch, loss_B in zip(epoch, losses, strict=True):
            mine = (batch.trial == wanted) & ((batch.start == last) | (batches != "lanes"))
            loss = loss + loss_B[mine].sum()
        values = [batch.values for batch in epoch]
        grads = torch.autograd.grad(loss, values, retain_graph=True)
        reached = {
            (int(batch.trial[row]), int(batch.start[row]))
            for batch, grad in zip(epoch, grads, strict=True)
            for row in grad.flatten(1).any(1).nonzero().flatten().tolist()
        }
        assert {trial for trial, _ in reached} == {wanted}
        if batches == "lanes":  # its own chunks before, only where nothing was detached
            starts = range(0, length, 4) if carrying is Attached else [last]
            assert {start for _, start in reached} == set(starts)


@pytest.mark.parametrize("batches", KINDS)
def test_no_value_crosses_a_trial(store: Store, batches: str) -> None:
    config = config_of(store, batches, data={"batch_size": 2, "lanes": {"chunk": 4}})
    model, _ = network(store, config)

    def outputs(other: int) -> Iterator[tuple[int, Tensor]]:
        carry = Carry(config.model)
        for batch in open_stream(store, config, "train", train=True):
            batch.values += 3.0 * ((batch.trial == other)[:, None] & batch.valid)[:, :, None]
            with torch.no_grad():
                output = run_model(model, batch, carry)
            for row, n in enumerate(batch.lengths.tolist()):
                yield int(batch.trial[row]), output[row, :n]

    plain = list(outputs(-9))  # no such trial
    assert {trial for trial, _ in plain} >= set(range(len(LENGTHS)))
    for other in range(len(LENGTHS)):
        for (trial, before), (_, after) in zip(plain, outputs(other), strict=True):
            assert trial == -1 or torch.equal(before, after) == (trial != other)


def test_the_state_is_detached_and_zero_exactly_where_a_trial_starts(store: Store) -> None:
    config = config_of(store, "lanes", data={"lanes": {"chunk": 4}, "steps_per_epoch": 50})
    model, _ = network(store, config)
    stream, carry = open_stream(store, config, "train", train=True), Carry(config.model)
    n_kept = 0
    for _ in range(3):  # from one epoch into the next too
        for batch in stream:
            before = carry.before(batch)
            assert before is not None
            assert batch.reset is not None
            assert not before.requires_grad
            assert not before[:, :, batch.reset].any()
            running = (batch.trial >= 0) & ~batch.reset
            assert before[:, :, running].abs().sum(dim=(0, 1, 3)).all()
            n_kept += int(running.sum())
            output, state = model(*model_inputs(batch), before)
            assert output.requires_grad
            assert state is not None
            carry.after(batch, state)
    assert n_kept > 10


def test_burn_in_counts_no_step_before_it(store: Store) -> None:
    config = config_of(store, "lanes", data={"lanes": {"chunk": 4, "burn_in": 6}})
    model, objective = network(store, config)
    carry, weight, n_counted = Carry(config.model), np.zeros(len(LENGTHS)), 0.0
    for batch in leaves(store, config):
        output = run_model(model, batch, carry)
        loss = step_loss(output, batch, objective)
        (grad,) = torch.autograd.grad(loss, output)
        place = batch.start[:, None] + torch.arange(4)
        counted = batch.valid & (place >= 6)
        assert torch.equal(grad.any(dim=-1), counted)
        n_counted += float(counted.sum())
        there = batch.trial >= 0
        np.add.at(weight, batch.trial[there].numpy(), batch.weights[there].numpy())
    assert n_counted == sum(max(0, n - 6) for n in LENGTHS)
    np.testing.assert_allclose(weight * 4, [max(0, n - 6) for n in LENGTHS])


@pytest.mark.parametrize("batches", KINDS)
def test_each_series_counts_the_same_with_weights_trial(store: Store, batches: str) -> None:
    """Over an epoch the weights of a trial of 20 rows and one of 3 have the same sum."""
    data = {"lanes": {"chunk": 4}, "weights": "trial", "windows": {"length": 3, "stride": 1}}
    config = config_of(store, batches, data=data)
    weight = np.zeros(len(LENGTHS))
    for batch in open_stream(store, config, "train", train=True):
        there = batch.trial >= 0
        np.add.at(weight, batch.trial[there].numpy(), batch.weights[there].numpy())
    np.testing.assert_allclose(weight / weight[0], 1, rtol=1e-5)


def test_the_last_step_of_the_last_chunk_is_that_of_the_trial() -> None:
    config = ModelConfig(hidden=5, layers=1, dropout=0.0)
    model = TrialLSTM(2, 1, config)
    x, n = torch.randn(2, 6, 2), torch.tensor([6, 4])
    whole, none = model(x, n)
    zero = torch.zeros(2, 1, 2, 5)
    _, state = model(x[:, :3], torch.tensor([3, 3]), None, None, None, None, zero)
    chunked, after = model(x[:, 3:], torch.tensor([3, 1]), None, None, None, None, state)
    torch.testing.assert_close(chunked, whole)
    assert none is None
    assert after is not None
    assert after.shape == zero.shape


@pytest.mark.parametrize("batches", KINDS)
def test_each_class_counts_the_same_with_weights_class(tmp_path: Path, batches: str) -> None:
    """Over an epoch; a trial of the rare class then weighs more than one of the other."""
    splits, labels = ["train"] * 6, [0, 0, 0, 0, 0, 1]
    target = TargetSchema("per_trial", ("pace",), ("slow", "fast"))
    store = make_store(tmp_path / "store", [9, 4, 7, 5, 6, 8], target=target, labels=labels,
                       splits=splits, windows=WindowSpec(4, 2))  # fmt: skip
    config = config_of(store, batches, data={"lanes": {"chunk": 4}, "weights": "class"})
    weight, own = np.zeros(2), np.zeros(6)
    for batch in open_stream(store, config, "train", train=True):
        there = batch.trial >= 0
        np.add.at(weight, batch.targets[there].numpy(), batch.weights[there].numpy())
        np.add.at(own, batch.trial[there].numpy(), batch.weights[there].numpy())
    assert weight[0] == pytest.approx(weight[1])
    assert own[5] > 2 * own[:5].max()
