"""Kill real builds with `kill -9` at random moments, and hold what is left against its promises.

    python tests/soak/kills.py --count 200 --seed 0 --out bench/results/soak_kills.json
    python tests/soak/kills.py --count 40 --layout windows --format parquet --beside

Before each build a file is changed, added or deleted. After each kill the store is opened and its
newest versions are verified; the next build goes on from what the killed one left. With `--beside`
another process patches a file of its own meanwhile, and has to succeed whatever becomes of the
build. In the end a build that nobody disturbs has to equal one of a new store, fingerprint and
batches. Prints a summary as JSON; exits 1 if anything was not as promised.
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
shards: {buckets: 2, layout: LAYOUT, format: FORMAT}
max_quarantined: 0.5
"""
OTHER = "other.csv"
"""The file that another process patches, and that nothing else touches."""


class Corpus:
    """A folder of CSV files, one of them refused, that changes a little each time."""

    def __init__(self, root: Path, rng: random.Random, shape: tuple[str, str]) -> None:
        self.spec, self._raw, self._rng = root / "dataset.yaml", root / "raw", rng
        self._raw.mkdir(parents=True)
        self.spec.write_text(SPEC.replace("LAYOUT", shape[0]).replace("FORMAT", shape[1]))
        for number in range(N_FILES):
            self._write(f"t{number:02d}.csv")
        self.change_other()
        (self._raw / "broken.csv").write_text("x,y\n1,two\n")

    def _write(self, name: str) -> None:
        rows = (f"{self._rng.gauss(0, 1)!r},{self._rng.gauss(5, 2)!r}" for _ in range(ROWS))
        new = self._raw / f".{name}"  # hidden from a build that looks right now
        new.write_text("\n".join(["x,y", *rows]) + "\n")
        new.rename(self._raw / name)

    def change_other(self) -> Path:
        """Change the file that another process patches; return its path."""
        self._write(OTHER)
        return self._raw / OTHER

    def change(self) -> None:
        """Change or add a file; or delete one, if enough are left."""
        number = self._rng.randrange(2 * N_FILES)
        path = self._raw / f"t{number:02d}.csv"
        if path.exists() and self._rng.random() < 0.4 and len(list(self._raw.iterdir())) > N_FILES:
            path.unlink()
        else:
            self._write(path.name)


def build(spec: str, store: str, started: Any) -> None:
    """Run `trialshards build` in this process."""
    from trialshards.cli import main

    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    started.set()
    main(["build", spec, "--store", store, "--workers", "2"], standalone_mode=False)


def patch(spec: str, store: str, started: Any, file: str) -> None:
    """Run `trialshards patch` in this process."""
    from trialshards.cli import main

    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    started.set()
    main(["patch", spec, file, "--store", store], standalone_mode=False)


class Victim:
    """A build, or the patch of a file, in a process of its own."""

    def __init__(self, corpus: Corpus, store: Path, file: Path | None = None) -> None:
        started = CONTEXT.Event()
        task, more = (build, ()) if file is None else (patch, (str(file),))
        arguments = (str(corpus.spec), str(store), started, *more)
        self._process = CONTEXT.Process(target=task, args=arguments, daemon=True)
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
        """Kill it; return whether it had not ended by itself."""
        self._process.join(max(0.0, self._began + after_seconds - time.perf_counter()))
        self._process.kill()
        self._process.join()
        if self._process.exitcode not in (0, -signal.SIGKILL):
            raise RuntimeError(f"the build ended with {self._process.exitcode}")
        return self.was_killed

    @property
    def was_killed(self) -> bool:
        """Whether it did not end by itself."""
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


class Soak:
    """Builds that are killed one after the other.

    Attributes:
        struck: What is known of each kill.
        n_ended: Builds that ended before they could be killed.

    Args:
        root: Folder for everything.
        seed: Of the moments and the changes.
        shape: Layout and container of the shards.
        beside: Whether another process patches a file during each build.
    """

    def __init__(self, root: Path, seed: int, shape: tuple[str, str], *, beside: bool) -> None:
        self.struck: list[dict[str, Any]] = []
        self.n_ended, self.known = 0, dict[str, str]()
        self._rng, self._beside, self._root = random.Random(seed), beside, root
        self._corpus, self._store = Corpus(root / "corpus", self._rng, shape), root / "store"
        Victim(self._corpus, root / "timed").wait()
        self._corpus.change()
        self.seconds = Victim(self._corpus, root / "timed").wait()

    def strike(self) -> None:
        """Change the corpus, begin a build and kill it; then look."""
        self._corpus.change()
        # Half of them strike in its last part, where it commits.
        moment = self._rng.uniform(self._rng.choice((0, 0.6)), 1.2) * self.seconds
        before, victim, other = len(self.known), Victim(self._corpus, self._store), None
        if self._beside and self.known:  # there is a version to patch
            other = Victim(self._corpus, self._store, self._corpus.change_other())
        if not victim.kill(moment):
            self.n_ended += 1
            self.seconds *= 0.8
        if other:
            other.wait()
        where = look(self._store, self.known)
        if victim.was_killed:
            facts = {"after_ms": round(moment * 1000, 1), "in": where}
            if not self._beside:  # else it may be the other one's
                facts["committed"] = len(self.known) > before
            self.struck.append(facts)
            self.seconds *= 1.05  # a busy machine is slower: about one in five shall end first

    def collect(self) -> None:
        """Remove what no version needs."""
        from shards.gc import gc_store

        if self.known:
            gc_store(self._store)

    def ends_clean(self) -> bool:
        """Return whether a build that nobody disturbs equals one of a new store."""
        Victim(self._corpus, self._store).wait()
        look(self._store, self.known)
        Victim(self._corpus, self._root / "clean").wait()
        return batches_of(self._store) == batches_of(self._root / "clean")


def run(
    count: int,
    seed: int,
    root: Path,
    *,
    shape: tuple[str, str] = ("rows", "zarr"),
    beside: bool = False,
) -> dict[str, Any]:
    """Kill `count` builds; return the summary."""
    began, soak = time.perf_counter(), Soak(root, seed, shape, beside=beside)
    while len(soak.struck) < count:
        soak.strike()
        if len(soak.struck) % COLLECT_EVERY == COLLECT_EVERY - 1:
            soak.collect()
    same = soak.ends_clean()
    return {
        "what": "builds killed with kill -9 at random moments, each after a change of the corpus"
        + (", while another process patched a file" if beside else ""),
        "shape": dict(zip(("layout", "format"), shape, strict=True)),
        "kills": len(soak.struck),
        "seed": seed,
        "build_ms": round(soak.seconds * 1000, 1),
        "builds_that_ended_first": soak.n_ended,
        "versions": len(soak.known),
        "killed_after_the_commit": sum(kill.get("committed", 0) for kill in soak.struck),
        "killed_while_writing": dict(Counter(kill["in"] for kill in soak.struck).most_common()),
        "final_build_equals_a_clean_one": same,
        "seconds": round(time.perf_counter() - began, 1),
        "struck": soak.struck,
    }


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="how many kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the changes")
    parser.add_argument("--layout", choices=("rows", "windows"), default="rows")
    parser.add_argument("--format", choices=("zarr", "parquet"), default="zarr")
    parser.add_argument(
        "--beside", action="store_true", help="another process patches a file during each build"
    )
    parser.add_argument("--out", type=Path, help="write the summary there, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shape = (args.layout, args.format)
        summary = run(args.count, args.seed, Path(folder), shape=shape, beside=args.beside)
    text = json.dumps(summary, indent=2) + "\n"
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
    sys.stdout.write(text)
    return 0 if summary["final_build_equals_a_clean_one"] else 1


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    sys.exit(main())
