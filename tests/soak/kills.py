"""Kill real builds with `kill -9` at random moments, and hold what is left against its promises.

    python tests/soak/kills.py --count 200 --seed 0 --out bench/results/soak_kills.json

Before each build a file is changed, added or deleted. After each kill the store is opened and its
newest versions are verified; the next build goes on from what the killed one left. In the end a
build that nobody disturbs has to equal one of a new store, fingerprint and batches. Prints a
summary as JSON; exits 1 if anything was not as promised.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
# Imported once and forked from, or starting would take ten times as long as building.
CONTEXT.set_forkserver_preload(["pipeline.build", "shards.verify", "trialshards.cli"])

N_FILES = 12
ROWS = 60
COLLECT_EVERY = 10
SECONDS_PER_BUILD = 60
SPEC = """\
name: killed
source: {files: raw/*.csv}
channels: [x, y]
normalize: {scope: train}
windows: {length: 8, stride: 4, target: {kind: forecast, channels: [x]}}
split: {method: hash, fractions: {train: 0.6, val: 0.4}}
shards: {buckets: 2}
max_quarantined: 0.5
"""


class Corpus:
    """A folder of CSV files, one of them refused, that changes a little each time."""

    def __init__(self, root: Path, rng: random.Random) -> None:
        self.spec, self._raw, self._rng = root / "dataset.yaml", root / "raw", rng
        self._raw.mkdir(parents=True)
        self.spec.write_text(SPEC)
        for number in range(N_FILES):
            self._write(number)
        (self._raw / "broken.csv").write_text("x,y\n1,two\n")

    def _write(self, number: int) -> None:
        rows = (f"{self._rng.gauss(0, 1)!r},{self._rng.gauss(5, 2)!r}" for _ in range(ROWS))
        (self._raw / f"t{number:02d}.csv").write_text("\n".join(["x,y", *rows]) + "\n")

    def change(self) -> None:
        """Change or add a file; or delete one, if enough are left."""
        number = self._rng.randrange(2 * N_FILES)
        path = self._raw / f"t{number:02d}.csv"
        if path.exists() and self._rng.random() < 0.4 and len(list(self._raw.iterdir())) > N_FILES:
            path.unlink()
        else:
            self._write(number)


def build(spec: str, store: str, started: Any) -> None:
    """Run `trialshards build` in this process."""
    from trialshards.cli import main

    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    started.set()
    main(["build", spec, "--store", store, "--workers", "2"], standalone_mode=False)


class Victim:
    """A build in a process of its own."""

    def __init__(self, corpus: Corpus, store: Path) -> None:
        started = CONTEXT.Event()
        self._process = CONTEXT.Process(
            target=build, args=(str(corpus.spec), str(store), started), daemon=True
        )
        self._process.start()
        if not started.wait(SECONDS_PER_BUILD):
            raise TimeoutError("the build did not start")
        self._began = time.perf_counter()

    def wait(self) -> float:
        """Let it end; return the seconds that took."""
        self._process.join(SECONDS_PER_BUILD)
        if self._process.exitcode != 0:
            self._process.kill()
            raise RuntimeError(f"the build ended with {self._process.exitcode}")
        return time.perf_counter() - self._began

    def kill(self, after_seconds: float) -> bool:
        """Kill it; return False if it had ended by itself."""
        self._process.join(after_seconds)
        self._process.kill()
        self._process.join()
        if self._process.exitcode not in (0, -signal.SIGKILL):
            raise RuntimeError(f"the build ended with {self._process.exitcode}")
        return self._process.exitcode != 0


def look(store: Path, known: dict[str, str]) -> str:
    """Check what a kill left; return where it struck, as far as temporary names tell."""
    from shards import Store
    from shards.verify import verify_store
    from shards.writer import list_versions

    versions = list_versions(store)
    for version in versions[-2:]:
        problems = verify_store(store, version)
        if problems:
            raise RuntimeError(f"{version}: {problems[0]}")
        fingerprint = Store(store, version).fingerprint
        if known.setdefault(version, fingerprint) != fingerprint:
            raise RuntimeError(f"{version} is another one than before")
    new = {p.relative_to(store).parts[0] for p in store.rglob(".tmp-*")}
    for path in store.rglob(".tmp-*"):  # so that the next kill's can be told apart
        path.rename(path.with_name(path.name.replace(".tmp-", ".tmp-seen-")))
    places = sorted(name if ".tmp-" not in name else "latest.json" for name in new)
    return ", ".join(places) or "between two"


def batches_of(store: Path) -> dict[str, bytes]:
    """Return the rows of every trial, and of every split its fingerprint, as they are delivered."""
    from shards import Store

    opened = Store(store)
    rows = {
        opened.index.id_of(i): opened.deliver_rows(i).tobytes() for i in range(len(opened.index))
    }
    return {**rows, **{s: f.encode() for s, f in opened.manifest.fingerprints.items()}}


def run(count: int, seed: int, root: Path) -> dict[str, Any]:
    """Kill `count` builds; return the summary."""
    from shards.gc import gc_store

    began, rng = time.perf_counter(), random.Random(seed)
    corpus, store = Corpus(root / "corpus", rng), root / "store"
    Victim(corpus, root / "timed").wait()
    corpus.change()
    seconds = Victim(corpus, root / "timed").wait()
    known: dict[str, str] = {}
    struck: list[dict[str, Any]] = []
    n_ended = 0
    while len(struck) < count:
        corpus.change()
        # Half of them strike in its last part, where it commits.
        moment = rng.uniform(rng.choice((0, 0.6)), 1.2) * seconds
        if Victim(corpus, store).kill(moment):
            before = len(known)
            where = look(store, known)
            struck.append({
                "after_ms": round(moment * 1000, 1), "in": where, "committed": len(known) > before,
            })  # fmt: skip
            seconds *= 1.05  # a busy machine is slower: about one build in five shall end first
        else:
            look(store, known)
            n_ended += 1
            seconds *= 0.8
        if len(struck) % COLLECT_EVERY == COLLECT_EVERY - 1 and known:
            gc_store(store)
    Victim(corpus, store).wait()
    look(store, known)
    Victim(corpus, root / "clean").wait()
    same = batches_of(store) == batches_of(root / "clean")
    return {
        "what": "builds killed with kill -9 at random moments, each after a change of the corpus",
        "kills": len(struck),
        "seed": seed,
        "build_ms": round(seconds * 1000, 1),
        "builds_that_ended_first": n_ended,
        "versions": len(known),
        "killed_after_the_commit": sum(kill["committed"] for kill in struck),
        "killed_while_writing": dict(Counter(kill["in"] for kill in struck).most_common()),
        "final_build_equals_a_clean_one": same,
        "seconds": round(time.perf_counter() - began, 1),
        "struck": struck,
    }


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="how many kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the changes")
    parser.add_argument("--out", type=Path, help="write the summary there, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        summary = run(args.count, args.seed, Path(folder))
    text = json.dumps(summary, indent=2) + "\n"
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
    sys.stdout.write(text)
    return 0 if summary["final_build_equals_a_clean_one"] else 1


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    sys.exit(main())
