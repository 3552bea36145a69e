"""Open one committed version of a store: manifest, indexes, maps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.affine import Delivery, Entry, GroupsOf, parse_entries
from shards.coldrows import ColdIndex
from shards.cutting import join_windows
from shards.errors import (
    CorruptStoreError,
    InvalidSpecError,
    StoreNotFoundError,
    TrialNotFoundError,
)
from shards.index import HotIndex, open_index
from shards.index_checks import contradictions
from shards.lookup import TrialLookup
from shards.manifest import COLD
from shards.maps import FileRange, check_rows, chunk_file, map_shards
from shards.parquetfile import read_cold
from shards.parts import read_parts
from shards.safety import check_bytes, check_file, parse_json, read_inside
from shards.tags import open_version

Float32 = npt.NDArray[np.float32]

CHECKS = ("none", "shards")
_SAID = 3
"""Contradictions that an error lists."""


class Store(TrialLookup):
    """One version of a store, read-only.

    Attributes:
        path: Store root.
        version: Name of the open version.
        manifest: What `dataset.json` says.

    Args:
        path: Store root.
        version: A version's name, or a tag; by default the newest.
        check: `shards`: compare the rows of each shard with their digests when they are first
            mapped, once per process. `none`: sizes alone; `verify_store` looks at all.

    Raises:
        StoreNotFoundError: If there is no such store or version.
        CorruptStoreError: If its files are not what they should be.
        FormatVersionError: If a newer trialshards wrote it.
    """

    def __init__(self, path: str | Path, version: str | None = None, check: str = "none") -> None:
        if check not in CHECKS:
            raise InvalidSpecError(f"check is {check!r}; wanted one of {CHECKS}.")
        self.path, self.check = Path(path), check
        # Nobody removes the version, nor what it names, while this object lives.
        self.version, self.manifest, self._lease = open_version(self.path, version)
        self.folder = self.path / "versions" / self.version

    def __reduce__(self) -> tuple[type[Store], tuple[Path, str, str]]:
        """Let a pickle open the same version again: no maps, no index, no lock in it."""
        return type(self), (self.path, self.version, self.check)

    @cached_property
    def index(self) -> HotIndex:
        """The hot index, mapped."""
        promise = self.manifest.files["index.arrow"]
        in_parts, path = bool(self.manifest.parts), self.folder / "index.arrow"
        check_file(self.path, path)
        index = open_index(path, promise, in_parts=in_parts)
        if wrong := contradictions(index, self.manifest):
            rest = f"; and {len(wrong) - _SAID} more" if len(wrong) > _SAID else ""
            raise _corrupt(path, ValueError("; ".join(wrong[:_SAID]) + rest))
        return index

    @cached_property
    def fit(self) -> dict[str, Any]:
        """What was fitted on train trials (SPEC section 11)."""
        path = self.folder / "fit.json"
        try:
            raw = read_inside(self.path, path)
            check_bytes(raw, self.manifest.files["fit.json"])
            return parse_json(raw)
        except ValueError as error:
            raise _corrupt(path, error) from error

    @property
    def fingerprint(self) -> str:
        """The data set's fingerprint."""
        return self.manifest.fingerprint

    def split_code(self, split: str) -> int:
        """Return the code of a split.

        Raises:
            StoreNotFoundError: If the version has no such split.
        """
        if split not in self.manifest.splits:
            raise StoreNotFoundError(
                f"no split {split!r} in {self.path} {self.version}; "
                f"it has: {', '.join(self.manifest.splits)}."
            )
        return self.manifest.splits.index(split)

    def trial_number(self, trial_id: str) -> int:
        """Return the number of a trial.

        Raises:
            TrialNotFoundError: If the version has no such trial.
        """
        number = self.index.find(trial_id)
        if number is None:
            raise TrialNotFoundError(
                f"trial {trial_id!r} is not in {self.path} ({len(self.index)} trials, version "
                f"{self.version}). Look at: trialshards inspect {self.path}"
            )
        return number

    @cached_property
    def cold_index(self) -> ColdIndex:
        """Single facts of trials; `cold` reads whole columns."""
        return ColdIndex(self)

    def cold(self, *columns: str) -> pa.Table:
        """Read columns of the cold index (SPEC section 9), one row per trial number."""
        if self.manifest.parts:
            part, row = self.index.places()
            return read_parts(self.path, self.manifest.parts, part, row, columns or None)
        path, promise = self.folder / COLD, self.manifest.files[COLD]
        return read_cold(self.path, path, promise, len(self.index), columns or None)

    def chunk_file(self, shard: int, array: str) -> Path:
        """Return the file of a Zarr shard whose first bytes are the rows of one array."""
        return chunk_file(self.path, self.manifest.shards[shard].digest, array)

    def map_array(self, array: str, shards: Sequence[int], *, tail_bytes: int = 0) -> FileRange:
        """Map one array of many shards into one address range.

        Raises:
            CorruptStoreError: If a file is missing or has the wrong size.
            InvalidSpecError: If the local cache may not hold what they are decoded.
        """
        entries = [self.manifest.shards[shard] for shard in shards]
        mapped = map_shards(self.path, entries, array, tail_bytes=tail_bytes)
        if self.check == "shards":
            check_rows(self.path, entries, array, mapped)
        return mapped

    def shard_rows(self, shard: int, array: str = "values") -> npt.NDArray[Any]:
        """Return `[rows, columns]` of one shard as a read-only view of the map.

        In layout windows a row is a window, its columns the elements of its steps.
        """
        spec = self.manifest.shards[shard].arrays[array]
        data = self.map_array(array, [shard]).bytes[: spec.data_bytes]
        return data.view(spec.dtype).reshape(spec.n_rows, spec.n_columns)

    def trial_rows(self, number: int, array: str = "values") -> npt.NDArray[Any]:
        """Return `[rows, columns]` of one trial as a read-only view of the map.

        In layout windows it is a copy, and rows that lie in no window are missing: NaN, or 0.

        Raises:
            InvalidSpecError: For the targets of a forecast, which are windows alone.
        """
        stored = self.trial_stored(number, array)
        if self.manifest.layout == "rows":
            return stored
        if array == "targets" and self.manifest.target.kind == "forecast":
            raise InvalidSpecError("forecast targets are values further on; take those.")
        fill = np.nan if array in ("values", "targets") else 0
        n_rows = int(self.index.n_rows[number])
        return join_windows(stored, n_rows, self.manifest.windows, fill)

    def trial_stored(self, number: int, array: str = "values") -> npt.NDArray[Any]:
        """Return one trial as its shard holds it, a read-only view: its rows, or its windows."""
        start = int(self.index.row_start[number])
        rows = self.shard_rows(int(self.index.shard[number]), array)
        return rows[start : start + int(self.n_stored[number])]

    @property
    def n_stored(self) -> npt.NDArray[np.int64]:
        """How many rows of its shard each trial takes: its rows, or its windows."""
        return self.index.n_rows if self.manifest.layout == "rows" else self.index.n_windows

    @cached_property
    def delivery(self) -> Delivery:
        """What is done to stored values when they are delivered (SPEC section 5)."""
        return self.parse_delivery(self.cold_index.attribute)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Normalization method and scope of each channel."""
        return parse_entries(self.manifest.normalization, len(self.manifest.channels))

    def parse_delivery(self, groups_of: GroupsOf) -> Delivery:
        """Return what is done to stored values of trials whose groups `groups_of` tells."""
        names = [channel.name for channel in self.manifest.channels]
        try:
            return Delivery.parse(self.entries, self.fit["normalize"], names, groups_of)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise _corrupt(self.folder / "fit.json", error) from error

    def delivery_affine(self) -> tuple[Float32, Float32] | None:
        """Return float32 `(offset, inv_scale)` per channel applied at delivery, or None.

        Raises:
            InvalidSpecError: If they are not the same for all rows: use `delivery`.
        """
        if not self.delivery.is_constant:
            raise InvalidSpecError(
                f"{self.path} is normalized by group, regime or window, so that no one affine "
                "serves all its rows. Take Store.delivery."
            )
        if self.delivery.is_identity:
            return None
        return self.delivery.table.offset[0], self.delivery.table.inv_scale[0]

    def physical_affine(self) -> tuple[Float32, Float32]:
        """Return float32 `(offset, scale)`: physical = delivered * scale + offset.

        Shapes are `[1, channels]` when all trials share them, else `[trials, channels]`. Channels
        of scope `regime` or `window`, whose affine differs within a trial, have offset 0, scale 1.
        """
        delivery = self.delivery
        table = delivery.table if delivery.row is None else delivery.table.take(delivery.row)
        if not len(delivery.own):
            return table.offset, table.scale
        # Of the two, at most one differs from the identity in any channel: this is exact.
        offset, scale = self._own_affine
        return offset + table.offset, scale * table.scale

    def deliver_rows(self, number: int, rows: slice = slice(None)) -> Float32:
        """Return `[rows, channels]` of one trial as delivered, but NaN for what is missing.

        Channels of scope `window` stay in physical units: rows alone make no window.
        """
        return self.delivery.apply(self.trial_rows(number)[rows], number)

    def physical_rows(self, number: int, rows: slice = slice(None)) -> Float32:
        """Return `[rows, channels]` of one trial in physical units, NaN for what is missing."""
        values: Float32 = self.trial_rows(number)[rows]
        if not len(self.delivery.own):
            return values
        offset, scale = self._own_affine
        physical: Float32 = values * scale[number] + offset[number]
        return physical

    @cached_property
    def _own_affine(self) -> tuple[Float32, Float32]:
        """What undoes the normalization that stored values have; identity for other channels."""
        table, own = self.cold("offset", "scale"), self.delivery.own
        n_channels = len(self.manifest.channels)
        offset, scale = (np.full((len(self.index), n_channels), x, np.float32) for x in (0, 1))
        for key, out in (("offset", offset), ("scale", scale)):
            out[:, own] = _matrix(table[key], n_channels)[:, own]
        return offset, scale


def open_store(path: str | Path, version: str | None = None, check: str = "none") -> Store:
    """Open one version of a store; `open_store(path)["s07/0031"]` is a trial.

    Args:
        path: Store root.
        version: A version's name, or a tag; by default the newest.
        check: `shards` compares the rows of each shard with their digests, once per process.

    Raises:
        StoreNotFoundError, CorruptStoreError, FormatVersionError: As `Store`.
    """
    return Store(path, version, check)


def _corrupt(path: Path, error: Exception) -> CorruptStoreError:
    return CorruptStoreError(
        f"{path} cannot be read ({type(error).__name__}: {error}). Restore it, or open another "
        "version."
    )


def _matrix(column: pa.ChunkedArray, width: int) -> Float32:
    lists = column.combine_chunks()
    sizes = lists.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False)
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    if (sizes != width).any():
        raise CorruptStoreError(
            f"trials.parquet: {flat.size} statistics for {len(column)} trials x {width} channels. "
            "Run: trialshards verify STORE"
        )
    return np.asarray(flat, np.float32).reshape(-1, width)
