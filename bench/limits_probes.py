"""One claim of `bench/limits.py`, measured in a fresh process.

python bench/limits_probes.py NAME STORE OPTIONS prints what was found as JSON.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch.utils.data import DataLoader, IterableDataset

from loaders import TrialStream

MIB = 2**20


def rollup(pid: int | str = "self") -> dict[str, int]:
    """Return the sums over a process's maps, in bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    fields = (line.split() for line in lines)
    return {field[0][:-1]: int(field[1]) * 1024 for field in fields}


def private_mb() -> float:
    """Return what this process alone holds and the system cannot drop."""
    gc.collect()
    return rollup()["Private_Dirty"] / MIB


def table_mb() -> float:
    """Return what the system holds to know where this process's pages are."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmPTE:")[1].split()[0]) / 1024


def children() -> list[int]:
    task = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(pid) for pid in task.read_text().split()]


def first_batch(store: str) -> dict[str, float]:
    """From the path of a store to the first batch; imports are done."""
    begin = time.perf_counter()
    stream = TrialStream(store)
    opened = time.perf_counter()
    next(iter(stream))
    end = time.perf_counter()
    return {"first_batch_ms": (end - begin) * 1e3, "of_that_open_ms": (opened - begin) * 1e3}


def index_memory(store: str) -> dict[str, float]:
    """What a stream with its plan holds after some batches from all over the epoch."""
    before = private_mb()
    stream = TrialStream(store)
    for step in range(0, len(stream), max(1, len(stream) // 8)):
        for _ in batches_from(stream, step, 2):
            pass
    return {
        "private_mb": private_mb() - before,
        "windows": len(stream) * stream.options.batch_size,
    }


def batches_from(stream: Any, step: int, n: int) -> Iterator[Any]:
    stream.load_state_dict({**stream.state_dict(), "epoch": 0, "step": step})
    yield from islice(iter(stream), n)


def big_store(store: str, shuffle: str, n_places: int, n_batches: int) -> dict[str, Any]:
    """Read batches at many places of an epoch; memory after an eighth of them, and in the end."""
    stream = TrialStream(store, shuffle=shuffle)
    found: dict[str, Any] = {}
    places = range(0, len(stream), max(1, len(stream) // n_places))
    for count, step in enumerate(places):
        for batch in batches_from(stream, step, n_batches):
            float(batch.values.view(-1)[::1024].sum())
        if count == len(places) // 8:
            found = {"private_mb_early": private_mb(), "tables_mb_early": table_mb()}
    return {
        **found, "private_mb": private_mb(), "tables_mb": table_mb(),
        "resident_mb": rollup()["Rss"] / MIB, "batches": len(places) * n_batches,
    }  # fmt: skip


class Trivial(IterableDataset[dict[str, torch.Tensor]]):
    """Batches of the same size, made of nothing: what the workers themselves cost."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            yield {name: tensor.clone() for name, tensor in self.tensors.items()}


def workers_memory(store: str, kind: str, n_workers: int, method: str) -> dict[str, float]:
    """What a loader and its workers hold beside shared memory, each page once.

    Kind `trivial` are batches of the same size, `bare` one row of each, so that all that there is
    are interpreters and queues.
    """
    stream: Any = TrialStream(store)
    if kind != "stream":
        tensors = {k: v for k, v in vars(next(iter(stream))).items() if isinstance(v, torch.Tensor)}
        n_rows = 1 if kind == "bare" else stream.batch_size
        stream = Trivial({name: tensor[:n_rows].clone() for name, tensor in tensors.items()})
    loader = DataLoader(
        stream, batch_size=None, num_workers=n_workers, multiprocessing_context=method
    )
    loop = iter(loader)
    for _ in islice(loop, 6 * n_workers):
        pass
    time.sleep(1)  # the queues are full again
    mine = children()
    anonymous = [rollup(pid)["Pss_Anon"] for pid in [os.getpid(), *mine]]
    return {"private_mb": sum(anonymous) / MIB, "processes": len(mine)}


def many_shards(store: str, n_descriptors: int) -> dict[str, int]:
    """Read an epoch with few file descriptors."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (n_descriptors, n_descriptors))
    stream = TrialStream(store)
    seen: set[int] = set()
    for batch in stream:
        seen.update(batch.trial.tolist())
    return {
        "shards": len(stream.store.manifest.shards), "trials_read": len(seen - {-1}),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
    }  # fmt: skip


def pickled(store: str) -> dict[str, int]:
    """Size of a stream that has read."""
    stream = TrialStream(store)
    next(iter(stream))
    return {"pickle_bytes": len(pickle.dumps(stream))}


def loop_for_ever(store: str) -> dict[str, int]:
    """Read with two workers until somebody ends it; the processes are said first."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has none
    stream = TrialStream(store)
    n_read = 0
    while True:
        for _ in DataLoader(stream, batch_size=None, num_workers=2):
            n_read += 1
            if n_read == 8:
                print(json.dumps([os.getpid(), *children()]), flush=True)


PROBES: dict[str, Callable[..., dict[str, Any]]] = {
    probe.__name__: probe
    for probe in (
        first_batch, index_memory, big_store, workers_memory, many_shards, pickled, loop_for_ever,
    )
}  # fmt: skip


if __name__ == "__main__":
    pa.array([0])  # imports pandas, where that is installed
    name, store, options = sys.argv[1:]
    print(json.dumps(PROBES[name](store, **json.loads(options))), flush=True)
