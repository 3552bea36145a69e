"""What a stream costs beside time, each claim with its figure and its goal.

python bench/limits.py [--quick] [--only NAME ...] prints a table and writes
bench/results/limits.json, where --only keeps the other claims. Every figure is taken in fresh
processes. Memory is what processes hold alone and the system cannot drop: pages of a mapped file
that nobody wrote are in the page cache anyway.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import index
import numpy as np
import torch
from limits_names import end_a_loop
from limits_store import make_sparse, share_on_disk

from shards import WindowSpec

HERE = Path(__file__).parent
MIB = 2**20


@dataclass(frozen=True)
class Size:
    """How much work a run does.

    Attributes:
        n_starts: Fresh processes for the first batch.
        n_workers: Workers that are compared with one.
        n_turns: Times that each of these is measured; medians count.
        methods: How they start.
        times_ram: Size of the big store.
        n_places: Places of an epoch of it that are read.
        n_shards: Shards of the store of many.
    """

    name: str
    n_starts: int
    n_workers: int
    n_turns: int
    methods: tuple[str, ...]
    times_ram: float
    n_places: int
    n_shards: int


FULL = Size("full", 15, 16, 3, ("fork", "spawn"), 10, 100, 5000)
QUICK = Size("quick", 3, 4, 1, ("fork",), 0.05, 40, 500)
SMALL = WindowSpec(length=64, stride=64, steps=1)


def probe(name: str, store: Path, **options: Any) -> dict[str, Any]:
    """Run one probe in a fresh process."""
    script = str(HERE / "limits_probes.py")
    command = [sys.executable, script, name, str(store), json.dumps(options)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return {"failed": f"{name} ended with status {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def claim(figure: Any, goal: Any, unit: str, found: Any) -> dict[str, Any]:
    """Return a row of the report: a figure above its goal misses it, and so does none."""
    met = figure is not None and figure <= goal
    return {"figure": figure, "goal": goal, "unit": unit, "met": met, "found": found}


def first_batch(folder: Path, size: Size) -> dict[str, Any]:
    """From the path of a store of 100,000 trials to the first batch."""
    store = folder / "trials-100000"
    index.make_store(store, 100_000)
    found = [probe("first_batch", store) for _ in range(size.n_starts + 1)][1:]
    medians = {key: round(float(np.median([got[key] for got in found])), 1) for key in found[0]}
    return claim(medians["first_batch_ms"], 50, "ms", medians)


def index_memory(folder: Path, _: Size) -> dict[str, Any]:
    """269 million windows of few long trials."""
    windows = WindowSpec(length=128, stride=1, steps=1)
    store = make_sparse(folder / "windows", windows, n_trials=64, n_rows=4_203_260)
    found = probe("index_memory", store)
    return claim(found.get("private_mb"), 10, "MB", found)


def workers_memory(folder: Path, size: Size) -> dict[str, Any]:
    """What more workers hold beyond workers that deliver batches made of nothing.

    Two workers' heaps differ by the megabytes of a batch, as its memory is freed early or late.
    """
    store = make_sparse(folder / "workers", SMALL, n_trials=2000, n_rows=2048, n_channels=16)
    found: dict[str, Any] = {}
    for method in size.methods:
        held: dict[str, list[dict[str, Any]]] = {}
        for _ in range(size.n_turns):
            for kind in ("stream", "trivial", "bare"):
                for n in (1, size.n_workers):
                    got = probe("workers_memory", store, kind=kind, n_workers=n, method=method)
                    held.setdefault(f"{kind}_{n}", []).append(got)
        if any("failed" in got for turns in held.values() for got in turns):
            return claim(None, 0.05, "share", held)
        found[method] = _growth(held, size.n_workers)
    return claim(max(got["growth"] for got in found.values()), 0.05, "share", found)


def _growth(held: dict[str, list[dict[str, Any]]], n_workers: int) -> dict[str, Any]:
    """Return medians in MB, and by how much a stream's workers need more than others."""
    turns = {name: [round(got["private_mb"], 1) for got in each] for name, each in held.items()}
    mb = {name: float(np.median(each)) for name, each in turns.items()}
    each = {
        kind: (mb[f"{kind}_{n_workers}"] - mb[f"{kind}_1"]) / (n_workers - 1)
        for kind in ("stream", "trivial", "bare")
    }
    return {
        **mb, "turns": turns,
        "mb_per_worker": {kind: round(value, 2) for kind, value in each.items()},
        "growth": round(each["stream"] / each["trivial"] - 1, 4),
        "growth_beyond_bare": round(each["stream"] / each["bare"] - 1, 4),
    }  # fmt: skip


def big_store(folder: Path, size: Size) -> dict[str, Any]:
    """A store larger than memory: does what a process holds grow while it is read?"""
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    n_trials, n_channels = 4096, 16
    n_rows = int(size.times_ram * ram) // (n_trials * n_channels * 4)
    windows = WindowSpec(length=128, stride=16, steps=1)
    store = make_sparse(
        folder / f"big-{size.name}", windows, n_trials=n_trials, n_rows=n_rows,
        n_channels=n_channels,
    )  # fmt: skip
    if (share := share_on_disk(store)) > 0.05:
        return claim(None, 64, "MB", f"this disk has no sparse files: {share:.2f} of it is there")
    found: dict[str, Any] = {"gib": round(size.times_ram * ram / 2**30, 1)}
    for shuffle in ("blocks", "global"):
        found[shuffle] = probe(
            "big_store", store, shuffle=shuffle, n_places=size.n_places, n_batches=10
        )
    figures = [found[name].get("private_mb", np.inf) for name in ("blocks", "global")]
    early = [found[name].get("private_mb_early", 0) for name in ("blocks", "global")]
    grown = float(np.max(np.subtract(figures, early)))
    return claim(round(grown, 1) if np.isfinite(grown) else None, 64, "MB more", found)


def many_shards(folder: Path, size: Size) -> dict[str, Any]:
    """All shards of a store, with 256 file descriptors."""
    n = size.n_shards
    store = make_sparse(folder / f"shards-{n}", SMALL, n_trials=n, n_rows=300, n_shards=n)
    found = probe("many_shards", store, n_descriptors=256)
    unread = n - found["trials_read"] if "trials_read" in found else None
    return claim(unread, 0, "trials unread", found)


def pickled(folder: Path, _: Size) -> dict[str, Any]:
    """An open stream over 100,000 trials as a pickle."""
    store = folder / "trials-100000"
    index.make_store(store, 100_000)
    found = probe("pickled", store)
    return claim(found.get("pickle_bytes"), 10_000, "bytes", found)


def left_names(folder: Path, _: Size) -> dict[str, Any]:
    """What a loop with two workers leaves in /dev/shm, and of itself."""
    store = make_sparse(folder / "workers", SMALL, n_trials=2000, n_rows=2048, n_channels=16)
    found: dict[str, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        left, alive = end_a_loop(store, number)
        found[number.name] = {"names": left, "processes": alive}
    n_left = sum(len(got["names"]) + len(got["processes"]) for got in found.values())
    return claim(n_left, 0, "left", found)


CLAIMS: dict[str, tuple[str, Callable[[Path, Size], dict[str, Any]]]] = {
    "first_batch": ("first batch of 100,000 trials", first_batch),
    "index_memory": ("index and plan of 269 million windows", index_memory),
    "workers_memory": ("growth with workers beyond their own", workers_memory),
    "big_store": ("growth while a store beyond memory is read", big_store),
    "many_shards": ("many shards, 256 descriptors", many_shards),
    "pickled": ("pickle of an open stream", pickled),
    "left_names": ("left after Ctrl-C, SIGTERM and SIGKILL", left_names),
}


def keep(results: Path, size: Size, rows: dict[str, Any]) -> None:
    """Write what was measured; claims that were not measured again stay as they are in the file."""
    kept: dict[str, Any] = json.loads(results.read_text())["claims"] if results.is_file() else {}
    claims = kept | rows
    report = {
        "machine": {
            "cores": os.cpu_count(), "python": platform.python_version(),
            "torch": torch.__version__, "kernel": platform.release(),
        },
        "size": vars(size), "claims": {name: claims[name] for name in CLAIMS if name in claims},
    }  # fmt: skip
    results.write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller stores and fewer workers")
    parser.add_argument("--only", nargs="+", choices=CLAIMS, default=list(CLAIMS), metavar="NAME")
    given = parser.parse_args()
    size = QUICK if given.quick else FULL
    folder = HERE / "scratch" / "limits"
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = {}
    for name in given.only:
        text, measure = CLAIMS[name]
        rows[name] = measure(folder, size)
        figure, goal, unit = (rows[name][key] for key in ("figure", "goal", "unit"))
        shown = "not measured" if figure is None else f"{figure:,.6g}"
        met = "met" if rows[name]["met"] else "MISSED"
        print(f"{text:45} {shown:>12}  goal {goal:,} {unit}: {met}", flush=True)
        print(f"    {rows[name]['found']}", flush=True)
        keep(HERE / "results" / ("limits.quick.json" if given.quick else "limits.json"), size, rows)


if __name__ == "__main__":
    main()
