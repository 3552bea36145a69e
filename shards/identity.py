"""What makes two trials, splits or data sets the same (SPEC section 7). Pure hashing."""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

FORMAT_MAJOR = 1
_IS_LITTLE = sys.byteorder == "little"


def trial_digest(
    trial_id: str,
    arrays: Mapping[str, npt.NDArray[Any]],
    label: str | float | None,
    *,
    weight: float = 1.0,
    categories: Sequence[Sequence[str]] = (),
    statics: Mapping[str, str | None] | None = None,
) -> str:
    """Return the digest of one trial: of all that a model could see of it.

    Args:
        trial_id: The id.
        arrays: `[rows, columns]` each, the trial's own rows.
        label: Class name, or value; None when the trial has none.
        weight: Its loss weight.
        categories: Of each column of `codes`, the words that its codes 1, 2, ... stand for.
        statics: Name -> text of each attribute that is an input, in the order of the data set;
            None where the trial has none.
    """
    state = xxhash.xxh3_128()
    small = [_sized(trial_id.encode())]  # few long updates: a short one costs as much
    for name in sorted(arrays):
        rows = little_endian(arrays[name])
        head = f"{name}|{_name_of(rows.dtype)}|{rows.shape[0]}x{rows.shape[1]}".encode()
        state.update(b"".join([*small, _sized(head), rows.nbytes.to_bytes(8, "little")]))
        state.update(rows.data)
        small.clear()
    if isinstance(label, str):
        small.append(_sized(b"class " + label.encode()))
    else:
        small.append(_sized(b"" if label is None else b"value " + _float32(label)))
    small.append(_FULL_WEIGHT if weight == 1.0 else _sized(_float32(weight)))
    # Only where there are any, so that trials without them keep the digests they always had.
    if categories:
        small.append(_sized(b"categories " + _json([list(words) for words in categories])))
    if statics:
        small.append(_sized(b"statics " + _json([list(pair) for pair in statics.items()])))
    state.update(b"".join(small))
    return state.hexdigest()


def _sized(part: bytes) -> bytes:
    return len(part).to_bytes(8, "little") + part


def _float32(value: float) -> bytes:
    return bytes(np.float32(value).astype("<f4").tobytes())


_FULL_WEIGHT = _sized(_float32(1.0))


@functools.lru_cache(maxsize=64)
def _name_of(dtype: np.dtype[Any]) -> str:
    return dtype.name


def little_endian(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the rows in C order and the byte order of the format."""
    if _IS_LITTLE and rows.dtype.isnative and rows.flags.c_contiguous:
        return rows
    return np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))


def pairs_digest(pairs: Iterable[tuple[str, str]]) -> str:
    """Return the SHA-256 of (name, digest) pairs in the order given."""
    state = hashlib.sha256()
    for name, digest in pairs:
        for part in (name.encode(), digest.encode()):
            state.update(len(part).to_bytes(8, "little") + part)
    return state.hexdigest()


def split_fingerprint(schema: Mapping[str, Any], pairs: str) -> str:
    """Return the fingerprint of one split.

    Args:
        schema: Channels, target, windows, normalization and fit digest; JSON types only.
        pairs: `pairs_digest` of (id, trial digest) of the split's trials in id order.
    """
    head = canonical_json({"format": FORMAT_MAJOR, **schema})
    return hashlib.sha256(head + pairs.encode()).hexdigest()


def dataset_fingerprint(fingerprints: Mapping[str, str]) -> str:
    """Return the fingerprint over all splits."""
    return pairs_digest(sorted(fingerprints.items()))


def canonical_json(document: Mapping[str, Any]) -> bytes:
    """Return JSON bytes that are equal for equal documents."""
    return _json(document)


def _json(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def file_promise(content: bytes | mmap.mmap) -> dict[str, Any]:
    """Return the manifest entry of a file."""
    return {"size_bytes": len(content), "xxh3_128": xxhash.xxh3_128_hexdigest(content)}
