"""Streams under the trainers of others: Lightning, Accelerate, torchdata. None is imported here.

`StreamLoader` is the piece they share: a loader whose state is that of the last batch it handed
out, for any number of workers and ranks. It is no `DataLoader`, so that no trainer makes another
one of it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.utils.data import DataLoader, IterableDataset

from loaders.batch import Batch
from loaders.wrappers import refuse_forgotten_place
from shards.errors import InvalidSpecError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from pytorch_lightning import LightningDataModule
    from torchdata.stateful_dataloader import StatefulDataLoader

_LOOPS = ("epoch", "endless", "same")


class Stream(Protocol):
    """What `TrialStream` and a mixture of streams have in common."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Batch]: ...
    def set_epoch(self, epoch: int) -> None:
        """Let the next loop give `epoch`."""

    def state_dict(self, batch: Batch | None = None) -> dict[str, Any]:
        """Return the state after `batch`, or where the next loop starts."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next loop start where `state` was taken."""


class StreamLoader:
    """Loops over a stream, with workers or without, and knows which batch it handed out last.

    Args:
        stream: Already this rank's: each rank makes its own, all alike.
        num_workers: Worker processes; a saved state fits any number of them.
        device: Device that batches are moved to; None leaves them where they are.
        loop: `epoch`: a loop is an epoch, as with the stream itself. `endless`: a loop goes on
            after the last batch handed out and does not end, for a trainer that counts steps by
            `len(loader)` and perhaps stops earlier, as Lightning does. `same`: each loop gives the
            same epoch from its start, for validation.
        **options: Of `torch.utils.data.DataLoader`, such as `pin_memory`.

    Raises:
        InvalidSpecError: If `loop` is none of these, or an option would cut batches anew.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        num_workers: int = 0,
        device: torch.device | str | None = None,
        loop: str = "epoch",
        **options: Any,
    ) -> None:
        if loop not in _LOOPS:
            raise InvalidSpecError(f"loop is {loop!r}; wanted one of {', '.join(_LOOPS)}.")
        _check_options(options)
        self.stream, self.device, self.loop = stream, device, loop
        self._loader: DataLoader[Batch] = DataLoader(
            stream,  # type: ignore[arg-type]
            batch_size=None,
            num_workers=num_workers,
            **options,
        )
        self._after: dict[str, Any] | None = None
        self._first = stream.state_dict()

    def __len__(self) -> int:
        """Return the steps per epoch."""
        return len(self.stream)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches; nothing is read, and no worker starts, before the first is asked for."""
        if self.loop == "same":
            self.stream.load_state_dict(self._first)
        elif self.loop == "endless" and self._after is not None:
            self.stream.load_state_dict(self._after)
        self._after = None
        start = self.stream.state_dict()
        refuse_forgotten_place((start["epoch"], start["step"]))
        while True:
            for batch in self._loader:
                self._after = self.stream.state_dict(batch)
                yield self._moved(batch)
            if self.loop != "endless":
                return

    def set_epoch(self, epoch: int) -> None:
        """Let the next loop give `epoch`; a start within that epoch (after a resume) is kept."""
        self.stream.set_epoch(epoch)
        self._renew()

    def state_dict(self, batch: Batch | None = None) -> dict[str, Any]:
        """Return the state after `batch`, by default after the last one handed out."""
        if batch is not None or self._after is None:
            return self.stream.state_dict(batch)
        return dict(self._after)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next loop start where `state` was taken, whatever number of workers it had.

        Raises:
            ResumeError: If the state belongs to other data or another order of them.
        """
        self.stream.load_state_dict(state)
        self._renew()

    def _renew(self) -> None:
        self._after, self._first = None, self.stream.state_dict()

    def _moved(self, batch: Batch) -> Batch:
        if self.device is None:
            return batch
        return batch.to(self.device, non_blocking=self._loader.pin_memory)


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

    def val_dataloader(self: object) -> StreamLoader:
        assert val is not None
        return StreamLoader(val, loop="same", **options)

    if val is not None:  # Lightning validates where there is such a method
        StreamDataModule.val_dataloader = val_dataloader
    StreamDataModule.__qualname__ = "StreamDataModule"  # checkpoints name it so
    return StreamDataModule()  # type: ignore[no-any-return]


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
        InvalidSpecError: If an option is out of range.
    """
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
    _check_options(options)
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
    return loader  # type: ignore[no-any-return]


class _Stateless(IterableDataset[Batch]):
    """A stream without a state of its own, so that nobody saves the wrong one."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __len__(self) -> int:
        return len(self._stream)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._stream)


def _check_options(options: Mapping[str, Any]) -> None:
    cutting = {"batch_size", "shuffle", "sampler", "batch_sampler", "drop_last"} & options.keys()
    if cutting:
        raise InvalidSpecError(
            f"{', '.join(sorted(cutting))}: a stream yields whole batches in its own order. Give "
            "batch_size and shuffle to the stream."
        )


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
