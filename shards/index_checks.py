"""Whether the hot index says what the manifest allows: one pass over its columns."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from shards.index import HotIndex
from shards.lazy import pc
from shards.manifest import Manifest
from shards.windows import count_windows

_BLOCK = 1 << 16
"""Rows looked at together: what is computed of them stays in the cache."""
_FEW = 20_000
"""Ids up to which they are compared one by one."""
_AT_ONCE = 2_000
"""Ids that are Python objects at the same time."""
_MOST_ROWS = 2**50
_SHORTEST_LIMIT = 2**16
_LONGEST_TIMES = 16


def contradictions(index: HotIndex, manifest: Manifest) -> list[str]:
    """Return what is wrong with a hot index, a sentence each; none if it can be trusted.

    Whoever passes can be looked up, cut into windows and mapped without reading beside a shard.
    """
    counts = manifest.counts
    found = set()
    if len(index) != counts.get("segments", counts.get("trials")):
        found.add("the number of trial segments is not the manifest's")
    ids = index.ids.view(pa.large_binary())
    for first in range(0, len(index), _BLOCK):
        part = slice(first, first + _BLOCK)
        found |= set(_numbers(index, manifest, part))
        mine = ids[first : first + _BLOCK + 1]
        if not _is_sorted(mine):
            found.add("ids are not sorted and unique")
    if not found:
        found |= set(_places(index, manifest))
    longest = int(index.n_rows.max(initial=0))
    if manifest.windows.length > _SHORTEST_LIMIT + _LONGEST_TIMES * longest:
        found.add(f"windows have {manifest.windows.length} steps, the longest trial {longest} rows")
    return sorted(found)


def _is_sorted(ids: pa.LargeBinaryArray) -> bool:
    """Return whether each id is less than the next one, byte by byte."""
    if len(ids) <= _FEW:  # without loading Arrow's compute functions
        parts = (ids[at : at + _AT_ONCE + 1].to_pylist() for at in range(0, len(ids), _AT_ONCE))
        return all(a < b for part in parts for a, b in itertools.pairwise(part))
    return bool(pc.all(pc.less(ids[:-1], ids[1:])).as_py())


def _numbers(index: HotIndex, manifest: Manifest, part: slice) -> Iterator[str]:
    shard, n_rows, split = index.shard[part], index.n_rows[part], index.split[part]
    weight, label = index.weight[part], index.label[part]
    if shard.min() < 0 or shard.max() >= len(manifest.shards):
        yield "a shard number is out of range"
    if split.min() < 0 or split.max() >= len(manifest.splits):
        yield "a split code is out of range"
    if n_rows.min() < 0 or n_rows.max() > _MOST_ROWS:
        yield "a number of rows is out of range, and so is its number of windows"
    elif not np.array_equal(index.n_windows[part], count_windows(n_rows, manifest.windows)):
        yield "a number of windows is not what its rows give"
    if not (np.isfinite(weight) & (weight >= 0)).all():
        yield "a weight is negative or not finite"
    if manifest.target.classes is not None:
        codes = label[~np.isnan(label)]
        known = (codes >= 0) & (codes < len(manifest.target.classes)) & (codes == np.floor(codes))
        if not known.all():
            yield "a label is not the code of a class"


def _places(index: HotIndex, manifest: Manifest) -> Iterator[str]:
    n_shards = len(manifest.shards)
    n_trials = np.bincount(index.shard, minlength=n_shards)
    wanted = [shard.n_trials for shard in manifest.shards]
    for number in np.flatnonzero(n_trials != wanted).tolist():
        yield f"the trials of shard {number} are not as many as the manifest's"
    limits = np.array([shard.n_rows for shard in manifest.shards], np.int64)
    # A shard of layout `windows` has a row per window.
    taken = index.n_windows if manifest.layout == "windows" else index.n_rows
    for first in range(0, len(index), _BLOCK):
        part = slice(first, first + _BLOCK)
        start, shard = index.row_start[part], index.shard[part]
        outside = (start < 0) | (start > limits[shard] - taken[part])
        # Not np.unique, which loads numpy.ma.
        for number in sorted(set(shard[outside].tolist())):
            yield f"rows of a trial lie outside shard {number}"
