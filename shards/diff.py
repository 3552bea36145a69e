"""What changed from one version to another: trials by id and digest, and everything else said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shards.reader import Store
from shards.redraft import whole_trials

_SAID = (
    "name", "layout", "container", "channels", "target", "codes", "statics", "observed", "splits",
    "windows", "normalization", "spec", "fit",
)  # fmt: skip
_COUNTED = ("files", "trials", "segments", "rows", "quarantined")


class Moved(NamedTuple):
    """A trial that is in another split."""

    id: str
    old: str
    new: str


@dataclass(frozen=True)
class VersionDiff:
    """What changed from version `old` to version `new`; all lists are sorted by id bytes.

    Attributes:
        old: Name of the first version.
        new: Name of the second.
        added: Trials that only the second has.
        removed: Trials that only the first has.
        changed: Trials of both with another digest: values, labels, inputs, or how they are cut
            into segments.
        moved: Trials of both that lie in another split.
        n_same: Trials of both that neither changed nor moved.
        settings: What else is said otherwise, such as `windows.length` -> (old, new); None where
            only one says it. Of `fit`, whose numbers are many, only which parts.
        counts: Files, trials, segments, rows, windows, quarantined: name -> (old, new).
    """

    old: str
    new: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    moved: tuple[Moved, ...]
    n_same: int
    settings: Mapping[str, tuple[Any, Any]]
    counts: Mapping[str, tuple[int, int]]

    @property
    def is_empty(self) -> bool:
        """Whether both versions deliver the same and say the same."""
        lists = (self.added, self.removed, self.changed, self.moved)
        return not any(lists) and not self.settings

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {**vars(self), "moved": [moved._asdict() for moved in self.moved]}


def diff_versions(store: Path, old: str, new: str) -> VersionDiff:
    """Compare two versions of a store.

    Args:
        store: Store root.
        old: A version or tag.
        new: Another, or the same.

    Raises:
        StoreNotFoundError: If there is no such store or version.
        CorruptStoreError: If what is compared cannot be read.
    """
    return diff_stores(Store(store, old), Store(store, new))


def diff_stores(old: Store, new: Store) -> VersionDiff:
    """Compare two open versions, also of two stores."""
    before, after = _Trials(old), _Trials(new)
    at = pc.index_in(after.ids, value_set=before.ids)
    common = np.flatnonzero(at.is_valid().to_numpy(zero_copy_only=False))
    there = at.drop_null().to_numpy()
    added, removed = _only(after.trials, before.trials), _only(before.trials, after.trials)
    # A segment of a trial that both have may have come or gone: the trial has changed, then.
    here, gone = np.ones(len(after.ids), bool), np.ones(len(before.ids), bool)
    here[common] = gone[there] = False
    digests = pc.not_equal(
        after.digests.take(pa.array(common)), before.digests.take(at.drop_null())
    )
    here[common] |= digests.to_numpy(zero_copy_only=False)
    touched = pa.concat_arrays([after.trials.filter(here), before.trials.filter(gone)])
    changed = _only(touched, pa.concat_arrays([added, removed]))
    moved = _moved(before, after, there, common)
    either = pc.unique(pa.concat_arrays([added, changed, pa.array([m.id for m in moved], _IDS)]))
    return VersionDiff(
        old=old.version,
        new=new.version,
        added=_listed(added),
        removed=_listed(removed),
        changed=_listed(changed),
        moved=moved,
        n_same=pc.count_distinct(after.trials).as_py() - len(either),
        settings=_settings(old, new),
        counts=_counts(old, new),
    )


_IDS = pa.large_utf8()


class _Trials:
    """Columns of a version, one row per trial segment."""

    def __init__(self, store: Store) -> None:
        self.ids: pa.Array = store.index.ids
        self.digests = store.cold("digest")["digest"].combine_chunks().cast(_IDS)
        self.trials = whole_trials(store)
        self.split, self.splits = store.index.split, store.manifest.splits


def _only(some: pa.Array, others: pa.Array) -> pa.Array:
    """Return the different ids of one that the other does not have."""
    return pc.unique(some.filter(pc.invert(pc.is_in(some, value_set=others))))


def _listed(ids: pa.Array) -> tuple[str, ...]:
    """Return ids in the order of their UTF-8 bytes."""
    return tuple(ids.take(pc.sort_indices(ids.cast(pa.large_binary()))).to_pylist())


def _moved(
    before: _Trials, after: _Trials, there: npt.NDArray[Any], common: npt.NDArray[Any]
) -> tuple[Moved, ...]:
    known = {name: code for code, name in enumerate(before.splits)}
    codes = np.array([known.get(name, -1) for name in after.splits], np.int64)
    others = codes[after.split[common]] != before.split[there]
    ids = after.trials.take(pa.array(common[others])).to_pylist()
    old, new = before.split[there[others]].tolist(), after.split[common[others]].tolist()
    moves = {
        name: Moved(name, before.splits[a], after.splits[b])
        for name, a, b in zip(ids, old, new, strict=True)
    }
    return tuple(moves[name] for name in sorted(moves, key=str.encode))


def _settings(old: Store, new: Store) -> dict[str, tuple[Any, Any]]:
    one, other = (dict(_leaves(_said(store))) for store in (old, new))
    found = {
        name: (one.get(name), other.get(name))
        for name in sorted({*one, *other})
        if name not in one or name not in other or one[name] != other[name]
    }
    return {name: (None, None) if name.startswith("fit.") else v for name, v in found.items()}


def _said(store: Store) -> dict[str, Any]:
    """Return what a version says beside its trials, as JSON types."""
    manifest = store.manifest
    said = {name: getattr(manifest, name, None) for name in _SAID}
    return said | {
        "channels": [dict(vars(channel)) for channel in manifest.channels],
        "target": {**vars(manifest.target)},
        "codes": {entry.name: entry.encoding for entry in manifest.codes},
        "statics": {entry.name: entry.encoding for entry in manifest.statics},
        "windows": manifest.windows.as_dict(),
        "fit": store.fit,
    }


def _leaves(said: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and value of whatever is no mapping."""
    if not isinstance(said, Mapping) or not said:
        yield path, said
        return
    for name, part in said.items():
        yield from _leaves(part, f"{path}.{name}" if path else str(name))


def _counts(old: Store, new: Store) -> dict[str, tuple[int, int]]:
    one, other = (_counted(store) for store in (old, new))
    return {name: (one.get(name, 0), other.get(name, 0)) for name in {**one, **other}}


def _counted(store: Store) -> dict[str, int]:
    counts = store.manifest.counts
    plain = {name: counts[name] for name in _COUNTED if name in counts}
    return {**plain, "windows": sum(counts["windows"].values())}
