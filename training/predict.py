"""Predictions of a trained model over a split, each scored element once, in physical units."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loaders import Batch, TrialStream
from training.build import move_batch
from training.carry import Carry, run_model
from training.loss import to_quantiles, to_target_units
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
        quantiles: float64 `[N, K, Q]`, rising along Q, or None.
    """

    trial: Int64
    row: Int64
    ahead: Int64
    truth: Float64
    predicted: Float64
    naive: Float64
    scores: Float64 | None = None
    quantiles: Float64 | None = None


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
        beyond: Also forecast rows behind the end of a trial, which have no truth: every step of
            whole trials and lanes then forecasts its whole horizon, and the last row is the last.
    """

    model: Callable[..., tuple[Tensor, Tensor | None]]
    config: ModelConfig
    objective: Objective
    naive: tuple[float, ...]
    last_only: bool = False
    beyond: bool = False

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
        carry = Carry(self.config)
        for batch in stream:
            keep_B = self._wanted_rows(stream, batch)
            if batch.reset is None and not keep_B.any():
                continue
            # A lane's state goes through all chunks; a window that nobody wants is left out.
            asked = batch if batch.reset is not None else select_rows(batch, keep_B)
            output = run_model(self.model, move_batch(asked, device), carry).cpu().double()
            if batch.reset is not None:
                asked, output = select_rows(batch, keep_B), output[keep_B]
            if len(asked):
                yield asked, output

    def _wanted_rows(self, stream: TrialStream, batch: Batch) -> Tensor:
        """Return bool `[B]`: not filler, and if only the last is asked for, the row that has it."""
        there_B = batch.trial >= 0
        if self.last_only and has_windows(stream):
            reach = stream.windows.length + stream.windows.ahead
            last_B = (rows_of_trials(stream, batch) - reach).clamp(min=0)
            return there_B & (batch.start == last_B)
        per_trial = self.objective.kind in ("per_trial", "class")
        if not self.last_only and not (per_trial and batch.reset is not None):
            return there_B
        step_B = self._last_step(stream, batch)
        return there_B & (step_B >= 0) & (step_B < batch.lengths)

    def _last_step(self, stream: TrialStream, batch: Batch) -> Tensor:
        """Return int64 `[B]`, the step at which a trial is judged; outside of the row if elsewhere.

        That is its last row, of forecasts the last one whose whole horizon is in the trial; of a
        trial that was cut off, the last delivered one.
        """
        ahead = stream.windows.ahead if self.objective.dense and not self.beyond else 0
        step_B = rows_of_trials(stream, batch) - 1 - ahead - batch.start
        return step_B if batch.reset is not None else step_B.minimum(batch.lengths - 1)

    def _per_row(self, stream: TrialStream, device: torch.device) -> Iterator[Predictions]:
        for batch, output in self._outputs(stream, device):
            new_BL = self._new_steps(stream, batch)
            if self.objective.kind == "forecast":
                yield self._forecast(stream, batch, output, new_BL)
            else:
                yield self._steps(batch, output, new_BL)

    def _forecast(
        self, stream: TrialStream, batch: Batch, output: Tensor, new_BL: Tensor
    ) -> Predictions:
        """Return all steps ahead of each row; the baseline is persistence: the last value stays."""
        channels, windows = target_channels(stream), stream.windows
        if self.objective.dense:
            seen, mask = seen_so_far(batch, channels)[:, :, None], new_BL
        else:
            seen = last_seen(batch.values, batch.lengths, batch.observed, channels)[:, None]
            mask = torch.ones(len(batch), dtype=torch.bool)
        said, levels = self._said(output, batch)
        parts = [batch.targets.double(), said, seen.double().expand_as(said)]
        parts += [] if levels is None else list(levels.unbind(-1))
        parts = [stream.to_physical(part, batch)[mask] for part in parts]
        trial, newest = _origins(batch, mask)
        ahead = np.arange(windows.steps) + windows.horizon
        rows = newest[:, None] + ahead
        real = self.beyond | (rows < stream.store.index.n_rows[trial][:, None])
        truth, predicted, naive, *quantiles = (part.numpy()[real] for part in parts)
        return Predictions(
            trial=np.broadcast_to(trial[:, None], real.shape)[real],
            row=rows[real],
            ahead=np.broadcast_to(ahead, real.shape)[real],
            truth=truth,
            predicted=predicted,
            naive=naive,
            quantiles=np.stack(quantiles, axis=-1) if quantiles else None,
        )

    def _said(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return predictions `[B, ..., K]` and, if there are any, quantiles `[B, ..., K, Q]`."""
        if not self.objective.quantiles:
            return to_target_units(output, batch, self.objective), None
        said = to_quantiles(output, batch, self.objective)
        return said[..., self.objective.middle], said

    def _steps(self, batch: Batch, output: Tensor, mask_BL: Tensor) -> Predictions:
        row, step = (part.numpy() for part in mask_BL.nonzero(as_tuple=True))
        truth = batch.targets.double()[mask_BL].numpy()
        scores = quantiles = None
        if self.objective.kind == "step_class":
            scores = output[mask_BL].softmax(-1).numpy()
            predicted = scores.argmax(1)[:, None].astype(np.float64)
        else:
            said, levels = self._said(output, batch)
            predicted = said[mask_BL].numpy()
            quantiles = None if levels is None else levels[mask_BL].numpy()
        return Predictions(
            trial=batch.trial.numpy()[row],
            row=batch.start.numpy()[row] + step,
            ahead=np.zeros_like(step),
            truth=truth,
            predicted=predicted,
            naive=np.broadcast_to(np.asarray(self.naive), truth.shape),
            scores=scores,
            quantiles=quantiles,
        )

    def _new_steps(self, stream: TrialStream, batch: Batch) -> Tensor:
        """Return `[B, L]`: steps that the trial's previous window does not hold.

        So each row is predicted once, by the window that gives it the longest past. Whole trials
        and chunks of lanes do not overlap.
        """
        step_L = torch.arange(batch.valid.shape[1])
        if self.last_only and has_windows(stream):
            return step_L == (batch.lengths - 1)[:, None]
        if self.last_only:
            return step_L == self._last_step(stream, batch)[:, None]
        if not has_windows(stream):
            return batch.valid
        fresh_BL = step_L >= batch.lengths[:, None] - stream.windows.stride
        return batch.valid & (fresh_BL | (batch.start == 0)[:, None])

    def _per_trial(self, stream: TrialStream, device: torch.device) -> Iterator[Predictions]:
        """Average a trial's windows (values, quantiles, probabilities): a prediction per trial."""
        index, is_class = stream.store.index, self.objective.kind == "class"
        sums, count = np.zeros((0, 0)), np.zeros(len(index), np.int64)
        for batch, output in self._outputs(stream, device):
            if is_class:
                part = output.softmax(-1)
            else:
                said, levels = self._said(output, batch)
                part = said if levels is None else levels.flatten(1)
            sums = sums if sums.size else np.zeros((len(index), part.shape[-1]))
            np.add.at(sums, batch.trial.numpy(), part.numpy())
            np.add.at(count, batch.trial.numpy(), 1)
        trial = np.flatnonzero(count)
        mean = sums[trial] / count[trial, None]
        n_quantiles = len(self.objective.quantiles)
        quantiles = mean.reshape(len(trial), -1, n_quantiles) if n_quantiles else None
        predicted = mean if quantiles is None else quantiles[..., self.objective.middle]
        truth = index.label[trial, None].astype(np.float64)
        yield Predictions(
            trial=trial,
            row=index.n_rows[trial] - 1,
            ahead=np.zeros_like(trial),
            truth=truth,
            predicted=mean.argmax(1)[:, None].astype(np.float64) if is_class else predicted,
            naive=np.broadcast_to(np.asarray(self.naive), truth.shape),
            scores=mean if is_class else None,
            quantiles=quantiles,
        )


def _origins(batch: Batch, mask_BL: Tensor) -> tuple[Int64, Int64]:
    """Return trial and row of each forecast's last input: of each chosen step, else of each row."""
    if mask_BL.dim() == 1:
        return batch.trial.numpy(), (batch.start + batch.lengths - 1).numpy()
    row, step = mask_BL.nonzero(as_tuple=True)
    return batch.trial[row].numpy(), (batch.start[row] + step).numpy()


def seen_so_far(batch: Batch, channels: Sequence[int]) -> Tensor:
    """Return `[B, L, K]`, the newest observed value of some channels at each step of a row.

    A channel that the row has not seen yet gives what was delivered.
    """
    values_BLK = batch.values[:, :, list(channels)]
    if batch.observed is None:
        return values_BLK
    step_L1 = torch.arange(values_BLK.shape[1])[:, None]
    seen_BLK = batch.observed[:, :, list(channels)] & batch.valid[:, :, None]
    newest_BLK = torch.where(seen_BLK, step_L1, -1).cummax(dim=1).values
    return values_BLK.take_along_dim(torch.where(newest_BLK >= 0, newest_BLK, step_L1), dim=1)


def rows_of_trials(stream: TrialStream, batch: Batch) -> Tensor:
    """Return int64 `[B]`, the rows of each row's trial; of filler, those of any."""
    return torch.from_numpy(stream.store.index.n_rows[batch.trial.clamp(min=0).numpy()])


def select_rows(batch: Batch, keep_B: Tensor) -> Batch:
    """Return the rows of a batch where `keep_B` is true."""
    if bool(keep_B.all()):
        return batch
    parts: dict[str, Any] = {
        name: x[keep_B] for name, x in vars(batch).items() if isinstance(x, Tensor)
    }
    return dataclasses.replace(batch, **parts)
