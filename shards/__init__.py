"""The store format, shared by writer and reader. `SPEC.md` beside this file is normative."""

from shards.errors import (
    CommitConflictError,
    CorruptStoreError,
    FormatVersionError,
    InvalidSpecError,
    StoreNotFoundError,
    TrialNotFoundError,
    TrialShardsError,
)
from shards.reader import Store
from shards.windows import WindowSpec

__all__ = [
    "CommitConflictError",
    "CorruptStoreError",
    "FormatVersionError",
    "InvalidSpecError",
    "Store",
    "StoreNotFoundError",
    "TrialNotFoundError",
    "TrialShardsError",
    "WindowSpec",
]
