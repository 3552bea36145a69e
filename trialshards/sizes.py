"""Bytes: how they are shown, and which of a shard's a stream reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shards.layout import ArraySpec
    from shards.manifest import ShardEntry

_STREAMED = ("values", "observed", "targets", "codes")


def show_bytes(n_bytes: float) -> str:
    """Return a number of bytes as people read it."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n_bytes >= size:
            return f"{n_bytes / size:,.1f} {unit}"
    return f"{n_bytes:,.0f} bytes"


def streamed_arrays(entry: ShardEntry) -> Mapping[str, ArraySpec]:
    """Return the arrays of a shard that a stream maps: not the times, which no model gets."""
    return {name: spec for name, spec in entry.arrays.items() if name in _STREAMED}
