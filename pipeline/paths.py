"""Which paths a glob matches, and which trial and attributes a path names."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.sections import SourceSpec

Named = tuple[str, Mapping[str, str]]
"""A trial id, and attributes."""


def find_paths(root: Path, pattern: str) -> dict[str, bool]:
    """Return every path that matches a glob -> whether a symbolic link after its fixed part leads.

    Hidden files and folders match too. Links in a circle end the search: `**` passes over a link
    to a folder that holds the link, and inside of linked folders it follows a link only to a
    folder that it has not entered by a link before.
    """
    fixed = fixed_parts(pattern)
    parts = list(PurePosixPath(pattern).parts[len(fixed) :])
    if parts[-1:] == ["**"]:
        parts.append("*")
    found = {"/".join(fixed): False} if parts else {}
    for part in parts:
        found = dict(_step(root, found, part))
    return found


def matches_glob(path: str, pattern: str) -> bool:
    """Return whether `find_paths` would find a path that is there."""
    return _match_parts(PurePosixPath(path).parts, PurePosixPath(pattern).parts)


def _match_parts(path: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    if not parts:
        return not path
    if parts[0] != "**":
        here = bool(path) and fnmatch.fnmatchcase(path[0], parts[0])
        return here and _match_parts(path[1:], parts[1:])
    rest = parts[1:] or ("*",)
    return any(_match_parts(path[skipped:], rest) for skipped in range(len(path)))


def _step(root: Path, found: Mapping[str, bool], part: str) -> Iterator[tuple[str, bool]]:
    """Yield what one part of a glob leads to from each folder."""
    matches = re.compile(fnmatch.translate(part)).match
    for folder, linked in found.items():
        if part == "**":
            yield from _walk(root, folder, linked)
        elif glob.has_magic(part):
            prefix = f"{folder}/" if folder else ""
            for entry in _entries(root, folder):
                name = entry.name
                if matches(name):
                    yield prefix + name, linked or entry.is_symlink()
        else:
            path = f"{root}/{_join(folder, part)}"
            if os.path.lexists(path):
                yield _join(folder, part), linked or os.path.islink(path)  # noqa: PTH114 (fast)


def _walk(root: Path, base: str, linked: bool) -> Iterator[tuple[str, bool]]:
    """Yield a folder and all folders below it, those behind links last."""
    waiting, entered = deque([(base, 0)]), set()
    while waiting:
        start, n_links = waiting.popleft()
        real = os.path.realpath(f"{root}/{start}")
        if n_links > 1 and real in entered:
            continue
        entered.add(real)
        folders, links = [(start, real)], []
        while folders:
            folder, place = folders.pop()
            yield folder, linked or n_links > 0
            for entry in _entries(root, folder):
                if not _is_folder(entry):
                    continue
                if not entry.is_symlink():
                    folders.append((_join(folder, entry.name), f"{place}/{entry.name}"))
                elif not PurePosixPath(place).is_relative_to(os.path.realpath(entry.path)):
                    links.append(_join(folder, entry.name))
        waiting.extend((link, n_links + 1) for link in sorted(links))


def _entries(root: Path, folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(f"{root}/{folder}") as entries:
            return list(entries)
    except OSError:  # no folder, or none that may be read
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def fixed_parts(pattern: str) -> list[str]:
    """Return the leading folders of a glob that hold no wildcard."""
    fixed: list[str] = []
    for part in PurePosixPath(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return fixed


def identify_trial(path: str, source: SourceSpec) -> Named | None:
    """Return `(trial id, attributes)` of a path, or None if the pattern does not match."""
    return identifier(source)(path)


def identifier(source: SourceSpec) -> Callable[[str], Named | None]:
    """Return `identify_trial` for many paths of one source."""
    if source.trial_id is None:
        return _by_place(source)
    return _by_pattern(source.trial_id)


def _by_place(source: SourceSpec) -> Callable[[str], Named]:
    """Identify a file by its path below the fixed folders, without suffix."""
    from pipeline.sections.source import COMPRESSED  # whoever walks over the files needs none

    begin = len("".join(f"{part}/" for part in fixed_parts(source.files)))
    nothing: Mapping[str, str] = {}  # one for all files: a hundred thousand would take space

    def identify(path: str) -> Named:
        end = _end_of_stem(path)
        while path[end:].lower() in COMPRESSED:
            path = path[:end]
            end = _end_of_stem(path)
        return path[begin:end], nothing

    return identify


def _end_of_stem(path: str) -> int:
    """Return where the suffix of a path begins: as pathlib says, without its cost for each file."""
    dot = path.rfind(".", path.rfind("/") + 2)
    return dot if 0 < dot < len(path) - 1 else len(path)


def _by_pattern(pattern: str) -> Callable[[str], Named | None]:
    """Identify a file by its match of a pattern, or by the group `id`; other groups tell more."""
    search = re.compile(pattern).search
    told: dict[tuple[str | None, ...], Mapping[str, str]] = {}  # files often tell the same

    def identify(path: str) -> Named | None:
        match = search(path)
        if match is None or not match[0]:
            return None
        found = match.groupdict()
        trial_id = found.pop("id", None)
        key = tuple(found.values())
        if key not in told:
            told[key] = {name: text for name, text in found.items() if text is not None}
        return match[0] if trial_id is None else trial_id, told[key]

    return identify
