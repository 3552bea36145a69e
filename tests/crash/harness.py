"""A machine that dies, or whose disk fails, at any one change that `shards.disk` makes.

Every change of a store is one call of `os` inside `shards.disk`; a `Machine` takes that module's
place there, numbers the changes, and at the one it is told to

- dies: the change does not happen, or a write stops half-way, and nothing of this process changes
  anything afterwards, so that whatever tidies up after an exception does nothing;
- or fails: the call raises what the system would.

After a death the power can be cut as well (`cut_power`): what was not forced to the disk is lost,
bytes of files and names in folders alike. What was on the disk is what `fsync` had confirmed, and
any folder's names may or may not have got there by themselves.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shards import disk

Undo = Callable[[], None]


class Died(BaseException):
    """The machine is dead; nothing may catch this, so it is no Exception."""


class Machine:
    """Stands in for `os` inside `shards.disk`.

    Attributes:
        steps: The kinds and paths of the changes so far.

    Args:
        dies_at: Number of the change at which it dies.
        portion: Share of a write that still happens then; 1 stands for all but the last byte.
        fails: Gives the error number that a change fails with, by its number and kind, or None.
        morgue: Where removed files are kept for `cut_power`; without it there are no power cuts.
        beside: Another machine on the same disk, whose power is cut for both.
        visit: Number of a change, and what somebody else does right before it, on the same disk,
            while all that this machine has opened and locked stays so. Not numbered.
    """

    def __init__(
        self,
        *,
        dies_at: int | None = None,
        portion: float = 0.0,
        fails: Callable[[int, str], int | None] = lambda *_: None,
        morgue: Path | None = None,
        beside: Machine | None = None,
        visit: tuple[int, Callable[[], Any]] | None = None,
    ) -> None:
        self.steps: list[tuple[str, str]] = []
        self.dead = False
        self._dies_at, self._portion, self._fails = dies_at, portion, fails
        self._visit, self._is_visited = visit, False
        self._lock = threading.RLock()  # a visitor comes inside of a change
        self._disk = None if morgue is None else _Disk(morgue)
        if beside is not None:
            self._disk = beside._disk

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _step(
        self, kind: str, path: object, happens: Callable[[], Any], half: Undo = lambda: None
    ) -> Any:
        with self._lock:
            if self.dead:
                raise Died
            if self._is_visited:
                return happens()
            number = len(self.steps)
            if self._visit and self._visit[0] == number:
                self._be_visited()
            self.steps.append(
                (kind, os.fspath(path) if isinstance(path, os.PathLike) else str(path))
            )
            if number == self._dies_at:
                half()
                self.dead = True
                raise Died
            code = self._fails(number, kind)
            if code is not None:
                raise OSError(code, os.strerror(code), str(path))
            return happens()

    def _be_visited(self) -> None:
        assert self._visit is not None
        (_, visitor), self._visit, self._is_visited = self._visit, None, True
        try:
            visitor()
        finally:
            self._is_visited = False

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        if not flags & os.O_CREAT or os.path.exists(path):
            return os.open(path, flags, mode)

        def happens() -> int:
            descriptor = os.open(path, flags, mode)
            if self._disk:
                self._disk.created(path)
            return descriptor

        return int(self._step("create", path, happens))

    def write(self, descriptor: int, data: Any) -> int:
        view = memoryview(data).cast("B")

        def write(size: int) -> int:
            if self._disk:
                self._disk.written(descriptor)
            return os.write(descriptor, view[:size])

        kept = len(view) - 1 if self._portion == 1 else int(len(view) * self._portion)
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        return int(self._step("write", name, lambda: write(len(view)), lambda: void(write(kept))))

    def fsync(self, descriptor: int) -> None:
        def happens() -> None:  # but for the wait: the disk of the tests need not be in time
            if self._disk:
                self._disk.synced(descriptor)

        self._step("fsync", os.readlink(f"/proc/self/fd/{descriptor}"), happens)

    def mkdir(self, path: Any) -> None:
        def happens() -> None:
            os.mkdir(path)
            if self._disk:
                self._disk.created(path)

        self._step("mkdir", path, happens)

    def rename(self, source: Any, target: Any) -> None:
        def happens() -> None:
            if self._disk:
                self._disk.rename(source, target)
            else:
                os.rename(source, target)

        self._step("rename", target, happens)

    def replace(self, source: Any, target: Any) -> None:
        self.rename(source, target)

    def unlink(self, path: Any) -> None:
        self._step("unlink", path, lambda: (self._disk.remove if self._disk else os.unlink)(path))

    def rmdir(self, path: Any) -> None:
        self._step("rmdir", path, lambda: (self._disk.remove if self._disk else os.rmdir)(path))

    def cut_power(self, *, portion: float, is_lost: Callable[[int], bool]) -> None:
        """Lose what no `fsync` has confirmed.

        Args:
            portion: Share of the unconfirmed bytes of a file that is kept.
            is_lost: Says of the n-th folder with unconfirmed names if these are lost.
        """
        assert self._disk is not None
        self._disk.cut_power(portion, is_lost)

    def revive(self) -> None:
        """Start again after a death that was none of the disk's: it still knows what it knew."""
        self.dead, self._dies_at = False, None

    @contextlib.contextmanager
    def running(self) -> Iterator[Machine]:
        """Have every change of a store go through this machine."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(disk, "os", self)
            yield self

    def run(self, work: Callable[[], Any]) -> bool:
        """Do something; return whether it came to its end."""
        with self.running():
            try:
                work()
            except Died:
                return False
        return True


def void(_: object) -> None:
    """Forget a result."""


class _Disk:
    """What `fsync` has not confirmed yet: names by folder, and bytes by file."""

    def __init__(self, morgue: Path) -> None:
        self._morgue = morgue
        morgue.mkdir(exist_ok=True)
        self._n_dead = 0
        self._folders: dict[tuple[int, int], str] = {}
        self._names: list[tuple[tuple[int, int], Undo]] = []
        self._sizes: dict[tuple[int, int], tuple[int, int]] = {}

    def _folder(self, path: Any) -> tuple[tuple[int, int], str]:
        """Return the identity of the folder of a path, and a way to it that outlives renames."""
        folder = os.path.dirname(path) or "."
        key = _key(os.stat(folder))
        if key not in self._folders:
            self._folders[key] = f"/proc/self/fd/{os.open(folder, os.O_RDONLY)}"
        return key, f"{self._folders[key]}/{os.path.basename(path)}"

    def _grave(self) -> str:
        self._n_dead += 1
        return str(self._morgue / str(self._n_dead))

    def _note(self, path: Any, undo: Callable[[str], None]) -> None:
        key, place = self._folder(path)
        self._names.append((key, lambda: undo(place)))

    def created(self, path: Any) -> None:
        self._note(path, lambda place: os.rename(place, self._grave()))

    def remove(self, path: Any) -> None:
        if os.path.isdir(path) and not os.path.islink(path) and os.listdir(path):
            os.rmdir(path)  # which is an error
        grave = self._grave()
        os.rename(path, grave)
        self._note(path, lambda place: os.rename(grave, place))

    def rename(self, source: Any, target: Any) -> None:
        assert os.path.dirname(source) == os.path.dirname(target)  # one folder, so all or nothing
        grave = self._grave() if os.path.isfile(target) else None
        if grave:
            os.link(target, grave)
        os.rename(source, target)
        _, old = self._folder(source)

        def undo(place: str) -> None:
            os.rename(place, old)
            if grave:
                os.rename(grave, place)

        self._note(target, undo)

    def written(self, descriptor: int) -> None:
        info = os.fstat(descriptor)
        if _key(info) not in self._sizes:
            self._sizes[_key(info)] = (os.dup(descriptor), info.st_size)

    def synced(self, descriptor: int) -> None:
        info = os.fstat(descriptor)
        if stat.S_ISDIR(info.st_mode):
            self._names = [entry for entry in self._names if entry[0] != _key(info)]
        else:
            known = self._sizes.pop(_key(info), None)
            if known:
                os.close(known[0])

    def cut_power(self, portion: float, is_lost: Callable[[int], bool]) -> None:
        for descriptor, size in self._sizes.values():
            written = os.fstat(descriptor).st_size
            os.ftruncate(descriptor, size + int((written - size) * portion))
            os.close(descriptor)
        order = list(dict.fromkeys(key for key, _ in self._names))
        lost = {key for number, key in enumerate(order) if is_lost(number)}
        for key, undo in reversed(self._names):
            if key in lost:
                with contextlib.suppress(FileNotFoundError):  # in a folder that is lost itself
                    undo()
        self._names, self._sizes = [], {}
        for place in self._folders.values():
            os.close(int(place.rpartition("/")[2]))
        self._folders = {}


def _key(info: os.stat_result) -> tuple[int, int]:
    return info.st_dev, info.st_ino
