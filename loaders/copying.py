"""Copies windows that lie anywhere in a map, one below the other.

Torch's own kernel is used, held to one thread: with more, threads wait for each other wherever
other processes want the cores too. Where llvmlite is installed a compiled loop takes over once a
process has copied enough for loading it to pay; it can copy early, in a second thread. Both move
bits and give the same.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from loaders.compiled import Loader, pack_job
from loaders.copythread import Ticket, copy_thread

TICKET_BYTES = 128 * 1024
"""What a thread copies before it asks for more: 16 us, which the other one may have to wait."""

NO_PICKS = (0, 0, 0, 0, 0, 0)

loader = Loader()


class Picks(NamedTuple):
    """Single elements beside each window, of the same map of 4-byte elements.

    Attributes:
        origin: int64 `[n]`, contiguous; elements to count from.
        offsets: int64 `[k]`, contiguous.
        reach: The lowest and the highest of them.
        out: `[n, ...]`, k items each, contiguous; takes what is at `origin[:, None] + offsets`.
    """

    origin: Tensor
    offsets: Tensor
    reach: tuple[int, int]
    out: Tensor


class FlatWindows:
    """Windows of one flat tensor; what copies need of it is looked up once.

    Args:
        flat: `[elements]`, contiguous.
    """

    def __init__(self, flat: Tensor) -> None:
        # Few of torch's kernels know uint16; int16 moves the same bits.
        self._is_uint16 = flat.dtype == torch.uint16
        self._flat = flat.view(torch.int16) if self._is_uint16 else flat
        self._address, self._n, self._dtype = flat.data_ptr(), flat.numel(), flat.dtype
        self._item_bytes = flat.element_size()
        self._array = self._flat.numpy()
        self._views: dict[int, Tensor] = {}

    def fetch(
        self, first: Tensor, out: Tensor, picks: Picks | None = None, ones: Tensor | None = None
    ) -> Fetch:
        """Ask for what follows each of some elements; it is there after `Fetch.finish`.

        Args:
            first: int64 `[n]`, contiguous; in `[0, elements - items of a row of out]`.
            out: `[n, ...]` of the dtype of the flat tensor, contiguous; a row for each window.
            picks: Elements to copy beside the windows.
            ones: bool `[n, ...]`, contiguous; to be set to True.

        Raises:
            ValueError: If dtypes or shapes do not fit.
        """
        n = out.shape[0]
        if out.dtype != self._dtype or first.shape[0] != n or not out.is_contiguous():
            raise ValueError(
                f"out is {tuple(out.shape)} of {out.dtype}; wanted contiguous rows of "
                f"{self._dtype}, one for each of {first.shape[0]} windows."
            )
        if first.dtype != torch.int64 or not first.is_contiguous():
            raise ValueError(f"first is {first.dtype}; wanted int64, contiguous.")
        return Fetch(self, first, out, picks, ones)

    def job(self, fetch: Fetch) -> bytes:
        """Describe a copy to the compiled loop."""
        picks, ones, n = fetch.picks, fetch.ones, fetch.n
        picked = NO_PICKS
        if picks is not None:
            low, high = picks.reach
            picked = (
                picks.origin.data_ptr(), picks.offsets.data_ptr(), picks.offsets.shape[0],
                -low, self._n - 1 - high, picks.out.data_ptr(),
            )  # fmt: skip
        width_bytes = fetch.width * self._item_bytes
        return pack_job(
            self._address, self._n - fetch.width, fetch.first.data_ptr(), n, self._item_bytes,
            width_bytes, fetch.out.data_ptr(), max(1, TICKET_BYTES // width_bytes), *picked,
            0 if ones is None else ones.data_ptr(), 0 if ones is None else ones.numel() // n,
        )  # fmt: skip

    def select(self, fetch: Fetch) -> None:
        """Copy windows with torch alone."""
        first, width = fetch.first, fetch.width
        windows = self._views.get(width)
        if windows is None:
            if self._n < width:
                raise IndexError(f"a window has {width} elements; there are {self._n}.")
            windows = self._flat.as_strided((self._n - width + 1, width), (1, 1))
            self._views[width] = windows
        out = fetch.out.view(fetch.n, width)
        if self._is_uint16:
            out = out.view(torch.int16)
        n_threads = torch.get_num_threads()  # first in a thread, this also sets its number
        if n_threads == 1 or _set_threads is None:
            torch.index_select(windows, 0, first, out=out)
            return
        _set_threads(1)
        try:
            torch.index_select(windows, 0, first, out=out)
        finally:
            _set_threads(n_threads)

    def pick(self, picks: Picks) -> None:
        """Copy elements with NumPy alone."""
        element = picks.origin.numpy()[:, None] + picks.offsets.numpy()
        self._array.take(element, out=picks.out.numpy().reshape(element.shape))

    def refuse(self, fetch: Fetch, window: int) -> None:
        """Raise the error of a window that the compiled loop did not find inside."""
        raise IndexError(
            f"window {window} begins at element {int(fetch.first[window])} and has {fetch.width}; "
            f"there are {self._n}."
        )


class Fetch:
    """A copy, asked for or under way; holds the memory of both sides.

    Args: see `FlatWindows.fetch`.

    Attributes:
        n: Windows.
        width: Elements of a window.
    """

    def __init__(
        self, windows: FlatWindows, first: Tensor, out: Tensor, picks: Picks | None,
        ones: Tensor | None,
    ) -> None:  # fmt: skip
        self.first, self.out, self.picks, self.ones = first, out, picks, ones
        self.n = out.shape[0]
        self.width = out.numel() // self.n if self.n else 0
        self._windows = windows
        self._ticket: Ticket | None = None
        self._is_done = False

    def begin(self) -> None:
        """Begin in the second thread, if there is one at hand.

        Raises:
            IndexError: If a window does not lie in the tensor.
        """
        loop = loader.loop
        thread = copy_thread(loop) if loop is not None and self.width else None
        if thread is not None:
            # Not this object: it holds the ticket, which calls the copy off when it goes.
            kept = self._windows, self.first, self.out, self.picks, self.ones
            bad, self._ticket = thread.begin(self._windows.job(self), kept)
            if bad >= 0:
                self._windows.refuse(self, bad)

    def finish(self) -> None:
        """Return when all of it is there.

        Raises:
            IndexError: If a window does not lie in the tensor.
        """
        if self._is_done:
            return
        ticket, self._ticket = self._ticket, None
        self._is_done = True  # or never: who sees an error does not ask again
        if ticket is not None and ticket.finish():
            return
        loop = loader.loop or loader.ready(self.out.nbytes)
        if loop is None or not self.width:
            self._select()
            return
        bad = loop.copy(self._windows.job(self))
        if bad >= 0:
            self._windows.refuse(self, bad)

    def _select(self) -> None:
        if self.width:
            self._windows.select(self)
        if self.picks is not None:
            self._windows.pick(self.picks)
        if self.ones is not None:
            self.ones.fill_(True)


def is_compiled() -> bool:
    """Return whether the compiled loop copies."""
    return loader.loop is not None


def copies_early() -> bool:
    """Return whether copies can begin early here: compiled, on a machine with a second core."""
    return loader.loop is not None and copy_thread(loader.loop) is not None


def _find_set_threads() -> Callable[[int], None] | None:
    """Return OpenMP's own setter, or None where torch has another kind of threads.

    It counts for the calling thread alone; `torch.set_num_threads` would also change what threads
    that start later get.
    """
    suffix = "dylib" if sys.platform == "darwin" else "so"
    library = Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}"
    try:
        setter = ctypes.PyDLL(str(library)).omp_set_num_threads  # of the library that torch uses
    except (OSError, AttributeError):
        return None
    setter.argtypes, setter.restype = [ctypes.c_int], None
    return setter


_set_threads = _find_set_threads()
