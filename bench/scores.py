"""Scores on public data sets beside the published ones: several seeds, mean and sd.

Everything runs from the raw files: dataset.yaml, build, train, evaluate. Results go to
`bench/results/scores.json`, set by set; a set that was not asked for keeps what it had.

    python bench/scores.py [--only NAME...] [--seeds 5] [--jobs 1] [--resume] [--archives FOLDER]
    python bench/scores.py --readme      # writes the table into README.md and runs nothing
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import multiprocessing
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from scores_set import ROOT, ScoreSet

from shards.errors import TrialShardsError
from training.memory import keep_freed_memory

RESULTS = ROOT / "bench" / "results" / "scores.json"
README = ROOT / "README.md"
SCRATCH = ROOT / "bench" / "scratch" / "scores"
BEGIN, END = "<!-- scores -->", "<!-- /scores -->"
MODULES = ("scores_large", "scores_small")

Row = dict[str, float]
Job = tuple[str, int | None]  # a set, and a seed; None: prepare the set


def load_sets() -> dict[str, ScoreSet]:
    """Return all sets by name."""
    found = [name for name in MODULES if importlib.util.find_spec(name)]
    return {one.name: one for name in found for one in importlib.import_module(name).SETS}


def do_job(job: Job, work: Path) -> Row:
    """Prepare a set, or score one seed of it; in a process of its own if there are several."""
    keep_freed_memory()
    name, seed = job
    one, began = load_sets()[name], time.perf_counter()
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    if seed is None:
        one.prepare(folder)
        return {}
    figures = one.run(folder, seed)
    return {"seed": seed, **figures, "seconds": round(time.perf_counter() - began, 1)}


def do_jobs(wanted: dict[str, list[int]], work: Path, jobs: int) -> Iterator[tuple[str, Row]]:
    """Yield the row of each seed as it comes; a set is prepared before its first seed."""
    if jobs == 1:
        for name, seeds in wanted.items():
            do_job((name, None), work)
            yield from ((name, do_job((name, seed), work)) for seed in seeds)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        running: dict[Future[Row], Job] = {}
        for name in wanted:
            running[pool.submit(do_job, (name, None), work)] = (name, None)
        while running:
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                name, seed = running.pop(done)
                if seed is not None:
                    yield name, done.result()
                    continue
                done.result()
                for other in wanted[name]:
                    running[pool.submit(do_job, (name, other), work)] = (name, other)


def sum_up(one: ScoreSet, rows: Sequence[Row]) -> dict[str, Any]:
    """Return what the results say of a set."""
    figures = [row[one.metric] for row in rows]
    mean = statistics.fmean(figures)
    return {
        "title": one.title,
        "metric": one.metric,
        "better": one.better,
        "goal": one.goal,
        "mean": mean,
        "sd": statistics.stdev(figures) if len(figures) > 1 else None,
        "met": one.meets(mean),
        "digits": one.digits,
        "source": one.source,
        "protocol": one.protocol,
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "seeds": sorted(rows, key=lambda row: row["seed"]),
        "digest": one.digest(),
        "configs": one.texts(),
    }


def read_results(path: Path) -> dict[str, Any]:
    """Return the results so far, by set."""
    return json.loads(path.read_text()) if path.exists() else {}


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write the results in the order of the sets, so that a later run changes only its own."""
    order = [*load_sets(), *results]
    ordered = {name: results[name] for name in dict.fromkeys(order) if name in results}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(ordered, indent=2, ensure_ascii=False) + "\n")


def known_rows(one: ScoreSet, results: dict[str, Any]) -> list[Row]:
    """Return the rows of earlier seeds that still hold: same configs, same protocol."""
    said = results.get(one.name, {})
    return list(said["seeds"]) if said.get("digest") == one.digest() else []


def table(results: dict[str, Any]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| data set | figure | goal | here, mean ± sd | seeds |", "|---|---|---|---|---|"]
    for said in results.values():
        digits = said["digits"]
        sd = "" if said["sd"] is None else f" ± {said['sd']:.{digits}f}"
        sign = "≥" if said["better"] == "higher" else "≤"
        here = f"{said['mean']:.{digits}f}{sd}"
        lines.append(
            f"| {said['title']} | {said['metric']} | {sign} {said['goal']:.{digits}f} | "
            f"{here if said['met'] else here + ' (not met)'} | {len(said['seeds'])} |"
        )
    return "\n".join(lines)


def in_readme(text: str, results: dict[str, Any]) -> str:
    """Return a README with the table between its marks.

    Raises:
        ValueError: If it has no marks.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"{README} has no {BEGIN} ... {END}; write both where the table belongs.")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    return f"{before}{BEGIN}\n{table(results)}\n{END}{after}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", choices=list(load_sets()), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="processes; one thread each")
    parser.add_argument("--resume", action="store_true", help="keep seeds of the same configs")
    parser.add_argument("--archives", type=Path, help="folder of archives to unpack raw files from")
    parser.add_argument("--work", type=Path, default=SCRATCH, help="folder of stores and runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", action="store_true", help="write README's table; run nothing")
    return parser.parse_args()


def main() -> None:
    asked = parse()
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    sets, results = load_sets(), read_results(asked.results)
    if asked.readme:
        README.write_text(in_readme(README.read_text(), results))
        return
    rows: dict[str, list[Row]] = {}
    wanted: dict[str, list[int]] = {}
    for name in asked.only or sets:
        try:
            sets[name].unpack(asked.archives)
        except TrialShardsError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        rows[name] = known_rows(sets[name], results) if asked.resume else []
        if not asked.resume:  # nothing that another state of the code has built or trained
            shutil.rmtree(asked.work / name, ignore_errors=True)
        done = {row["seed"] for row in rows[name]}
        wanted[name] = [seed for seed in range(asked.seeds) if seed not in done]
    wanted = {name: seeds for name, seeds in wanted.items() if seeds}
    for name, row in do_jobs(wanted, asked.work.resolve(), asked.jobs):
        print(name, row, flush=True)
        rows[name].append(row)
        # Read again: another call may have written another set meanwhile.
        results = read_results(asked.results) | {name: sum_up(sets[name], rows[name])}
        write_results(asked.results, results)
    print(table({name: said for name, said in results.items() if name in (asked.only or sets)}))


if __name__ == "__main__":
    main()
