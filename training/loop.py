"""The training job. Read `train`, then `train_epoch`: the rest is what they call."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from rich.progress import Progress
from torch import Tensor

from loaders import Batch, TrialStream
from loaders.mix import MixedStream
from shards import InvalidSpecError
from shards.errors import TrialShardsError
from training.build import move_batch
from training.carry import Carry, run_model
from training.checkpoint import BEST, LAST
from training.config import TrainConfig
from training.job import Job, prepare_job, resume_run, save_run, sum_up
from training.loss import row_losses, step_loss
from training.record import Observer, Observers, Recorder
from training.state import (
    RunState,
    StopSignal,
    TrainResult,
    reduce_ranks,
    sum_dtype,
    watch_signals,
)


class TrainingDivergedError(TrialShardsError, ArithmeticError):
    """The loss is no longer a number: the rate is too high, or the data are not normalised."""


def train(
    config: TrainConfig,
    *,
    fresh: bool = False,
    renew: bool = False,
    progress: Progress | None = None,
    on_metrics: Observer | None = None,
    on_step: Observer | None = None,
) -> TrainResult:
    """Train, or go on training, the model of a config; checkpoints, logs and history go to `out`.

    SIGINT and SIGTERM end it after the current step with a checkpoint.

    Args:
        config: What to train.
        fresh: Start over even if `out` holds a checkpoint.
        renew: Start over if the checkpoint there cannot be gone on from.
        progress: A bar to move (see `progress_bar`).
        on_metrics: Called on rank 0 with (step, metrics) after each epoch.
        on_step: Called likewise now and then within an epoch (`record.OBSERVE_EVERY_S`).

    Raises:
        ResumeError: If `out` holds a checkpoint of other data or another config.
        TrainingDivergedError: If the loss becomes NaN or infinite.
        InvalidSpecError: If the config does not fit the store.
    """
    began_s, job = time.perf_counter(), prepare_job(config)
    state = resume_run(job, fresh=fresh, renew=renew)
    batches = endless(job.stream)
    recorder = Recorder(job, state, progress, Observers(on_metrics, on_step))
    with recorder, watch_signals() as stop:
        while state.status(config) == "running":
            train_epoch(job, state, batches, stop=stop, recorder=recorder)
            val_loss = validate(job, stop)
            if stop.agreed:
                save_run(job, state, LAST)
                break
            finish_epoch(job, state, val_loss, recorder=recorder)
    return sum_up(job, state, interrupted=stop.agreed, seconds=time.perf_counter() - began_s)


def train_epoch(
    job: Job, state: RunState, batches: Iterator[Batch], *, stop: StopSignal, recorder: Recorder
) -> None:
    """Take the optimizer steps that are left of this epoch."""
    job.model.train()
    save_every, n_saved = job.config.checkpoint_steps, state.step
    while state.step_in_epoch < job.n_batches:
        loss = optimizer_step(job, state, batches)
        recorder.step(loss)
        if save_every and state.step - n_saved >= save_every:
            save_run(job, state, LAST)
            n_saved = state.step
        if stop.poll(job.fabric, state.step):
            return


def optimizer_step(job: Job, state: RunState, batches: Iterator[Batch]) -> Tensor:
    """Take one step by the gradient of the next batch, or of as many as are accumulated.

    Returns:
        The mean loss of the batches.
    """
    n_batches = min(job.config.optimizer.accumulate, job.n_batches - state.step_in_epoch)
    total: Tensor | float = 0.0
    for number in range(n_batches):
        batch = move_batch(next(batches), job.fabric.device)
        with job.fabric.no_backward_sync(job.model, enabled=number + 1 < n_batches):
            output = run_model(job.model, batch, job.carry)
            loss = step_loss(output, batch, job.objective(batch), job.fabric.world_size)
            job.fabric.backward(loss / n_batches if n_batches > 1 else loss)
        state.count_step(loss, batch.global_weight, job.stream.state_dict(batch))
        total = total + loss.detach()
    if job.config.optimizer.clip_norm is not None:
        # Half precision meets infinite gradients on its way; NaN is caught with the loss.
        job.fabric.clip_gradients(
            job.model, job.optimizer, max_norm=job.config.optimizer.clip_norm,
            error_if_nonfinite=False,
        )  # fmt: skip
    job.optimizer.step()
    job.scheduler.step()
    job.optimizer.zero_grad(set_to_none=True)
    return torch.as_tensor(total / n_batches)


@torch.no_grad()
def validate(job: Job, stop: StopSignal) -> float | None:
    """Return the exact weighted mean loss over the validation rows that have a target.

    None without a validation split, and when a signal cut it short.
    """
    if not job.validation or stop.agreed:
        return None
    job.model.eval()
    sums = torch.zeros(2, dtype=sum_dtype(job.fabric.device), device=job.fabric.device)
    for stream, objective in zip(job.validation, job.objectives, strict=True):
        carry = Carry(job.config.model)
        for step, arrived in enumerate(stream):
            batch = move_batch(arrived, job.fabric.device)
            loss_B, there_B = row_losses(run_model(job.model, batch, carry), batch, objective)
            weights_B = (batch.weights * there_B).to(sums.dtype)
            sums += torch.stack([(weights_B * loss_B).sum(), weights_B.sum()])
            if stop.poll(job.fabric, step):
                return None
    total, weight = reduce_ranks(job.fabric, sums, "sum").tolist()
    return total / weight if weight else None


def finish_epoch(job: Job, state: RunState, val_loss: float | None, *, recorder: Recorder) -> None:
    """Close the epoch's books: metrics, best, checkpoints.

    Raises:
        TrainingDivergedError: If a loss is not finite; the last good checkpoint stays.
        InvalidSpecError: If no row of the epoch weighs anything.
    """
    if not state.weight_sum:
        raise InvalidSpecError(
            f"epoch {state.epoch + 1} has no step that counts: wanted rows of a weight above 0, "
            f"and in lanes trials longer than data.lanes.burn_in "
            f"({job.config.data.lanes.burn_in})."
        )
    mean = float(reduce_ranks(job.fabric, state.loss_sum, "mean"))
    metrics = {"epoch": state.epoch + 1.0, "train_loss": mean / state.weight_sum}
    metrics |= {} if val_loss is None else {"val_loss": val_loss}
    if not all(map(math.isfinite, metrics.values())):
        raise TrainingDivergedError(
            f"the loss is not finite in epoch {state.epoch + 1} ({metrics}). Lower optimizer.lr "
            f"(now {job.config.optimizer.lr}), set optimizer.clip_norm, or normalise the store."
        )
    metrics["lr"] = float(job.scheduler.get_last_lr()[0])
    metrics |= {"step": float(state.step), **recorder.pace()}
    if state.close_epoch(metrics):
        # Best before last: killed in between, the epoch is repeated and writes the same best.
        save_run(job, state, BEST)
    save_run(job, state, LAST)
    recorder.epoch(metrics)


def endless(stream: TrialStream | MixedStream) -> Iterator[Batch]:
    """Yield batches for ever, one stream epoch after the other."""
    while True:
        yield from stream
