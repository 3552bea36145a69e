"""Two builds at once: what the second one did is put on top of what the first one published."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from pipeline.base import Base, find_base
from shards.errors import CommitConflictError

if TYPE_CHECKING:
    from pipeline.commit import Work
    from pipeline.workspace import Workspace
    from shards.manifest import Tombstone

Known = dict[str, tuple[int, int]]
SHOWN = 3


def rebase(space: Workspace, work: Work, conflict: CommitConflictError) -> Work:
    """Return the same work on top of the version that somebody else published meanwhile.

    Args:
        space: Where.
        work: What was to be committed.
        conflict: The refusal.

    Raises:
        CommitConflictError: If both touched the same files, and not alike; or if the other version
            was made by another specification or by other attribute tables, or other trials were
            taken out of it.
    """
    theirs = find_base(space.store, space.plan)
    if theirs is None or not theirs.reusable or not _same_request(space, theirs):
        raise conflict
    if theirs.says("tables") != work.delta.tables or theirs.tombstones != _tombstones(work):
        raise conflict
    before: Known = work.base.known if work.base is not None and work.base.reusable else {}
    now = theirs.known
    they_touched = {p for p in before.keys() | now.keys() if before.get(p) != now.get(p)}
    mine: dict[str, tuple[int, int] | None] = dict.fromkeys(work.delta.gone)
    mine |= {file.path: (file.size_bytes, file.mtime_ns) for file in work.delta.read}
    alike = {path for path in mine if path in they_touched and mine[path] == now.get(path)}
    clash = sorted((mine.keys() & they_touched) - alike)
    if clash:
        shown = ", ".join(clash[:SHOWN]) + (", ..." if len(clash) > SHOWN else "")
        raise CommitConflictError(
            f"{space.store}: version {theirs.store.version} was committed while this build ran, "
            f"and both touched {len(clash)} of the same files ({shown}). Run the build again."
        ) from conflict
    return _on_top(work, theirs, alike, before, now)


def _tombstones(work: Work) -> tuple[Tombstone, ...]:
    return work.base.tombstones if work.base is not None else ()


def _same_request(space: Workspace, theirs: Base) -> bool:
    return dict(theirs.manifest.spec) == space.spec.model_dump(mode="json")


def _on_top(work: Work, theirs: Base, alike: set[str], before: Known, now: Known) -> Work:
    delta = work.delta
    touched = {file.path for file in delta.read} | delta.gone
    came = len(now.keys() - before.keys() - touched)
    went = len(before.keys() - now.keys() - touched)
    read = tuple(file for file in delta.read if file.path not in alike)
    kept = {file.path for file in read}
    return dataclasses.replace(
        work,
        delta=dataclasses.replace(
            delta,
            read=read,
            gone=frozenset(delta.gone - alike),
            n_same=delta.n_same + came - went + len(alike & now.keys()),
            n_files=delta.n_files + came - went,
        ),
        results=[result.only(kept) for result in work.results],
        base=theirs,
        after=theirs.store.version,
    )
