"""Rewrite what many small builds left, as a new version that delivers the same batches bit for bit.

Dead rows (of trials that were changed or removed), small shards and small parts of the cold index
pile up with every build. Live trials are packed into new shards; large shards without dead rows
stay as they are. Older versions keep theirs until `gc`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.leases import building
from shards.manifest import ShardEntry
from shards.parts import write_part
from shards.reader import Store
from shards.redraft import name_codes, redraft_version
from shards.repack import find_blocks, repack_trials
from shards.version import VersionDraft, publish_version

TARGET_BYTES = 128 * 2**20
DEAD_SHARE = 0.2
MOST_SMALL = 64
"""Shards under a quarter of the target, and parts: opening each costs, whatever it holds."""

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Compaction:
    """What was rewritten, or would be.

    Attributes:
        old: The version that was looked at.
        version: The version that holds the data now; `old` if nothing was rewritten.
        reasons: Why it was due; empty if it was not.
        is_due: Whether it was rewritten, or would be: it was due, or forced and of use.
        n_rows: Rows in all shards of `old`, live and dead; windows in layout windows.
        n_dead_rows: Those of trials that it does not have (any more).
        n_shards: Shards of `old`.
        n_rewritten: Those whose live trials move to new shards.
        n_parts: Parts of its cold index.
    """

    old: str
    version: str
    reasons: tuple[str, ...]
    is_due: bool
    n_rows: int
    n_dead_rows: int
    n_shards: int
    n_rewritten: int
    n_parts: int


def compact_store(store: Path, *, force: bool = False, dry_run: bool = False) -> Compaction:
    """Rewrite the newest version if over 20 % of its rows are dead, or small files are many.

    Many are more than 64 shards under a quarter of `shards.target_bytes`, or more than 64 parts.
    The new version has the same fingerprints. Memory holds the cold index, and of the values no
    more than one shard.

    Args:
        store: Store root.
        force: Rewrite whatever can be packed better, also if there is little of it.
        dry_run: Only say what would be done.

    Raises:
        StoreNotFoundError: If there is no such store.
        CorruptStoreError: If a shard is not as promised: it must not get new digests.
        CommitConflictError: If another version was published meanwhile.
    """
    Store(store)  # before anything is written: there is such a store
    with building(store):
        opened = Store(store)
        plan = _Plan(opened)
        reasons = plan.reasons()
        is_due = bool(reasons) or (force and plan.is_of_use)
        version = opened.version
        if is_due and not dry_run:
            version = publish_version(store, _rewrite(plan), after=version)
    return Compaction(
        old=opened.version,
        version=version,
        reasons=tuple(reasons),
        is_due=is_due,
        n_rows=int(plan.n_rows.sum()),
        n_dead_rows=int(plan.dead.sum()),
        n_shards=len(plan.n_rows),
        n_rewritten=int(plan.moved.sum()) if is_due else 0,
        n_parts=len(opened.manifest.parts),
    )


class _Plan:
    """Which shards of a version are rewritten.

    Attributes:
        store: The version.
        blocks: Where its live rows lie.
        n_rows: int64 `[shards]`, in all.
        dead: int64 `[shards]`, of no trial.
        small: bool `[shards]`.
        moved: bool `[shards]`: rewritten.
        merges_parts: Whether the parts become one.
    """

    def __init__(self, store: Store) -> None:
        manifest, index = store.manifest, store.index
        self.store, self.blocks = store, find_blocks(store)
        said = (manifest.spec.get("shards") or {}).get("target_bytes")
        self.target_bytes = int(said or TARGET_BYTES)
        self.n_rows = np.array([entry.n_rows for entry in manifest.shards], np.int64)
        self.dead = self._count_dead()
        self.small = _raw_bytes(manifest.shards) * 4 < self.target_bytes
        self.moved = (self.dead > 0) | self.small
        if not len(self.blocks.trials) or (self.moved.sum() == 1 and not self.dead.any()):
            self.moved[:] = False  # one small shard would become itself
        n_cold = sum(part.n_rows for part in manifest.parts)
        self.merges_parts = len(manifest.parts) > 1 or n_cold > len(index)

    def _count_dead(self) -> Int64:
        trials = self.blocks.trials
        live = np.bincount(
            self.store.index.shard[trials], self.store.n_stored[trials], len(self.n_rows)
        )
        dead: Int64 = np.maximum(self.n_rows - live.astype(np.int64), 0)
        return dead

    @property
    def is_of_use(self) -> bool:
        """Whether rewriting would change anything."""
        return bool(self.moved.any()) or self.merges_parts

    def reasons(self) -> list[str]:
        """Return why the version should be rewritten."""
        dead, n_rows = int(self.dead.sum()), int(self.n_rows.sum())
        n_small, n_parts = int(self.small.sum()), len(self.store.manifest.parts)
        said = {
            f"{dead:,} of {n_rows:,} rows are dead": dead > DEAD_SHARE * n_rows,
            f"{n_small:,} shards are small": n_small > MOST_SMALL,
            f"the cold index has {n_parts:,} parts": n_parts > MOST_SMALL,
        }
        return [text for text, holds in said.items() if holds] if self.is_of_use else []


def _raw_bytes(shards: Sequence[ShardEntry]) -> Int64:
    """Return the bytes of each shard's rows: the target counts those, compressed or not."""
    sums = [sum(array.data_bytes for array in shard.arrays.values()) for shard in shards]
    return np.array(sums, np.int64)


def _rewrite(plan: _Plan) -> VersionDraft:
    """Write new shards and parts, and return the version over them."""
    draft = redraft_version(plan.store)
    if plan.moved.any():
        draft = _with_new_shards(plan, draft)
    if plan.merges_parts:
        draft = _with_one_part(plan.store, draft)
    return draft


def _with_new_shards(plan: _Plan, draft: VersionDraft) -> VersionDraft:
    index, (trials, block_of) = plan.store.index, plan.blocks
    shard, start = index.shard.astype(np.int64), index.row_start.copy()
    moved = np.flatnonzero(plan.moved[shard[trials]])
    packed = repack_trials(plan.store, trials[moved], plan.target_bytes)
    place = np.full(len(trials) + 1, -1, np.int64)  # the last is that of trials without rows
    place[moved] = np.arange(len(moved))
    of = place[block_of]
    here = of >= 0
    shard[here], start[here] = len(plan.moved) + packed.shard[of[here]], packed.start[of[here]]
    nowhere = block_of < 0  # any shard will do, but it must be one of the version
    shard[nowhere], start[nowhere] = shard[trials[0]], 0
    entries = (*draft.shards, *packed.entries)
    columns = {
        "shard": name_codes(shard, [entry.digest for entry in entries]),
        "row_start": pa.array(start),
    }
    return dataclasses.replace(draft, trials=_replace(draft.trials, columns), shards=entries)


def _with_one_part(store: Store, draft: VersionDraft) -> VersionDraft:
    part = write_part(store.path, store.cold())
    n = draft.trials.num_rows
    columns = {"part": pa.repeat(part.digest, n), "part_row": pa.array(np.arange(n))}
    return dataclasses.replace(draft, trials=_replace(draft.trials, columns), parts=(part,))


def _replace(table: pa.Table, columns: dict[str, pa.Array]) -> pa.Table:
    for name, column in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table
