"""What is learned, in numbers: which loss on which elements, and in which units."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from loaders import TrialStream
from shards import Store
from training.config import TrainConfig
from training.model import last_seen
from training.targetchecks import BINARY, check_codes, check_target

Float64 = npt.NDArray[np.float64]
Moments = tuple[Float64, Float64, Float64]
# Forecasts that tell how much a channel changes over the horizon; more would not move the scale.
N_SAMPLE = 4096
_MOMENTS = ("count", "shift", "sum", "sum_sq")


@dataclass(frozen=True)
class Objective:
    """The target of one run. The network predicts `(target - mean - base) / sd`, or logits.

    Attributes:
        kind: `forecast`, `per_step`, `per_trial`, `class` (of a trial) or `step_class`.
        columns: Names of the targets.
        loss: As `TargetConfig.loss`.
        dense: Forecasts come from every step, as batches of trials and lanes have them.
        last_only: Per-step loss on the last valid step alone.
        clip: Bounds for training targets, physical units; infinite where there is none.
        base: Channels whose last seen value is the base of a forecast, one per column; without,
            the base is 0. Of a dense forecast it is the value at the step, as delivered.
        mean: `[K]`, of each target over the train trials.
        sd: `[1, K]` likewise; of a forecast with a base `[steps, K]`, the root mean square of the
            change, so that a loss of 1 is the loss of persistence.
        quantiles: What is said of each target, with the quantile loss; else empty.
        n_classes: 0 unless a class.
        huber_delta: As in the config; so are `label_smoothing` and `positive_weight`.
    """

    kind: str
    columns: tuple[str, ...]
    loss: str
    dense: bool = False
    last_only: bool = False
    clip: tuple[float, float] = (-np.inf, np.inf)
    base: tuple[int, ...] = ()
    mean: tuple[float, ...] = (0.0,)
    sd: tuple[tuple[float, ...], ...] = ((1.0,),)
    quantiles: tuple[float, ...] = ()
    n_classes: int = 0
    huber_delta: float = 1.0
    label_smoothing: float = 0.0
    positive_weight: float = 1.0

    @property
    def n_outputs(self) -> int:
        """Numbers that the network says of one step or row."""
        return self.n_classes or len(self.columns) * max(1, len(self.quantiles))

    @property
    def middle(self) -> int:
        """Place of the quantile that is the prediction: the one nearest to .5."""
        return int(np.abs(np.asarray(self.quantiles) - 0.5).argmin())


def choose_objective(config: TrainConfig, train: TrialStream) -> Objective:
    """Return what a run learns of one store.

    Args:
        config: Loss, clip.
        train: The train rows, all ranks' share of them, so that every rank finds the same.

    Raises:
        InvalidSpecError: If the config asks for what this kind of target cannot do, or a target
            that shall be binary, or a class, is not.
    """
    kind, loss = target_kind(config, train), config.target.loss
    loss = loss or ("cross_entropy" if kind in ("class", "step_class") else "mse")
    check_target(kind, config, loss, n_columns=len(train.target.columns))
    n_classes = config.target.classes or len(train.classes or ())
    if loss == BINARY or kind == "step_class":
        splits = (config.data.train_split, config.data.validation_split)
        check_codes(train.store, loss, 2 if loss == BINARY else n_classes, splits)
    dense = kind == "forecast" and config.data.batches != "windows"
    objective = Objective(
        kind=kind,
        columns=train.target.columns,
        loss=loss,
        dense=dense,
        last_only=config.target.loss_on == "last",
        clip=_bounds(config),
        quantiles=config.target.quantiles if loss == "quantile" else (),
        n_classes=n_classes if kind in ("class", "step_class") else 0,
        huber_delta=config.target.huber_delta,
        label_smoothing=config.target.label_smoothing,
        positive_weight=config.target.positive_weight,
    )
    return _with_scale(objective, config, train)


def target_kind(config: TrainConfig, train: TrialStream) -> str:
    """Return the `kind` of the objective."""
    if train.classes is not None:
        return "class"
    if train.target.kind == "per_step" and config.target.classes is not None:
        return "step_class"
    return train.target.kind


def _bounds(config: TrainConfig) -> tuple[float, float]:
    low, high = config.target.clip or (None, None)
    return (-np.inf if low is None else low, np.inf if high is None else high)


def _with_scale(objective: Objective, config: TrainConfig, train: TrialStream) -> Objective:
    """Return the objective with the base, mean and sd of its targets."""
    if objective.kind == "forecast" and config.model.residual:
        base = target_channels(train)
        sd = change_scale(train, base, dense=objective.dense)
        return replace(objective, base=base, sd=tuple(map(tuple, sd.tolist())))
    if objective.kind in ("per_step", "per_trial") and objective.loss != BINARY:
        mean, column_sd = target_statistics(train.store, config.data.train_split)
        return replace(objective, mean=tuple(mean.tolist()), sd=(tuple(column_sd.tolist()),))
    return objective


def target_channels(stream: TrialStream) -> tuple[int, ...]:
    """Return the channel numbers of a forecast's columns."""
    names = [channel.name for channel in stream.store.manifest.channels]
    return tuple(names.index(column) for column in stream.target.columns)


def change_scale(train: TrialStream, base: tuple[int, ...], *, dense: bool) -> Float64:
    """Return float64 `[steps, K]`: root mean square of target - last seen value.

    Units of the delivered values; over the first rows of the train order, which is shuffled.
    """
    squares, count = torch.zeros(2, train.windows.steps, len(base), dtype=torch.float64)
    n_seen = 0
    for batch in train:
        if dense:
            seen = batch.values[:, :, None, list(base)]
        else:
            seen = last_seen(batch.values, batch.lengths, batch.observed, base)[:, None]
        change = (batch.targets.double() - seen).flatten(0, -3)
        squares += change.nan_to_num(0.0).square().sum(0)
        count += change.isfinite().sum(0)
        n_seen += len(change)
        if n_seen >= N_SAMPLE:
            break
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
