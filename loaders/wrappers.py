"""Refuse to be iterated by a wrapper that would lose or repeat batches without a word.

A stream gives each rank its own rows of every step. Wrappers written for data sets that know
nothing of ranks divide once more, and nobody notices: Accelerate's `prepare` delivered 40 of 80
windows to 2 ranks. Such a wrapper stands on the call stack when it asks for the first batch, also
in a forked worker; before a worker is spawned it stands there while the stream is pickled. So the
stack is looked at, once per epoch, and none of these packages is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from torch.utils.data import get_worker_info

from shards.errors import InvalidSpecError, ResumeError


def refuse_second_sharding() -> None:
    """Look who asks for batches, or for a pickle to ask in another process.

    Raises:
        InvalidSpecError: If it is a wrapper that would divide the stream again.
    """
    for frame in _callers():
        judge = _JUDGES.get(frame.f_globals.get("__name__", ""))
        advice = judge(frame) if judge is not None else None
        if advice is not None:
            raise InvalidSpecError(advice)


def refuse_state_of_dataset() -> None:
    """Look who asks for the place where the next loop starts.

    torchdata's StatefulDataLoader asks its copy of a data set after each batch and goes on from
    there. A stream is at the start of the epoch until its end: all of it would come again.

    Raises:
        InvalidSpecError: If it is that loader.
    """
    for frame in _callers():
        if frame.f_globals.get("__name__", "").startswith("torchdata.stateful_dataloader."):
            raise InvalidSpecError(
                "a stream is the data set of torchdata's StatefulDataLoader, which would start "
                "the epoch again when it resumes; wanted a state by the last batch. Use "
                "loaders.integrations.stateful_loader(stream, num_workers=...) instead."
            )


def refuse_forgotten_place(start: tuple[int, int]) -> None:
    """Look whether Lightning would give the same epoch again.

    It leaves a loop of known length at its last batch, before the stream can tell that the epoch is
    over, so that each epoch would be the first again. And it gives a resumed run its loader's state
    back within an epoch alone, not between two.

    Args:
        start: Epoch and step where the stream would start.

    Raises:
        ResumeError: If Lightning trains, and not on a `StreamLoader` that goes on by itself; or if
            it has trained already, and the stream would begin with the first step of all.
    """
    endless = False
    for frame in _callers():
        name = frame.f_globals.get("__name__", "")
        if name == "loaders.streamloader":
            endless = frame.f_locals["self"].loop == "endless"
        package, _, loop = name.rpartition(".loops.")
        if package not in _LIGHTNING:
            continue
        if loop == "evaluation_loop":  # each validation may read the same again
            return
        if loop == "fit_loop":
            _check_progress(frame.f_locals["self"], start, endless)


def _check_progress(fit_loop: Any, start: tuple[int, int], endless: bool) -> None:
    epoch = fit_loop.epoch_progress.current.processed
    batch = fit_loop.epoch_loop.batch_progress.current.ready
    if start == (0, 0) and (epoch or batch):
        raise ResumeError(
            f"Lightning goes on in epoch {epoch} after {batch} batches, and the stream would begin "
            f"with epoch 0, step 0 again. {_REMEDY} Of a checkpoint made without it, the next "
            f"epoch can be told: stream.set_epoch({epoch + bool(batch)})."
        )
    if not endless and fit_loop.max_epochs != epoch + 1:
        raise ResumeError(
            f"Lightning would train beyond epoch {epoch}, and leave each loop before the stream "
            f"knows that an epoch is over: the same one would come again. {_REMEDY}"
        )


_REMEDY = (
    "Train with trainer.fit(model, datamodule=loaders.integrations.stream_module(stream)), which "
    "keeps the place between epochs and in checkpoints."
)
_LIGHTNING = ("lightning.pytorch", "pytorch_lightning")


def _callers() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _accelerate(frame: FrameType) -> str | None:
    wrapper = frame.f_locals.get("self")
    name = type(wrapper).__name__
    if name == "IterableDatasetShard":
        n_parts = getattr(wrapper, "num_processes", 1)
    elif name == "DataLoaderDispatcher":
        n_parts = getattr(getattr(wrapper, "state", None), "num_processes", 1)
    else:
        return None
    return None if n_parts == 1 else (
        f"Accelerate's {name} would divide this rank's rows among {n_parts} processes again, and "
        f"lose the others'. Do not hand a stream to accelerator.prepare(): use "
        "loaders.integrations.prepare_stream(accelerator, stream)."
    )  # fmt: skip


def _hugging_face(frame: FrameType) -> str | None:
    nodes = getattr(frame.f_locals.get("self"), "_distributed", None)
    if nodes is not None and nodes.world_size > 1:
        return (
            f"split_dataset_by_node would take every {nodes.world_size}th of this rank's batches. "
            "Iterate the stream itself: it knows rank and world_size."
        )
    info = get_worker_info()
    if info is not None and info.num_workers > 1:
        return (
            "a datasets.IterableDataset of one shard runs in one DataLoader worker, while this "
            f"stream gives each of {info.num_workers} workers its part. Hand the stream itself to "
            "DataLoader(stream, batch_size=None)."
        )
    return None


def _data_pipe(frame: FrameType) -> str | None:
    wrapper = frame.f_locals.get("self")
    n_parts = getattr(wrapper, "num_of_instances", 1)
    return None if n_parts == 1 else (
        f"sharding_filter() would take every {n_parts}th of the batches that are already those of "
        "this rank and worker. Take it out of the pipe."
    )  # fmt: skip


_JUDGES: dict[str, Callable[[FrameType], str | None]] = {
    "accelerate.data_loader": _accelerate,
    "datasets.iterable_dataset": _hugging_face,
    "torch.utils.data.datapipes.iter.sharding": _data_pipe,
}
