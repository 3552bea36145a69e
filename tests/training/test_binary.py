"""Targets that are 0 or 1: the loss is torch's, the metrics are their naive definitions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learnable import learnable_store, numpy_network, sigmoid, tiny_config
from test_loss import gradient, make_batch, objective

from shards import InvalidSpecError, Store
from training import train
from training.binary import average_precision, binary_summary, log_loss
from training.checkpoint import load_checkpoint
from training.evaluation import score_on
from training.loss import row_losses, to_target_units
from training.metrics import auroc
from training.target import Objective
from training.targetchecks import BINARY, check_codes

# Few distinct scores, so that ties are common.
SCORES = st.lists(st.tuples(st.sampled_from([0, 0.1, 0.25, 0.5, 0.9, 1]), st.booleans()))


def arrays(pairs: list[tuple[float, bool]]) -> tuple[Any, Any]:
    scores, truth = ([pair[k] for pair in pairs] for k in (0, 1))
    return np.array(scores, np.float64), np.array(truth, np.bool_)


@given(SCORES)
def test_auroc_is_the_share_of_pairs_in_order(pairs: list[tuple[float, bool]]) -> None:
    scores, positive = arrays(pairs)
    won = [(p > n) + 0.5 * (p == n) for p in scores[positive] for n in scores[~positive]]
    want = np.mean(won) if won else np.nan
    assert auroc(scores, positive) == pytest.approx(want, nan_ok=True)


@given(SCORES)
def test_average_precision_is_the_mean_precision_at_the_ones(
    pairs: list[tuple[float, bool]],
) -> None:
    scores, positive = arrays(pairs)
    at = [positive[scores >= score].mean() for score in scores[positive]]
    want = np.mean(at) if at else np.nan
    assert average_precision(scores, positive) == pytest.approx(want, nan_ok=True)


@given(SCORES.filter(bool), st.randoms())
def test_the_order_of_steps_does_not_matter(pairs: list[tuple[float, bool]], random: Any) -> None:
    shuffled = random.sample(pairs, len(pairs))
    one, two = binary_summary(*arrays(pairs)), binary_summary(*arrays(shuffled))
    assert one == pytest.approx(two, nan_ok=True)


@given(SCORES.filter(bool), st.floats(0.1, 5))
def test_ranks_see_only_the_order_of_scores(pairs: list[tuple[float, bool]], power: float) -> None:
    scores, positive = arrays(pairs)
    for metric in (auroc, average_precision):
        bent = metric((1 + scores**power) / 3, positive)
        assert metric(scores, positive) == pytest.approx(bent, nan_ok=True)


def test_scores_by_hand() -> None:
    scores, positive = arrays([(0.9, True), (0.8, False), (0.7, True), (0.2, False)])
    summary = binary_summary(scores, positive)
    assert summary["auroc"] == 0.75
    assert summary["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert summary["positive_share"] == 0.5
    want = -(np.log(0.9) + np.log(0.2) + np.log(0.7) + np.log(0.8)) / 4
    assert summary["log_loss"] == pytest.approx(want)
    assert np.isfinite(log_loss(np.array([0.0, 1.0]), np.array([True, False])))
    assert all(np.isnan(value) for value in binary_summary(*arrays([])).values())


def binary(kind: str = "per_step") -> Objective:
    return dataclasses.replace(objective(kind, BINARY), mean=(0.0,), sd=((1.0,),))


def binary_batch(kind: str = "per_step") -> tuple[Any, Any]:
    batch, output = make_batch(kind)
    ones = torch.where(batch.targets.isnan(), torch.nan, (batch.targets > 0).float())
    return dataclasses.replace(batch, targets=ones), output


def test_the_loss_is_torchs_over_valid_steps_that_have_a_target() -> None:
    batch, output = binary_batch()
    batch.targets[0, 2, 1] = torch.nan
    loss_B, there_B = row_losses(output, batch, binary())
    for row, length in enumerate(batch.lengths.tolist()):
        target = batch.targets[row, :length]
        there = target.isfinite()
        said = output[row, :length].sigmoid()[there]
        want = torch.nn.functional.binary_cross_entropy(said, target[there])
        torch.testing.assert_close(loss_B[row], want)
    assert there_B.all()


def test_the_last_step_alone_may_count() -> None:
    batch, output = binary_batch("last")
    loss_B, _ = row_losses(output, batch, binary("last"))
    last = batch.lengths - 1
    said, target = output[range(8), last].sigmoid(), batch.targets[range(8), last]
    want = torch.nn.functional.binary_cross_entropy(said, target, reduction="none").mean(1)
    torch.testing.assert_close(loss_B, want)


@pytest.mark.parametrize("logit", [-1e4, -100.0, 100.0, 1e4])
def test_sure_logits_keep_loss_and_gradient_finite(logit: float) -> None:
    batch, output = binary_batch()
    loss, grad = gradient(batch, torch.full_like(output, logit).requires_grad_(), binary())
    assert torch.isfinite(loss)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("junk", [1e30, float("inf"), float("nan")])
def test_padding_and_missing_targets_poison_nothing(junk: float) -> None:
    batch, output = binary_batch()
    batch.targets[3] = torch.nan
    loss, grad = gradient(batch, output, binary())
    with torch.no_grad():
        output[~batch.valid] = junk
        output[3] = junk
    loss2, grad2 = gradient(batch, output, binary())
    assert loss2 == loss
    assert torch.equal(grad2, grad)
    assert not grad2[3].any()


def test_what_is_predicted_is_a_probability() -> None:
    batch, output = binary_batch()
    assert torch.equal(to_target_units(output, batch, binary()), output.sigmoid())


def test_it_learns_to_tell_ones_from_zeros(tmp_path: Path) -> None:
    store = learnable_store(tmp_path / "store", "binary")
    config = tiny_config(tmp_path, target={"loss": BINARY}, epochs=12, optimizer={"lr": 3e-2})
    result = train(config)
    assert result.history[-1]["val_loss"] < 0.5 * result.history[0]["val_loss"]
    scored = score_on(config, config.out / "best.ckpt", tmp_path / "scored")
    metrics = scored.metrics
    table = pq.read_table(scored.folder / "predictions.parquet")
    truth, said, naive = (
        table[f"{name}_rising"].to_numpy() for name in ("truth", "predicted", "naive")
    )
    there = np.isfinite(truth)
    assert 0 < there.sum() < len(truth)
    assert metrics["auroc"] == auroc(said[there], truth[there] == 1) > 0.9
    assert metrics["average_precision"] > metrics["positive_share"] == truth[there].mean()
    assert metrics["rmse"] == pytest.approx(np.sqrt(np.mean((said - truth)[there] ** 2)))
    assert metrics["skill"] > 0.5
    assert metrics["by_column"]["rising"]["auroc"] == metrics["auroc"]
    numbers = np.flatnonzero(store.index.split == store.split_code("train"))
    rows = np.concatenate([store.trial_rows(n, "targets") for n in numbers])
    assert naive[0] == pytest.approx(np.nanmean(rows))
    check_first_window(store, config.out, table)


def check_first_window(store: Store, out: Path, table: Any) -> None:
    """Compare probabilities with the LSTM's equations in NumPy."""
    number = int(np.flatnonzero(store.index.split == store.split_code("test"))[0])
    offset, scale = store.physical_affine()
    x_LC = ((store.trial_rows(number) - offset) / scale)[:16]
    logits = numpy_network(load_checkpoint(out / "best.ckpt")["model"], x_LC.astype(np.float64))
    rows = [r for r in table.to_pylist() if r["trial"] == store.index.id_of(number)]
    said = [r["predicted_rising"] for r in sorted(rows, key=lambda r: r["row"])[: len(x_LC)]]
    np.testing.assert_allclose(said, sigmoid(logits[:, 0]), atol=1e-5)


def test_other_targets_are_refused_by_trial_column_and_value(tmp_path: Path) -> None:
    store = learnable_store(tmp_path / "store", "per_step", n_trials=10)
    config = tiny_config(tmp_path, target={"loss": BINARY})
    named = r"'effort' of trial 't000' is 1\d\d.* at row 0; wanted 0, 1"
    with pytest.raises(InvalidSpecError, match=named):
        train(config)
    assert not config.out.exists()
    with pytest.raises(InvalidSpecError, match="'t001'"):
        check_codes(store, BINARY, 2, ["test"])
    check_codes(store, BINARY, 2, [None, "no such split"])


@pytest.mark.parametrize(
    ("kind", "target", "message"),
    [
        ("forecast", {}, "binary_cross_entropy' for a target of kind forecast"),
        ("per_trial", {}, "kind per_trial; wanted mse, mae, huber or quantile"),
        ("class", {}, "kind class; wanted cross_entropy"),
        ("binary", {"clip": (0, 1)}, "target.clip"),
    ],
)
def test_where_it_makes_no_sense_it_is_refused(
    tmp_path: Path, kind: str, target: dict[str, Any], message: str
) -> None:
    learnable_store(tmp_path / "store", kind, n_trials=10)
    with pytest.raises(InvalidSpecError, match=message):
        train(tiny_config(tmp_path, target={"loss": BINARY, **target}))
