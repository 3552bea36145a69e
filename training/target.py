"""What is learned, in numbers: which loss on which elements, and in which units."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch

from loaders import TrialStream
from shards import InvalidSpecError, Store
from training.config import TrainConfig
from training.model import last_seen

Float64 = npt.NDArray[np.float64]
Moments = tuple[Float64, Float64, Float64]
BINARY = "binary_cross_entropy"
# Windows that tell how much a channel changes over the horizon; more would not move the scale.
N_SAMPLE = 4096
_MOMENTS = ("count", "shift", "sum", "sum_sq")


@dataclass(frozen=True)
class Objective:
    """The target of one run. The network predicts `(target - mean - base) / sd`, or a logit.

    Attributes:
        kind: `forecast`, `per_step`, `per_trial` or `class`.
        columns: Names of the targets.
        loss: `mse`, `huber`, `cross_entropy` or `binary_cross_entropy`.
        last_only: Per-step loss on the last valid step alone.
        clip: Bounds for training targets, physical units; infinite where there is none.
        base: Channels whose last seen value is the base of a forecast, one per column; without,
            the base is 0.
        mean: `[K]`, of each target over the train trials.
        sd: `[1, K]` likewise; of a forecast with a base `[steps, K]`, the root mean square of the
            change, so that a loss of 1 is the loss of persistence.
    """

    kind: str
    columns: tuple[str, ...]
    loss: str
    last_only: bool = False
    clip: tuple[float, float] = (-np.inf, np.inf)
    base: tuple[int, ...] = ()
    mean: tuple[float, ...] = (0.0,)
    sd: tuple[tuple[float, ...], ...] = ((1.0,),)


def choose_objective(config: TrainConfig, train: TrialStream) -> Objective:
    """Return what a run learns.

    Args:
        config: Loss, clip.
        train: The train windows, all ranks' share of them, so that every rank finds the same.

    Raises:
        InvalidSpecError: If the config asks for what this kind of target cannot do, or a target
            that shall be binary is not.
    """
    schema, target = train.target, config.target
    kind = "class" if schema.classes is not None else schema.kind
    loss = target.loss or ("cross_entropy" if kind == "class" else "mse")
    _check_target(kind, config, loss)
    if loss == BINARY:
        check_binary(train.store, config.data.train_split, config.data.validation_split)
    low, high = target.clip or (None, None)
    base = target_channels(train.store) if kind == "forecast" and config.model.residual else ()
    mean, sd = np.zeros(1), np.ones((1, 1))
    if base:
        sd = change_scale(train, base)
    elif kind in ("per_step", "per_trial") and loss != BINARY:
        mean, column_sd = target_statistics(train.store, config.data.train_split)
        sd = column_sd[None]
    return Objective(
        kind=kind,
        columns=schema.columns,
        loss=loss,
        last_only=target.loss_on == "last",
        clip=(-np.inf if low is None else low, np.inf if high is None else high),
        base=base,
        mean=tuple(mean.tolist()),
        sd=tuple(tuple(row) for row in sd.tolist()),
    )


def _check_target(kind: str, config: TrainConfig, loss: str) -> None:
    target = config.target
    losses = {"class": ("cross_entropy",), "per_step": ("mse", "huber", BINARY)}
    clips = kind in ("per_step", "per_trial") and loss != BINARY
    checks = (
        ("loss", loss, loss in losses.get(kind, ("mse", "huber")),
         f"cross_entropy for classes, mse or huber for values, {BINARY} for 0 or 1 per step"),
        ("clip", target.clip, target.clip is None or clips,
         "null: only values per step or per trial are clipped"),
        ("loss_on", target.loss_on, target.loss_on == "all" or kind == "per_step",
         "all: there is one prediction per window anyway"),
    )  # fmt: skip
    for name, got, good, wanted in checks:
        if not good:
            raise InvalidSpecError(
                f"target.{name} is {got!r} for a target of kind {kind}; wanted {wanted}. "
                f"Mend target.{name} in the training config."
            )


def check_binary(store: Store, *splits: str | None) -> None:
    """Refuse targets per step that are neither 0 nor 1 nor missing.

    In layout windows rows that lie in no window are not stored, and so not looked at; no batch
    has them.

    Raises:
        InvalidSpecError: Naming the first such trial, column and value.
    """
    wanted = [store.split_code(split) for split in splits if split in store.manifest.splits]
    for number in np.flatnonzero(np.isin(store.index.split, wanted)).tolist():
        rows = store.trial_rows(number, "targets")
        wrong = ~((rows == 0) | (rows == 1) | np.isnan(rows))
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise InvalidSpecError(
                f"target.loss is {BINARY!r}, but {store.manifest.target.columns[column]!r} of "
                f"trial {store.index.id_of(number)!r} is {rows[row, column]:g} at row {row}; "
                "wanted 0, 1 or missing. Take target.loss mse, or derive a column of 0 and 1."
            )


def target_channels(store: Store) -> tuple[int, ...]:
    """Return the channel numbers of a forecast's columns."""
    names = [channel.name for channel in store.manifest.channels]
    return tuple(names.index(column) for column in store.manifest.target.columns)


def change_scale(train: TrialStream, base: tuple[int, ...]) -> Float64:
    """Return float64 `[steps, K]`: root mean square of target - last seen value.

    Units of the delivered values; over the first windows of the train order, which is shuffled.
    """
    n_batches = -(-N_SAMPLE // train.options.batch_size)
    squares, count = torch.zeros(2, train.windows.steps, len(base), dtype=torch.float64)
    for batch in islice(train, n_batches):
        seen_BK = last_seen(batch.values, batch.lengths, batch.observed, base)
        change = batch.targets.double() - seen_BK[:, None]
        squares += change.nan_to_num(0.0).square().sum(0)
        count += change.isfinite().sum(0)
    rms: Float64 = (squares / count.clamp(min=1)).sqrt().numpy()
    return np.where(rms > 0, rms, 1.0)


def target_statistics(store: Store, split: str) -> tuple[Float64, Float64]:
    """Return float64 `(mean, sd)` per target column over a split, physical units.

    They come from `fit.json`, else from what the cold index says of each trial's targets: either is
    the same for every layout and container. A store that says neither is read once; in layout
    windows that leaves out the rows that lie in no window. A column that never varies has sd 1.
    """
    fitted = store.fit.get("target")
    if fitted and fitted.get("mean"):
        mean, sd = (np.asarray(fitted[key], np.float64) for key in ("mean", "sd"))
    else:
        count, total, squares = _moments(store, split)
        n = np.maximum(count, 1)
        mean = total / n
        sd = np.sqrt(squares / n)
    return mean, np.where(np.isfinite(sd) & (sd > 0), sd, 1.0)


def _moments(store: Store, split: str) -> Moments:
    """Return count, sum and sum of squared deviations per target column, trial by trial.

    Trials are merged with Chan, Golub & LeVeque (1979): no E[x^2] - E[x]^2, no pass over all rows
    in memory.
    """
    numbers = np.flatnonzero(store.index.split == store.split_code(split))
    per_step = store.manifest.target.kind == "per_step"
    said = _said_moments(store, numbers) if per_step else None
    count, total, squares = np.zeros((3, len(store.manifest.target.columns)))
    for n, part, own in _measured(store, numbers) if said is None else zip(*said, strict=True):
        gap = np.where(n > 0, part / np.maximum(n, 1) - total / np.maximum(count, 1), 0)
        squares += own + gap**2 * count * n / np.maximum(count + n, 1)
        count, total = count + n, total + part
    return count, total, squares


def _measured(store: Store, numbers: npt.NDArray[np.int64]) -> Iterator[Moments]:
    """Yield count, sum and sum of squared deviations, `[K]`, of the targets of each trial."""
    per_step = store.manifest.target.kind == "per_step"
    for number in numbers.tolist():
        label = store.index.label[number : number + 1, None]
        values = np.asarray(store.trial_rows(number, "targets") if per_step else label, np.float64)
        there = np.isfinite(values)
        n = there.sum(axis=0).astype(np.float64)
        part = np.where(there, values, 0).sum(axis=0)
        own = np.where(there, values - part / np.maximum(n, 1), 0) ** 2
        yield n, part, own.sum(axis=0)


def _said_moments(store: Store, numbers: npt.NDArray[np.int64]) -> Moments | None:
    """Return the same of all trials, `[trials, K]`, as the build measured it (SPEC section 9).

    None if the cold index does not say it: its moments are of the channels, then the targets.
    """
    if not set(_MOMENTS) <= set(store.cold_index.types):
        return None
    table = store.cold(*_MOMENTS).take(numbers)
    n_channels, n_targets = len(store.manifest.channels), len(store.manifest.target.columns)
    lists = [table[name].combine_chunks() for name in _MOMENTS]
    width = n_channels + n_targets
    if any((column.value_lengths().fill_null(0).to_numpy() != width).any() for column in lists):
        return None
    count, shift, total, squares = (
        column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)[:, n_channels:]
        for column in lists
    )
    there = count > 0
    n = np.maximum(count, 1)
    return (
        count,
        np.where(there, count * shift + total, 0),
        np.where(there, np.maximum(squares - total**2 / n, 0), 0),
    )
