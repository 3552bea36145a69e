"""Mutate stores of every shape, mend their promises, and read them: an error of ours or the truth.

    python tests/soak/fuzz_store.py --count 20000 --seed 0 --out bench/results/soak_store.json

Prints a summary as JSON; exits 1 if there was a finding, and names its seed and its store. Each
portion has a process of its own, so a crash or a hang is one more finding and not the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PORTION = 200
SECONDS_PER_PORTION = 600


def make_stores(root: Path) -> list[Path]:
    """Write a small store of each shape; two have their cold index in a part."""
    from stores import SHAPES, make_store
    from vandal import into_parts

    scale = (1.0, 2.0)
    for layout, container in SHAPES:
        path = root / f"{layout}-{container}"
        store = make_store(
            path, [9, 8, 5], n_channels=2, n_shards=2, missing=layout == "rows", scale=scale,
            splits=["train", "train", "val"], layout=layout, container=container,
        )  # fmt: skip
        if (layout, container) in (("rows", "parquet"), ("windows", "zarr")):
            into_parts(store)
    return sorted(root.iterdir())


def run_portion(first: int, count: int, told: Path) -> list[str]:
    """Return the findings of these seeds; `told` holds the seed at work, should the process end."""
    from fuzzing import check_mutation, read_store

    findings = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRIALSHARDS_CACHE"] = f"{folder}/cache"
        (Path(folder) / "good").mkdir()
        stores = make_stores(Path(folder) / "good")
        expected = {path: read_store(path) for path in stores}
        for seed in range(first, first + count):
            told.write_text(str(seed))
            path = stores[seed % len(stores)]
            fault = check_mutation(path, expected[path], seed, Path(folder) / "work")
            findings += [fault] if fault else []
    return findings


def start_portion(first: int, count: int) -> list[str]:
    """Run a portion in a process of its own, which may crash or hang."""
    with tempfile.TemporaryDirectory() as folder:
        told, found = Path(folder) / "seed", Path(folder) / "found.json"
        command = [sys.executable, __file__, "--portion", "--seed", str(first)]
        command += ["--count", str(count), "--out", str(found), "--told", str(told)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=SECONDS_PER_PORTION, check=False
            )
        except subprocess.TimeoutExpired:
            return [f"seed {told.read_text()}: hangs"]
        if done.returncode:
            at = told.read_text() if told.exists() else "?"
            return [f"seed {at}: the process ended with {done.returncode}: {done.stderr[-1000:]}"]
        return list(json.loads(found.read_text()))


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000, help="how many mutations")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--out", type=Path, help="write the summary there, too")
    parser.add_argument("--portion", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--told", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.portion:
        args.out.write_text(json.dumps(run_portion(args.seed, args.count, args.told)))
        return 0
    findings: list[str] = []
    end = args.seed + args.count
    for first in range(args.seed, end, PORTION):
        findings += start_portion(first, min(PORTION, end - first))
        sys.stderr.write(f"{min(first + PORTION, end) - args.seed:,}: {len(findings)} findings\n")
    summary = {
        "what": "stores with one file mutated and its promises mended, read and verified",
        "mutations": args.count, "seed": args.seed, "n_findings": len(findings),
        "findings": findings[:50],
    }  # fmt: skip
    text = json.dumps(summary, indent=2) + "\n"
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
    sys.stdout.write(text)
    return 1 if findings else 0


if __name__ == "__main__":
    tests = Path(__file__).parents[1]
    sys.path[:0] = [str(tests), str(tests.parent)]
    sys.exit(main())
