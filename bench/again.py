"""What a rerun costs when nothing, or one file of ten thousand, has changed.

python bench/again.py [--files N] [--rounds N] [--quick] writes bench/results/again.json and prints
tables. The sides take turns, each in a process of its own, on its own links to the same files, all
in the page cache. Seconds are those of the work, without imports and without the first of each
kind, which loads code; ratios are medians over the rounds of the medians within one.
a) `ours`: a full build, then builds with nothing new, one file changed, one new, one deleted; after
   that one of each, uncounted in seconds, during which opened files and written bytes are counted.
   `command` is `trialshards build` with nothing new as a process of its own, imports and all.
b) `parquet`: one Parquet file of all trials by polars: made anew from all files (`full`, the usual
   way), or read, one trial replaced, and written (`changed`).
c) `npy`: a .npy file per trial, made anew where it is older than its source: fast if one has
   changed, and no index, no checks, no versions, and nothing that tells a deleted file.
All normalize each trial by itself and store float32.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from again_files import Trials, note, traced
from ingest import in_child, machine, prepare_ours
from ingest_corpora import ROOT, SCRATCH, files_of

REPEATS = 4
"""Of each kind in a turn; the first is left out."""

WANTED_READS = {"nothing": 0, "changed": 1, "new": 1, "deleted": 0}
SHARES, COMMAND_GOAL_S = {"A": 0.03, "D": 0.10}, 1.0
Turn = dict[str, Any]


# Ours


def take_ours(trials: Trials) -> Turn:
    from pipeline.build import build

    spec, store = trials.folder / "dataset.yaml", trials.folder / "store"
    took: Turn = {"full": timed(prepare_ours(trials.folder, trials.mark, 0))}
    edits: dict[str, Callable[[], Any]] = {"nothing": lambda: None}
    edits |= {name: getattr(trials, name) for name in ("changed", "new", "deleted")}

    def again(name: str) -> None:
        report = build(spec, store)
        got, wanted = (report.published, report.n_read), (name != "nothing", WANTED_READS[name])
        if got != wanted:
            sys.exit(f"{name}: published and files read are {got}; wanted {wanted}")

    for name, edit in edits.items():
        took[name] = repeated(edit, lambda name=name: again(name))  # type: ignore[misc]
    took["command"] = repeated(lambda: None, lambda: run_command(spec, store))
    watched: list[tuple[str, list[str]]] = []
    sys.addaudithook(lambda event, given: note(watched, event, given))
    took["traces"] = {}
    for name, edit in edits.items():
        path = edit()
        with traced(watched, trials.folder) as trace:
            again(name)
        took["traces"][name] = trace | {"data_bytes": trials.data_bytes(path)}
    return took


def run_command(spec: Path, store: Path) -> None:
    """Run the command as an installed one runs: with its bytecode cached."""
    command = Path(sys.executable).with_name("trialshards")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [command, "build", spec, "--store", store],
        env=env | {"PYTHONPYCACHEPREFIX": str(SCRATCH / "bytecode")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{command} failed:\n{done.stdout + done.stderr}")


# Peers


def take_parquet(trials: Trials) -> Turn:
    import polars as pl

    out = trials.folder / "all.parquet"

    def full(paths: list[Path]) -> None:
        names, options = csv_options(paths[0], trials.mark)
        x = pl.col(names).fill_nan(None)
        mean, sd = x.mean().over("source"), x.std(ddof=0).over("source")
        frame = pl.scan_csv(paths, include_file_paths="source", **options)
        frame.with_columns(((x - mean) / sd).cast(pl.Float32)).collect().write_parquet(out)

    def patch() -> None:
        path = changed[-1]
        new = normalized(path, trials.mark).with_columns(source=pl.lit(str(path)))
        kept = pl.read_parquet(out).filter(pl.col("source") != str(path))
        pl.concat([kept, new]).write_parquet(out)

    changed: list[Path] = []
    full(trials.files[:20])
    took: Turn = {"full": timed(lambda: full(trials.files))}
    took["changed"] = repeated(lambda: changed.append(trials.changed()), patch)
    return took


def take_npy(trials: Trials) -> Turn:
    import numpy as np

    (cache := trials.folder / "cache").mkdir()

    def update(paths: list[Path]) -> int:
        n_made = 0
        for path in paths:
            out = cache / f"{path.stem}.npy"
            if not out.exists() or out.stat().st_mtime_ns < path.stat().st_mtime_ns:
                np.save(out, normalized(path, trials.mark).to_numpy())
                n_made += 1
        return n_made

    update(trials.files[:20])
    took: Turn = {"full": timed(lambda: update(files_of(trials.folder)))}
    took["nothing"] = repeated(lambda: None, lambda: update(files_of(trials.folder)))
    took["changed"] = repeated(trials.changed, lambda: update(files_of(trials.folder)))
    return took


def csv_options(path: Path, mark: str) -> tuple[list[str], dict[str, Any]]:
    import polars as pl

    names = path.read_text().split("\n", 1)[0].split(mark)
    return names, {"separator": mark, "schema": dict.fromkeys(names, pl.Float64)}


def normalized(path: Path, mark: str) -> Any:
    """Return one trial as a frame of float32, each column by its own mean and deviation."""
    import polars as pl

    names, options = csv_options(path, mark)
    x = pl.col(names).fill_nan(None)
    scaled = ((x - x.mean()) / x.std(ddof=0)).cast(pl.Float32)
    return pl.read_csv(path, **options).with_columns(scaled)


# Turns and figures

SIDES = {"ours": take_ours, "parquet": take_parquet, "npy": take_npy}


def timed(work: Callable[[], Any]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def repeated(edit: Callable[[], Any], work: Callable[[], Any]) -> dict[str, float]:
    """Return medians over repeats of the work, each after an edit; the first loads code."""
    turns = []
    for _ in range(REPEATS):
        edit()
        turns.append(timed(work))
    return {key: median(turn[key] for turn in turns[1:]) for key in turns[0]}


def run(side: str, kind: str, n_files: int) -> Turn:
    one = {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__, "--turn", side, kind, str(n_files)],
        env=os.environ | one, text=True, capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{side} failed on {kind}:\n{(done.stdout + done.stderr)[-3000:]}")
    took: Turn = json.loads(done.stdout.splitlines()[-1])
    return took


def take_turn(side: str, kind: str, n_files: int) -> None:
    trials = Trials(kind, n_files, side)
    took = SIDES[side](trials)
    shutil.rmtree(trials.folder)
    print(json.dumps(took))


def summarize(rounds: Sequence[Mapping[str, Turn]]) -> dict[str, Any]:
    """Return medians over the rounds: of times, of shares of the full build, and of ratios."""
    ours = [one["ours"] for one in rounds]
    cases = [*WANTED_READS, "command"]
    return {
        "seconds": {
            side: {
                case: {key: round(median(t[side][case][key] for t in rounds), 5) for key in took}
                for case, took in rounds[0][side].items() if case != "traces"
            }
            for side in rounds[0]
        },
        "share_of_full": {
            case: {
                key: round(median(turn[case][key] / turn["full"][key] for turn in ours), 5)
                for key in ("cpu_s", "wall_s")
            }
            for case in cases if case != "command"
        },
        "over_ours": {
            f"{side}, {case}": {
                key: round(median(t[side][case][key] / t["ours"][versus][key] for t in rounds), 2)
                for key in ("cpu_s", "wall_s")
            }
            for side, case, versus in (
                ("ours", "full", "changed"), ("parquet", "full", "changed"),
                ("parquet", "changed", "changed"), ("npy", "changed", "changed"),
                ("npy", "nothing", "nothing"),
            )
        },
        "traces": ours[-1]["traces"],
    }  # fmt: skip


def judge(corpora: Mapping[str, Any]) -> dict[str, Any]:
    """Return each goal, what was measured, and whether it is met."""
    goals = {}
    for kind, row in corpora.items():
        got = row["seconds"]["ours"]["command"]["wall_s"]
        goals[f"{kind}: command with nothing new, s"] = (f"< {COMMAND_GOAL_S}", got)
        for case in ("changed", "new", "deleted"):
            share = row["share_of_full"][case]["cpu_s"]
            goals[f"{kind}: {case}, CPU share of a full build"] = (f"<= {SHARES[kind]}", share)
        for case, wanted in WANTED_READS.items():
            goals[f"{kind}: {case}, files opened"] = (f"<= {wanted}", row["traces"][case]["opened"])
    return {
        name: {"wanted": wanted, "measured": got, "met": is_met(wanted, got)}
        for name, (wanted, got) in goals.items()
    }


def is_met(wanted: str, got: float) -> bool:
    sign, bound = wanted.split()
    return got < float(bound) if sign == "<" else got <= float(bound)


def show(report: Mapping[str, Any]) -> None:
    for kind, row in report["corpora"].items():
        print(f"\n{kind}: {row['files']:,} files, {row['mb']:,} MB")
        print(f"{'':22}{'CPU ms':>10}{'wall ms':>10}{'CPU share':>11}{'wall share':>11}")
        for side, cases in row["seconds"].items():
            for case, took in cases.items():
                share = row["share_of_full"].get(case, {}) if side == "ours" else {}
                # What a child process takes does not count as ours.
                cpu = "" if case == "command" else f"{took['cpu_s'] * 1e3:,.1f}"
                shares = "".join(f"{x:>11.2%}" for x in share.values())
                print(f"{side + ', ' + case:22}{cpu:>10}{took['wall_s'] * 1e3:>10,.1f}{shares}")
        print("  over ours (CPU, wall):", row["over_ours"])
        for case, trace in row["traces"].items():
            kinds = ", ".join(f"{name} {size:,}" for name, size in trace["written_bytes"].items())
            print(
                f"  {case}: {trace['opened']} files opened; bytes of its data "
                f"{trace['data_bytes']:,}, written {trace['calls_bytes']:,}; files: {kinds or '-'}"
            )
    print(f"\nGoals are for 10,000 files; here {report['work']['files']:,}.")
    print(f"goals: {json.dumps(report['goals'], indent=1)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="500 files, one round")
    options = parser.parse_args()
    n_files, n_rounds = (500, 1) if options.quick else (options.files, options.rounds)
    about = machine()
    del about["peers"]  # those of bench/ingest.py; ours are of our own environment
    corpora = {}
    for kind in SHARES:
        in_child("--make", kind, str(n_files))
        rounds = []
        for turn in range(n_rounds):
            order = list(SIDES) if turn % 2 else list(reversed(SIDES))
            took = {side: run(side, kind, n_files) for side in order}
            rounds.append({side: took[side] for side in SIDES})
        n_bytes = sum(path.stat().st_size for path in files_of(SCRATCH / f"{kind}-{n_files}"))
        corpora[kind] = {"files": n_files, "mb": round(n_bytes / 1e6, 1), **summarize(rounds)}
        corpora[kind]["rounds"] = rounds
    report = {
        "work": {"files": n_files, "rounds": n_rounds, "repeats": REPEATS - 1},
        "machine": about, "goals": judge(corpora), "corpora": corpora,
    }  # fmt: skip
    name = "again.quick.json" if options.quick else "again.json"
    (ROOT / "bench" / "results" / name).write_text(json.dumps(report, indent=1) + "\n")
    show(report)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--turn", side, kind, count]:
            take_turn(side, kind, int(count))
        case _:
            main()
