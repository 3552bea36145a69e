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

from shards.errors import CorruptStoreError, StoreNotFoundError, TrialNotFoundError
from shards.index import HotIndex, open_index
from shards.manifest import Manifest
from shards.maps import FileRange
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
        return open_index(self.folder / "index.arrow", self.manifest.files["index.arrow"])

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
        path = self.folder / "trials.parquet"
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

    def delivery_affine(self) -> tuple[Float32, Float32] | None:
        """Return float32 `(offset, inv_scale)` per channel applied at delivery, or None."""
        if self.manifest.normalization["scope"] != "train":
            return None
        fit = self.fit["normalize"]
        offset = np.asarray(fit["offset"], np.float64).astype(np.float32)
        inv_scale = (1.0 / np.asarray(fit["scale"], np.float64)).astype(np.float32)
        return offset, inv_scale

    def physical_affine(self) -> tuple[Float32, Float32]:
        """Return float32 `(offset, scale)`: physical = delivered * scale + offset.

        Shapes are `[1, channels]` when all trials share them, else `[trials, channels]`.
        """
        n_channels = len(self.manifest.channels)
        scope = self.manifest.normalization["scope"]
        if scope == "train":
            fit = self.fit["normalize"]
            pair = (np.asarray([fit[key]], np.float32) for key in ("offset", "scale"))
        elif scope == "trial":
            table = self.cold("offset", "scale")
            pair = (_matrix(table[key], n_channels) for key in ("offset", "scale"))
        else:
            pair = (np.full((1, n_channels), fill, np.float32) for fill in (0, 1))
        offset, scale = pair
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
