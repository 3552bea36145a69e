"""Open one committed version of a store: manifest, indexes, maps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shards.affine import Delivery, parse_entries
from shards.errors import (
    CorruptStoreError,
    InvalidSpecError,
    StoreNotFoundError,
    TrialNotFoundError,
)
from shards.index import HotIndex, open_index
from shards.manifest import COLD, Manifest
from shards.maps import FileRange
from shards.parts import read_parts
from shards.writer import list_versions

Float32 = npt.NDArray[np.float32]


class Store:
    """One version of a store, read-only.

    Attributes:
        path: Store root.
        version: Name of the open version.
        manifest: What `dataset.json` says.

    Args:
        path: Store root.
        version: A version's name; by default the newest.

    Raises:
        StoreNotFoundError: If there is no such store or version.
        CorruptStoreError: If its files are not what they should be.
        FormatVersionError: If a newer trialshards wrote it.
    """

    def __init__(self, path: str | Path, version: str | None = None) -> None:
        self.path = Path(path)
        versions = list_versions(self.path)
        if not versions or (version is not None and version not in versions):
            wanted = f"version {version}" if version else "committed version"
            raise StoreNotFoundError(
                f"no {wanted} in {self.path} (found: {', '.join(versions) or 'none'}). "
                "Build it: trialshards build DATASET.yaml --store " + str(self.path)
            )
        self.version = version or versions[-1]
        self.folder = self.path / "versions" / self.version
        manifest = self.folder / "dataset.json"
        self.manifest = Manifest.from_bytes(manifest.read_bytes(), str(manifest))

    @cached_property
    def index(self) -> HotIndex:
        """The hot index, mapped."""
        promise = self.manifest.files["index.arrow"]
        in_parts = bool(self.manifest.parts)
        return open_index(self.folder / "index.arrow", promise, in_parts=in_parts)

    @cached_property
    def fit(self) -> dict[str, Any]:
        """What was fitted on train trials (SPEC section 11)."""
        path = self.folder / "fit.json"
        try:
            document: dict[str, Any] = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise _corrupt(path, error) from error
        return document

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

    def cold(self, *columns: str) -> pa.Table:
        """Read columns of the cold index (SPEC section 9), one row per trial number."""
        if self.manifest.parts:
            return read_parts(self.path, self.manifest.parts, self.index, columns or None)
        path = self.folder / COLD
        try:
            return pq.read_table(path, columns=list(columns) or None)
        except (OSError, pa.ArrowException) as error:
            raise _corrupt(path, error) from error

    def chunk_file(self, shard: int, array: str) -> Path:
        """Return the file whose first bytes are the rows of one array of one shard."""
        return self.path / "shards" / self.manifest.shards[shard].digest / array / "c" / "0" / "0"

    def map_array(self, array: str, shards: Sequence[int], *, tail_bytes: int = 0) -> FileRange:
        """Map one array of many shards into one address range.

        Raises:
            CorruptStoreError: If a file is missing or has the wrong size.
        """
        entries = self.manifest.shards
        return FileRange(
            [(self.chunk_file(s, array), entries[s].arrays[array].size_bytes) for s in shards],
            tail_bytes=tail_bytes,
        )

    def shard_rows(self, shard: int, array: str = "values") -> npt.NDArray[Any]:
        """Return `[rows, columns]` of one shard as a read-only view of the map."""
        spec = self.manifest.shards[shard].arrays[array]
        data = self.map_array(array, [shard]).bytes[: spec.data_bytes]
        return data.view(spec.dtype).reshape(spec.n_rows, spec.n_columns)

    def trial_rows(self, number: int, array: str = "values") -> npt.NDArray[Any]:
        """Return `[rows, columns]` of one trial as a read-only view of the map."""
        start = int(self.index.row_start[number])
        rows = self.shard_rows(int(self.index.shard[number]), array)
        return rows[start : start + int(self.index.n_rows[number])]

    @cached_property
    def delivery(self) -> Delivery:
        """What is done to stored values when they are delivered (SPEC section 5)."""
        names = [channel.name for channel in self.manifest.channels]
        entries = parse_entries(self.manifest.normalization, len(names))
        try:
            return Delivery.parse(entries, self.fit["normalize"], names, self._attribute)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise _corrupt(self.folder / "fit.json", error) from error

    def _attribute(self, name: str) -> list[str | None]:
        """Return an attribute of every trial."""
        column = self.cold("attributes")["attributes"].combine_chunks()
        values: list[str | None] = column.field(name).to_pylist()
        return values

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


def _corrupt(path: Path, error: Exception) -> CorruptStoreError:
    return CorruptStoreError(
        f"{path} cannot be read ({type(error).__name__}: {error}). Restore it, or open another "
        "version."
    )


def _matrix(column: pa.ChunkedArray, width: int) -> Float32:
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if flat.size != len(column) * width:
        raise CorruptStoreError(
            f"trials.parquet: {flat.size} statistics for {len(column)} trials x {width} channels. "
            "Run: trialshards verify STORE"
        )
    return np.asarray(flat, np.float32).reshape(-1, width)
