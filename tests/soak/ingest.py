"""Read and build many damaged files, and hold every outcome against the slow reading.

    python tests/soak/ingest.py --count 10000 --seed 0 --out bench/results/soak_ingest.json

Prints a summary as JSON; exits 1 if an outcome was wrong, and names the file's number, from which
`corpus.draw_case` draws it again. Each portion of files has a process of its own, so a crash or a
hang is one more finding and not the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PORTION = 520
BATCH = 40
SECONDS_PER_PORTION = 300
MOST_SHOWN = 50

Findings = list[str]


def read_cases(root: Path, cases: Sequence[Any], counts: Counter[str]) -> Findings:
    """Read the files in batches, with and without the compiled parser."""
    from corpus_checks import disagreement, read_batch

    findings = []
    for start in range(0, len(cases), BATCH):
        batch = cases[start : start + BATCH]
        for compiled in (True, False):
            contents = [case.content for case in batch]
            outcomes = read_batch(root, contents, batch[0].layout, compiled=compiled)
            for case, outcome in zip(batch, outcomes, strict=True):
                fault = disagreement(case.content, case.layout, outcome)
                if fault:
                    findings.append(f"{case}: {fault}")
                if compiled:
                    counts[getattr(outcome, "code", "accepted")] += 1
    return findings


def run_portion(first: int, count: int) -> dict[str, Any]:
    """Check the files of these numbers; return findings and counts."""
    from corpus import STYLES, draw_case
    from corpus_checks import check_build

    cases = [draw_case(seed) for seed in range(first, first + count)]
    findings: Findings = []
    codes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for style in STYLES:
            members = [case for case in cases if case.style == style]
            if not members:
                continue
            root = Path(folder) / style
            (root / "read").mkdir(parents=True)
            findings += guarded(style, lambda r=root, m=members: read_cases(r / "read", m, codes))
            findings += guarded(style, lambda r=root, m=members: check_build(r / "build", m)[0])
    mutations = Counter(case.mutation for case in cases)
    return {"findings": findings, "mutations": mutations, "outcomes": codes}


def guarded(style: str, work: Callable[[], Findings]) -> Findings:
    """Return the findings of `work`; an exception is one."""
    try:
        return work()
    except Exception:  # noqa: BLE001 - whatever it is, the next style is looked at, too
        return [f"{style}: {traceback.format_exc(limit=-3)}"]


def start_portion(first: int, count: int) -> dict[str, Any]:
    """Check a portion in a process of its own, which may crash or hang."""
    command = [sys.executable, __file__, "--portion", "--seed", str(first), "--count", str(count)]
    where = f"seeds {first} to {first + count - 1}"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS_PER_PORTION, check=False
        )
    except subprocess.TimeoutExpired:
        return {"findings": [f"{where}: took longer than {SECONDS_PER_PORTION} s"]}
    if done.returncode != 0:
        said = done.stderr[-500:]
        return {"findings": [f"{where}: the process ended with {done.returncode}: {said}"]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run(count: int, seed: int) -> dict[str, Any]:
    """Check `count` files, portion by portion; return the summary."""
    began = time.perf_counter()
    findings: Findings = []
    mutations: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for first in range(seed, seed + count, PORTION):
        portion = start_portion(first, min(PORTION, seed + count - first))
        findings += portion["findings"]
        mutations.update(portion.get("mutations", {}))
        outcomes.update(portion.get("outcomes", {}))
        sys.stderr.write(f"{mutations.total():,} files, {len(findings)} findings\n")
    return {
        "what": "damaged files, each read in a batch by both parsers, and built into a store",
        "files": count,
        "seed": seed,
        "disagreements": len(findings),
        "findings": findings[:MOST_SHOWN],
        "mutations": dict(sorted(mutations.items())),
        "outcomes": dict(outcomes.most_common()),
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="how many files")
    parser.add_argument("--seed", type=int, default=0, help="number of the first file")
    parser.add_argument("--out", type=Path, help="write the summary there, too")
    parser.add_argument("--portion", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.portion:
        sys.stdout.write(json.dumps(run_portion(args.seed, args.count)) + "\n")
        return 0
    summary = run(args.count, args.seed)
    text = json.dumps(summary, indent=2) + "\n"
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
    sys.stdout.write(text)
    return 1 if summary["disagreements"] or sum(summary["mutations"].values()) < args.count else 0


if __name__ == "__main__":
    tests = Path(__file__).parents[1]
    sys.path[:0] = [str(tests / "pipeline"), str(tests), str(tests.parent)]
    sys.exit(main())
