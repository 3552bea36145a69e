"""Raw files into a committed version, all steps in a row: what the command and benchmarks call."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.audit import Finding
from pipeline.causal import describe_lookahead
from pipeline.commit import Work, commit_version
from pipeline.delta import Delta
from pipeline.draft import Fitted
from pipeline.outcome import BuildReport, OnProgress, Progress
from pipeline.settled import is_settled, unchanged
from pipeline.staging import BucketResult
from pipeline.workspace import Workspace
from shards.errors import InvalidSpecError, TooManyQuarantinedError, TrialShardsError
from shards.leases import building
from shards.writer import newest_version


def build(
    spec_path: str | Path,
    store: str | Path,
    *,
    on_progress: OnProgress | None = None,
    n_workers: int | None = None,
    refit: bool = False,
    fit: str | Path | None = None,
) -> BuildReport:
    """Build a data set and publish it as the next version of a store.

    Args:
        spec_path: `dataset.yaml`; globs and tables are below its folder.
        store: Store root, made if absent.
        on_progress: Called after every batch of files.
        n_workers: Threads; by default one per processor.
        refit: Fit anew what an earlier build froze: quartiles, regimes, vocabularies.
        fit: A `fit.json` to normalize and encode by, instead of fitting.

    Raises:
        InvalidSpecError: If the specification is wrong or no file can be used.
        TooManyQuarantinedError: If more files were refused than `max_quarantined` allows.
        CommitConflictError: If another build committed meanwhile.
    """
    space = Workspace.open(spec_path, store)
    fitted = Fitted(refit=refit, given=None if fit is None else _read_fit(fit))
    return build_space(space, fitted, on_progress=on_progress, n_workers=n_workers)


def build_space(
    space: Workspace,
    fitted: Fitted | None = None,
    *,
    on_progress: OnProgress | None = None,
    n_workers: int | None = None,
) -> BuildReport:
    """Do what `build` does, of a specification that was read already.

    Args:
        space: Specification and store.
        fitted: What is not fitted as usual.
        on_progress: Called after every batch of files.
        n_workers: Threads; by default one per processor.

    Raises:
        InvalidSpecError: If the specification does not fit the files, or none can be used.
        TooManyQuarantinedError: If more files were refused than `max_quarantined` allows.
        CommitConflictError: If another build committed meanwhile.
    """
    began, fitted = time.perf_counter(), fitted or Fitted()
    with building(space.store):
        after, base = newest_version(space.store), space.base()
        delta = space.look(base)
        if delta is None:
            delta = space.delta(space.scan(), base)
        asked = space.spec.model_dump(mode="json")
        if fitted == Fitted() and base is not None and is_settled(base, delta, asked):
            return unchanged(base, began)
        results = _build_buckets(space, delta, on_progress, n_workers)
        return finish_build(space, Work(delta, results, base, after, fitted), began)


def finish_build(space: Workspace, work: Work, began: float) -> BuildReport:
    """Commit what was built, and say what came of it.

    Raises:
        TooManyQuarantinedError: If more files were refused than `max_quarantined` allows.
        InvalidSpecError: If another check failed.
        CommitConflictError: If another build committed meanwhile and touched the same files.
    """
    commit = commit_version(space, work)
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
        n_read=len(work.delta.read),
        seconds=time.perf_counter() - began,
    )


def _read_fit(path: str | Path) -> dict[str, Any]:
    try:
        document = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidSpecError(
            f"{path}: no fit.json can be read there ({error}). Take that of a version."
        ) from error
    if not isinstance(document, dict):
        raise InvalidSpecError(f"{path}: got {type(document).__name__}; wanted a JSON object.")
    return document


def _build_buckets(
    space: Workspace, delta: Delta, on_progress: OnProgress | None, n_workers: int | None
) -> list[BucketResult]:
    n_bytes = sum(file.size_bytes for file in delta.read)
    done = np.zeros(2, np.int64)

    def on_files(n_files: int, n_bytes_done: int) -> None:
        done[:] += (n_files, n_bytes_done)
        if on_progress is not None:
            on_progress(Progress(len(delta.read), int(done[0]), n_bytes, int(done[1])))

    return [
        space.build_bucket(delta, bucket, on_files=on_files, n_workers=n_workers)
        for bucket in sorted({file.bucket for file in delta.read})
    ]


def _refusal(findings: Sequence[Finding]) -> TrialShardsError:
    failed = [finding for finding in findings if not finding.passed]
    message = " ".join(finding.message for finding in failed)
    if any(finding.name == "quarantine_share" for finding in failed):
        return TooManyQuarantinedError(message)
    return InvalidSpecError(message)
