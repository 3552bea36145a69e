"""What lies in a store and is not of it: names that nobody wrote, links, folders in disguise."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from shards.layout import DIGEST
from shards.problems import Problem
from shards.reader import Store

_PART_ENDING = ".parquet"
_TEMPORARY = ".tmp-"


def find_foreign(store: Store) -> Iterator[Problem]:
    """Yield what is foreign in the folder of a version, among the shards and among the parts.

    Shards and parts that this version does not name may be those of another, or of a build that
    still runs: they are as good as any. Only one that could be nobody's is foreign.
    """
    known = {*store.manifest.version_files, "dataset.json"}
    yield from _names(store.folder, known, is_folder=False)
    yield from _names(store.path / "shards", None, is_folder=True)
    yield from _names(store.path / "parts", None, is_folder=False)


def _names(folder: Path, known: set[str] | None, *, is_folder: bool) -> Iterator[Problem]:
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        named = path.name if is_folder else path.name.removesuffix(_PART_ENDING)
        if known is not None:
            fits = path.name in known
        else:
            fits = DIGEST.fullmatch(named) is not None and (named != path.name) != is_folder
            fits = fits or path.name.startswith(_TEMPORARY)
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:  # removed meanwhile, as nobody's
            continue
        if stat.S_ISLNK(mode):
            yield Problem(str(path), f"a link to {path.readlink()}")
        elif not fits:
            yield Problem(str(path), "a foreign file")
        elif stat.S_ISDIR(mode) != is_folder and not path.name.startswith(_TEMPORARY):
            yield Problem(str(path), f"no {'folder' if is_folder else 'file'}, which was wanted")


def find_links(folder: Path) -> list[Path]:
    """Return what a folder and those in it hold that is neither a file nor a folder of its own."""
    if folder.is_symlink():
        return [folder]
    found = []
    for path in sorted(folder.rglob("*")):
        mode = os.lstat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            found.append(path)
    return found
