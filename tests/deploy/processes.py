"""Starting, waiting for and stopping servers, so that none is left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

Environ = dict[str, str]


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(test: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
    """Ask again and again until the answer is yes."""
    deadline = time.monotonic() + timeout_s
    while not test():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not after {timeout_s:.0f} s")
        time.sleep(0.3)


def start(
    command: Sequence[str], *, cwd: Path, environ: Environ, log: Path
) -> subprocess.Popen[bytes]:
    """Start a server in a process group of its own, so that Ctrl-C reaches us first."""
    program = shutil.which(command[0], path=environ["PATH"])
    assert program, f"{command[0]} is not in {environ['PATH']}"
    with log.open("ab") as output:
        return subprocess.Popen(
            [program, *command[1:]],
            cwd=cwd,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes], grace_s: float = 30) -> bool:
    """Ask a server to end, wait, kill what is left of its group; return whether it obeyed."""
    if process.poll() is None:
        process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
    obeyed = process.poll() is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return obeyed
