"""From the host to a device: one batch ahead, out of page-locked memory, beside the computing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import get_worker_info

from loaders.batch import Batch
from shards import InvalidSpecError

MOST_COPYING = 2
"""Batches that may be on their way at a time; each holds its page-locked memory until it is."""
ROWS_LIE_ON = ("cuda", "cpu")
"""Kinds of devices that batches can be made on: others lack float64, or were never tried."""


def parse_device(device: torch.device | str | int | None) -> torch.device | None:
    """Return a device that is there.

    Raises:
        InvalidSpecError: If it is none, or this PyTorch has no CUDA device of that number.
    """
    if device is None:
        return None
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidSpecError(
            f"device is {device!r} ({reason}); wanted one such as 'cuda', or None."
        ) from error
    if parsed.type != "cuda":
        return parsed
    n_devices = torch.cuda.device_count()
    if not torch.cuda.is_available() or (parsed.index or 0) >= n_devices:
        raise InvalidSpecError(
            f"device is {str(device)!r}, but this PyTorch ({torch.__version__}) sees {n_devices} "
            "CUDA devices. Leave device out, or install a PyTorch with CUDA where there is one."
        )
    # A batch says cuda:0 where the request says cuda.
    return parsed if parsed.index is not None else torch.device("cuda", torch.cuda.current_device())


def check_resident(resident: bool | str, device: torch.device | None) -> None:
    """Refuse what `resident` cannot be.

    Raises:
        InvalidSpecError: If it is none of `auto`, True, False and `blocks`, or is asked for
            without a device that rows can lie on.
    """
    if resident not in (True, False, "auto", "blocks") or not isinstance(resident, bool | str):
        raise InvalidSpecError(f"resident is {resident!r}; wanted 'auto', True, False or 'blocks'.")
    if resident in (True, "blocks") and (device is None or device.type not in ROWS_LIE_ON):
        got = None if device is None else str(device)
        raise InvalidSpecError(
            f"resident is {resident!r} and device is {got!r}; wanted device='cuda' beside it. "
            "Leave resident out."
        )


def refuse_worker(device: torch.device) -> None:
    """Refuse to move batches in a DataLoader worker, from where they would come back to the host.

    On the host itself there is nothing to move.

    Raises:
        InvalidSpecError: If this process is one.
    """
    if get_worker_info() is not None and device.type != "cpu":
        raise InvalidSpecError(
            f"device is '{device}' in a DataLoader worker, which cannot hand batches on a device "
            "over; wanted num_workers=0 (with device= the copies overlap the training anyway), or "
            "device=None and batch.to(device) in the loop."
        )


def free_bytes(device: torch.device) -> int | None:
    """Return the free memory of a CUDA device in bytes; of others nobody asks."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else None


def locked_memory(size_bytes: int) -> npt.NDArray[np.uint8]:
    """Return page-locked memory: a device copies from it while the host goes on."""
    memory: npt.NDArray[np.uint8] = torch.empty(
        size_bytes, dtype=torch.uint8, pin_memory=True
    ).numpy()
    return memory


class SideStream:
    """A stream beside the one that computes; on devices without streams all is done in order.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def on(self) -> AbstractContextManager[Any]:
        """Return a context in which this thread's work goes to the side stream."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def wait(self, event: Any) -> None:
        """Let what comes on the side stream wait for an event, if there is one."""
        if self._stream is not None and event is not None:
            self._stream.wait_event(event)

    def keep(self, tensor: torch.Tensor) -> None:
        """Let the memory of a tensor wait for the side stream before others get it."""
        if self._stream is not None:
            tensor.record_stream(self._stream)


def mark(device: torch.device) -> Any:
    """Return an event that is done when the work given to this thread's stream is, or None."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


def await_mark(device: torch.device, event: Any) -> None:
    """Let what comes on this thread's stream wait for an event; the host goes on."""
    if event is not None:
        torch.cuda.current_stream(device).wait_event(event)


class Moving(NamedTuple):
    """A batch on its way.

    Attributes:
        host: Where it is copied from; must stay until the copy is done.
        batch: Where to.
        done: Event behind the copy: `query()` says whether it is done, `synchronize()` waits.
    """

    host: Batch
    batch: Batch
    done: Any


class Copier(Protocol):
    """Copies batches while the host goes on."""

    def start(self, batch: Batch) -> Moving:
        """Begin the copy of a batch."""

    def hand_over(self, moving: Moving) -> Batch:
        """Return the batch; what its user computes with it waits for the copy."""


class CudaCopier:
    """Copies on a side stream of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._side = device, SideStream(device)

    def start(self, batch: Batch) -> Moving:
        """Begin the copy of a batch; what is not page-locked is brought there first."""
        host = batch.pin_memory()
        with self._side.on():
            moved = host.to(self._device, non_blocking=True)
            return Moving(host, moved, mark(self._device))

    def hand_over(self, moving: Moving) -> Batch:
        """Return the batch; the stream of who asks waits for the copy."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(moving.done)
        # The memory is the side stream's: not to be given away before `current` is through.
        for tensor in vars(moving.batch).values():
            if isinstance(tensor, torch.Tensor):
                tensor.record_stream(current)
        return moving.batch


class DeviceFeed(Iterable[Batch]):
    """Batches on a device, in order; on CUDA the next one is copied while one is computed with.

    The next batch is gathered when one is asked for, so the host must not wait for each step
    (`loss.item()`) if it is to gather beside the computing. Batches that are there already pass.

    Args:
        batches: On the host.
        device: Where to.
        copier: Stands in for the one of the device.
    """

    def __init__(
        self, batches: Iterable[Batch], device: torch.device, copier: Copier | None = None
    ) -> None:
        self._batches, self._device = batches, device
        self._copier = copier
        if copier is None and device.type == "cuda":
            self._copier = CudaCopier(device)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches.

        An error of `batches` is raised behind the batches before it.
        """
        if self._copier is None:
            for batch in self._batches:
                yield batch.to(self._device)
            return
        copying: deque[Moving] = deque()
        try:
            ready: Moving | Batch | None = None
            source = iter(self._batches)
            while True:
                error, following = self._begin(source, copying)
                if ready is not None:
                    yield self._copier.hand_over(ready) if isinstance(ready, Moving) else ready
                if error is not None:
                    raise error
                if following is None:
                    return
                ready = following
                del following
        finally:
            for moving in copying:  # its memory may be used again from now on
                moving.done.synchronize()

    def _begin(
        self, source: Iterator[Batch], copying: deque[Moving]
    ) -> tuple[Exception | None, Moving | Batch | None]:
        """Take the next batch and begin its copy; an error is for later."""
        assert self._copier is not None
        while copying and (len(copying) >= MOST_COPYING or copying[0].done.query()):
            copying.popleft().done.synchronize()
        try:
            batch = next(source, None)
        except Exception as error:  # noqa: BLE001 - raised behind the batch before
            return error, None
        if batch is None or batch.values.device == self._device:
            return None, batch
        copying.append(self._copier.start(batch))
        return None, copying[-1]
