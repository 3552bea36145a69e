"""Ctrl-C during `trialshards build` leaves nothing half-written, and the next build ends it."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from trialfolders import build_checked, snapshot, write_spec, write_trials

from shards import Store
from shards.verify import verify_store
from shards.writer import list_versions

# The command interrupts itself at one of its file operations below the store, as Ctrl-C would.
COMMAND = """
import os, signal, sys
from pipeline import build  # what the command imports late, so that only the build is interrupted
from trialshards.cli import main
# A shell that starts jobs in the background has them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
stop, store = int(sys.argv.pop(1)), sys.argv[-1]
n = 0
def count(event, args):
    global n
    if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"):
        if str(args[0]).startswith(store):
            n += 1
            if n == stop:
                os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(count)
try:
    main()
finally:
    print("operations:", n)
"""
MOMENTS = (0.0, 0.3, 0.6, 0.9, 1.0)
"""Share of the operations after which it is interrupted: at the first, ..., before the last."""


@dataclass(frozen=True)
class Interrupted:
    store: Path
    code: int
    said: str


def run_command(spec: Path, store: Path, stop: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", COMMAND, str(stop), "build", str(spec), "--workers", "2"]
    return subprocess.run(
        [*command, "--store", str(store)], capture_output=True, text=True, timeout=240, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("raw")
    write_trials(root, 30, missing=0.1, seed=8)
    (root / "raw" / "g0" / "broken.csv").write_text("x,y\n1,two\n")
    return write_spec(root, shards={"buckets": 4}, normalize={"scope": "train"})


@pytest.fixture(scope="module")
def clean(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A store built without an interruption, and the file operations it took."""
    store = tmp_path_factory.mktemp("clean") / "store"
    done = run_command(spec, store, -1)
    assert done.returncode == 0, done.stderr
    return store, int(done.stdout.rpartition("operations:")[2])


@pytest.fixture(scope="module")
def interrupted(
    spec: Path, clean: tuple[Path, int], tmp_path_factory: pytest.TempPathFactory
) -> list[Interrupted]:
    root = tmp_path_factory.mktemp("interrupted")
    stops = [max(1, round(share * (clean[1] - 1))) for share in MOMENTS]

    def interrupt(stop: int) -> Interrupted:
        done = run_command(spec, root / str(stop), stop)
        said = done.stdout.partition("operations:")[0] + done.stderr
        return Interrupted(root / str(stop), done.returncode, said)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(interrupt, stops))


@pytest.mark.parametrize("moment", range(len(MOMENTS)))
def test_an_interrupted_build_leaves_nothing_half_written_and_the_next_one_ends_it(
    moment: int, interrupted: list[Interrupted], spec: Path, clean: tuple[Path, int]
):
    stopped = interrupted[moment]
    assert stopped.code != 0
    for version in list_versions(stopped.store):
        assert verify_store(stopped.store, version) == []
    _, store = build_checked(spec, stopped.store)
    assert list_versions(stopped.store) == ["v0001"]
    after = {
        name: digest for name, digest in snapshot(stopped.store).items() if ".tmp-" not in name
    }
    assert after == snapshot(clean[0])
    assert store.fingerprint == Store(clean[0]).fingerprint


def temporary_names(store: Path) -> list[Path]:
    return [path for path in store.rglob(".tmp-*") if "staging" not in path.parts]


def test_an_interrupted_build_takes_its_temporary_folders_away(interrupted: list[Interrupted]):
    assert [temporary_names(stopped.store) for stopped in interrupted] == [[]] * len(MOMENTS)


@pytest.mark.parametrize("moment", range(len(MOMENTS)))
def test_an_interrupted_build_exits_130_with_one_line(moment: int, interrupted: list[Interrupted]):
    stopped = interrupted[moment]
    assert stopped.code == 128 + signal.SIGINT
    assert "Traceback" not in stopped.said
    lines = [line for line in stopped.said.splitlines() if not line.startswith("building")]
    assert len(lines) == 1, lines  # but for the bar
