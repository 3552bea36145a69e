"""What `bench/again.py` works on, and how it sees which files a build opens and writes."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ingest_corpora import MARKS, ROOT, SCRATCH, SUFFIX, files_of, place

PLACE = ROOT / "bench" / "scratch" / "again"


class Trials:
    """The raw files of one turn: links, each replaced by a new file when it is changed."""

    def __init__(self, kind: str, n_files: int, side: str) -> None:
        self.folder, self.mark = PLACE / f"{kind}-{n_files}-{side}", MARKS[kind]
        shutil.rmtree(self.folder, ignore_errors=True)
        source = SCRATCH / f"{kind}-{n_files}"
        for path in files_of(source):
            link = self.folder / path.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.hardlink_to(path)
        self.files, self.n_done = files_of(self.folder), 0

    def changed(self) -> Path:
        """Take the last row off a file."""
        path = self._next()
        lines = path.read_bytes().splitlines(keepends=True)
        new = self.folder / "new"  # never through the link, which would change the corpus
        new.write_bytes(b"".join(lines[:-1]))
        return new.replace(path)

    def new(self) -> Path:
        """Add a file: a copy of another one."""
        content = self._next().read_bytes()
        path = place(self.folder, len(self.files) + self.n_done, SUFFIX[self.mark])
        path.write_bytes(content)
        return path

    def deleted(self) -> None:
        """Remove a file."""
        self._next().unlink()

    def _next(self) -> Path:
        """Return a file that was not taken before, spread over the folders."""
        path = self.files[self.n_done * 7919 % len(self.files)]
        self.n_done += 1
        return path

    def data_bytes(self, path: Path | None) -> int:
        """Return what the rows of a file take as float32."""
        if path is None:
            return 0
        lines = path.read_bytes().splitlines()
        return (len(lines) - 1) * (lines[0].count(self.mark.encode()) + 1) * 4


def note(watched: list[tuple[str, list[str]]], event: str, given: Sequence[Any]) -> None:
    """Keep the path of a file that the interpreter opens, if it lies below a watched folder."""
    if event == "open" and watched and isinstance(given[0], str | bytes | os.PathLike):
        below, found = watched[-1]
        path = os.path.abspath(os.fsdecode(given[0]))  # noqa: PTH100 - a hook must be quick
        if path.startswith(below) and os.path.isfile(path):  # noqa: PTH113
            found.append(path)


@contextmanager
def traced(watched: list[tuple[str, list[str]]], folder: Path) -> Iterator[dict[str, Any]]:
    """Count raw files that are opened meanwhile, and bytes of store files that appear."""
    trace: dict[str, Any] = {}
    before, io_before = look(folder / "store"), written_bytes()
    watched.append((str(folder / "raw") + os.sep, []))
    yield trace
    _, found = watched.pop()
    trace["calls_bytes"] = written_bytes() - io_before
    trace["opened"] = len(set(found))
    written = Counter[str]()
    for name, what in look(folder / "store").items():
        if before.get(name) != what:
            written[kind_of(name)] += what[1]
    trace["written_bytes"] = dict(written)


def look(store: Path) -> dict[str, tuple[int, int, int]]:
    """Return inode, size and time of every file of a store."""
    found = {}
    for path in store.rglob("*"):
        if path.is_file():
            stat = path.stat()
            found[str(path.relative_to(store))] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    return found


def written_bytes() -> int:
    """Return what this process has handed to write calls so far: temporary files, too."""
    counters = Path("/proc/self/io")
    return int(re.findall(r"wchar: (\d+)", counters.read_text())[0]) if counters.exists() else 0


def kind_of(name: str) -> str:
    """Return what a file of a store is, by its path."""
    first, last = Path(name).parts[0], Path(name).name
    files = {"index.arrow": "hot index", "dataset.json": "manifest"}
    return files.get(last) or {"shards": "shard", "parts": "part"}.get(first, "others")
