"""Copies windows that lie anywhere in a map, one below the other, in one thread.

Torch's own kernel is used, held to one thread: with more, threads wait for each other wherever
other processes want the cores too. Where llvmlite is installed (numba brings it) a compiled loop
takes over once a process has copied enough for loading it to pay. Both move bits and give the same.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Int64 = npt.NDArray[np.int64]

SWITCH = "TRIALSHARDS_FAST"
"""Environment variable; `0` leaves the compiled loop out."""
LOAD_AFTER_BYTES = 512 * 2**20
"""Copied by then in 0.1 s; loading costs as much, and saves about as much per 4 GiB."""

_log = logging.getLogger(__name__)


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
        n, width = out.shape
        if out.dtype != self._dtype or len(first) != n or not out.is_contiguous():
            raise ValueError(
                f"out is {tuple(out.shape)} of {out.dtype}; wanted contiguous rows of "
                f"{self._dtype}, one for each of {len(first)} windows."
            )
        if n == 0 or width == 0:
            return
        width_bytes = width * self._item_bytes
        function = _kernel.function or _kernel.ready(n * width_bytes)
        if function is None:
            self._select(first, out, width)
            return
        if first.dtype != np.int64 or not first.flags.c_contiguous:
            raise ValueError(f"first is {first.dtype}; wanted int64 in C order.")
        bad = function(
            self._address, self._n - width, first.__array_interface__["data"][0], n,
            self._item_bytes, width_bytes, out.data_ptr(),
        )  # fmt: skip
        if bad >= 0:
            raise IndexError(
                f"window {bad} begins at element {first[bad]} and has {width}; there are {self._n}."
            )

    def _select(self, first: Int64, out: Tensor, width: int) -> None:
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


def copy_windows(flat: Tensor, first: Int64, out: Tensor) -> None:
    """Copy once; see `FlatWindows.copy`."""
    FlatWindows(flat).copy(first, out)


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


class _Kernel:
    """The compiled loop, loaded when it pays.

    Attributes:
        function: The loop, once it is there.
    """

    def __init__(self) -> None:
        self.function: Callable[..., int] | None = None
        self._lock = threading.Lock()
        self._left_bytes = LOAD_AFTER_BYTES
        self._engine: Any = None  # owns the machine code

    def ready(self, size_bytes: int) -> Callable[..., int] | None:
        """Return it if it is there, or loading it pays after a copy of some more bytes."""
        self._left_bytes -= size_bytes
        if self._left_bytes <= 0:
            self.load()
        return self.function

    def load(self) -> bool:
        """Load it now, unless it is off or missing or another thread is at it."""
        if self.function is None and self._lock.acquire(blocking=False):
            try:
                self._left_bytes = sys.maxsize  # asked once
                if os.environ.get(SWITCH, "1") != "0":
                    self._engine, self.function = _compile()
            except Exception as error:  # noqa: BLE001 - whatever it is, torch copies as well
                _log.debug("no compiled copies: %s", error)
            finally:
                self._lock.release()
        return self.function is not None

    def unload(self) -> None:
        """Go back to torch for good."""
        self.function, self._left_bytes = None, sys.maxsize


_kernel = _Kernel()


def _compile() -> tuple[Any, Callable[..., int]]:
    llvm = import_module("llvmlite.binding")  # has no types
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(_source())
    module.verify()
    target = llvm.Target.from_default_triple().create_target_machine(
        opt=3, cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten()
    )
    engine = llvm.create_mcjit_compiler(module, target)
    engine.finalize_object()
    word, address = ctypes.c_int64, ctypes.c_void_p
    kind = ctypes.CFUNCTYPE(word, address, word, address, word, word, word, address)
    return engine, kind(engine.get_function_address("copy_windows"))


def _source() -> str:
    """Return LLVM's assembly of: check all starts; then copy row by row.

    A row is moved in four vectors of 32 bytes at a time, the rest of it by memcpy. While one
    window is copied, a line per KiB of the next one is fetched, as far as 16 KiB.
    """
    vectors = [
        f"  %p{i} = add i64 %c, {32 * i}\n  %s{i} = getelementptr i8, ptr %from, i64 %p{i}\n"
        f"  %d{i} = getelementptr i8, ptr %to, i64 %p{i}\n"
        f"  %v{i} = load <32 x i8>, ptr %s{i}, align 1"
        for i in range(4)
    ]
    vectors += [f"  store <32 x i8> %v{i}, ptr %d{i}, align 1" for i in range(4)]
    return _ASSEMBLY.replace("MOVE", "\n".join(vectors))


_ASSEMBLY = """
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)

; returns the first start that is not in [0, last], or -1
define i64 @copy_windows(ptr %src, i64 %last, ptr %first, i64 %n, i64 %item, i64 %width, ptr %out) {
entry:
  %fits = icmp sge i64 %last, 0
  br i1 %fits, label %check, label %bad
check:
  %i = phi i64 [ 0, %entry ], [ %i2, %sound ]
  %at = getelementptr i64, ptr %first, i64 %i
  %start = load i64, ptr %at
  %inside = icmp ule i64 %start, %last
  br i1 %inside, label %sound, label %bad
bad:
  %which = phi i64 [ 0, %entry ], [ %i, %check ]
  ret i64 %which
sound:
  %i2 = add i64 %i, 1
  %unseen = icmp slt i64 %i2, %n
  br i1 %unseen, label %check, label %begin
begin:
  %wide = and i64 %width, -128
  %rest = and i64 %width, 127
  %some = icmp ne i64 %wide, 0
  %reach = call i64 @llvm.smin.i64(i64 %width, i64 16384)
  br label %row
row:
  %r = phi i64 [ 0, %begin ], [ %r2, %tail ]
  %to = phi ptr [ %out, %begin ], [ %to2, %tail ]
  %r2 = add i64 %r, 1
  %here = getelementptr i64, ptr %first, i64 %r
  %element = load i64, ptr %here
  %place = mul i64 %element, %item
  %from = getelementptr i8, ptr %src, i64 %place
  %left = icmp slt i64 %r2, %n
  br i1 %left, label %next, label %move
next:
  %there = getelementptr i64, ptr %first, i64 %r2
  %element2 = load i64, ptr %there
  %place2 = mul i64 %element2, %item
  %from2 = getelementptr i8, ptr %src, i64 %place2
  br label %fetch
fetch:
  %k = phi i64 [ 0, %next ], [ %k2, %fetch ]
  %line = getelementptr i8, ptr %from2, i64 %k
  call void @llvm.prefetch.p0(ptr %line, i32 0, i32 1, i32 1)
  %k2 = add i64 %k, 1024
  %nearer = icmp slt i64 %k2, %reach
  br i1 %nearer, label %fetch, label %move
move:
  br i1 %some, label %vectors, label %tail
vectors:
  %c = phi i64 [ 0, %move ], [ %c2, %vectors ]
MOVE
  %c2 = add i64 %c, 128
  %more = icmp slt i64 %c2, %wide
  br i1 %more, label %vectors, label %tail
tail:
  %from3 = getelementptr i8, ptr %from, i64 %wide
  %to3 = getelementptr i8, ptr %to, i64 %wide
  call void @llvm.memcpy.p0.p0.i64(ptr %to3, ptr %from3, i64 %rest, i1 false)
  %to2 = getelementptr i8, ptr %to, i64 %width
  br i1 %left, label %row, label %done
done:
  ret i64 -1
}
declare i64 @llvm.smin.i64(i64, i64)
"""
