"""A loader of a stream, whose state is that of the last batch it handed out.

For any number of workers and ranks. It is no `DataLoader`, so that no trainer makes another one
of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from loaders.batch import Batch
from loaders.wrappers import refuse_forgotten_place
from shards.errors import InvalidSpecError

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
        check_options(options)
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


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of a DataLoader that cut batches anew.

    Raises:
        InvalidSpecError: With their names.
    """
    cutting = {"batch_size", "shuffle", "sampler", "batch_sampler", "drop_last"} & options.keys()
    if cutting:
        raise InvalidSpecError(
            f"{', '.join(sorted(cutting))}: a stream yields whole batches in its own order. Give "
            "batch_size and shuffle to the stream."
        )
