"""What a build tells: while it runs, and when it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.files import Refusal


@dataclass(frozen=True)
class Progress:
    """How far a build is; every field only grows."""

    n_files: int
    n_files_done: int
    n_bytes: int
    n_bytes_done: int


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        store: Store root.
        version: The version that holds the data now.
        published: False if the newest version said the same already.
        counts: As in the manifest, with windows per split.
        refusals: Every quarantined file, and trial of a file with many.
        warnings: Sentences a user should read.
        lookahead: Transforms that look ahead inside a trial.
        n_read: Files that were read; all others were taken over from the version before.
        seconds: Wall time.
    """

    store: Path
    version: str
    published: bool
    counts: Mapping[str, Any]
    refusals: tuple[Refusal, ...]
    warnings: tuple[str, ...]
    lookahead: tuple[str, ...]
    n_read: int
    seconds: float
