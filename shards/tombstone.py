"""Take trials out of a data set by hand, as a new version; and let them come back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shards.coldrows import ColdIndex
from shards.errors import InvalidSpecError, TrialNotFoundError
from shards.leases import building
from shards.manifest import Tombstone
from shards.reader import Store
from shards.redraft import redraft_version, whole_trials
from shards.version import VersionDraft, publish_version

SHOWN = 5
TOMBSTONE = "tombstone"
"""The rule by which a file is ignored of which nothing else is left."""
_SUMS = {
    "rows": "n_rows", "rows_in": "n_rows_in", "rows_inserted": "n_inserted",
    "values_clipped": "n_outliers",
}  # fmt: skip
_DROPPED = {"missing_values": "n_dropped", "merged": "n_merged"}
_FACTS = {
    *_SUMS.values(), *_DROPPED.values(), "n_masked", "source", "size_bytes", "mtime_ns",
}  # fmt: skip


def tombstone_trials(
    store: Path, ids: Sequence[str], reason: str = "", *, undo: bool = False
) -> str:
    """Publish a version without these trials; builds do not bring them back.

    Nothing else changes. What was fitted on train trials stays as it was fitted, on all of them:
    `trialshards build --refit` renews it. Earlier versions keep the trials.

    Args:
        store: Store root.
        ids: Whole trials; one that gaps cut into segments goes with all of them. Those that were
            taken out before are passed over.
        reason: Why; kept in the manifest.
        undo: Forget that these trials were taken out, so that the next build brings them back.

    Returns:
        The version that says so; the newest one as it is, if it says so already.

    Raises:
        StoreNotFoundError: If there is no such store.
        TrialNotFoundError: If the newest version has no such trial, or, to undo, no such tombstone.
        InvalidSpecError: If there is no reason, or no train trial would be left.
        CommitConflictError: If another version was published meanwhile.
    """
    if not undo and not reason.strip():
        raise InvalidSpecError("reason is empty; wanted why the trials go, in a few words.")
    Store(store)  # before anything is written: there is such a store
    with building(store):
        opened = Store(store)
        change = _bring_back if undo else _take_out
        draft = change(opened, redraft_version(opened), list(dict.fromkeys(ids)), reason.strip())
        return publish_version(store, draft, after=opened.version)


def _bring_back(store: Store, draft: VersionDraft, ids: list[str], _: str) -> VersionDraft:
    known = {tombstone.id for tombstone in draft.tombstones}
    if unknown := [name for name in ids if name not in known]:
        shown = ", ".join(sorted(known)[:SHOWN]) or "none"
        raise TrialNotFoundError(
            f"{_list(unknown)}: not taken out of {store.path} {store.version} by hand "
            f"({len(known)} trials were: {shown})."
        )
    left = tuple(stone for stone in draft.tombstones if stone.id not in ids)
    sources = {stone.source for stone in draft.tombstones if stone.id in ids}
    return dataclasses.replace(
        draft,
        tombstones=left,
        counts=_without_ignored(store, draft, left),
        build=_read_again(store, draft, left, sources),
    )


def _without_ignored(
    store: Store, draft: VersionDraft, left: Sequence[Tombstone]
) -> Mapping[str, Any]:
    """Return the counts without files that are ignored no more: this version knows nothing of them.

    A file that is gone was never counted again, so there may be fewer than tombstones say.
    """
    ignored = dict(draft.counts.get("ignored", {}))
    if "files" not in draft.counts or not ignored.get(TOMBSTONE):
        return draft.counts
    others = set(draft.quarantine["source"].to_pylist())
    others |= set(store.cold("source")["source"].to_pylist())
    n_left = min(ignored[TOMBSTONE], len({stone.source for stone in left} - others))
    n_files = draft.counts["files"] - (ignored[TOMBSTONE] - n_left)
    ignored[TOMBSTONE] = n_left
    ignored = {rule: n for rule, n in ignored.items() if n}
    return {**draft.counts, "files": n_files, "ignored": ignored}


def _read_again(
    store: Store, draft: VersionDraft, left: Sequence[Tombstone], sources: set[str]
) -> Mapping[str, Any]:
    """Tell the next build which files to read although it knows them, by other trials of theirs.

    It knows those of its index rows, of refusals, and of other tombstones.
    """
    if not draft.build:
        return draft.build  # nobody builds on this version
    known = {*store.cold("source")["source"].to_pylist(), *(stone.source for stone in left)}
    known.update(draft.quarantine["source"].to_pylist())
    again = sorted({*draft.build.get("again", ()), *(sources & known)})
    return {**draft.build, "again": again} if again else draft.build


def _take_out(store: Store, draft: VersionDraft, ids: list[str], reason: str) -> VersionDraft:
    known = {tombstone.id for tombstone in draft.tombstones}
    ids = [name for name in ids if name not in known]
    wanted, trials = pa.array(ids, pa.large_utf8()), whole_trials(store)
    _check_known(store, wanted, trials)
    gone = pc.is_in(trials, value_set=wanted)
    facts = (
        _facts(store).append_column("trial", trials).append_column("split", draft.trials["split"])
    )
    left, removed = facts.filter(pc.invert(gone)), facts.filter(gone)
    if ids and not pc.any(pc.equal(left["split"], "train")).as_py():
        raise InvalidSpecError(
            f"{store.path} {store.version}: without {_list(ids)} no train trial is left. "
            "Take out fewer."
        )
    tombstones = [*draft.tombstones, *_tombstones(removed, reason)]
    return dataclasses.replace(
        draft,
        trials=draft.trials.filter(pc.invert(gone)),
        counts=_count(draft, left, removed) if ids else draft.counts,
        tombstones=tuple(sorted(tombstones, key=lambda tombstone: tombstone.id.encode())),
    )


def _check_known(store: Store, wanted: pa.Array, trials: pa.Array) -> None:
    unknown = wanted.filter(pc.invert(pc.is_in(wanted, value_set=trials))).to_pylist()
    if not unknown:
        return
    message = f"{_list(unknown)}: not in {store.path} {store.version}"
    number = store.index.find(unknown[0])
    if number is not None:
        raise TrialNotFoundError(
            f"{message}: it is a segment, and a trial goes with all its segments. "
            f"Name the trial: {trials[number].as_py()!r}."
        )
    raise TrialNotFoundError(f"{message}. Look at: trialshards inspect {store.path}")


def _facts(store: Store) -> pa.Table:
    """Return what counts follow from, one row per trial segment; columns that there are."""
    return store.cold(*sorted(_FACTS & set(ColdIndex(store).types)))


def _tombstones(removed: pa.Table, reason: str) -> list[Tombstone]:
    names = {"trial", "source", "size_bytes", "mtime_ns"} & set(removed.column_names)
    rows = {row["trial"]: row for row in reversed(removed.select(sorted(names)).to_pylist())}
    return [
        Tombstone(
            id=name,
            source=row.get("source") or "",
            reason=reason,
            size_bytes=row.get("size_bytes") or 0,
            mtime_ns=row.get("mtime_ns") or 0,
        )
        for name, row in rows.items()
    ]


def _count(draft: VersionDraft, left: pa.Table, removed: pa.Table) -> dict[str, Any]:
    """Return the counts without the trials; files of which nothing is left are ignored by name."""
    counts, columns = draft.counts, set(left.column_names)
    new = dict(counts)
    for name, column in _SUMS.items():
        if name in counts and column in columns:
            new[name] = counts[name] - (pc.sum(removed[column]).as_py() or 0)
    dropped = {reason: pc.sum(left[c]).as_py() for reason, c in _DROPPED.items() if c in columns}
    if "rows_dropped" in counts:
        new["rows_dropped"] = {reason: n for reason, n in dropped.items() if n}
    if "has_missing" in counts and "n_masked" in columns:
        new["has_missing"] = bool(pc.any(pc.greater(left["n_masked"], 0)).as_py())
    sides = left.group_by(["trial", "split"], use_threads=False).aggregate([])
    new["trials"] = sides.num_rows
    if "segments" in counts:
        new["segments"] = left.num_rows
    if "trials_by_split" in counts:
        by_split = sides["split"].value_counts().to_pylist()
        new["trials_by_split"] = dict(sorted((c["values"], c["counts"]) for c in by_split))
    if "source" in columns:
        others = [*left["source"].chunks, *draft.quarantine["source"].chunks]
        new |= _count_files(counts, pa.chunked_array(others, pa.utf8()), removed)
    return new


def _count_files(counts: Any, others: pa.ChunkedArray, removed: pa.Table) -> dict[str, Any]:
    files = removed.group_by("source", use_threads=False).aggregate(
        [("size_bytes", "max")] if "size_bytes" in removed.column_names else []
    )
    files = files.filter(pc.invert(pc.is_in(files["source"], value_set=pc.unique(others))))
    ignored = dict(counts.get("ignored", {}))
    ignored[TOMBSTONE] = ignored.get(TOMBSTONE, 0) + files.num_rows
    new: dict[str, Any] = {"ignored": {rule: n for rule, n in ignored.items() if n}}
    if "source_bytes" in counts and "size_bytes_max" in files.column_names:
        new["source_bytes"] = counts["source_bytes"] - (
            pc.sum(files["size_bytes_max"]).as_py() or 0
        )
    return new


def _list(ids: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in ids[:SHOWN])
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return f"trial{'s' if len(ids) > 1 else ''} {shown}{more}"
