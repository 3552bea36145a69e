"""A build in a process of its own that kills itself at one of its file operations."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# Forked from one process that has imported it: starting took ten times as long as building.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pipeline.build", "shards.verify", "trialshards.cli"])
OPERATIONS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")
SECONDS = 60


class Child:
    """The process: it counts its operations below the store.

    Args:
        spec: The `dataset.yaml`.
        store: Where it builds.
        stop: Number of the operation at which it is killed; -1 lets it live.
    """

    def __init__(self, spec: Path, store: Path, stop: int) -> None:
        self._told, its_end = CONTEXT.Pipe(duplex=False)
        arguments = (str(spec), str(store), stop, its_end)
        self._process = CONTEXT.Process(target=_build, args=arguments, daemon=True)
        self._process.start()
        its_end.close()

    def wait(self) -> tuple[int, int] | None:
        """Return how many operations it made, and had published by, or None if it was killed."""
        assert self._told.poll(SECONDS), f"the build said nothing in {SECONDS} s"
        try:
            counts: tuple[int, int] | None = self._told.recv()
        except EOFError:
            counts = None
        self._process.join(SECONDS)
        return counts

    @property
    def code(self) -> int | None:
        """How it ended, as `subprocess` says it."""
        return self._process.exitcode


def _build(spec: str, store: str, stop: int, told: Connection) -> None:
    from pipeline import buckets
    from pipeline.build import build

    buckets.BATCH_BYTES = 1500
    n = published = 0

    def count(event: str, args: tuple[Any, ...]) -> None:
        nonlocal n, published
        if event in OPERATIONS and str(args[0]).startswith(store):
            n += 1
            if event == "os.rename" and "/versions/v" in str(args[1]):
                published = n
            if n == stop:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    build(spec, store, n_workers=2)
    told.send((n, published))
