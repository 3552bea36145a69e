"""Check every byte and every promise of one version, and name what is broken."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from shards.codes import fitted_inputs
from shards.errors import TrialShardsError
from shards.facts import TrialFacts, read_facts
from shards.identity import dataset_fingerprint, file_promise
from shards.layout import array_metadata, chunk_tail, group_metadata, shard_digest
from shards.manifest import VERSION_FILES, ShardEntry
from shards.reader import Store
from shards.version import fingerprint_splits
from shards.windows import count_windows

SHOWN_TRIALS = 5


@dataclass(frozen=True)
class Problem:
    """One broken promise.

    Attributes:
        where: File or shard.
        message: What was found and what was wanted.
        trials: Ids of the trials it touches, the first few.
    """

    where: str
    message: str
    trials: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return one line."""
        trials = f" (trials: {', '.join(self.trials)})" if self.trials else ""
        return f"{self.where}: {self.message}{trials}"


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
        return problems + _check_shards(store, None, on_shard)
    try:
        problems += _check_index(store)
        if problems:
            return problems + _check_shards(store, None, on_shard)
        trials = pq.read_table(store.folder / "trials.parquet")
        problems += _check_identity(store, trials)
        fitted_inputs(store)
        facts = read_facts(store, trials)
    except (TrialShardsError, pa.ArrowException, KeyError, ValueError) as error:
        return [*problems, Problem(str(store.folder), f"the indexes cannot be used: {error}")]
    return problems + _check_shards(store, facts, on_shard)


def _check_files(store: Store) -> Iterator[Problem]:
    for name in VERSION_FILES:
        path, promise = store.folder / name, store.manifest.files.get(name)
        if promise is None:
            yield Problem(str(path), "the manifest does not list it")
        elif not path.is_file():
            yield Problem(str(path), "missing")
        elif file_promise(path.read_bytes()) != promise:
            yield Problem(str(path), f"its bytes are not those the manifest promises ({promise})")
    known = {*VERSION_FILES, "dataset.json"}
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
    for number, members in _trials_by_shard(store).items():
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


def _trials_by_shard(store: Store) -> dict[int, npt.NDArray[np.int64]]:
    order = np.argsort(store.index.shard, kind="stable")
    shards, first = np.unique(store.index.shard[order], return_index=True)
    parts = np.split(order, first[1:]) if len(order) else []
    return {int(s): part for s, part in zip(shards, parts, strict=True)}


def _check_shards(
    store: Store, facts: TrialFacts | None, on_shard: Callable[[int, int], None] | None
) -> list[Problem]:
    members = {} if facts is None else _trials_by_shard(store)
    problems = []
    for number, entry in enumerate(store.manifest.shards):
        numbers = members.get(number, np.empty(0, np.int64))
        # Without facts the index is not to be trusted, so it is not opened.
        named = tuple(store.index.id_of(int(i)) for i in numbers[:SHOWN_TRIALS])
        found = list(_check_shard_files(store.path / "shards" / entry.digest, entry, named))
        if not found and facts is not None:
            found = list(_check_trials(store, number, numbers, facts))
        problems += found
        if on_shard is not None:
            on_shard(number + 1, len(store.manifest.shards))
    return problems


def _check_shard_files(
    folder: Path, entry: ShardEntry, trials: tuple[str, ...]
) -> Iterator[Problem]:
    if shard_digest(dict(entry.arrays)) != entry.digest:
        yield Problem(str(folder), "its name does not follow from its arrays", trials)
    wanted = {"zarr.json": group_metadata()}
    for name, spec in entry.arrays.items():
        wanted[f"{name}/zarr.json"] = array_metadata(spec)
        yield from _check_chunk(folder / name / "c" / "0" / "0", spec, trials)
    for name, content in wanted.items():
        path = folder / name
        if not path.is_file():
            yield Problem(str(path), "missing", trials)
        elif path.read_bytes() != content:
            yield Problem(str(path), "its bytes are not what its arrays require", trials)
    chunks = {f"{name}/c/0/0" for name in entry.arrays}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and name not in wanted and name not in chunks:
            yield Problem(str(path), "a foreign file", trials)


def _check_chunk(path: Path, spec: Any, trials: tuple[str, ...]) -> Iterator[Problem]:
    if not path.is_file() or path.stat().st_size != spec.size_bytes:
        got = f"{path.stat().st_size} bytes" if path.is_file() else "missing"
        yield Problem(str(path), f"{got}; wanted {spec.size_bytes} bytes", trials)
        return
    content = np.fromfile(path, np.uint8)
    rows, tail = content[: spec.data_bytes], content[spec.data_bytes :]
    if xxhash.xxh3_128_hexdigest(rows.data) != spec.xxh3_128:
        yield Problem(str(path), "its rows are not those the manifest promises", trials)
    if tail.tobytes() != chunk_tail(spec):
        yield Problem(str(path), "its padding or chunk index is broken", trials)


def _check_trials(
    store: Store, number: int, members: npt.NDArray[np.int64], facts: TrialFacts
) -> Iterator[Problem]:
    entry = store.manifest.shards[number]
    maps = {name: store.shard_rows(number, name) for name in entry.arrays}
    index = store.index
    broken: dict[str, list[str]] = {}
    for trial in members.tolist():
        start, stop = int(index.row_start[trial]), int(index.row_start[trial] + index.n_rows[trial])
        arrays = {name: rows[start:stop] for name, rows in maps.items()}
        unchanged, named = facts.holds(store, trial, arrays)
        for message, holds in (
            ("trials are not those their digests promise", unchanged),
            ("trials have codes that no word of theirs has", named),
            ("trials have infinite values", not np.isinf(arrays["values"]).any()),
        ):
            if not holds:
                broken.setdefault(message, []).append(index.id_of(trial))
    where = str(store.path / "shards" / entry.digest)
    for message, ids in broken.items():
        yield Problem(where, f"{len(ids)} {message}", tuple(ids[:SHOWN_TRIALS]))
