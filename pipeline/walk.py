"""The regular files that a glob names, found and looked at in one pass over the folders.

Most data sets are plain files in plain folders. For those, every name is listed once and every
file looked at once; anything else is for `find_paths`, which follows links and says what is wrong.
"""

from __future__ import annotations

import fnmatch
import glob
import operator
import os
import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipeline.paths import fixed_parts

Seen = tuple[int, int]
"""Size in bytes, and modification time in nanoseconds since the epoch."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class UnusualError(Exception):
    """Something lies there that needs a closer look."""


@dataclass(frozen=True)
class PlainFiles:
    """What a glob matches where all of it is plain.

    Attributes:
        seen: Path below the root -> size and time, in no order.
        n_hidden: Paths that match but are hidden.
    """

    seen: dict[str, Seen]
    n_hidden: int


def walk_plain(root: Path, pattern: str) -> PlainFiles | None:
    """Find the files that a glob matches, and look at each.

    Returns:
        None where a closer look is needed: behind the fixed folders of the glob, a symbolic link
        is a match or leads to a folder that the glob enters; a folder cannot be listed; a match
        is no regular file, cannot be looked at, or is not UTF-8.
    """
    fixed = fixed_parts(pattern)
    parts = list(PurePosixPath(pattern).parts[len(fixed) :])
    if parts[-1:] == ["**"]:
        parts.append("*")
    if not parts:
        return PlainFiles({}, 0)
    try:
        folder = os.open(root, _FOLDER)
        try:
            walk = _Walk(folder, parts)
            walk.run("/".join(fixed))
        finally:
            os.close(folder)
        "".join(walk.seen).encode()
    except (UnusualError, OSError, ValueError):  # a name that is not UTF-8 is a ValueError
        return None
    return PlainFiles(walk.seen, walk.n_hidden)


@dataclass
class _Walk:
    """A walk over the folders that a glob names, each entered once.

    A *state* is the number of a part that waits to be matched in a folder; `**` waits in all
    folders below too.

    Attributes:
        folder: Descriptor of the root: relative to it, paths are short, and found faster.
        parts: Of the glob, behind its fixed folders.
        matches: Whether a name matches a part, for each part.
        seen: Regular files that match and are not hidden.
        n_hidden: Paths that match and are hidden.
        waiting: Folders to enter, with the states there.
    """

    folder: int
    parts: list[str]
    matches: list[Callable[[str], object]] = field(init=False)
    seen: dict[str, Seen] = field(default_factory=dict)
    n_hidden: int = 0
    waiting: list[tuple[str, frozenset[int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.matches = [_matcher(part) for part in self.parts]

    def run(self, base: str) -> None:
        """Walk below a folder."""
        self._wait(base, {0})
        while self.waiting:
            self._enter(*self.waiting.pop())

    def _wait(self, path: str, states: Iterable[int]) -> None:
        reached = set(states)
        for state in sorted(reached):
            while self.parts[state] == "**":  # which may stand for no folder at all
                state += 1
                reached.add(state)
        self.waiting.append((path, frozenset(reached)))

    def _enter(self, path: str, states: frozenset[int]) -> None:
        prefix = f"{path}/" if path else ""
        if not any(glob.has_magic(self.parts[state]) for state in states):
            for state in states:
                self._probe(prefix + self.parts[state], state)
            return
        folder = os.open(path or ".", _FOLDER, dir_fd=self.folder)
        try:
            self._list(folder, prefix, states)
        finally:
            os.close(folder)

    def _probe(self, path: str, state: int) -> None:
        """Look for one name without listing its folder."""
        try:
            info = os.stat(path, dir_fd=self.folder, follow_symlinks=False)
        except FileNotFoundError:
            return
        is_last = state + 1 == len(self.parts)
        if is_last and is_hidden(path):
            self.n_hidden += 1
        elif is_last and stat.S_ISREG(info.st_mode):
            self.seen[path] = info.st_size, info.st_mtime_ns
        elif is_last or stat.S_ISLNK(info.st_mode):
            raise UnusualError
        elif stat.S_ISDIR(info.st_mode):
            self._wait(path, {state + 1})

    def _list(self, folder: int, prefix: str, states: frozenset[int]) -> None:
        """Look at all names of an open folder."""
        last = len(self.parts) - 1
        inner = states - {last}
        matches = self.matches[last] if last in states else _nothing
        hidden, seen = is_hidden(prefix), self.seen
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                is_file = entry.is_file(follow_symlinks=False)
                if matches(name):
                    if hidden or name[0] == ".":
                        self.n_hidden += 1
                    elif is_file:
                        info = entry.stat()
                        seen[prefix + name] = info.st_size, info.st_mtime_ns
                    else:
                        raise UnusualError
                if inner and not is_file and entry.is_dir():
                    self._descend(entry, prefix + name, inner)

    def _descend(self, entry: os.DirEntry[str], path: str, states: frozenset[int]) -> None:
        further = {state for state in states if self.parts[state] == "**"}
        further |= {state + 1 for state in states - further if self.matches[state](entry.name)}
        if further and entry.is_symlink():
            raise UnusualError
        if further:
            self._wait(path, further)


def is_hidden(path: str) -> bool:
    """Return whether a file or a folder on the way to it is hidden."""
    return path[:1] == "." or "/." in path


def _nothing(_: str) -> bool:
    return False


def _matcher(part: str) -> Callable[[str], object]:
    """Return whether names match a part of a glob, as `fnmatch` says."""
    if not glob.has_magic(part):
        return part.__eq__
    if part[0] == "*" and not glob.has_magic(part[1:]):  # `*.csv`, three times as fast
        return operator.methodcaller("endswith", part[1:])
    return re.compile(fnmatch.translate(part)).match
