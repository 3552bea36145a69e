"""One array of a shard as bytes: a Zarr v3 array in a single shard, raw rows first.

zarr-python's own writer leaves out inner chunks that hold only the fill value, which would shift
the rows behind them; a map needs every row at its place, so the bytes are written here
(SPEC section 4).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import xxhash

from shards.safety import text, whole
from shards.windows import WindowSpec

INNER_ROWS = 4096
"""Most rows of one inner chunk: other Zarr readers slice these in 1-2 ms; one big chunk took s."""

DIGEST = re.compile(r"[0-9a-f]{32}")
_DTYPES = {"float64": 8, "float32": 4, "uint16": 2, "uint8": 1}
_SAFE_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True)
class ArraySpec:
    """Shape and promise of one array of one shard.

    Attributes:
        dtype: `float64`, `float32`, `uint16` or `uint8`, little-endian.
        n_rows: Rows of all trials in the shard; in layout windows a row is a window.
        n_columns: Columns.
        xxh3_128: Digest of the raw rows without padding.
    """

    dtype: str
    n_rows: int
    n_columns: int
    xxh3_128: str

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES or self.n_rows < 1 or self.n_columns < 1:
            raise ValueError(f"not an array of this format: {self}")
        if not DIGEST.fullmatch(self.xxh3_128):
            raise ValueError(f"not a digest: {self.xxh3_128!r}")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.n_columns * _DTYPES[self.dtype]

    @property
    def data_bytes(self) -> int:
        """Bytes of all rows, without padding."""
        return self.n_rows * self.row_bytes

    @property
    def n_inner(self) -> int:
        """Number of inner chunks."""
        return -(-self.n_rows // INNER_ROWS)

    @property
    def inner_rows(self) -> int:
        """Rows per inner chunk: balanced, so that the padding is below one row per chunk."""
        return -(-self.n_rows // self.n_inner)

    @property
    def size_bytes(self) -> int:
        """Size of the chunk file in container zarr."""
        return self.n_inner * (self.inner_rows * self.row_bytes + 16) + 4

    def as_dict(self, *, chunked: bool = True) -> dict[str, Any]:
        """Return the manifest entry; `chunked`: as a Zarr array with a chunk file of its own."""
        entry: dict[str, Any] = {
            "dtype": self.dtype,
            "shape": [self.n_rows, self.n_columns],
            "xxh3_128": self.xxh3_128,
        }
        if chunked:
            entry |= {"inner_rows": self.inner_rows, "size_bytes": self.size_bytes}
        return entry

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any], *, chunked: bool = True) -> ArraySpec:
        """Parse a manifest entry.

        Raises:
            ValueError: If it contradicts itself.
        """
        n_rows, n_columns = (whole(n, "shape", 1) for n in entry["shape"])
        dtype, digest = (text(entry[name], name) for name in ("dtype", "xxh3_128"))
        spec = cls(dtype, n_rows, n_columns, digest)
        whole(spec.size_bytes, "size_bytes")
        wanted = spec.as_dict(chunked=chunked)
        given = {name: entry.get(name) for name in wanted}
        if given != wanted or any(type(given[name]) is not type(wanted[name]) for name in wanted):
            raise ValueError(f"array entry contradicts itself: {entry} != {wanted}")
        return spec


def describe_array(*parts: npt.NDArray[Any]) -> ArraySpec:
    """Return the spec of `[rows, columns]` arrays below each other, C order, little-endian."""
    state = xxhash.xxh3_128()
    for part in parts:
        if len(part):
            state.update(part.data.cast("B"))
    n_rows = sum(len(part) for part in parts)
    return ArraySpec(parts[0].dtype.name, n_rows, parts[0].shape[1], state.hexdigest())


def chunk_tail(spec: ArraySpec) -> bytes:
    """Return the bytes behind the raw rows: zero padding, the chunk index, its CRC-32C."""
    inner_bytes = spec.inner_rows * spec.row_bytes
    padding = spec.n_inner * inner_bytes - spec.data_bytes
    index = np.empty((spec.n_inner, 2), "<u8")
    index[:, 0] = np.arange(spec.n_inner, dtype=np.uint64) * np.uint64(inner_bytes)
    index[:, 1] = inner_bytes
    raw = index.tobytes()
    return bytes(padding) + raw + int(google_crc32c.value(raw)).to_bytes(4, "little")


def array_metadata(spec: ArraySpec, name: str | None) -> bytes:
    """Return `zarr.json` of the array (Zarr v3, sharding_indexed).

    Args:
        spec: Of the array.
        name: Of the array, which names its second dimension, so that xarray can open a whole shard;
            None as early writers had it.
    """
    endian = {"name": "bytes", "configuration": {"endian": "little"}}
    codec = endian if spec.dtype != "uint8" else {"name": "bytes"}
    chunk = [spec.n_inner * spec.inner_rows, spec.n_columns]
    sharding = {
        "chunk_shape": [spec.inner_rows, spec.n_columns],
        "codecs": [codec],
        "index_codecs": [endian, {"name": "crc32c"}],
        "index_location": "end",
    }
    return _json(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [spec.n_rows, spec.n_columns],
            "data_type": spec.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "dimension_names": ["row", name and f"{name}_column"],
            "attributes": {},
        }
    )


def group_metadata() -> bytes:
    """Return `zarr.json` of the shard's group."""
    return _json({"zarr_format": 3, "node_type": "group", "attributes": {}})


def wanted_arrays(
    *,
    n_channels: int,
    target: str,
    n_targets: int,
    observed: bool,
    n_codes: int,
    windows: WindowSpec | None,
) -> dict[str, tuple[str, int]]:
    """Return dtype and columns of each array that every shard of a version must have.

    Args:
        n_channels: Columns of the values.
        target: `forecast`, `per_step` or `per_trial`.
        n_targets: Columns of the target.
        observed: Whether flags are stored.
        n_codes: Categorical columns.
        windows: In layout windows, how they are cut; None in layout rows.
    """
    n_steps = windows.length if windows else 1
    wanted = {"values": ("float32", n_steps * n_channels)}
    if observed:
        wanted["observed"] = ("uint8", n_steps * -(-n_channels // 8))
    if target == "per_step":
        wanted["targets"] = ("float32", n_steps * n_targets)
    if target == "forecast" and windows:
        wanted["targets"] = ("float32", windows.steps * n_targets)
    if n_codes:
        wanted["codes"] = ("uint16", n_steps * n_codes)
    return wanted


def shard_digest(
    arrays: Mapping[str, ArraySpec], columns: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Return the content name of a shard (SPEC section 7).

    Args:
        arrays: Its arrays by name.
        columns: Container parquet: what the columns of its arrays are called; None for zarr.
    """
    state = xxhash.xxh3_128()
    if columns is not None:
        for part in ("parquet", _json(columns).decode()):
            state.update(len(part).to_bytes(8, "little") + part.encode())
    for name in sorted(arrays):
        spec = arrays[name]
        part = f"{name}|{spec.dtype}|{spec.n_rows}x{spec.n_columns}|{spec.xxh3_128}"
        state.update(len(part).to_bytes(8, "little") + part.encode())
    return state.hexdigest()


def is_array_name(name: str) -> bool:
    """Return whether `name` may be a folder of a shard (never a path)."""
    return _SAFE_NAME.fullmatch(name) is not None


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
