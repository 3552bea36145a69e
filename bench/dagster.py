"""What Dagster costs: the graph of one data set beside the plain functions that it wraps.

python bench/dagster.py [--files N] [--rounds N] [--quick] writes bench/results/dagster.json and
prints tables. Two sides take turns on the same files, each with a new store and new processes:
a) `build`, the checks of the store, `trialshards train` and `evaluate`; b) `dg launch --job`; then
each again with nothing new. Overhead is b - a, as medians over the rounds. Dagster runs in other
processes only: next to this file, `import dagster` would import this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
SCRATCH = ROOT / "bench" / "scratch" / "dagster"
DG = Path(sys.executable).parent / "dg"
SIDES = ("plain", "graph")
CHANNELS = ("x", "y", "z", "w")
SPEC = {
    "name": "bench",
    "source": {"files": "raw/*/*.csv", "trial_id": r"(?P<folder>f\d+)/t\d+"},
    "channels": list(CHANNELS),
    "windows": {"length": 32, "stride": 16, "target": {"kind": "forecast", "channels": ["x"]}},
    "shards": {"buckets": 8},
}
TRAINING = {
    "store": "store", "out": "run", "model": {"hidden": 8, "layers": 1, "head": []},
    "data": {"batch_size": 256, "steps_per_epoch": 4}, "epochs": 1,
}  # fmt: skip
FILES = {"dataset": "dataset.yaml", "training": "train.yaml"}
COMPONENT = {"type": "pipeline.component.TrialDataset", "attributes": FILES}
CHECKS = ("windows_add_up", "finite", "leak_audit", "verify")
# Which steps of the graph do what a part of the plain side does.
PARTS = {
    "build": ("catalog", "trial_shards", "training_set"),
    "checks": tuple(f"training_set_{check}" for check in CHECKS),
    "train": ("trained_lstm",),
    "evaluate": ("evaluation",),
}
LOCATION = """
import json, resource, sys, time
began = time.perf_counter()
import pipeline.definitions
pipeline.definitions.defs()
rss_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
imported = {n: n in sys.modules for n in ("torch", "matplotlib", "polars", "pyarrow", "zarr")}
print(json.dumps({"load_s": round(time.perf_counter() - began, 2),
                  "load_rss_mb": round(rss_kb / 1024), "imported": imported}))
"""


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds from start to end, and of processors, children included."""

    began_s: float
    wall_s: float
    cpu_s: float
    output: str


def make_project(n_files: int) -> Path:
    """Return a clean project: the pipeline's code with one data set; raw files are kept."""
    clear(folder := SCRATCH / str(n_files))
    for name in ("shards", "loaders", "training", "trialshards", "pyproject.toml"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(ROOT / name)
    # Copied, since Dagster looks for `defs` next to the code.
    shutil.rmtree(folder / "pipeline", ignore_errors=True)
    shutil.copytree(ROOT / "pipeline", folder / "pipeline", ignore=shutil.ignore_patterns("defs"))
    defs = folder / "pipeline" / "defs" / "bench" / "defs.yaml"
    defs.parent.mkdir(parents=True)
    for name, content in {"dataset.yaml": SPEC, "train.yaml": TRAINING, defs: COMPONENT}.items():
        (folder / name).write_text(yaml.safe_dump(content, sort_keys=False))
    if not (folder / "raw").exists():
        write_trials(folder / "raw.part", n_files)
        (folder / "raw.part").rename(folder / "raw")
    return folder


def write_trials(raw: Path, n_files: int) -> None:
    """Write files of 60 to 200 rows, 100 in a folder; the same ones every time."""
    rng = np.random.default_rng(0)
    for number in range(n_files):
        rows = rng.standard_normal((int(rng.integers(60, 201)), len(CHANNELS))).cumsum(axis=0)
        path = raw / f"f{number // 100:04d}" / f"t{number:06d}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savetxt(path, rows, "%.4f", ",", header=",".join(CHANNELS), comments="")


def clear(project: Path) -> None:
    """Forget the store, the training run, and everything that Dagster knows."""
    for name in ("store", "run", "home"):
        shutil.rmtree(project / name, ignore_errors=True)
    (project / "home").mkdir(parents=True)
    shutil.copy(ROOT / "deploy" / "local" / "dagster.yaml", project / "home")


def run(command: Sequence[str | Path], project: Path) -> Cost:
    """Run a command in a project; if it fails, exit with its last words."""
    environment = {"DAGSTER_HOME": str(project / "home"), "PYTHONPATH": str(project)}
    before, began, tick = getrusage(RUSAGE_CHILDREN), time.time(), time.perf_counter()
    done = subprocess.run(
        command, cwd=project, env=os.environ | environment, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    wall_s, after = time.perf_counter() - tick, getrusage(RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout[-3000:]}")
    return Cost(began, wall_s, cpu_s, done.stdout)


def run_plain(project: Path) -> dict[str, Any]:
    cost = run([sys.executable, "-P", __file__, "--plain"], project)
    parts = json.loads(cost.output.splitlines()[-1])
    start = parts.pop("began_s") - cost.began_s
    rest = {"start": start, "between": 0.0, "end": cost.wall_s - start - sum(parts.values())}
    return {"wall_s": cost.wall_s, "cpu_s": cost.cpu_s, "parts_s": parts | rest}


def plain() -> None:
    """Do in the current folder what the graph does, and print what each part took."""
    from pipeline.audit_store import check_bytes, check_finite, check_leaks, check_windows
    from pipeline.build import build
    from shards import Store

    def check() -> None:
        for look in (check_windows, check_finite, check_leaks, check_bytes):
            if not (finding := look(Store("store"))).passed:
                sys.exit(finding.message)

    def command(*arguments: str) -> None:  # as pipeline/orchestration/subprocesses.py does
        subprocess.run([sys.executable, "-m", "trialshards.cli", *arguments], check=True)

    work: dict[str, Callable[[], Any]] = {
        "build": lambda: build("dataset.yaml", "store"),
        "checks": check,
        "train": lambda: command("train", "train.yaml", "--renew", "--no-evaluate"),
        "evaluate": lambda: command("evaluate", "train.yaml"),
    }
    took = {"began_s": time.time()}
    for name, do in work.items():
        tick = time.perf_counter()
        do()
        took[name] = time.perf_counter() - tick
    print(json.dumps(took))


def run_graph(project: Path) -> dict[str, Any]:
    runs = project / "home" / "history" / "runs"  # Dagster keeps a SQLite file for each
    old = set(runs.glob("*-*.db"))
    cost = run([DG, "launch", "--job", "bench"], project)
    (log,) = set(runs.glob("*-*.db")) - old
    spans, n_events = read_log(log)
    steps = {name: ended - began for name, (began, ended) in spans.items()}
    parts = {part: sum(steps[name] for name in names) for part, names in PARTS.items()}
    start = min(began for began, _ in spans.values()) - cost.began_s
    end = cost.began_s + cost.wall_s - max(ended for _, ended in spans.values())
    between = cost.wall_s - start - end - sum(parts.values())
    return {
        "wall_s": cost.wall_s, "cpu_s": cost.cpu_s, "steps_s": steps, "events": n_events,
        "parts_s": {"start": start, **parts, "between": between, "end": end},
        "log_mb": round(log.stat().st_size / 1e6, 2),
    }  # fmt: skip


def read_log(path: Path) -> tuple[dict[str, tuple[float, float]], int]:
    """Return when each step began and ended, and how many events there are."""
    at: dict[str, dict[str, float]] = {}
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as log:
        (n_events,) = log.execute("SELECT COUNT(*) FROM event_logs").fetchone()
        for step, kind, when in log.execute(
            "SELECT step_key, dagster_event_type, timestamp FROM event_logs WHERE "
            "dagster_event_type IN ('STEP_START', 'STEP_SUCCESS')"
        ):
            moment = datetime.fromisoformat(when).replace(tzinfo=UTC).timestamp()
            at.setdefault(step.removeprefix("bench__"), {})[kind] = moment
    return {step: (t["STEP_START"], t["STEP_SUCCESS"]) for step, t in at.items()}, n_events


def measure(project: Path, rounds: int) -> list[dict[str, Any]]:
    """Let both sides take turns; the first round only warms up."""
    do = {"plain": run_plain, "graph": run_graph}
    measured = []
    for turn in range(rounds + 1):
        one = {}
        for side in SIDES if turn % 2 else reversed(SIDES):
            clear(project)
            one[side] = {"first": do[side](project), "again": do[side](project)}
        print("round", turn, [round(one[side]["first"]["wall_s"], 1) for side in SIDES], flush=True)
        measured.append(one)
    return measured[1:]


def summarize(rounds: Sequence[Mapping[str, Any]], which: str) -> dict[str, Any]:
    """Return the medians of both sides, and of what the graph took more, part by part."""
    a, b = ([one[side][which] for one in rounds] for side in SIDES)

    def compare(value: Callable[[Mapping[str, Any]], float]) -> dict[str, float]:
        rows = [(value(y), value(x), value(y) - value(x)) for x, y in zip(a, b, strict=True)]
        graph, plain, more = (round(median(column), 2) for column in zip(*rows, strict=True))
        return {"plain": plain, "graph": graph, "more": more}

    return {
        "wall_s": compare(lambda x: x["wall_s"]),
        "cpu_s": compare(lambda x: x["cpu_s"]),
        "parts_s": {k: compare(lambda x, k=k: x["parts_s"][k]) for k in b[0]["parts_s"]},
        "steps_s": {k: round(median(x["steps_s"][k] for x in b), 2) for k in b[0]["steps_s"]},
        **{name: b[-1][name] for name in ("events", "log_mb")},
    }


def measure_location(n_runs: int) -> dict[str, Any]:
    """Measure `dg check defs` on the repository itself, and what loading its definitions costs."""
    clear(folder := SCRATCH / "check")
    check = [DG, "check", "defs", "--target-path", ROOT]
    costs = [run(check, folder) for _ in range(n_runs + 1)][1:]
    loads = [json.loads(run([sys.executable, "-c", LOCATION], ROOT).output) for _ in range(3)]
    return {
        **loads[-1], "load_s": median(load["load_s"] for load in loads),
        "dg_check_defs_s": round(median(cost.wall_s for cost in costs), 2),
        "dg_check_defs_cpu_s": round(median(cost.cpu_s for cost in costs), 2),
        "dg_check_defs_all_s": [round(cost.wall_s, 2) for cost in costs],
    }  # fmt: skip


def judge(overhead_s: float, location: Mapping[str, Any]) -> dict[str, Any]:
    """Return each goal, what was measured, and whether it is met."""
    check_s, torch = location["dg_check_defs_s"], location["imported"]["torch"]
    return {
        "overhead_s": {"wanted": "< 15", "measured": overhead_s, "met": overhead_s < 15},
        "dg_check_defs_s": {"wanted": "< 4", "measured": check_s, "met": check_s < 4},
        "torch_imported": {"wanted": False, "measured": torch, "met": not torch},
    }


def machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(), "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(), "system": platform.system(),
        **{name: version(name) for name in ("dagster", "torch", "polars", "numpy", "zarr")},
    }  # fmt: skip


def show(report: Mapping[str, Any]) -> None:
    for which in ("first", "again"):
        part = report[which]
        print(f"\n{which + ', seconds':16}{'plain':>8}{'graph':>8}{'more':>8}")
        for name, row in {**part["parts_s"], "wall": part["wall_s"], "cpu": part["cpu_s"]}.items():
            print(f"{name:16}{row['plain']:8.2f}{row['graph']:8.2f}{row['more']:8.2f}")
        print(f"{part['events']} events, {part['log_mb']} MB; steps {part['steps_s']}")
    for name in ("few_files", "location", "goals"):
        print(f"\n{name}: {report[name]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="300 files, one round: 2 minutes")
    options = parser.parse_args()
    n_files, rounds = (300, 1) if options.quick else (options.files, options.rounds)
    about, location = machine(), measure_location(1 if options.quick else 5)
    measured = measure(make_project(n_files), rounds)
    few = run_graph(make_project(n_files // 10))
    first, again = (summarize(measured, which) for which in ("first", "again"))
    report = {
        "work": {"files": n_files, "rounds": rounds, "dataset": SPEC, "training": TRAINING},
        "machine": about, "goals": judge(first["wall_s"]["more"], location),
        "first": first, "again": again,
        "few_files": {"files": n_files // 10} | {k: few[k] for k in ("events", "log_mb")},
        "location": location, "rounds": measured,
    }  # fmt: skip
    name = "dagster.quick.json" if options.quick else "dagster.json"
    (ROOT / "bench" / "results" / name).write_text(json.dumps(report, indent=1) + "\n")
    show(report)


if __name__ == "__main__":
    plain() if sys.argv[1:] == ["--plain"] else main()
