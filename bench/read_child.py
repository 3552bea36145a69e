"""One method of `bench/read.py` in a process of its own, which reads when it is told to.

python bench/read_child.py METHOD FOLDER SETTING: a line with N on standard input makes it read N
batches and answer with the seconds that took. It runs in the environment of its method.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import torch
from peers import PEERS
from read_work import BATCH, Judge, Work

WARM = 24
"""Batches of each turn that do not count: what was fetched ahead between two turns is used up."""
LOOKED_AT = 4
LEAST = 300
"""Batches that a stream reads before any counts: its compiled copies are loaded after 512 MiB."""

Pairs = Iterator[tuple[torch.Tensor, Any]]


def touch(values: torch.Tensor) -> float:
    """Look at one element per 4 KiB, so that memory which is mapped lazily is paid for."""
    return float(values.view(-1)[::1024].sum())


def check(batches: Pairs, work: Work) -> None:
    """Refuse a method that delivers anything else than shuffled windows of the work.

    Raises:
        ValueError: Saying what it delivered.
    """
    judge, seen = Judge(work), list[int]()
    for x, y in islice(batches, LOOKED_AT):
        seen += judge.starts(x, y)
    if len(set(seen)) < len(seen) or seen == sorted(seen):
        raise ValueError("windows come twice, or in order")


def warm_up(batches: Pairs, work: Work, most_s: float, least: int) -> None:
    """Read an epoch, or as long as that may take: page cache, page tables, allocators, workers."""
    begin = time.perf_counter()
    for count, (x, _) in enumerate(islice(batches, max(least, -(-len(work.windows) // BATCH)))):
        touch(x)
        if count >= least and time.perf_counter() - begin > most_s:
            return


def obey(batches: Pairs, orders: TextIO, replies: TextIO) -> None:
    """Read as many batches as each line says, and answer."""
    for line in orders:
        for x, _ in islice(batches, WARM):
            touch(x)
        begin = time.perf_counter()
        for x, _ in islice(batches, int(line)):
            touch(x)
        answer(replies, seconds=time.perf_counter() - begin)


def answer(replies: TextIO, **said: Any) -> None:
    print(json.dumps(said), file=replies, flush=True)


def end_with_parent() -> None:
    """Let the system end this process when its parent is killed; nobody else would."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    end_with_parent()
    # Libraries print; the answers have a pipe of their own.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    method, folder, setting = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    most_s, n_threads = setting.pop("warm_s"), setting.pop("threads", 1)
    if n_threads:
        torch.set_num_threads(n_threads)
    is_peer = method in PEERS
    module = importlib.import_module(f"peers.{method}" if is_peer else "read_ours")
    batches = module.batches(folder, **({} if is_peer else {"kind": method}), **setting)
    work = Work(folder)
    if method != "copy":  # which moves bytes, and delivers nothing
        check(batches, work)
    warm_up(batches, work, most_s, LEAST if method == "stream" else 0)
    package = PEERS[method].package if is_peer else None
    version = {package: importlib.metadata.version(package)} if package else {}
    answer(replies, ready=True, **version, **getattr(module, "facts", dict)())
    obey(batches, sys.stdin, replies)


if __name__ == "__main__":
    main()
