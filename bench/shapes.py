"""What the four shapes of a store take: bytes beside the data, building, first batch, reading.

python bench/shapes.py [--rounds N] [--quick] writes bench/results/shapes.json and prints tables.
Every set is built as rows and as windows, in Zarr and in Parquet, with and without the mask of
observed values; the shapes take turns, each in a process of its own, and figures are medians over
the rounds. Code is loaded before anything is timed, by doing the same once; files are in the page
cache.
- Amplification: bytes of all files of the store but `staging/`, over rows x columns x 4, where
  columns are the channels and the targets per step. Goals are for rows in Zarr.
- First batch: opening the store and the stream included; cold with an empty cache of decoded
  shards, warm with a full one. Zarr needs no such cache.
- Reading: whole epochs in random order, batches of 256, one process, one thread.
- Decoding: raw bytes per second of filling that cache, checked and forced to the disk.
PhysioNet 2019 and C-MAPSS FD001 are taken from $TRIALSHARDS_DATA, by default beside the repository
in shared/data; without their archives they are left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ingest import machine
from ingest_corpora import ROOT, files_of
from shapes_sets import WINDOWS, find_sets, spec_of

PLACE = ROOT / "bench" / "scratch" / "shapes"
SHAPES = tuple(itertools.product(("rows", "windows"), ("zarr", "parquet"), (False, True)))
GOALS = {False: 1.05, True: 1.09}
DATA_KINDS = ("values", "targets", "observed")
EPOCHS_S = 1.0
"""Whole epochs are read until they have taken as long."""


def name_of(layout: str, container: str, mask: bool) -> str:
    return f"{layout} {container}" + (" mask" if mask else "")


# Turns


def build_store(spec_path: Path, store: Path) -> dict[str, float]:
    """Build a store and return what it took; the same was built before, which loads all code."""
    from pipeline import loading
    from pipeline.build import build

    # As in a process that has read enough: below LOAD_BYTES polars parses and numpy computes.
    loading.is_worth_loading(loading.LOAD_BYTES + 1)
    for _ in range(2):
        shutil.rmtree(store, ignore_errors=True)
        wall, cpu = time.perf_counter(), time.process_time()
        build(spec_path, store)
        took = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    return took


def read_store(path: Path, cache: Path) -> dict[str, float]:
    """Return seconds until the first batch, windows per second, and MB decoded per second."""
    import torch

    from loaders import TrialStream
    from shards import Store
    from shards.localcache import LocalCache

    torch.set_num_threads(1)

    def first() -> None:
        touch(next(iter(TrialStream(Store(path)))).values)

    def decode() -> None:
        with LocalCache().decoded(path, store.manifest.shards):
            pass

    def touch(values: torch.Tensor) -> float:
        return float(values.view(-1)[::1024].sum())

    store = Store(path)
    stream, took = TrialStream(store), {}
    for batch in stream:
        touch(batch.values)
    shutil.rmtree(cache, ignore_errors=True)
    took["first_cold_s"], took["first_warm_s"] = seconds(first), seconds(first)
    n_windows, begin = 0, time.perf_counter()
    while (spent := time.perf_counter() - begin) < EPOCHS_S:
        for batch in stream:
            touch(batch.values)
            n_windows += int((batch.trial >= 0).sum())
    took["windows_per_s"] = n_windows / spent
    if store.manifest.container == "parquet":
        shutil.rmtree(cache, ignore_errors=True)
        arrays = [spec for shard in store.manifest.shards for spec in shard.arrays.values()]
        took["decode_mb_per_s"] = sum(s.data_bytes for s in arrays) / 1e6 / seconds(decode)
    return took


def seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def run(spec: Path, store: Path, cache: Path) -> dict[str, float]:
    """Build a store and read it, in a process of its own."""
    one = {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__, "--turn", spec, store, cache],
        env=os.environ | one | {"TRIALSHARDS_CACHE": str(cache)},
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{store.name} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    took: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return took


# Figures


def sizes_of(store: Path) -> Counter[str]:
    """Return bytes of the files of a store by what they hold, without `staging/`."""
    sizes = Counter[str]()
    for path in store.rglob("*"):
        if path.is_file() and (parts := path.relative_to(store).parts)[0] != "staging":
            sizes[_kind_of(parts)] += path.stat().st_size
    return sizes


def _kind_of(parts: Sequence[str]) -> str:
    known = {"index.arrow": "index", "dataset.json": "manifest", "rows.parquet": "rows.parquet"}
    if parts[0] == "parts" or parts[-1] == "trials.parquet":
        return "parts"
    if parts[0] == "shards" and len(parts) > 3 and parts[-1] != "zarr.json":
        return parts[2]
    return known.get(parts[-1], "rest")


def describe(store: Path) -> dict[str, Any]:
    """Return what a store holds and what its files take, per byte of data."""
    from shards import Store

    manifest = Store(store).manifest
    target = manifest.target
    n_columns = len(manifest.channels)
    n_columns += len(target.columns) if target.kind == "per_step" else 0
    data_bytes = manifest.counts["rows"] * n_columns * 4
    sizes = sizes_of(store)
    return {
        "trials": manifest.counts["trials"], "rows": manifest.counts["rows"],
        "columns": n_columns, "windows": manifest.counts["windows"],
        "fingerprint": manifest.fingerprint, "data_bytes": data_bytes,
        "store_bytes": sizes.total(), "amplification": round(sizes.total() / data_bytes, 4),
        "shares": {kind: round(size / data_bytes, 4) for kind, size in sizes.most_common()},
        "parts_bytes_per_trial": round(sizes["parts"] / manifest.counts["trials"]),
    }  # fmt: skip


def measure(name: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Build and read one set in all shapes, in turns."""
    spec, turns = spec_of(name, folder), {name_of(*shape): list[Any]() for shape in SHAPES}
    found: dict[str, dict[str, Any]] = {}
    for turn in range(rounds):
        for layout, container, mask in SHAPES if turn % 2 else reversed(SHAPES):
            shape = name_of(layout, container, mask)
            store = PLACE / f"{name} {shape}".replace(" ", "-")
            cache, spec_path = store.with_suffix(".cache"), folder / "shapes.yaml"
            shards = {**spec.get("shards", {}), "layout": layout, "format": container}
            clean = {**spec.get("clean", {}), "observed": mask}
            spec_path.write_text(json.dumps({**spec, "shards": shards, "clean": clean}))
            turns[shape].append(run(spec_path, store, cache))
            found[shape] = describe(store)
            for path in (store, cache):
                shutil.rmtree(path, ignore_errors=True)
            spec_path.unlink()
    if len({(mask, found[name_of(*rest, mask)]["fingerprint"]) for *rest, mask in SHAPES}) > 2:
        sys.exit(f"{name}: the shapes do not hold the same trials: {found}")
    n_bytes = sum(path.stat().st_size for path in files_of(folder))
    return {
        "source_mb": round(n_bytes / 1e6, 1),
        "shapes": {
            shape: found[shape]
            | {key: round(median(t[key] for t in took), 4) for key in took[0]}
            for shape, took in turns.items()
        },
        "turns": turns,
    }  # fmt: skip


def judge(sets: Mapping[str, Any]) -> dict[str, Any]:
    """Return each goal, what was measured, and what takes most beside data and mask."""
    goals = {}
    for name, row in sets.items():
        for mask, wanted in GOALS.items():
            got = row["shapes"][name_of("rows", "zarr", mask)]
            beside = {k: v for k, v in got["shares"].items() if k not in DATA_KINDS}
            most = max(beside, key=lambda kind: beside[kind])
            goals[f"{name}: {'with' if mask else 'without'} mask"] = {
                "wanted": f"<= {wanted}", "measured": got["amplification"],
                "met": got["amplification"] <= wanted, "most_beside": {most: beside[most]},
            }  # fmt: skip
    return goals


def show(report: Mapping[str, Any]) -> None:
    heads = ("x data", "CPU s", "cold ms", "warm ms", "windows/s", "decode MB/s")
    for name, row in report["sets"].items():
        one = row["shapes"]["rows zarr"]
        print(
            f"\n{name}: {one['trials']:,} trials, {one['rows']:,} rows x {one['columns']}, "
            f"{one['data_bytes'] / 1e6:,.1f} MB\n{'':22}" + "".join(f"{h:>12}" for h in heads)
        )
        for shape, got in row["shapes"].items():
            decode = f"{got['decode_mb_per_s']:,.0f}" if "decode_mb_per_s" in got else ""
            print(
                f"{shape:22}{got['amplification']:>12.3f}{got['cpu_s']:>12.2f}"
                f"{got['first_cold_s'] * 1e3:>12,.1f}{got['first_warm_s'] * 1e3:>12,.1f}"
                f"{got['windows_per_s']:>12,.0f}{decode:>12}"
            )
            print(f"{'':22}  {got['shares']}")
    for name in ("skipped", "goals"):
        print(f"\n{name}: {json.dumps(report[name], indent=1)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small sets, one round")
    options = parser.parse_args()
    rounds, about = 1 if options.quick else options.rounds, machine()
    del about["peers"]  # those of bench/ingest.py
    found = find_sets(options.quick)
    PLACE.mkdir(parents=True, exist_ok=True)
    report = {
        "work": {"rounds": rounds, "windows": WINDOWS, "batch": 256}, "machine": about,
        "skipped": [name for name, folder in found.items() if folder is None],
        "sets": (sets := {n: measure(n, f, rounds) for n, f in found.items() if f is not None}),
        "goals": judge(sets),
    }  # fmt: skip
    name = "shapes.quick.json" if options.quick else "shapes.json"
    (ROOT / "bench" / "results" / name).write_text(json.dumps(report, indent=1) + "\n")
    show(report)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--turn", spec, store, cache]:
            built = build_store(Path(spec), Path(store))
            print(json.dumps(built | read_store(Path(store), Path(cache))))
        case _:
            main()
