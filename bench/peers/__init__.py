"""What others read windows with, each at its best settings, in an environment of its own.

A module has `batches(folder, **setting)`: an endless iterator of (float32 `[B, L, C]`, targets)
over the work in `folder`. Its libraries are imported there alone; this list is of names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Peer:
    """One method of others.

    Attributes:
        package: What must be installed beside NumPy, PyArrow and torch, or None.
        settings: What is tried before the fastest is kept.
    """

    package: str | None
    settings: tuple[dict[str, Any], ...]


def _each(**choices: list[Any]) -> tuple[dict[str, Any], ...]:
    found: list[dict[str, Any]] = [{}]
    for name, values in choices.items():
        found = [{**one, name: value} for one in found for value in values]
    return tuple(found)


PEERS = {
    # threads 0: as many as torch takes by itself
    "tutorial": Peer(None, (*_each(workers=[0, 2]), {"workers": 0, "threads": 0})),
    "parquet": Peer(None, _each(workers=[0, 2])),
    "huggingface": Peer("datasets", _each(workers=[0, 2], kind=["list", "binary"])),
    "grain_map": Peer(
        "grain", (*_each(workers=[0, 2], kind=["element", "batch"]),
                  {"workers": 0, "kind": "batch", "threads_ahead": 2}),
    ),
    "litdata_chunks": Peer("litdata", _each(workers=[0, 2], decode=["auto", "chunk", "item"])),
}  # fmt: skip
