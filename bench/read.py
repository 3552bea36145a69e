"""Windows per second of TrialStream, of its peers at their best, and of plain copies.

python bench/read.py [--quick] [--no-peers] writes bench/results/read.json and prints a table. Each
method has a process of its own, peers in their own environment (bench/scratch/peers-venv, made
here). They take turns, all others stopped, so a noisy neighbour hits them alike; ratios are medians
over the rounds. Every delivered batch is touched at one element per 4 KiB. Everything is in the
page cache.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from read_peers import Environment, start_peers
from read_store import make_store
from read_turns import Child, close_all, take_turns
from read_work import BATCH, CHANNELS, LENGTH, STRIDE, Work, make_work

HERE = Path(__file__).parent
N_SHARDS = (1, 100, 1000)
GOALS = {"torch": 3.5, "compiled": 5.0}
"""Times the fastest peer, with PyTorch alone and with the compiled copies of the extra `fast`."""
GOAL_REST, GOAL_COPY = 10.0, 0.9

Rates = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Size:
    """How much work a run does.

    Attributes:
        n_trials: Trials.
        rounds: Turns of each method that count.
        turn_s: How long a turn takes, about.
        warm_s: The most a method reads before it counts.
    """

    name: str
    n_trials: int
    rounds: int
    turn_s: float
    warm_s: float


FULL = Size("full", 2000, 15, 0.4, 30)
QUICK = Size("quick", 1000, 5, 0.1, 10)


def start_ours(children: dict[str, Child], work: Work, size: Size, n_shards: Sequence[int]) -> None:
    """Add the streams, with and without compiled copies, and the plain copies to the children."""
    folder = work.folder
    stores = {n: str(make_store(folder / f"store-{n}", work, n)) for n in n_shards}
    warm = {"warm_s": size.warm_s}
    paths = {"torch": "0"}
    if importlib.util.find_spec("llvmlite"):
        paths["compiled"] = "1"
    for path, fast in paths.items():
        for n, store in stores.items():
            setting, env = {"store": store, **warm}, {"TRIALSHARDS_FAST": fast}
            children[f"{path}_{n}"] = Child(sys.executable, "stream", folder, setting, env)
    first = stores[n_shards[0]]
    for name, source, order in (
        ("block_copy", "map", "random"),
        ("block_copy_memory", "memory", "random"),
        ("sequential_copy", "memory", "sequential"),
    ):
        setting = {"source": source, "order": order, "store": first, **warm}
        children[name] = Child(sys.executable, "copy", folder, setting)


def ratio(ours: Sequence[float], theirs: Any) -> float:
    """Return the median over the rounds of ratios, three digits."""
    return round(float(np.median(np.asarray(ours) / np.asarray(theirs))), 3)


def summarize(rates: Rates, peers: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row per path and shard count: what it is of the peers and of the copies.

    Args:
        rates: Windows per second of each round by method; ours are `<path>_<shards>`.
        peers: Which of them are peers.
    """
    medians = {name: float(np.median(rates[name])) for name in rates}
    fastest = max(peers, key=lambda name: medians[name]) if peers else None
    rest = [rates[name] for name in peers if name != fastest]
    rows = []
    for name, ours in rates.items():
        path, _, n_shards = name.rpartition("_")
        if path not in GOALS:
            continue
        row: dict[str, Any] = {
            "path": path, "shards": int(n_shards), "windows_per_s": round(medians[name]),
        }  # fmt: skip
        if fastest is not None:
            row["fastest_peer"] = fastest
            row["over_fastest_peer"] = ratio(ours, rates[fastest])
        if rest:
            row["over_median_of_rest"] = ratio(ours, np.median(rest, axis=0))
        for copy in ("block_copy", "block_copy_memory", "sequential_copy"):
            row[f"over_{copy}"] = ratio(ours, rates[copy])
        rows.append(row | {f"over_{peer}": ratio(ours, rates[peer]) for peer in peers})
    return rows


def judge(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return figure, goal and whether it is met; of all shard counts the lowest figure counts."""
    goals: dict[str, dict[str, Any]] = {}
    for path in dict.fromkeys(row["path"] for row in rows):
        for key, goal in (
            ("over_fastest_peer", GOALS[path]),
            ("over_median_of_rest", GOAL_REST),
            ("over_block_copy", GOAL_COPY),
        ):
            figures = [row[key] for row in rows if row["path"] == path and key in row]
            if figures:
                least = min(figures)
                goals[f"{path}, {key}"] = {"figure": least, "goal": goal, "met": least >= goal}
    return goals


def machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()[0],
        "torch": torch.__version__, "numpy": np.__version__, "system": platform.system(),
    }  # fmt: skip


def run(folder: Path, size: Size, n_shards: Sequence[int], *, with_peers: bool) -> dict[str, Any]:
    """Measure everything side by side and return the report."""
    work = make_work(folder, size.n_trials)
    peers: dict[str, Child] = {}
    ours: dict[str, Child] = {}
    tried: Mapping[str, Any] = {}
    missing = {"peers": "left out by --no-peers"}
    try:
        if with_peers:
            half = max(1, size.rounds // 2)
            tried, missing = start_peers(peers, Environment(), folder, size.warm_s, half)
        start_ours(ours, work, size, n_shards)
        rates = take_turns({**ours, **peers}, size.rounds, size.turn_s)
    finally:
        close_all([*ours.values(), *peers.values()])
    for name, child in ours.items():
        if name.startswith("compiled") and not child.facts["compiled"]:
            missing[name] = "the compiled loop was not loaded; torch copied"
    rows = summarize(rates, list(peers))
    return {
        "work": {
            "trials": size.n_trials, "mb": round(work.rows.nbytes / 1e6), "channels": CHANNELS,
            "windows": len(work.windows), "length": LENGTH, "stride": STRIDE, "batch": BATCH,
            "rounds": size.rounds, "turn_s": size.turn_s,
        },
        "machine": machine(),
        "goals": judge(rows),
        "ratios": rows,
        "windows_per_s": {name: round(float(np.median(got))) for name, got in rates.items()},
        "said": {name: child.facts for name, child in (ours | peers).items()},
        "settings": {name: child.setting for name, child in peers.items()},
        "tried": tried,
        "missing": missing,
    }  # fmt: skip


def show(report: Mapping[str, Any]) -> None:
    keys = (
        "over_fastest_peer", "over_median_of_rest", "over_block_copy", "over_block_copy_memory",
        "over_sequential_copy",
    )  # fmt: skip
    print(
        "path      shards  windows/s ",
        *(f"x {key[5:].replace('_', ' ')}" for key in keys),
        sep="  ",
    )
    for row in report["ratios"]:
        figures = (f"{row.get(key, float('nan')):{len(key) - 3}.2f}" for key in keys)
        print(f"{row['path']:8}  {row['shards']:6}  {row['windows_per_s']:9,} ", *figures, sep="  ")
    print("windows/s:", ", ".join(f"{k} {v:,}" for k, v in report["windows_per_s"].items()))
    for name, why in report["missing"].items():
        print(f"missing: {name}: {why}")
    for name, goal in report["goals"].items():
        print(
            f"{name}: {goal['figure']}, goal {goal['goal']}: {'met' if goal['met'] else 'MISSED'}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller data set, some minutes")
    parser.add_argument("--no-peers", action="store_true", help="ours and plain copies alone")
    given = parser.parse_args()
    size = QUICK if given.quick else FULL
    folder = HERE / "scratch" / f"read-{size.n_trials}"
    report = run(folder, size, N_SHARDS, with_peers=not given.no_peers)
    partial = given.quick or given.no_peers
    results = HERE / "results" / ("read.quick.json" if partial else "read.json")
    results.write_text(json.dumps(report, indent=1) + "\n")
    show(report)


if __name__ == "__main__":
    main()
