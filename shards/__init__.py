"""The store format, shared by writer and reader. `SPEC.md` beside this file is normative."""

from shards.errors import (
    CommitConflictError,
    CorruptStoreError,
    FormatVersionError,
    InvalidSpecError,
    StoreBusyError,
    StoreNotFoundError,
    StoreWriteError,
    TrialNotFoundError,
    TrialShardsError,
)
from shards.manifest import FORMAT_VERSION
from shards.reader import Store, open_store
from shards.trial import Trial
from shards.windows import WindowSpec

__all__ = [
    "FORMAT_VERSION",
    "CommitConflictError",
    "CorruptStoreError",
    "FormatVersionError",
    "InvalidSpecError",
    "Store",
    "StoreBusyError",
    "StoreNotFoundError",
    "StoreWriteError",
    "Trial",
    "TrialNotFoundError",
    "TrialShardsError",
    "WindowSpec",
    "open_store",
]
