"""Streams under the trainers of others: Lightning, Accelerate, torchdata.

None of them is imported before it is asked for. `StreamLoader` is the piece they share.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch.utils.data import IterableDataset

from loaders.batch import Batch
from loaders.streamloader import Stream, StreamLoader, check_options
from shards.errors import InvalidSpecError

__all__ = ["StreamLoader", "prepare_stream", "stateful_loader", "stream_module"]

if TYPE_CHECKING:
    from accelerate import Accelerator
    from pytorch_lightning import LightningDataModule
    from torchdata.stateful_dataloader import StatefulDataLoader


def stream_module(
    train: Stream, val: Stream | None = None, *, num_workers: int = 0, **options: Any
) -> LightningDataModule:
    """Return a LightningDataModule of streams, for `trainer.fit(model, datamodule=...)`.

    Checkpoints hold the place after the last batch that was trained on, and a run that resumes
    goes on there: within an epoch or between two, with another number of workers or devices.
    `limit_train_batches` shortens the trainer's epochs, not the stream's, which goes on in the
    next one. Validation reads the same epoch each time. Lightning moves the batches.

    Args:
        train: Made alike on all ranks.
        val: Read for validation.
        num_workers: Worker processes of each process and stream.
        **options: Of `torch.utils.data.DataLoader`.

    Raises:
        InvalidSpecError: If Lightning is not installed, or an option would cut batches anew.
    """
    options = {"num_workers": num_workers, **options}
    loader = StreamLoader(train, loop="endless", **options)

    class StreamDataModule(_lightning().LightningDataModule):  # type: ignore[misc]
        def train_dataloader(self) -> StreamLoader:
            return loader

        def state_dict(self) -> dict[str, Any]:
            return loader.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            loader.load_state_dict(state_dict)

    if val is not None:  # Lightning validates where there is such a method
        validation = StreamLoader(val, loop="same", **options)
        StreamDataModule.val_dataloader = lambda self: validation  # noqa: ARG005
    StreamDataModule.__qualname__ = "StreamDataModule"  # checkpoints name it so
    return StreamDataModule()


def prepare_stream(
    accelerator: Accelerator, stream: Stream, *, num_workers: int = 0, **options: Any
) -> StreamLoader:
    """Return the loader of a stream for a loop under Hugging Face Accelerate.

    Use it in the place of `accelerator.prepare(DataLoader(...))`, which would divide the stream
    among the processes a second time. Batches come on the accelerator's device. Accelerate's
    `save_state` and `load_state` include the place in the epoch; `accumulate` takes a step at the
    end of an epoch, as with loaders that it prepared.

    Args:
        accelerator: With it, the process group exists.
        stream: The same on all processes.
        num_workers: Worker processes of each process.
        **options: Of `StreamLoader`.

    Raises:
        InvalidSpecError: If an option is out of range, or Accelerate does not know of the
            processes that were started.
    """
    n_started = int(os.environ.get("WORLD_SIZE", 1))
    if n_started != accelerator.num_processes:
        raise InvalidSpecError(
            f"{n_started} processes were started (WORLD_SIZE), and Accelerate knows "
            f"{accelerator.num_processes}: each would train alone, on all batches. Without a GPU, "
            "say Accelerator(cpu=True)."
        )
    loader = _SteppedLoader(stream, num_workers=num_workers, device=accelerator.device, **options)
    loader.gradient_state = accelerator.gradient_state
    accelerator.register_for_checkpointing(loader)
    return loader


class _SteppedLoader(StreamLoader):
    """Tells Accelerate's `GradientState` when an epoch ends, as its own loaders do."""

    gradient_state: Any
    end_of_dataloader = False
    remainder = -1  # filler rows have weight 0; gather_for_metrics shall cut nothing off

    def __iter__(self) -> Iterator[Batch]:
        self.end_of_dataloader = False
        self.gradient_state._add_dataloader(self)
        try:
            for batch in super().__iter__():
                self.end_of_dataloader = self.state_dict(batch)["step"] == 0
                yield batch
        finally:
            self.gradient_state._remove_dataloader(self)


def stateful_loader(
    stream: Stream, *, num_workers: int = 0, **options: Any
) -> StatefulDataLoader[Batch]:
    """Return a torchdata `StatefulDataLoader` whose state fits any number of workers.

    For code that wants one by type; `StreamLoader` does the same without torchdata. torchdata's
    own state is one per worker and is refused by another number of them; here it is that of the
    last batch handed out, `stream.state_dict(batch)`.

    Args:
        stream: Already this rank's.
        num_workers: Worker processes.
        **options: Of `StatefulDataLoader`.

    Raises:
        InvalidSpecError: If torchdata is not installed, or an option would cut batches anew.
    """
    check_options(options)
    plain = _optional("torchdata.stateful_dataloader").StatefulDataLoader

    class StreamStatefulDataLoader(plain):  # type: ignore[misc, valid-type]
        def __iter__(self) -> Iterator[Batch]:
            self.after = None
            for batch in super().__iter__():
                self.after = stream.state_dict(batch)
                yield batch

        def state_dict(self) -> dict[str, Any]:
            return stream.state_dict() if self.after is None else dict(self.after)

        def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
            stream.load_state_dict(state_dict)
            self.after = None

    loader = StreamStatefulDataLoader(
        _Stateless(stream), batch_size=None, num_workers=num_workers, **options
    )
    loader.after = None
    return loader


class _Stateless(IterableDataset[Batch]):
    """A stream without a state of its own, so that nobody saves the wrong one."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __len__(self) -> int:
        return len(self._stream)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._stream)


def _lightning() -> Any:
    """Return the package whose Trainer is at work: it takes no data module of the other's."""
    names = ("lightning.pytorch", "pytorch_lightning")
    known = [name for name in names if name in sys.modules]
    try:
        return _optional(known[0] if known else names[0])
    except InvalidSpecError:
        return _optional(names[1])


def _optional(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise InvalidSpecError(
            f"{package} is not installed ({error}). Run: pip install {package}"
        ) from error
