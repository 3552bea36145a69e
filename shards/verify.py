"""Check every byte and every promise of one version, and name what is broken."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from shards.codes import fitted_inputs
from shards.errors import TrialShardsError
from shards.facts import read_facts
from shards.identity import dataset_fingerprint, file_promise
from shards.problems import Problem
from shards.reader import Store
from shards.verify_shards import check_shards, trials_by_shard
from shards.version import fingerprint_splits
from shards.windows import count_windows


def verify_store(
    path: str | Path,
    version: str | None = None,
    *,
    on_shard: Callable[[int, int], None] | None = None,
) -> list[Problem]:
    """Check one version; an empty list means that every promise holds.

    Args:
        path: Store root.
        version: By default the newest.
        on_shard: Called with (shards done, shards in all).

    Raises:
        StoreNotFoundError: If there is no such version.
        CorruptStoreError: If the manifest itself cannot be read.
        FormatVersionError: If a newer trialshards wrote it.
    """
    store = Store(path, version)
    problems = list(_check_files(store))
    if problems:  # the index cannot be trusted, so nothing can be said of trials
        return problems + check_shards(store, None, on_shard)
    try:
        problems += _check_index(store)
        if problems:
            return problems + check_shards(store, None, on_shard)
        trials = store.cold()
        problems += _check_identity(store, trials)
        fitted_inputs(store)
        facts = read_facts(store, trials)
    except (TrialShardsError, pa.ArrowException, KeyError, ValueError) as error:
        return [*problems, Problem(str(store.folder), f"the indexes cannot be used: {error}")]
    return problems + check_shards(store, facts, on_shard)


def _check_files(store: Store) -> Iterator[Problem]:
    for name in store.manifest.version_files:
        path, promise = store.folder / name, store.manifest.files.get(name)
        if promise is None:
            yield Problem(str(path), "the manifest does not list it")
        elif not path.is_file():
            yield Problem(str(path), "missing")
        elif file_promise(path.read_bytes()) != promise:
            yield Problem(str(path), f"its bytes are not those the manifest promises ({promise})")
    known = {*store.manifest.version_files, "dataset.json"}
    for path in sorted(store.folder.iterdir()):
        if path.name not in known:
            yield Problem(str(path), "a foreign file")


def _check_index(store: Store) -> list[Problem]:
    index, manifest, where = store.index, store.manifest, str(store.folder / "index.arrow")
    problems = []

    def claim(holds: bool, message: str) -> None:
        if not holds:
            problems.append(Problem(where, message))

    ids = index.ids.cast(pa.large_binary()).to_pylist()
    claim(all(a < b for a, b in itertools.pairwise(ids)), "ids are not sorted and unique")
    counts = manifest.counts
    claim(
        len(ids) == counts.get("segments", counts.get("trials")),
        "the number of trial segments is not the manifest's",
    )
    claim(
        bool(((index.shard >= 0) & (index.shard < len(manifest.shards))).all()),
        "a shard number is out of range",
    )
    claim(
        bool(((index.split >= 0) & (index.split < len(manifest.splits))).all()),
        "a split code is out of range",
    )
    claim(
        bool((index.n_windows == count_windows(index.n_rows, manifest.windows)).all()),
        "a number of windows is not what its rows give",
    )
    claim(
        bool((np.isfinite(index.weight) & (index.weight >= 0)).all()),
        "a weight is negative or not finite",
    )
    if manifest.target.classes is not None:
        known = set(range(len(manifest.target.classes)))
        codes = index.label[~np.isnan(index.label)]
        claim(set(codes.tolist()) <= known, "a label is not the code of a class")
    return problems or _check_places(store, where)


def _check_places(store: Store, where: str) -> list[Problem]:
    index, manifest, problems = store.index, store.manifest, []
    for number, members in trials_by_shard(store).items():
        counted = len(members) == manifest.shards[number].n_trials
        if not counted:
            message = f"the trials of shard {number} are not as many as the manifest's"
            problems.append(Problem(where, message))
        ends = index.row_start[members] + index.n_rows[members]
        inside = (
            index.row_start[members].min() >= 0 and ends.max() <= manifest.shards[number].n_rows
        )
        if not inside:
            problems.append(Problem(where, f"rows of a trial lie outside shard {number}"))
    return problems


def _check_counts(store: Store) -> list[Problem]:
    index, manifest = store.index, store.manifest
    n_windows = [index.n_windows[index.split == code] for code in range(len(manifest.splits))]
    got = {
        "rows": int(index.n_rows.sum()),
        "windows": {s: int(n.sum()) for s, n in zip(manifest.splits, n_windows, strict=True)},
    }
    return [
        Problem(str(store.folder), f"it has {value} {name}, the manifest counts {wanted}")
        for name, value in got.items()
        if (wanted := manifest.counts.get(name)) != value
    ]


def _check_identity(store: Store, trials: pa.Table) -> list[Problem]:
    manifest, where = store.manifest, str(store.folder / "trials.parquet")
    if not trials["id"].cast(pa.large_utf8()).combine_chunks().equals(store.index.ids):
        return [Problem(where, "its ids are not those of index.arrow")]
    if trials["digest"].null_count:
        return [Problem(where, "a trial has no digest")]
    problems = _check_counts(store)
    split = pa.array([manifest.splits[code] for code in store.index.split], pa.utf8())
    got = fingerprint_splits(manifest, store.fit, trials.append_column("split", split))
    if got != manifest.fingerprints or dataset_fingerprint(got) != manifest.fingerprint:
        problems.append(Problem(where, "fingerprints do not follow from the trials' digests"))
    return problems
