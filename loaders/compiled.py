"""The compiled loop that copies windows (`loaders/copying.ll`), by llvmlite where it is installed.

numba brings llvmlite too. Loading takes 0.1 s of CPU.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import struct
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

SWITCH = "TRIALSHARDS_FAST"
"""Environment variable; `0` leaves the compiled loop out."""
LOAD_AFTER_BYTES = 512 * 2**20
"""Copied by then in 0.1 s; loading costs as much, and saves about as much per 4 GiB."""

pack_job = struct.Struct("16q").pack
"""16 integers -> a job, as `loaders/copying.ll` says."""

_SOURCE = Path(__file__).with_name("copying.ll")
_CLOSED = 1 << 62
_PAUSES = {"x86_64": ("llvm.x86.sse2.pause", ""), "aarch64": ("llvm.aarch64.hint", "i32 1")}
"""What a thread does while it waits for another one, by the name of the machine."""

_log = logging.getLogger(__name__)


class Loop:
    """The machine code.

    Attributes:
        copy: Job -> the first window that is not inside of the map, or -1 when all are copied.
        begin: State, job -> the same, or -1 when it has been published.
        finish: State -> None, when the job is done.
        cancel: State -> None, when nobody is at the job any more.
        is_open: State -> 1 while there are rows that nobody is at.
        serve: State -> None, when it was stopped.
        stop: State -> None.

    Raises:
        Exception: Whatever keeps llvmlite from compiling it here.
    """

    def __init__(self) -> None:
        llvm: Any = import_module("llvmlite.binding")  # has no types
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        module = llvm.parse_assembly(_source())
        module.verify()
        target = llvm.Target.from_default_triple().create_target_machine(
            opt=3, cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten()
        )
        self._engine = llvm.create_mcjit_compiler(module, target)  # owns the code
        self._engine.finalize_object()
        word, state, job = ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p
        # What takes time lets other Python threads run meanwhile; for the rest that costs more.
        long, short = ctypes.CFUNCTYPE, ctypes.PYFUNCTYPE
        self.copy = self._function("copy", long(word, job))
        self.begin = self._function("begin", short(word, state, job))
        self.finish = self._function("finish", long(None, state))
        self.cancel = self._function("cancel", long(None, state))
        self.is_open = self._function("is_open", short(word, state))
        self.serve = self._function("serve", long(None, state))
        self.stop = self._function("stop", short(None, state))

    def _function(self, name: str, kind: Any) -> Any:
        return kind(self._engine.get_function_address(name))


class Loader:
    """The loop, loaded when it pays.

    Attributes:
        loop: The loop, once it is there.
    """

    def __init__(self) -> None:
        self.loop: Loop | None = None
        self._lock = threading.Lock()
        self._left_bytes = LOAD_AFTER_BYTES

    def ready(self, size_bytes: int) -> Loop | None:
        """Return it if it is there, or loading it pays after a copy of some more bytes."""
        self._left_bytes -= size_bytes
        if self._left_bytes <= 0:
            self.load()
        return self.loop

    def load(self) -> bool:
        """Load it now, unless it is off or missing or another thread is at it."""
        if self.loop is None and self._lock.acquire(blocking=False):
            try:
                self._left_bytes = sys.maxsize  # asked once
                if os.environ.get(SWITCH, "1") != "0":
                    self.loop = Loop()
            except Exception as error:  # noqa: BLE001 - whatever it is, torch copies as well
                _log.debug("no compiled copies: %s", error)
            finally:
                self._lock.release()
        return self.loop is not None

    def unload(self) -> None:
        """Go back to torch for good."""
        self.loop, self._left_bytes = None, sys.maxsize


def _source() -> str:
    declared = body = ""
    if platform.machine() in _PAUSES:
        name, argument = _PAUSES[platform.machine()]
        declared = f"declare void @{name}({argument.split(' ')[0]})"
        body = f"call void @{name}({argument})"
    pause = f"{declared}\ndefine internal void @pause() {{\n  {body}\n  ret void\n}}\n"
    return _SOURCE.read_text().replace("CLOSED", str(_CLOSED)) + pause
