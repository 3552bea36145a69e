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
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loaders.compiled import Loader, pack_job
from loaders.copythread import Ticket, copy_thread

Int64 = npt.NDArray[np.int64]

TICKET_BYTES = 128 * 1024
"""What a thread copies before it asks for more: 10 us, which the other one may have to wait."""

loader = Loader()


class Picks(NamedTuple):
    """Single elements beside each window, of the same map.

    Attributes:
        origin: int64 `[n]`, C order; elements to count from.
        offsets: int64 `[k]`, C order.
        reach: The lowest and the highest of them.
        out: `[n, ...]`, k items each, C order; takes the elements at `origin[:, None] + offsets`.
    """

    origin: Int64
    offsets: Int64
    reach: tuple[int, int]
    out: npt.NDArray[np.float32]


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
        self._views: dict[int, Tensor] = {}

    def copy(self, first: Int64, out: Tensor) -> None:
        """Copy what follows each of some elements into a row of `out`.

        Args:
            first: int64 `[n]`, C order; in `[0, elements - width]`.
            out: `[n, width]` of the dtype of the flat tensor, contiguous.

        Raises:
            IndexError: If a window does not lie in it; `out` may then hold anything.
            ValueError: If dtypes or shapes do not fit.
        """
        self.fetch(first, out).finish()

    def fetch(
        self, first: Int64, out: Tensor, picks: Picks | None = None,
        ones: npt.NDArray[np.bool_] | None = None, *, early: bool = False,
    ) -> Fetch:  # fmt: skip
        """Say what to copy; it is there after `Fetch.finish`.

        Args:
            first: See `copy`.
            out: See `copy`.
            picks: Elements to copy beside the windows, where these are float32.
            ones: `[n, ...]`, C order, to be set to True.
            early: Begin now, in a second thread, if there is one at hand.

        Raises:
            IndexError: If it begins now and a window does not lie in the tensor.
            ValueError: If dtypes or shapes do not fit.
        """
        if out.dtype != self._dtype or len(first) != out.shape[0] or not out.is_contiguous():
            raise ValueError(
                f"out is {tuple(out.shape)} of {out.dtype}; wanted contiguous rows of "
                f"{self._dtype}, one for each of {len(first)} windows."
            )
        fetch = Fetch(self, first, out, picks, ones)
        if early:
            fetch.begin()
        return fetch

    def job(self, fetch: Fetch) -> bytes:
        """Describe a copy to the compiled loop."""
        first, out, picks, ones = fetch.first, fetch.out, fetch.picks, fetch.ones
        n, width = out.shape
        if first.dtype != np.int64 or not first.flags.c_contiguous:
            raise ValueError(f"first is {first.dtype}; wanted int64 in C order.")
        picked = (0, 0, 0, 0, 0, 0)
        if picks is not None:
            low, high = picks.reach
            picked = (
                _address(picks.origin), _address(picks.offsets), len(picks.offsets),
                -low, self._n - 1 - high, _address(picks.out),
            )  # fmt: skip
        width_bytes = width * self._item_bytes
        return pack_job(
            self._address, self._n - width, _address(first), n, self._item_bytes, width_bytes,
            out.data_ptr(), max(1, TICKET_BYTES // width_bytes), *picked,
            0 if ones is None else _address(ones), 0 if ones is None else ones.nbytes // n,
        )  # fmt: skip

    def select(self, first: Int64, out: Tensor) -> None:
        """Copy with torch alone; see `copy`."""
        width = out.shape[1]
        windows = self._views.get(width)
        if windows is None:
            if self._n < width:
                raise IndexError(f"a window has {width} elements; there are {self._n}.")
            windows = self._flat.as_strided((self._n - width + 1, width), (1, 1))
            self._views[width] = windows
        if self._is_uint16:
            out = out.view(torch.int16)
        n_threads = torch.get_num_threads()  # first in a thread, this also sets its number
        if n_threads == 1 or _set_threads is None:
            torch.index_select(windows, 0, torch.from_numpy(first), out=out)
            return
        _set_threads(1)
        try:
            torch.index_select(windows, 0, torch.from_numpy(first), out=out)
        finally:
            _set_threads(n_threads)

    def pick(self, element: Int64) -> npt.NDArray[Any]:
        """Return single elements, in the shape asked for."""
        taken: npt.NDArray[Any] = self._flat.numpy().take(element)
        return taken

    def refuse(self, fetch: Fetch, window: int) -> None:
        """Raise the error of a window that the compiled loop did not find inside."""
        raise IndexError(
            f"window {window} begins at element {fetch.first[window]} and has "
            f"{fetch.out.shape[1]}; there are {self._n}."
        )


class Fetch:
    """A copy, asked for or under way; holds the memory of both sides.

    Args: see `FlatWindows.fetch`.
    """

    def __init__(
        self, windows: FlatWindows, first: Int64, out: Tensor, picks: Picks | None,
        ones: npt.NDArray[np.bool_] | None,
    ) -> None:  # fmt: skip
        self.first, self.out, self.picks, self.ones = first, out, picks, ones
        self._windows = windows
        self._ticket: Ticket | None = None

    def begin(self) -> None:
        """Begin in the second thread, if there is one at hand.

        Raises:
            IndexError: If a window does not lie in the tensor.
        """
        loop, size = loader.loop, self.out.nbytes
        thread = copy_thread(loop) if loop is not None and size else None
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
        ticket, self._ticket = self._ticket, None
        if ticket is not None and ticket.finish():
            return
        size = self.out.nbytes
        loop = (loader.loop or loader.ready(size)) if size else None
        if loop is None:
            self._select()
            return
        bad = loop.copy(self._windows.job(self))
        if bad >= 0:
            self._windows.refuse(self, bad)

    def _select(self) -> None:
        if self.out.nbytes:
            self._windows.select(self.first, self.out)
        if self.picks is not None:
            element = self.picks.origin[:, None] + self.picks.offsets
            self.picks.out[...] = self._windows.pick(element).reshape(self.picks.out.shape)
        if self.ones is not None:
            self.ones.fill(True)


def copies_early() -> bool:
    """Return whether copies can begin early here: compiled, on a machine with a second core."""
    return loader.loop is not None and copy_thread(loader.loop) is not None


def copy_windows(flat: Tensor, first: Int64, out: Tensor) -> None:
    """Copy once; see `FlatWindows.copy`."""
    FlatWindows(flat).copy(first, out)


def _address(array: npt.NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


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
