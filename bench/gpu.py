"""Batches on a GPU: windows per second of each way there, and what a training step waits.

python bench/gpu.py [--quick] [--device cpu] writes bench/results/gpu.json where it ran in full on
CUDA, and prints it. It needs PyTorch, NumPy, PyArrow and this repository, and makes its own store.
Methods take turns; figures are medians over the rounds. With `--device cpu` it shows that it runs,
nothing more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from gpu_store import make, stand_in

stand_in()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from gpu_steps import (  # noqa: E402
    Learner,
    copies,
    endless,
    kernels,
    streams,
    synchronize,
    timed,
    waiting,
    whole_trials,
)

from loaders import BlockShuffle, TrialBatches  # noqa: E402

HERE = Path(__file__).parent
GOAL_WAITING = 0.02


@dataclass(frozen=True)
class Size:
    """How much work a run does.

    Attributes:
        n_trials: Trials of 500 to 4,000 steps of 16 channels.
        batch_size: Windows of 128 steps per step.
        hidden: Of the LSTM.
        rounds: Turns of each method that count.
        n_batches: Batches of a turn.
        n_steps: Training steps of a turn.
        whole: Trials per step, and lanes.
        max_length: Steps of a trial that are learned from, or None: all.
        pool_bytes: Of the block shuffle.
    """

    name: str
    n_trials: int
    batch_size: int
    hidden: int
    rounds: int
    n_batches: int
    n_steps: int
    whole: tuple[int, int]
    max_length: int | None
    pool_bytes: int


FULL = Size("full", 2000, 1024, 256, 9, 200, 40, (64, 256), None, 64 << 20)
QUICK = Size("quick", 24, 32, 16, 2, 4, 3, (2, 8), 40, 1 << 20)


def alternate(turns: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """Let all methods take turns, in the order and backwards; the first round does not count."""
    found: dict[str, list[Any]] = {name: [] for name in turns}
    for turn in range(rounds + 1):
        for name in list(turns) if turn % 2 else list(reversed(turns)):
            got = turns[name]()
            if turn:
                found[name].append(got)
    return found


def rates(store: str, device: torch.device, size: Size) -> dict[str, Any]:
    """Return windows per second of each way to a batch, of plain copies and of two gathers."""
    blocks = BlockShuffle(size.pool_bytes // 8, size.pool_bytes)
    ways = streams(store, device, size.batch_size, blocks)
    first = next(iter(ways["host"]))
    batch_bytes = sum(x.nbytes for x in vars(first).values() if isinstance(x, torch.Tensor))
    length, n_channels = first.values.shape[1:]
    turns = {}
    for name, stream in ways.items():
        batches = endless(stream)
        turns[name] = timed(device, lambda _, batches=batches: next(batches))
    turns |= copies(device, batch_bytes)
    n_rows = max(2 * length, int(ways["host"].store.manifest.counts["trials"]) * 2000)
    turns |= kernels(device, n_rows, n_channels, size.batch_size, length)
    n = size.n_batches
    seconds = alternate({k: lambda turn=turn: turn(n) for k, turn in turns.items()}, size.rounds)
    windows = size.batch_size * n

    def over(name: str, other: str) -> float:
        pairs = zip(seconds[other], seconds[name], strict=True)
        return round(median(theirs / ours for theirs, ours in pairs), 3)

    return {
        "batch_bytes": batch_bytes,
        "windows_per_s": {k: round(windows / median(got)) for k, got in seconds.items()},
        "gb_per_s": {
            k: round(batch_bytes * n / median(got) / 1e9, 2)
            for k, got in seconds.items()
            if not k.startswith("kernel")
        },
        "ratios": {
            "host over copy_to_device": over("host", "copy_to_device"),
            "host_ahead over copy_to_device": over("host_ahead", "copy_to_device"),
            "resident over copy_on_device": over("resident", "copy_on_device"),
            "blocks over copy_on_device": over("blocks", "copy_on_device"),
            "kernel_view over kernel_rows": over("kernel_view", "kernel_rows"),
        },
    }


def shares(store: str, device: torch.device, size: Size) -> dict[str, Any]:
    """Return which share of a training step waits for data, by the way it comes."""
    blocks = BlockShuffle(size.pool_bytes // 8, size.pool_bytes)
    ways = streams(store, device, size.batch_size, blocks)
    n_channels = ways["host"].n_channels
    learner = Learner(n_channels, size.hidden, device)
    turns = {}
    for name, stream in ways.items():
        batches = endless(stream)
        turns[name] = lambda batches=batches: waiting(device, learner, batches, size.n_steps)
    found = alternate(turns, size.rounds)
    return {
        name: {
            "share": round(median(share for share, _ in got), 5),
            "step_ms": round(median(step for _, step in got) * 1000, 3),
        }
        for name, got in found.items()
    }


def trials(store: str, device: torch.device, size: Size) -> dict[str, Any]:
    """Return what steps on whole trials take: packed, padded, and in lanes."""
    learner = Learner(16, size.hidden, device)
    batches = TrialBatches(size.max_length)
    ways = whole_trials(store, device, learner, batches, *size.whole)
    n_steps = max(1, size.n_steps // 10)
    turns = {name: lambda turn=turn: turn(n_steps) for name, turn in ways.items()}
    found = alternate(turns, max(1, size.rounds // 3))
    return {
        name: {
            "step_ms": round(median(seconds for seconds, _ in got) / n_steps * 1000, 3),
            "rows_per_s": round(median(rows / seconds for seconds, rows in got)),
        }
        for name, got in found.items()
    }


def machine(device: torch.device) -> dict[str, Any]:
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else "cpu", "cuda": torch.version.cuda,
        "cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__,
        "numpy": np.__version__,
    }  # fmt: skip


def run(folder: Path, device: torch.device, size: Size) -> dict[str, Any]:
    """Measure everything and return the report."""
    store = str(make(folder, size.n_trials))
    waits = shares(store, device, size)
    report = {
        "machine": machine(device),
        "work": asdict(size),
        "batches": rates(store, device, size),
        "waiting": waits,
        "goals": {
            f"{name} waits": {
                "figure": wait["share"],
                "goal": GOAL_WAITING,
                "met": wait["share"] < GOAL_WAITING,
            }
            for name, wait in waits.items()
        },
        "whole_trials": trials(store, device, size),
    }
    synchronize(device)
    return report


def show(report: Mapping[str, Any]) -> None:
    batches = report["batches"]
    print(f"{report['machine']['device']}, torch {report['machine']['torch']}")
    for name, rate in batches["windows_per_s"].items():
        gb = batches["gb_per_s"].get(name)
        print(f"{name:15} {rate:12,} windows/s" + ("" if gb is None else f" {gb:9.2f} GB/s"))
    for name, ratio in batches["ratios"].items():
        print(f"{name}: {ratio}")
    for name, wait in report["waiting"].items():
        print(f"{name:10} waits {wait['share']:8.3%} of a step of {wait['step_ms']:9.3f} ms")
    for name, goal in report["goals"].items():
        print(f"{name}: goal below {goal['goal']:.0%}: {'met' if goal['met'] else 'MISSED'}")
    for name, took in report["whole_trials"].items():
        print(f"{name:9} {took['step_ms']:9.3f} ms a step, {took['rows_per_s']:12,} rows/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small data set, some seconds")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--save", action="store_true", help="write gpu.quick.json for other runs")
    parser.add_argument("--scratch", type=Path, default=HERE / "scratch", help="where the store is")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit(f"this PyTorch ({torch.__version__}) sees no CUDA device; --device cpu runs here")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    size = QUICK if given.quick else FULL
    report = run(given.scratch / f"gpu-{size.n_trials}", device, size)
    in_full = size is FULL and device.type == "cuda"
    if in_full or given.save:
        given.results.mkdir(parents=True, exist_ok=True)
        path = given.results / ("gpu.json" if in_full else "gpu.quick.json")
        path.write_text(json.dumps(report, indent=1) + "\n")
    show(report)


if __name__ == "__main__":
    main()
