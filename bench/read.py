"""Windows per second of TrialStream, beside a tutorial Dataset and beside plain copies.

python bench/read.py [--quick] writes bench/results/read.json and prints a table. All methods take
turns in one process, so a noisy neighbour hits them alike; ratios are medians over the rounds.
Every delivered batch is touched at one element per 4 KiB. Everything is in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, Dataset

from loaders import TrialStream
from shards import Store, TrialShardsError, WindowSpec
from shards.identity import trial_digest
from shards.manifest import Channel, TargetSchema
from shards.version import QUARANTINE_SCHEMA, VersionDraft, publish_version
from shards.writer import write_shard

HERE = Path(__file__).parent
BATCH, LENGTH, STRIDE, CHANNELS = 256, 128, 16, 16
N_SHARDS = (1, 100, 1000)
WINDOWS = WindowSpec(length=LENGTH, stride=STRIDE, horizon=1, steps=1)


@dataclass(frozen=True)
class Size:
    """How much work a run does."""

    name: str
    n_trials: int
    rounds: int
    n_batches: int


FULL = Size("full", 2000, 15, 200)
QUICK = Size("quick", 1000, 5, 60)


def make_trials(n_trials: int) -> list[np.ndarray[Any, Any]]:
    """Return trials of 500 to 4,000 steps, float32."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(500, 4001, n_trials)
    return [rng.standard_normal((n, CHANNELS), dtype=np.float32) for n in lengths]


def make_store(path: Path, trials: list[np.ndarray[Any, Any]], n_shards: int) -> Store:
    """Write the trials into a store, unless it is there from an earlier run."""
    try:
        return Store(path)
    except TrialShardsError:  # not there, or of an earlier format
        shutil.rmtree(path, ignore_errors=True)
    rows, shards = [], []
    for members in np.array_split(np.arange(len(trials)), n_shards):
        entry = write_shard(path, {"values": np.concatenate([trials[i] for i in members])}, 1)
        shards.append(entry)
        start = 0
        for i in members.tolist():
            digest = trial_digest(f"t{i:05d}", {"values": trials[i]}, None)
            rows.append(
                {"id": f"t{i:05d}", "digest": digest, "n_rows": len(trials[i]),
                 "shard": entry.digest, "row_start": start, "split": "train", "weight": 1.0}
            )  # fmt: skip
            start += len(trials[i])
    table = pa.Table.from_pylist(rows)
    table = table.append_column("label", pa.nulls(len(rows), pa.float64()))
    draft = VersionDraft(
        name="bench", channels=tuple(Channel(f"c{i}") for i in range(CHANNELS)),
        target=TargetSchema("forecast", ("c0",)), windows=WINDOWS, splits=("train",),
        observed=False, normalization={"method": "none", "scope": "none", "lookahead": []},
        counts={"trials": len(trials), "has_missing": False}, spec={}, trials=table,
        shards=tuple(shards), quarantine=QUARANTINE_SCHEMA.empty_table(), fit={},
    )  # fmt: skip
    publish_version(path, draft, after=None)
    return Store(path)


class TutorialDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """What tutorials write: trials in memory, a list of windows, one item per window."""

    def __init__(self, trials: list[np.ndarray[Any, Any]]) -> None:
        self.trials = [torch.from_numpy(trial) for trial in trials]
        self.windows = [
            (i, start)
            for i, trial in enumerate(trials)
            for start in range(0, len(trial) - LENGTH, STRIDE)
        ]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, torch.Tensor]:
        trial, start = self.windows[item]
        end = start + LENGTH
        return self.trials[trial][start:end], self.trials[trial][end : end + 1, :1]


def touch(values: torch.Tensor) -> float:
    return float(values.view(-1)[::1024].sum())


def endless(loop: Any) -> Iterator[Any]:
    while True:
        yield from loop


def stream_batches(store: Store) -> Callable[[], None]:
    stream = TrialStream(store, batch_size=BATCH)
    batches = endless(stream)

    def read() -> None:
        touch(next(batches).values)

    return read


def tutorial_batches(trials: list[np.ndarray[Any, Any]]) -> Callable[[], None]:
    loader = DataLoader(TutorialDataset(trials), batch_size=BATCH, shuffle=True)
    batches = endless(loader)

    def read() -> None:
        touch(next(batches)[0])

    return read


def overlapping(array: np.ndarray[Any, Any], width: int) -> torch.Tensor:
    """Return `[len(array) - width + 1, width]`: what follows each element."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        whole = torch.from_numpy(array)
    return whole.as_strided((len(array) - width + 1, width), (1, 1))


def block_copies(
    flat: np.ndarray[Any, Any], mapped: np.ndarray[Any, Any]
) -> dict[str, Callable[[], None]]:
    """Return plain copies of as many random blocks into one reused buffer.

    Args:
        flat: All rows in memory, in huge pages where the system has them.
        mapped: The same rows in the map of a store's file, as the stream has to read them.
    """
    width = LENGTH * CHANNELS
    out_t = torch.empty(BATCH, width)
    out = out_t.numpy()
    views = {name: overlapping(a, width) for name, a in (("memory", flat), ("map", mapped))}
    rng = np.random.default_rng(1)
    starts = rng.integers(0, len(flat) // CHANNELS - LENGTH, (500, BATCH)) * CHANNELS
    turn = iter(endless(starts))
    sequential = iter(endless(range(0, len(flat) - BATCH * width, BATCH * width)))

    def select(name: str) -> None:
        torch.index_select(views[name], 0, torch.from_numpy(next(turn)), out=out_t)
        touch(out_t)

    def slices() -> None:
        for row, start in zip(out, next(turn).tolist(), strict=True):
            row[:] = flat[start : start + width]
        touch(out_t)

    def sequence() -> None:
        start = next(sequential)
        np.copyto(out.reshape(-1), flat[start : start + BATCH * width])
        touch(out_t)

    return {
        "block_select": lambda: select("memory"), "block_slices": slices,
        "block_map": lambda: select("map"), "sequential": sequence,
    }  # fmt: skip


def rate(read: Callable[[], None], n_batches: int) -> float:
    """Return windows per second."""
    begin = time.perf_counter()
    for _ in range(n_batches):
        read()
    return n_batches * BATCH / (time.perf_counter() - begin)


def measure(methods: dict[str, Callable[[], None]], size: Size) -> dict[str, list[float]]:
    """Let all methods take turns; the first round only warms up."""
    rates: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(size.rounds + 1):
        names = list(methods) if turn % 2 else list(reversed(methods))
        for name in names:
            n_batches = max(8, size.n_batches // 10) if name == "tutorial" else size.n_batches
            got = rate(methods[name], n_batches)
            if turn:
                rates[name].append(got)
    return rates


def summarize(rates: dict[str, list[float]], n_threads: int) -> list[dict[str, Any]]:
    """Return a row per shard count: median rate, and ratios as medians over rounds."""
    blocks = np.maximum(rates["block_select"], rates["block_slices"])
    rows = []
    for n_shards in N_SHARDS:
        ours = np.array(rates[f"stream_{n_shards}"])
        rows.append(
            {
                "threads": n_threads,
                "shards": n_shards,
                "windows_per_s": round(float(np.median(ours))),
                "over_tutorial": round(float(np.median(ours / rates["tutorial"])), 2),
                "over_block_copy": round(float(np.median(ours / blocks)), 3),
                "over_map_copy": round(float(np.median(ours / np.array(rates["block_map"]))), 3),
                "over_sequential_copy": round(
                    float(np.median(ours / np.array(rates["sequential"]))), 3
                ),
            }
        )
    return rows


def machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(), "python": platform.python_version(),
        "torch": torch.__version__, "numpy": np.__version__, "system": platform.system(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller data set, about 10 s")
    size = QUICK if parser.parse_args().quick else FULL
    trials = make_trials(size.n_trials)
    flat = np.concatenate(trials).reshape(-1)
    stores = [make_store(HERE / "scratch" / f"read-{size.name}-{n}", trials, n) for n in N_SHARDS]
    mapped = stores[0].map_array("values", [0]).bytes.view(np.float32)
    methods = {"tutorial": tutorial_batches(trials), **block_copies(flat, mapped)}
    for n_shards, store in zip(N_SHARDS, stores, strict=True):
        methods[f"stream_{n_shards}"] = stream_batches(store)
        for batch in TrialStream(store, shuffle="none"):  # warms the page cache and the page table
            touch(batch.values)
    rows, medians = [], {}
    for n_threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(n_threads)
        rates = measure(methods, size)
        rows += summarize(rates, n_threads)
        medians[f"threads_{n_threads}"] = {k: round(float(np.median(v))) for k, v in rates.items()}
    report = {
        "work": {
            "trials": size.n_trials, "mb": round(flat.nbytes / 1e6), "channels": CHANNELS,
            "length": LENGTH, "stride": STRIDE, "batch": BATCH, "rounds": size.rounds,
        },
        "machine": machine(), "ratios": rows, "windows_per_s": medians,
    }  # fmt: skip
    name = "read.json" if size is FULL else "read.quick.json"
    (HERE / "results" / name).write_text(json.dumps(report, indent=1) + "\n")
    print("threads  shards  windows/s  x tutorial  x block copy  x block copy of map  x sequential")
    for row in rows:
        print("{:7}  {:6}  {:9,}  {:10}  {:12}  {:19}  {:12}".format(*row.values()))
    for threads, rates in medians.items():
        print(threads, "windows/s:", ", ".join(f"{k} {v:,}" for k, v in rates.items()))


if __name__ == "__main__":
    main()
