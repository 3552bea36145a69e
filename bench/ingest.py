"""Files per CPU second of our build, beside bare polars and beside pandas with scikit-learn.

python bench/ingest.py [--files N] [--rounds N] [--many N] [--quick] writes
bench/results/ingest.json and prints tables. Each side is a process of its own; they take turns on
the same files, all in the page cache, and ratios are medians over the rounds. Seconds are those of
the work, without imports:
a) `ours`: `pipeline.build.build`, z-score per trial, published and synced to disk, in a process
   that has built 20 files before, which loads the compiled code;
b) `polars`: the files read, 12 MB of them joined, one read_csv per batch into float64, no more;
c) `pandas`: a script per file as users write it, on a tenth of the files: read, hash, check the
   columns, StandardScaler, save as float32. It has an environment of its own under bench/scratch.
PhysioNet 2019 is taken from $TRIALSHARDS_DATA/physionet2019_setA.tar.xz, by default beside the
repository in shared/data; without it, it is left out.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ingest_corpora import (
    DATA,
    MARKS,
    SCRATCH,
    SUFFIX,
    files_of,
    make,
    place,
    unpack_physionet,
    write_spec,
)

ROOT = Path(__file__).resolve().parents[1]
PEERS = ("pandas==3.1.1", "scikit-learn==1.9.1")
BATCH_BYTES = 12 * 2**20
GOALS = {"A": 0.75, "D": 0.5}
PANDAS_GOAL, PEAK_GOAL_MB = 5.0, 600


def prepare_ours(folder: Path, mark: str, _: int) -> Callable[[], int]:
    from pipeline import loading
    from pipeline.build import build

    # As in a process that has read enough: below LOAD_BYTES polars parses and numpy computes.
    loading.is_worth_loading(loading.LOAD_BYTES + 1)
    warm_up(folder, mark, build)
    write_spec(folder, mark)
    shutil.rmtree(folder / "store", ignore_errors=True)
    return lambda: int(build(folder / "dataset.yaml", folder / "store").counts["trials"])


def warm_up(folder: Path, mark: str, build: Callable[..., Any]) -> None:
    """Build a few of the files, so that imports and compiled code are there."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        few = Path(name)
        for number, path in enumerate(files_of(folder)[:20]):
            place(few, number, SUFFIX[mark]).write_bytes(path.read_bytes())
        write_spec(few, mark)
        build(few / "dataset.yaml", few / "store")


def prepare_polars(folder: Path, mark: str, _: int) -> Callable[[], int]:
    import polars as pl

    paths = files_of(folder)
    n_columns = paths[0].read_text().split("\n", 1)[0].count(mark) + 1
    schema = {f"column_{i + 1}": pl.Float64 for i in range(n_columns)}

    def batches() -> Iterator[list[bytes]]:
        bodies, size = [], 0
        for path in paths:
            body = path.read_bytes().split(b"\n", 1)[1]
            bodies.append(body)
            size += len(body)
            if size >= BATCH_BYTES:
                yield bodies
                bodies, size = [], 0
        yield bodies

    def work() -> int:
        n_read = 0
        for bodies in batches():
            joined = b"".join(bodies) or b"\n"
            pl.read_csv(joined, has_header=False, schema=schema, separator=mark, quote_char=None)
            n_read += len(bodies)
        return n_read

    return work


def prepare_pandas(folder: Path, mark: str, n_files: int) -> Callable[[], int]:
    import numpy as np
    import pandas as pd  # type: ignore[import-not-found]
    from sklearn.preprocessing import StandardScaler  # type: ignore[import-not-found]

    shutil.rmtree(out := folder / "pandas", ignore_errors=True)
    out.mkdir()
    paths = files_of(folder)[:n_files]
    names = paths[0].read_text().split("\n", 1)[0].split(mark)
    warnings.simplefilter("ignore", RuntimeWarning)  # columns in which nothing was observed

    def work() -> int:
        hashes = {}
        for path in paths:
            raw = path.read_bytes()
            hashes[path.stem] = hashlib.sha256(raw).hexdigest()
            frame = pd.read_csv(io.BytesIO(raw), sep=mark)
            if list(frame.columns) != names:
                raise ValueError(f"{path}: other columns")
            scaled = StandardScaler().fit_transform(frame.to_numpy(np.float64))
            np.save(out / f"{path.stem}.npy", scaled.astype(np.float32))
        (out / "hashes.json").write_text(json.dumps(hashes))
        return len(hashes)

    return work


SIDES = {"ours": prepare_ours, "polars": prepare_polars, "pandas": prepare_pandas}


def take_turn(side: str, folder: Path, mark: str, n_files: int) -> None:
    """Do one side's work in this process and print what it took."""
    work = SIDES[side](folder, mark, n_files)
    wall, cpu = time.perf_counter(), time.process_time()
    n_done = work()
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    if n_done != n_files:
        sys.exit(f"{side}: {n_done} files of {n_files}")
    print(json.dumps({"files": n_done, "wall_s": wall_s, "cpu_s": cpu_s, "peak_mb": peak_mb()}))


def peak_mb() -> int:
    status = Path("/proc/self/status")  # unlike ru_maxrss, it forgets the process it came from
    if status.exists():
        return int(re.findall(r"VmHWM:\s*(\d+)", status.read_text())[0]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def run(side: str, folder: Path, mark: str, n_files: int) -> dict[str, float]:
    python = peer_python() if side == "pandas" else Path(sys.executable)
    one = {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    turn = ["--turn", side, str(folder), mark, str(n_files)]
    done = subprocess.run(
        [python, __file__, *turn], env=os.environ | one, text=True, capture_output=True, check=False
    )
    if done.returncode:
        sys.exit(f"{side} failed on {folder}:\n{(done.stdout + done.stderr)[-3000:]}")
    took: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return took


def peer_python() -> Path:
    """Return the interpreter of the peers' environment, made by the first call."""
    python = SCRATCH / "peers" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", SCRATCH / "peers"], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PEERS], check=True)
    return python


def measure(folder: Path, mark: str, rounds: int) -> dict[str, Any]:
    """Let the sides take turns; the first round only warms up."""
    n_files = len(files_of(folder))
    counts = {"ours": n_files, "polars": n_files, "pandas": max(1, n_files // 10)}
    turns: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for turn in range(rounds + 1):
        for side in SIDES if turn % 2 else reversed(SIDES):
            took = run(side, folder, mark, counts[side])
            if turn:
                turns[side].append(took)
    rates = {side: [t["files"] / t["cpu_s"] for t in took] for side, took in turns.items()}
    n_bytes = sum(path.stat().st_size for path in files_of(folder))
    return {
        "files": n_files, "mb": round(n_bytes / 1e6, 1),
        "files_per_cpu_s": {side: round(median(r)) for side, r in rates.items()},
        "files_per_s": {
            side: round(median(t["files"] / t["wall_s"] for t in took))
            for side, took in turns.items()
        },
        "peak_mb": {side: max(t["peak_mb"] for t in took) for side, took in turns.items()},
        "over_polars": ratio(rates["ours"], rates["polars"]),
        "over_pandas": ratio(rates["ours"], rates["pandas"]), "turns": turns,
    }  # fmt: skip


def ratio(a: Sequence[float], b: Sequence[float]) -> float:
    return round(median(x / y for x, y in zip(a, b, strict=True)), 3)


def judge(corpora: Mapping[str, Any], peaks: Mapping[str, int]) -> dict[str, Any]:
    """Return each goal, what was measured, and whether it is met."""
    goals = {
        f"{name}: over polars": (f">= {wanted}", corpora[name]["over_polars"], wanted)
        for name, wanted in GOALS.items()
    }
    for name in GOALS:
        got = corpora[name]["over_pandas"]
        goals[f"{name}: over pandas"] = (f">= {PANDAS_GOAL}", got, PANDAS_GOAL)
    judged = {k: {"wanted": w, "measured": m, "met": m >= g} for k, (w, m, g) in goals.items()}
    peak = max(peaks.values())
    judged["peak_mb"] = {"wanted": f"< {PEAK_GOAL_MB}", "measured": peak, "met": peak < 600}
    return judged


def machine() -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in ("numpy", "polars", "pyarrow", "numba"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return {
        "cores": os.cpu_count(), "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(), "system": platform.system(),
        **versions, "peers": list(PEERS),
    }  # fmt: skip


def show(report: Mapping[str, Any]) -> None:
    print("\nCPU seconds of the work in a warm process: imports and compiled code are loaded.")
    sides = "".join(f"{side:>10}" for side in SIDES)
    print(f"\n{'files per CPU s':16}{'files':>8}{'MB':>8}{sides}{'/polars':>9}{'/pandas':>9}")
    for name, row in report["corpora"].items():
        rates = "".join(f"{row['files_per_cpu_s'][side]:>10,}" for side in SIDES)
        print(
            f"{name:16}{row['files']:>8,}{row['mb']:>8.0f}{rates}"
            f"{row['over_polars']:>9.2f}{row['over_pandas']:>9.1f}"
        )
    for name in ("peak_mb", "skipped", "goals"):
        print(f"\n{name}: {json.dumps(report[name], indent=1)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--many", type=int, default=0, help="peak memory for as many links, too")
    parser.add_argument("--quick", action="store_true", help="500 files, one round")
    options = parser.parse_args()
    n_files, rounds = (500, 1) if options.quick else (options.files, options.rounds)
    about = machine()
    needed = {"A": {n_files, min(1000, n_files)}, "D": {n_files, min(1000, n_files)}}
    for kind, counts in needed.items():
        for count in counts:
            in_child("--make", kind, str(count))
    corpora = {kind: measure(SCRATCH / f"{kind}-{n_files}", MARKS[kind], rounds) for kind in GOALS}
    physionet, skipped = unpack_physionet(), ""
    if physionet is None:
        skipped = f"physionet: no {DATA / 'physionet2019_setA.tar.xz'}; set TRIALSHARDS_DATA"
    else:
        corpora["physionet"] = measure(physionet, MARKS["physionet"], rounds)
    peaks = measure_peaks(n_files, options.many) | {
        f"{name}-{row['files']}": int(row["peak_mb"]["ours"]) for name, row in corpora.items()
    }
    report = {
        "work": {"files": n_files, "rounds": rounds, "batch_bytes": BATCH_BYTES},
        "machine": about, "goals": judge(corpora, peaks), "peak_mb": peaks,
        "skipped": skipped, "corpora": corpora,
    }  # fmt: skip
    name = "ingest.quick.json" if options.quick else "ingest.json"
    (ROOT / "bench" / "results" / name).write_text(json.dumps(report, indent=1) + "\n")
    show(report)


def measure_peaks(n_files: int, n_links: int) -> dict[str, int]:
    """Return the peak memory of our build for few files, and for very many."""
    few = min(1000, n_files)
    peaks = {
        f"{kind}-{few}": int(run("ours", SCRATCH / f"{kind}-{few}", MARKS[kind], few)["peak_mb"])
        for kind in GOALS
    }
    if n_links:
        in_child("--make", "links", str(n_links))
        folder = SCRATCH / f"links-{n_links}"
        peaks[folder.name] = int(run("ours", folder, "|", n_links)["peak_mb"])
    return peaks


def in_child(*arguments: str) -> None:
    subprocess.run([sys.executable, __file__, *arguments], check=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--make", kind, count]:
            make(kind, int(count))
        case ["--turn", side, folder, mark, count]:
            take_turn(side, Path(folder), mark, int(count))
        case _:
            main()
