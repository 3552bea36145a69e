"""Processes that take turns: one method each, and all but one of them stopped at any moment."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from read_work import BATCH

HERE = Path(__file__).parent
START_S, TURN_S = 3600, 600
"""A method that says nothing for so long is given up; at its first start a peer writes files."""
STEP = 32
"""Batches are counted in so many: a pool of Parquet row groups gives as many at once."""


class MethodError(Exception):
    """A method ended, or said nothing for too long; the message says what it said last."""


class Child:
    """One method in a process group of its own, stopped outside its turns.

    A loop with workers or threads of its own would else fetch ahead while others are timed. The
    group lies in our session, so that the system ends stopped ones if we die.

    Attributes:
        facts: What it said when it was ready.
    """

    def __init__(
        self, python: str, method: str, folder: Path, setting: Mapping[str, Any],
        env: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.method, self.setting = method, dict(setting)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        self._process = subprocess.Popen(
            [python, str(HERE / "read_child.py"), method, str(folder), json.dumps(dict(setting))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            process_group=0, env={**os.environ, **(env or {})},
        )  # fmt: skip
        try:
            self.facts = self._answer(START_S)
        except MethodError:
            self.close()
            raise
        self._stop()

    def turn(self, n_batches: int) -> float:
        """Read some batches.

        Returns:
            Windows per second.

        Raises:
            MethodError: If it cannot.
        """
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{n_batches}\n".encode())
            self._process.stdin.flush()
        except OSError as error:
            raise self._failed("ended") from error
        seconds = self._answer(TURN_S)["seconds"]
        self._stop()
        return n_batches * BATCH / float(seconds)

    def close(self) -> None:
        """End it: let it go by itself, so that it leaves nothing behind; else kill it."""
        self._signal(signal.SIGCONT)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._signal(signal.SIGKILL)  # and workers that are left
        self._process.wait()
        self._errors.close()

    def _stop(self) -> None:
        """Stop the group, and wait until its first process stands still, or has ended."""
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _answer(self, most_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], most_s)[0]:
            raise self._failed(f"said nothing for {most_s} s")
        line = self._process.stdout.readline()
        if not line:
            raise self._failed("ended")
        said: dict[str, Any] = json.loads(line)
        return said

    def _failed(self, how: str) -> MethodError:
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        return MethodError(f"{self.method} {how}: {' '.join(last)[:300]}")


def take_turns(
    children: Mapping[str, Child], n_rounds: int, turn_s: float
) -> dict[str, list[float]]:
    """Let all methods read in turns, in the order and backwards.

    The first round says how many batches make a turn of `turn_s`, and does not count.

    Returns:
        Windows per second of each round, by the names given.

    Raises:
        MethodError: If one cannot go on.
    """
    sizes = {
        name: max(1, round(child.turn(STEP) * turn_s / BATCH / STEP)) * STEP
        for name, child in children.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in children}
    for turn in range(n_rounds):
        names = list(children) if turn % 2 else list(reversed(children))
        for name in names:
            rates[name].append(children[name].turn(sizes[name]))
    return rates


def close_all(children: Sequence[Child]) -> None:
    for child in children:
        child.close()
