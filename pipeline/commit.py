"""Built buckets into a published version: merge, audit, publish; or say why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.audit import Finding, audit_draft, audit_quarantine
from pipeline.base import Base
from pipeline.delta import Delta
from pipeline.draft import Fitted, draft_version, trial_ids
from pipeline.files import Refusal
from pipeline.fit import find_warnings
from pipeline.merge import keep_equal, merge
from pipeline.rebase import rebase
from pipeline.spec import key_orders
from pipeline.staging import KEPT_SECONDS, BucketResult, remove_old_staging
from pipeline.workspace import Workspace
from shards.disk import remove_leftovers
from shards.errors import CommitConflictError, InvalidSpecError
from shards.version import VersionDraft, publish_version


@dataclass(frozen=True)
class Commit:
    """What came of an attempt to publish.

    Attributes:
        findings: Checks made before publishing; one that did not pass stopped it.
        refusals: Every quarantined file, and trial of a file with many.
        version: The version that holds the data now, or None if a check stopped it.
        published: False if the newest version said the same already.
        counts: As in the manifest.
        warnings: Sentences a user should read.
    """

    findings: tuple[Finding, ...]
    refusals: tuple[Refusal, ...]
    version: str | None = None
    published: bool = False
    counts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """What is to be committed.

    Attributes:
        delta: The raw files, compared with the base.
        results: What came of those that were read.
        base: The version that the others are taken over from, or None.
        after: The newest version when the files were compared, or None.
        fitted: What is not fitted anew.
    """

    delta: Delta
    results: Sequence[BucketResult]
    base: Base | None
    after: str | None
    fitted: Fitted = field(default_factory=Fitted)


def commit_version(space: Workspace, work: Work) -> Commit:
    """Publish the next version, if every check passes.

    Where another build committed meanwhile, and touched other files than this one, what this one
    did is done again on top of it.

    Raises:
        InvalidSpecError: If splits cannot be assigned or fitted.
        CommitConflictError: If another build committed meanwhile and touched the same files.
    """
    while True:
        try:
            return _commit(space, work)
        except CommitConflictError as conflict:
            work = rebase(space, work, conflict)


def _commit(space: Workspace, work: Work) -> Commit:
    spec, delta, base = space.spec, work.delta, work.base
    kept = base.kept_refusals(delta.gone) if base is not None else ()
    built = tuple(refusal for result in work.results for refusal in result.refusals)
    refusals = (*delta.refusals, *kept, *built)
    merged = merge(space.store, base, delta, work.results)
    n_trials = 0 if merged is None else merged.index.num_rows
    findings: tuple[Finding, ...] = (audit_quarantine(spec, delta, refusals, n_trials),)
    if merged is None:
        return Commit(findings, refusals)
    if work.results:
        merged = keep_equal(merged, base)
    try:
        draft, trials = draft_version(
            spec, space.plan, delta, merged, refusals, base=base, fitted=work.fitted,
            text=_text(space, work),
        )  # fmt: skip
    except InvalidSpecError:
        if findings[0].passed:
            raise
        return Commit(findings, refusals)  # the refused files are why, and are what to mend
    findings += audit_draft(spec, delta, work.results, trials, draft, refusals)
    if not all(finding.passed for finding in findings):
        return Commit(findings, refusals)
    version = publish_version(space.store, draft, after=work.after)
    _clean_up(space)
    return Commit(
        findings=findings,
        refusals=refusals,
        version=version,
        published=version != work.after,
        counts=draft.counts,
        warnings=_warnings(space, work, trials, draft),
    )


def _text(space: Workspace, work: Work) -> str | None:
    """Return the digest of the file that says the specification, for the build after this one."""
    base, asked = work.base, space.spec.model_dump(mode="json")
    if base is None or not work.delta.is_empty or dict(base.manifest.spec) != asked:
        return space.text
    if (base.says("orders") or {}) != key_orders(asked):
        return space.text
    told: str | None = base.says("text")  # other words for the same are no reason for a version
    return told


def _warnings(
    space: Workspace, work: Work, trials: pa.Table, draft: VersionDraft
) -> tuple[str, ...]:
    many = space.spec.source.holds_many
    return (
        *work.delta.warnings,
        *(space.recipe.tables.unmatched(trial_ids(trials)) if many else ()),
        *find_warnings(space.spec, trials, draft.fit),
    )


def _clean_up(space: Workspace) -> None:
    """Remove what killed builds and other specifications left behind."""
    remove_leftovers(space.store, KEPT_SECONDS)
    remove_old_staging(space.staging_root, space.plan, space.ledger)
