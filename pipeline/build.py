"""Raw files into a committed version, all steps in a row: what the command and benchmarks call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.audit import Finding
from pipeline.catalog import Catalog
from pipeline.causal import describe_lookahead
from pipeline.commit import commit_version
from pipeline.staging import BucketResult
from pipeline.trials import Refusal
from pipeline.workspace import Workspace
from shards.errors import InvalidSpecError, TooManyQuarantinedError, TrialShardsError
from shards.writer import newest_version


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
        seconds: Wall time.
    """

    store: Path
    version: str
    published: bool
    counts: Mapping[str, Any]
    refusals: tuple[Refusal, ...]
    warnings: tuple[str, ...]
    lookahead: tuple[str, ...]
    seconds: float


def build(
    spec_path: str | Path,
    store: str | Path,
    *,
    on_progress: OnProgress | None = None,
    n_workers: int | None = None,
) -> BuildReport:
    """Build a data set and publish it as the next version of a store.

    Args:
        spec_path: `dataset.yaml`; globs and tables are below its folder.
        store: Store root, made if absent.
        on_progress: Called after every batch of files.
        n_workers: Threads; by default one per processor.

    Raises:
        InvalidSpecError: If the specification is wrong or no file can be used.
        TooManyQuarantinedError: If more files were refused than `max_quarantined` allows.
        CommitConflictError: If another build committed meanwhile.
    """
    began = time.perf_counter()
    space = Workspace.open(spec_path, store)
    after = newest_version(space.store)
    catalog = space.scan()
    results = _build_buckets(space, catalog, on_progress, n_workers)
    commit = commit_version(space, catalog, results, after=after)
    if commit.version is None:
        raise _refusal(commit.findings)
    return BuildReport(
        store=space.store,
        version=commit.version,
        published=commit.published,
        counts=commit.counts,
        refusals=commit.refusals,
        warnings=commit.warnings,
        lookahead=tuple(describe_lookahead(space.spec)),
        seconds=time.perf_counter() - began,
    )


def _build_buckets(
    space: Workspace, catalog: Catalog, on_progress: OnProgress | None, n_workers: int | None
) -> list[BucketResult]:
    n_bytes = sum(file.size_bytes for file in catalog.files)
    done = np.zeros(2, np.int64)

    def on_files(n_files: int, n_bytes_done: int) -> None:
        done[:] += (n_files, n_bytes_done)
        if on_progress is not None:
            on_progress(Progress(len(catalog.files), int(done[0]), n_bytes, int(done[1])))

    return [
        space.build_bucket(catalog, bucket, on_files=on_files, n_workers=n_workers)
        for bucket in range(catalog.n_buckets)
    ]


def _refusal(findings: Sequence[Finding]) -> TrialShardsError:
    failed = [finding for finding in findings if not finding.passed]
    message = " ".join(finding.message for finding in failed)
    if any(finding.name == "quarantine_share" for finding in failed):
        return TooManyQuarantinedError(message)
    return InvalidSpecError(message)
