"""What opening an index of a million trials costs, beside what is usually made for it.

python bench/index.py [--quick] writes bench/results/index.json and prints a table. Every figure is
taken in a fresh process that has imported everything already; the methods take turns, and figures
are medians over the rounds. Memory is what the process alone holds and the system cannot drop
(Private_Dirty of /proc/self/smaps_rollup): clean pages of a mapped file are in the page cache
anyway, and all processes share them. CPU time is given as well: other work leaves it nearly alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import pickle
import platform
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shards import TrialShardsError, WindowSpec, open_store
from shards.identity import trial_digest
from shards.manifest import Channel, TargetSchema
from shards.version import QUARANTINE_SCHEMA, VersionDraft, publish_version
from shards.writer import write_shard

HERE = Path(__file__).parent
N_SHARDS, N_LOOKUPS, SESSIONS = 64, 2000, 1000
METHODS = ("store", "sqlite", "pickle", "json")
SUBJECT, ROWS = "s0007", 8
WHERE = f"subject = '{SUBJECT}' and n_rows > {ROWS}"


@dataclass(frozen=True)
class Size:
    """How much work a run does."""

    name: str
    n_trials: int
    rounds: int


FULL = Size("full", 1_000_000, 5)
QUICK = Size("quick", 100_000, 3)


def trial_id(number: int) -> str:
    return f"s{number // SESSIONS:04d}/{number % SESSIONS:04d}"


def make_store(path: Path, n_trials: int) -> None:
    """Write a store of trials with 4 to 12 rows of one channel, unless it is there."""
    try:
        open_store(path).index  # noqa: B018
    except TrialShardsError:  # not there, or of an earlier format
        shutil.rmtree(path, ignore_errors=True)
    else:
        return
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 13, n_trials)
    columns: dict[str, list[Any]] = {name: [] for name in ("digest", "shard", "row_start")}
    shards = []
    for members in np.array_split(np.arange(n_trials), N_SHARDS):
        ends = np.cumsum(lengths[members])
        values = rng.standard_normal((int(ends[-1]), 1), dtype=np.float32)
        shards.append(write_shard(path, {"values": values}, len(members)))
        starts = (ends - lengths[members]).tolist()
        columns["shard"] += [shards[-1].digest] * len(members)
        columns["row_start"] += starts
        columns["digest"] += [
            trial_digest(trial_id(i), {"values": values[start:end]}, None)
            for i, start, end in zip(members.tolist(), starts, ends.tolist(), strict=True)
        ]
    ids = [trial_id(i) for i in range(n_trials)]
    attributes = pa.StructArray.from_arrays(
        [pa.array([name[:5] for name in ids]), pa.array([name[6:] for name in ids])],
        names=["subject", "session"],
    )
    moment = pa.array([[0.0]] * n_trials, pa.list_(pa.field("element", pa.float64())))
    trials = pa.table(
        {
            "id": ids, **columns, "n_rows": lengths, "source": [f"{name}.csv" for name in ids],
            "split": np.where(rng.random(n_trials) < 0.8, "train", "val"),
            "weight": np.ones(n_trials), "label": pa.nulls(n_trials, pa.float64()),
            "attributes": attributes, "size_bytes": lengths * 12, "mtime_ns": lengths,
            **dict.fromkeys(("count", "shift", "sum", "sum_sq", "min", "max"), moment),
        }
    )  # fmt: skip
    draft = VersionDraft(
        name="bench", channels=(Channel("c0"),), target=TargetSchema("forecast", ("c0",)),
        windows=WindowSpec(length=4, steps=1), splits=("train", "val"), observed=False,
        normalization={"method": "none", "scope": "none", "lookahead": []},
        counts={"trials": n_trials, "has_missing": False}, spec={}, trials=trials,
        shards=tuple(shards), quarantine=QUARANTINE_SCHEMA.empty_table(),
        fit={"normalize": {"method": "none", "scope": "none"}},
    )  # fmt: skip
    publish_version(path, draft, after=None)


def make_peers(folder: Path) -> None:
    """Write the same index as others would: JSON lines of dicts, a pickled dict, SQLite."""
    if (folder / "index.sqlite").is_file():
        return
    table = open_store(folder / "store").trials("id", "n_rows", "split", "subject", "session")
    rows = table.to_pylist()
    (folder / "index.json").write_text(json.dumps(rows))
    (folder / "index.pickle").write_bytes(pickle.dumps({row["id"]: row for row in rows}))
    with sqlite3.connect(folder / "part.sqlite") as db:
        db.execute(
            "CREATE TABLE trials (id TEXT PRIMARY KEY, n_rows INTEGER, split, subject, session)"
        )
        values = (tuple(row.values()) for row in rows)
        db.executemany("INSERT INTO trials VALUES (?, ?, ?, ?, ?)", values)
    db.close()
    (folder / "part.sqlite").rename(folder / "index.sqlite")


# One method in one process


def private_kb() -> int:
    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    fields = dict(line.split(":") for line in lines)
    return int(fields["Private_Dirty"].split()[0])


def timed(do: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    done = do()
    return done, (time.perf_counter() - begin) * 1e3


def opened(do: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    memory, cpu = private_kb(), time.process_time()
    done, open_ms = timed(do)
    cpu_ms = (time.process_time() - cpu) * 1e3
    return done, {
        "open_ms": open_ms, "open_cpu_ms": cpu_ms, "private_mb": (private_kb() - memory) / 1024,
    }  # fmt: skip


def probe_store(folder: Path, wanted: list[str]) -> dict[str, float]:
    def start() -> Any:
        store = open_store(folder / "store")
        store.index  # noqa: B018 - mapped when it is first asked for
        return store

    before = private_kb()
    store, cost = opened(start)
    _, lookup_ms = timed(lambda: [store[name].n_rows for name in wanted])
    _, facts_ms = timed(lambda: store[wanted[0]].attributes)
    _, more_ms = timed(lambda: [store[name].attributes for name in wanted[:20]])
    chosen, where_ms = timed(lambda: store.select(WHERE))
    return {
        **cost, "lookup_us": lookup_ms * 1e3 / len(wanted), "filter_ms": where_ms,
        "chosen": len(chosen), "first_facts_ms": facts_ms,
        "facts_ms": more_ms / 20, "private_mb_after_all": (private_kb() - before) / 1024,
    }  # fmt: skip


def probe_stream(folder: Path, _wanted: list[str]) -> dict[str, float]:
    from loaders import TrialStream

    store = open_store(folder / "store")
    store.index  # noqa: B018
    stream, cost = opened(lambda: TrialStream(store))
    _, first_ms = timed(lambda: next(iter(stream)))
    filtered, where_ms = timed(lambda: TrialStream(store, where=WHERE))
    return {
        **cost, "first_batch_ms": first_ms,
        "filtered_stream_ms": where_ms, "filtered_steps": len(filtered),
    }  # fmt: skip


def probe_dict(load: Callable[[], dict[str, Any]], wanted: list[str]) -> dict[str, float]:
    index, cost = opened(load)
    _, lookup_ms = timed(lambda: [index[name]["n_rows"] for name in wanted])
    rows = index.values()
    chosen, where_ms = timed(
        lambda: [r["id"] for r in rows if r["subject"] == SUBJECT and r["n_rows"] > ROWS]
    )
    return {
        **cost, "lookup_us": lookup_ms * 1e3 / len(wanted), "filter_ms": where_ms,
        "chosen": len(chosen),
    }  # fmt: skip


def probe_json(folder: Path, wanted: list[str]) -> dict[str, float]:
    path = folder / "index.json"
    return probe_dict(lambda: {row["id"]: row for row in json.loads(path.read_bytes())}, wanted)


def probe_pickle(folder: Path, wanted: list[str]) -> dict[str, float]:
    return probe_dict(lambda: pickle.loads((folder / "index.pickle").read_bytes()), wanted)


def probe_sqlite(folder: Path, wanted: list[str]) -> dict[str, float]:
    def start() -> sqlite3.Connection:
        index = sqlite3.connect(folder / "index.sqlite")
        index.execute("SELECT count(*) FROM sqlite_master")
        return index

    db, cost = opened(start)
    find = "SELECT n_rows FROM trials WHERE id = ?"
    _, lookup_ms = timed(lambda: [db.execute(find, (name,)).fetchone() for name in wanted])
    chosen, where_ms = timed(lambda: db.execute(f"SELECT id FROM trials WHERE {WHERE}").fetchall())
    return {
        **cost, "lookup_us": lookup_ms * 1e3 / len(wanted), "filter_ms": where_ms,
        "chosen": len(chosen),
    }  # fmt: skip


PROBES = {
    "store": probe_store, "stream": probe_stream, "json": probe_json, "pickle": probe_pickle,
    "sqlite": probe_sqlite,
}  # fmt: skip


def run_probe(name: str, folder: Path, n_trials: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--probe", name, str(folder), str(n_trials)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
    result: dict[str, float] = json.loads(done.stdout)
    return result


def measure(folder: Path, size: Size) -> dict[str, dict[str, float]]:
    """Return medians per method; the first round only warms up."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in PROBES}
    for turn in range(size.rounds + 1):
        for name in list(PROBES) if turn % 2 else list(reversed(PROBES)):
            got = run_probe(name, folder, size.n_trials)
            if turn:
                found[name].append(got)
    return {
        name: {key: round(float(np.median([g[key] for g in got])), 3) for key in got[0]}
        for name, got in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100,000 trials, about 20 s")
    parser.add_argument("--probe", nargs=3, metavar=("METHOD", "FOLDER", "TRIALS"))
    given = parser.parse_args()
    if given.probe:
        name, folder, n_trials = given.probe
        pa.array([0])  # imports pandas, where that is installed
        numbers = np.random.default_rng(1).integers(0, int(n_trials), N_LOOKUPS).tolist()
        if name == "stream":
            import loaders  # noqa: F401
        print(json.dumps(PROBES[name](Path(folder), [trial_id(i) for i in numbers])))
        return
    size = QUICK if given.quick else FULL
    folder = HERE / "scratch" / f"index-{size.name}"
    folder.mkdir(parents=True, exist_ok=True)
    make_store(folder / "store", size.n_trials)
    make_peers(folder)
    medians = measure(folder, size)
    ours = medians["store"]
    if len({medians[name]["chosen"] for name in METHODS}) > 1:
        raise SystemExit(f"the methods chose different trials: {medians}")
    keys = ("open_ms", "private_mb", "lookup_us", "filter_ms")
    report = {
        "work": {
            "trials": size.n_trials, "shards": N_SHARDS, "rounds": size.rounds, "where": WHERE,
        },
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "ratios": {
            name: {key: round(medians[name][key] / max(ours[key], 1e-3), 2) for key in keys}
            for name in METHODS[1:]
        },
        "medians": medians,
    }  # fmt: skip
    name = "index.json" if size is FULL else "index.quick.json"
    (HERE / "results" / name).write_text(json.dumps(report, indent=1) + "\n")
    print("method      open ms  private MB  look-up us  filter ms  (x ours)")
    for method in METHODS:
        got = medians[method]
        ratios = "  ".join(f"{got[key] / max(ours[key], 1e-3):.2f}" for key in keys)
        print("{:8} {:10,.1f} {:11,.1f} {:11,.1f} {:10,.1f}".format(
            method, *(got[key] for key in keys)), f" {ratios}")  # fmt: skip
    print("store:", ours)
    print("stream:", medians["stream"])


if __name__ == "__main__":
    main()
