"""A disk that is full, over quota or broken: a clear error, and the next build ends the work.

Each change a build makes is refused once, or from there on all that need space, or all of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Machine
from laws import SOAK, Case, Corpus, Outcome, photograph, scratch

from shards.errors import StoreWriteError, TrialShardsError
from shards.writer import list_versions

NEED_SPACE = ("create", "mkdir", "write", "fsync")
SAID = {
    errno.ENOSPC: "disk is full",
    errno.EDQUOT: "quota is used up",
    errno.EIO: "disk failed",
    errno.EROFS: "cannot be written to",
}


def only(number: int, code: int) -> Callable[[int, str], int | None]:
    return lambda n, _: code if n == number else None


def all_that_need_space_from(number: int, code: int) -> Callable[[int, str], int | None]:
    return lambda n, kind: code if n >= number and kind in NEED_SPACE else None


def all_from(number: int, code: int) -> Callable[[int, str], int | None]:
    return lambda n, _: code if n >= number else None


GATE = {only: (2, 0), all_that_need_space_from: (4, 1), all_from: (4, 3)}
"""The gate tries each so-many-th change, from which on: between them, every one; `make soak` tries
every one in all ways."""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A second build: of a changed, a new and a deleted file."""
    root = tmp_path_factory.mktemp("corpus")
    corpus, before = Corpus(root), root / "store"
    corpus.build(before)
    corpus.change()
    return Outcome.of(Case(before, corpus.build), root)


def refused(outcome: Outcome, store: Path, machine: Machine) -> StoreWriteError | None:
    """Build on a disk that fails; return the error, or None if the build could do without."""
    with machine.running():
        try:
            outcome.case.act(store)
        except StoreWriteError as error:
            return error
    return None


def check_error(error: StoreWriteError, store: Path, code: int) -> None:
    message = str(error)
    assert error.errno == code
    assert str(store) in message
    assert SAID[code] in message
    assert os.strerror(code) in message
    assert ".tmp-" not in message
    assert message.endswith(".")


@pytest.mark.parametrize(
    ("refuses", "codes"),
    [
        (only, [errno.ENOSPC, errno.EIO]),
        (all_that_need_space_from, [errno.ENOSPC, errno.EDQUOT]),
        (all_from, [errno.EROFS, errno.EIO]),
    ],
)
def test_a_build_on_a_failing_disk_says_so_leaves_a_whole_store_and_the_next_one_ends_it(
    outcome: Outcome, refuses: Callable[..., Callable[[int, str], int | None]], codes: list[int]
):
    n_refused, (every, first) = 0, GATE[refuses]
    for number, (kind, _) in enumerate(outcome.steps):
        if number % every != first and not SOAK:
            continue
        code = codes[number // every % len(codes)]
        with scratch() as work:
            store = outcome.case.copy(work / "store")
            error = refused(outcome, store, Machine(fails=refuses(number, code)))
            if error is not None:
                check_error(error, store, code)
                n_refused += 1
            assert error is not None or kind in ("unlink", "rmdir")
            if refuses is not all_from:  # what can be tidied up is
                assert list(store.rglob(".tmp-*")) == []
            outcome.check_whole(store)
            outcome.check_end(store)
    assert n_refused > len(outcome.steps) / 8


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system of a few bytes; needs root."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trialshards.cli", *map(str, arguments)],
        capture_output=True, text=True, timeout=240, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip


def test_the_command_on_a_disk_that_is_really_full_exits_1_with_a_sentence_and_can_go_on(
    tmp_path: Path,
):
    corpus = Corpus(tmp_path / "corpus")
    with small_disk(tmp_path / "disk", "256k") as disk:
        store = disk / "store"
        corpus.build(store)
        before = photograph(store)
        corpus.change()
        ballast = disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        done = run_command("build", corpus.spec, "--store", store)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert f"Error: {store}" in done.stderr
        assert "disk is full (No space left on device)" in done.stderr
        assert "Free some space" in done.stderr
        assert photograph(store) == before
        assert list(store.rglob(".tmp-*")) == []
        ballast.unlink()
        assert run_command("build", corpus.spec, "--store", store).returncode == 0
        assert list_versions(store) == ["v0001", "v0002"]
        assert photograph(store).items() > before.items()


def test_an_error_of_the_system_that_nobody_can_mend_by_hand_stays_what_it_is(
    outcome: Outcome, tmp_path: Path
):
    store = outcome.case.copy(tmp_path / "store")
    with (
        Machine(fails=only(0, errno.EINVAL)).running(),
        pytest.raises(OSError, match="Invalid") as raised,
    ):
        outcome.case.act(store)
    assert not isinstance(raised.value, TrialShardsError)
