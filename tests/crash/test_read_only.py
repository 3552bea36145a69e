"""A read-only store: reading, streaming and verifying work; building says so before any work."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from laws import Corpus, batches_of, photograph, scratch
from test_full_disk import small_disk
from trialfolders import snapshot

from pipeline.build import build
from shards import Store
from shards.disk import require_writable
from shards.errors import StoreWriteError
from shards.verify import verify_store
from trialshards.cli import main

NOBODY = 65534


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


@contextlib.contextmanager
def read_only_disk(folder: Path, corpus: Corpus) -> Iterator[Path]:
    """Give a store on a file system that is mounted read-only; needs root."""
    with small_disk(folder, "4m") as disk:
        corpus.build(disk / "store")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        yield disk / "store"


def test_a_store_on_a_read_only_file_system_is_read_streamed_and_verified(
    corpus: Corpus, tmp_path: Path
):
    with read_only_disk(tmp_path / "disk", corpus) as store:
        writable = tmp_path / "writable"
        corpus.build(writable)
        assert verify_store(store) == []
        assert batches_of(store, "v0001") == batches_of(writable, "v0001")
        assert Store(store).trial_rows(0).tobytes() == Store(writable).trial_rows(0).tobytes()
        for command in ("verify", "inspect"):
            assert CliRunner().invoke(main, [command, str(store)]).exit_code == 0, command


def test_building_into_a_store_on_a_read_only_file_system_is_refused_before_any_work(
    tmp_path: Path,
):
    corpus = Corpus(tmp_path / "corpus")
    with read_only_disk(tmp_path / "disk", corpus) as store:
        command = ["build", str(corpus.spec), "--store", str(store)]
        assert CliRunner().invoke(main, command).exit_code == 0  # there is nothing to write
        corpus.change()
        read: list[object] = []
        with pytest.raises(StoreWriteError, match=r"store.*cannot be written to.*Read-only file"):
            build(corpus.spec, store, on_progress=read.append)
        assert read == []
        for place in (store, store.parent / "new" / "store"):
            done = CliRunner().invoke(main, ["build", str(corpus.spec), "--store", str(place)])
            assert (done.exit_code, type(done.exception)) == (1, SystemExit)
            assert "Read-only file system" in done.output
            assert "Make it writable" in done.output
        assert not (store.parent / "new").exists()


AS_NOBODY = f"""
import os, sys
from pathlib import Path
from shards.disk import require_writable
from shards.errors import StoreWriteError
if os.geteuid() == 0:
    os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})
try:
    require_writable(Path(sys.argv[1]))
except StoreWriteError as error:
    print(error.errno, error)
"""


@pytest.mark.parametrize("closed", ["", "shards", "staging", "versions"])
def test_a_store_of_somebody_else_is_refused_before_any_work(closed: str, corpus: Corpus):
    with scratch() as work:
        store = work / "store"
        corpus.build(store)
        for folder in (work, store, *store.iterdir()):
            folder.chmod(0o777)
        (store / closed).chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, str(store)],
            capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        what = "it cannot be written to (Permission denied)"
        assert done.stdout.startswith(f"13 {store / closed}: {what}")


def test_what_can_be_written_to_is_not_refused_and_nothing_is_made(tmp_path: Path):
    for store in (tmp_path, tmp_path / "new" / "store"):
        require_writable(store)
    assert list(tmp_path.iterdir()) == []


def test_reading_a_store_changes_no_file_of_it(corpus: Corpus, tmp_path: Path):
    store = tmp_path / "store"
    corpus.build(store)
    before = snapshot(store), {p: p.stat().st_mtime_ns for p in store.rglob("*")}
    photograph(store)
    assert (snapshot(store), {p: p.stat().st_mtime_ns for p in store.rglob("*")}) == before
