"""A run's working parts, put together once, saved and put back."""

from __future__ import annotations

import logging
import math
import shutil
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import yaml
from lightning_fabric import Fabric

from loaders import Batch, TrialStream
from loaders.mix import MixedStream
from shards import CorruptStoreError, InvalidSpecError, Store
from shards.errors import ResumeError
from training.build import build_model, start_fabric
from training.carry import Carry
from training.checkpoint import (
    BEST,
    LAST,
    CheckpointNotFoundError,
    check_same_run,
    describe_run,
    digest_run,
    load_checkpoint,
    restore_rng,
    save_checkpoint,
)
from training.config import TrainConfig
from training.finetune import load_start, parameter_groups
from training.schedule import build_schedule
from training.state import RunState, TrainResult, reduce_ranks
from training.streams import open_split, open_stores, open_training
from training.target import Objective, choose_objective

log = logging.getLogger(__name__)
LOGS = "logs"


@dataclass(frozen=True)
class Job:
    """Everything a run works with; none of it is replaced while it runs.

    Attributes:
        stores: The run's own, then those of the mixture; objectives and validation likewise.
        validation: Empty without a validation split.
        model: The network as Fabric wrapped it.
        optimizer: Likewise.
        carry: The hidden state between chunks of lanes.
        n_batches: Of an epoch; `optimizer.accumulate` of them make a step of the optimizer.
    """

    config: TrainConfig
    fabric: Fabric
    stores: tuple[Store, ...]
    objectives: tuple[Objective, ...]
    stream: TrialStream | MixedStream
    validation: tuple[TrialStream, ...]
    model: Any
    optimizer: Any
    scheduler: torch.optim.lr_scheduler.LRScheduler
    carry: Carry
    n_batches: int

    def objective(self, batch: Batch) -> Objective:
        """Return what a batch's store asks for."""
        return self.objectives[batch.source or 0]

    @property
    def description(self) -> dict[str, Any]:
        """What must be the same for the run to go on."""
        return describe_run(self.config, self.stores, self.objectives)


def prepare_job(config: TrainConfig) -> Job:
    """Open the stores and build what the config asks for.

    Raises:
        InvalidSpecError: If the config does not fit the stores.
        StoreNotFoundError: If there is no such store or version.
    """
    stores = open_stores(config)
    fabric = start_fabric(config)
    whole = open_split(stores, config, config.data.train_split, train=True)
    objectives = tuple(choose_objective(config, stream) for stream in whole)
    ranks = (fabric.global_rank, fabric.world_size)
    stream = open_training(stores, config, ranks, fabric.device)
    n_batches = config.data.steps_per_epoch or len(stream)
    network = build_model(stores[0], config, objectives[0])
    if config.start is not None:
        load_start(network, config.start)
    groups = parameter_groups(network, config.optimizer, config.start)
    plain = torch.optim.AdamW(groups, weight_decay=config.optimizer.weight_decay)
    steps = math.ceil(n_batches / config.optimizer.accumulate)
    scheduler = build_schedule(plain, config.optimizer, epochs=config.epochs, steps=steps)
    if config.device.compile:
        network.compile(dynamic=True)
    model, optimizer = fabric.setup(network, plain)
    torch.manual_seed(config.seed + fabric.global_rank)  # same weights, other dropout
    return Job(
        config=config,
        fabric=fabric,
        stores=stores,
        objectives=objectives,
        stream=stream,
        validation=_open_validation(stores, config, ranks),
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        carry=Carry(config.model),
        n_batches=n_batches,
    )


def _open_validation(
    stores: tuple[Store, ...], config: TrainConfig, ranks: tuple[int, int]
) -> tuple[TrialStream, ...]:
    split = config.data.validation_split
    if split is None or any(split not in store.manifest.splits for store in stores):
        log.warning("no validation split: the last epoch counts as the best")
        return ()
    try:
        return tuple(open_split(stores, config, split, ranks=ranks))
    except InvalidSpecError:
        log.warning("validation split %r has no window: the last epoch counts as the best", split)
        return ()


def resume_run(job: Job, *, fresh: bool, renew: bool = False) -> RunState:
    """Return where to go on: at the last checkpoint in `out`, or at the start.

    Args:
        job: The run.
        fresh: Start over in any case.
        renew: Start over where this would raise.

    Raises:
        ResumeError: If the checkpoint belongs to other data or another config.
        CorruptStoreError: If it cannot be read.
    """
    saved = None if fresh else _load_last(job, renew=renew)
    if saved is None:
        job.fabric.barrier()  # all ranks have looked before rank 0 clears
        if job.fabric.is_global_zero:
            _clear_run(job)
        return RunState()
    return _restore(job, saved)


def _load_last(job: Job, *, renew: bool) -> dict[str, Any] | None:
    """Return the checkpoint to go on from; None without one, or where `renew` gives it up."""
    path = job.config.out / LAST
    if not path.exists():
        return None
    try:
        saved = load_checkpoint(path)
        check_same_run(saved["run"], job.description, path)
        if renew and saved["state"]["best_epoch"]:
            load_checkpoint(path.with_name(BEST))  # without it nothing could be evaluated
    except (ResumeError, CorruptStoreError, CheckpointNotFoundError) as error:
        if not renew:
            raise
        log.warning("starting over: %s", error)
        return None
    return saved


def _restore(job: Job, saved: dict[str, Any]) -> RunState:
    """Put everything that a checkpoint holds back in its place."""
    state = RunState(**{f.name: saved["state"][f.name] for f in fields(RunState)})
    job.model.load_state_dict(saved["model"])
    job.optimizer.load_state_dict(saved["optimizer"])
    job.scheduler.load_state_dict(saved["scheduler"])
    job.fabric.strategy.precision.load_state_dict(saved["precision"])
    if state.stream is not None:
        job.stream.load_state_dict(state.stream)
    job.carry.restore(saved["carry"], job.fabric)
    if not restore_rng(job.fabric, saved["rng"]):
        log.warning("another number of ranks: same batches, but dropout draws other masks")
    log.info("resumed %s after %d epochs, at step %d", job.config.out, state.epoch, state.step)
    return state


def save_run(job: Job, state: RunState, name: str) -> None:
    """Write a checkpoint of the run into `out`; every rank must call it."""
    mean = reduce_ranks(job.fabric, state.loss_sum, "mean")  # what every rank goes on with
    parts = {
        "model": job.model, "optimizer": job.optimizer, "scheduler": job.scheduler,
        "state": asdict(state) | {"loss_sum": float(mean)},
        "run": job.description,
        "carry": job.carry.gather(job.fabric),
    }  # fmt: skip
    save_checkpoint(job.fabric, job.config.out / name, parts)


def sum_up(job: Job, state: RunState, *, interrupted: bool, seconds: float) -> TrainResult:
    """Return what a run that has ended came to."""
    status = "interrupted" if interrupted else state.status(job.config)
    log.info("%s after %d epochs, %d steps, %.1f s", status, state.epoch, state.step, seconds)
    if interrupted:
        log.info("a checkpoint is in %s; run again to go on", job.config.out)
    return TrainResult(
        out=job.config.out,
        status=status,
        epochs=state.epoch,
        steps=state.step,
        best_epoch=state.best_epoch,
        best_loss=state.best_loss if math.isfinite(state.best_loss) else None,
        seconds=seconds,
        history=tuple(state.history),
        store_version=job.stores[0].version,
        device=str(job.fabric.device),
        digest=digest_run(job.description),
    )


def _clear_run(job: Job) -> None:
    """Remove what an earlier run left, and note what this one was asked for."""
    out = job.config.out
    out.mkdir(parents=True, exist_ok=True)
    for name in (LAST, BEST):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / LOGS, ignore_errors=True)
    (out / "config.yaml").write_text(
        yaml.safe_dump(job.config.model_dump(mode="json"), sort_keys=False)
    )
