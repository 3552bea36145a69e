"""Whether a loop with workers that is interrupted or killed leaves names in shared memory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SHARED = Path("/dev/shm")
PATIENCE_S = 60
"""Workers look for their parent every 5 seconds; a busy machine takes its time."""
SETTLE_S = 10


def names() -> set[str]:
    return {path.name for path in SHARED.iterdir()} if SHARED.is_dir() else set()


def left_over(before: set[str]) -> list[str]:
    """Return the names that came since and that no living process maps: others have theirs."""
    new = names() - before
    for maps in Path("/proc").glob("[0-9]*/maps") if new else ():
        with contextlib.suppress(OSError):
            text = maps.read_text()
            new = {name for name in new if f"{SHARED}/{name}" not in text}
    return sorted(new)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_while(holds: Callable[[], bool], most_s: float) -> None:
    end = time.monotonic() + most_s
    while time.monotonic() < end and holds():
        time.sleep(0.1)


def end_a_loop(store: Path, number: signal.Signals) -> tuple[list[str], list[int]]:
    """Start a loop over a store with two workers and end it.

    Args:
        store: Store root.
        number: SIGINT goes to all its processes, as Ctrl-C does; others to the first one alone.

    Returns:
        Names that nobody uses and that were not there before, and processes that did not end.
    """
    before = names()
    script = Path(__file__).with_name("limits_probes.py")
    with subprocess.Popen(
        [sys.executable, str(script), "loop_for_ever", str(store), "{}"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, process_group=0,
    ) as loop:  # fmt: skip
        assert loop.stdout is not None
        try:
            line = loop.stdout.readline()
            if not line:
                raise RuntimeError(f"the loop over {store} ended with status {loop.wait()}")
            processes = json.loads(line)
            (os.killpg if number == signal.SIGINT else os.kill)(loop.pid, number)
            loop.wait(PATIENCE_S)
            wait_while(lambda: any(map(is_alive, processes)), PATIENCE_S)
            wait_while(lambda: bool(left_over(before)), SETTLE_S)
            return left_over(before), [pid for pid in processes if is_alive(pid)]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(loop.pid, signal.SIGKILL)
