"""Predictions of a trained model over a split, each scored element once, in physical units."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loaders import Batch, TrialStream
from training.build import move_batch
from training.carry import Carry, run_model
from training.loss import to_target_units
from training.model import last_seen
from training.sections import ModelConfig
from training.streams import has_windows
from training.target import Objective, target_channels

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Predictions:
    """N scored elements of K columns; a class counts as one column that holds its code.

    Attributes:
        trial: int64 `[N]`, trial numbers.
        row: int64 `[N]`, the row of the trial that is predicted; for a target per trial its last.
        ahead: int64 `[N]`, rows between the last input and that row; 0 unless a forecast.
        truth: float64 `[N, K]`, NaN where missing.
        predicted: float64 `[N, K]`.
        naive: float64 `[N, K]`, what the baseline says.
        scores: float64 `[N, classes]` probabilities, or None.
    """

    trial: Int64
    row: Int64
    ahead: Int64
    truth: Float64
    predicted: Float64
    naive: Float64
    scores: Float64 | None = None


@dataclass(frozen=True)
class Predictor:
    """What turns a stream into predictions.

    Attributes:
        model: In evaluation mode.
        config: Its sizes.
        objective: What it was trained for.
        naive: The baseline where it is a constant: the train mean of each column, or the most
            frequent class of train.
        last_only: Only each trial's last row; windows must have stride 1.
    """

    model: Callable[..., tuple[Tensor, Tensor | None]]
    config: ModelConfig
    objective: Objective
    naive: tuple[float, ...]
    last_only: bool = False

    @torch.no_grad()
    def predict(self, stream: TrialStream, device: torch.device) -> Iterator[Predictions]:
        """Yield predictions by trial, then row; of lanes, as they come.

        The stream must not be shuffled.
        """
        per_trial = self.objective.kind in ("per_trial", "class")
        parts = self._per_trial(stream, device) if per_trial else self._per_row(stream, device)
        yield from parts

    def _outputs(self, stream: TrialStream, device: torch.device) -> Iterator[tuple[Batch, Tensor]]:
        """Yield rows and what the model says of them, without filler, on the CPU."""
        n_rows = torch.from_numpy(stream.store.index.n_rows.copy())
        carry = Carry(self.config)
        for batch in stream:
            keep_B = self._wanted_rows(stream, batch, n_rows)
            if batch.reset is None and not keep_B.any():
                continue
            # A lane's state goes through all chunks; a window that nobody wants is left out.
            asked = batch if batch.reset is not None else select_rows(batch, keep_B)
            output = run_model(self.model, move_batch(asked, device), carry).cpu().double()
            if batch.reset is not None:
                asked, output = select_rows(batch, keep_B), output[keep_B]
            if len(asked):
                yield asked, output

    def _wanted_rows(self, stream: TrialStream, batch: Batch, n_rows: Tensor) -> Tensor:
        """Return bool `[B]`: not filler, and if only the last is asked for, the trial's last."""
        there_B = batch.trial >= 0
        ends = self.last_only or self.objective.kind in ("per_trial", "class")
        if batch.reset is not None and ends:
            return there_B & (batch.start + batch.lengths == n_rows[batch.trial.clamp(min=0)])
        if self.last_only and has_windows(stream):
            reach = stream.windows.length + stream.windows.ahead
            last_B = (n_rows[batch.trial.clamp(min=0)] - reach).clamp(min=0)
            return there_B & (batch.start == last_B)
        return there_B

    def _per_row(self, stream: TrialStream, device: torch.device) -> Iterator[Predictions]:
        for batch, output in self._outputs(stream, device):
            if self.objective.kind == "forecast":
                said = to_target_units(output, batch, self.objective)
                yield _forecast(stream, batch, said, self._new_steps(stream, batch))
            else:
                yield self._steps(batch, output, self._new_steps(stream, batch))

    def _steps(self, batch: Batch, output: Tensor, mask_BL: Tensor) -> Predictions:
        row, step = (part.numpy() for part in mask_BL.nonzero(as_tuple=True))
        truth = batch.targets.double()[mask_BL].numpy()
        scores = None
        if self.objective.kind == "step_class":
            scores = output[mask_BL].softmax(-1).numpy()
            predicted = scores.argmax(1)[:, None].astype(np.float64)
        else:
            predicted = to_target_units(output, batch, self.objective)[mask_BL].numpy()
        return Predictions(
            trial=batch.trial.numpy()[row],
            row=batch.start.numpy()[row] + step,
            ahead=np.zeros_like(step),
            truth=truth,
            predicted=predicted,
            naive=np.broadcast_to(np.asarray(self.naive), truth.shape),
            scores=scores,
        )

    def _new_steps(self, stream: TrialStream, batch: Batch) -> Tensor:
        """Return `[B, L]`: steps that the trial's previous window does not hold.

        So each row is predicted once, by the window that gives it the longest past. Whole trials
        and chunks of lanes do not overlap.
        """
        step_L = torch.arange(batch.valid.shape[1])
        if self.last_only:
            return step_L == (batch.lengths - 1)[:, None]
        if not has_windows(stream):
            return batch.valid
        fresh_BL = step_L >= batch.lengths[:, None] - stream.windows.stride
        return batch.valid & (fresh_BL | (batch.start == 0)[:, None])

    def _per_trial(self, stream: TrialStream, device: torch.device) -> Iterator[Predictions]:
        """Average a trial's windows (of a class: its probabilities), one prediction per trial."""
        index = stream.store.index
        sums, count = np.zeros((0, 0)), np.zeros(len(index), np.int64)
        for batch, output in self._outputs(stream, device):
            is_class = self.objective.kind == "class"
            part = (
                output.softmax(-1) if is_class else to_target_units(output, batch, self.objective)
            )
            sums = sums if sums.size else np.zeros((len(index), part.shape[-1]))
            np.add.at(sums, batch.trial.numpy(), part.numpy())
            np.add.at(count, batch.trial.numpy(), 1)
        trial = np.flatnonzero(count)
        mean = sums[trial] / count[trial, None]
        scores = mean if self.objective.kind == "class" else None
        truth = index.label[trial, None].astype(np.float64)
        yield Predictions(
            trial=trial,
            row=index.n_rows[trial] - 1,
            ahead=np.zeros_like(trial),
            truth=truth,
            predicted=mean if scores is None else mean.argmax(1)[:, None].astype(np.float64),
            naive=np.broadcast_to(np.asarray(self.naive), truth.shape),
            scores=scores,
        )


def _forecast(stream: TrialStream, batch: Batch, output: Tensor, mask_BL: Tensor) -> Predictions:
    """Return all steps ahead of each row; the baseline is persistence: the last value stays."""
    channels, windows = target_channels(stream), stream.windows
    dense = output.dim() == 4
    if dense:
        seen = batch.values[:, :, None, list(channels)]
    else:
        seen = last_seen(batch.values, batch.lengths, batch.observed, channels)[:, None]
    stays = seen.double().expand_as(output)
    parts = [stream.to_physical(part, batch) for part in (batch.targets.double(), output, stays)]
    ahead = np.arange(windows.steps) + windows.horizon
    if dense:
        row, step = mask_BL.nonzero(as_tuple=True)
        parts = [part[mask_BL] for part in parts]
        trial, newest = batch.trial[row].numpy(), (batch.start[row] + step).numpy()
    else:
        trial, newest = batch.trial.numpy(), (batch.start + batch.lengths - 1).numpy()
    truth, predicted, naive = (part.flatten(0, 1).numpy() for part in parts)
    return Predictions(
        trial=trial.repeat(windows.steps),
        row=(newest[:, None] + ahead).ravel(),
        ahead=np.tile(ahead, len(newest)),
        truth=truth,
        predicted=predicted,
        naive=naive,
    )


def select_rows(batch: Batch, keep_B: Tensor) -> Batch:
    """Return the rows of a batch where `keep_B` is true."""
    if bool(keep_B.all()):
        return batch
    parts: dict[str, Any] = {
        name: x[keep_B] for name, x in vars(batch).items() if isinstance(x, Tensor)
    }
    return dataclasses.replace(batch, **parts)
