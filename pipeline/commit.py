"""Staged buckets into a published version: merge, audit, publish; or say why not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.audit import Finding, audit_draft, audit_quarantine
from pipeline.catalog import Catalog
from pipeline.draft import draft_version, trial_ids
from pipeline.fit import find_warnings
from pipeline.ledger import save_catalog
from pipeline.staging import KEPT_SECONDS, BucketResult, remove_old_staging
from pipeline.trials import Refusal
from pipeline.workspace import Workspace
from shards.disk import remove_leftovers
from shards.errors import InvalidSpecError
from shards.version import publish_version


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


def commit_version(
    space: Workspace, catalog: Catalog, results: Sequence[BucketResult], *, after: str | None
) -> Commit:
    """Publish all buckets of a catalog as the next version, if every check passes.

    Args:
        space: Where.
        catalog: What the buckets were built from.
        results: All of them.
        after: The newest version when the catalog was made or read, or None.

    Raises:
        InvalidSpecError: If splits cannot be assigned or fitted.
        CommitConflictError: If another build committed meanwhile.
    """
    spec, store = space.spec, space.store
    refusals = (*catalog.refusals, *(r for result in results for r in result.refusals))
    findings: tuple[Finding, ...] = (
        audit_quarantine(spec, catalog, refusals, sum(result.n_trials for result in results)),
    )
    if not any(result.rows is not None for result in results):
        return Commit(findings, refusals)
    try:
        draft = draft_version(spec, catalog, results, refusals, store)
    except InvalidSpecError:
        if findings[0].passed:
            raise
        return Commit(findings, refusals)  # the refused files are why, and are what to mend
    findings += audit_draft(spec, catalog, draft, refusals)
    if not all(finding.passed for finding in findings):
        return Commit(findings, refusals)
    version = publish_version(store, draft, after=after)
    many = spec.source.holds_many
    _remember(space, catalog, results)
    return Commit(
        findings=findings,
        refusals=refusals,
        version=version,
        published=version != after,
        counts=draft.counts,
        warnings=(
            *catalog.warnings,
            *(space.recipe.tables.unmatched(trial_ids(draft.trials)) if many else ()),
            *find_warnings(spec, draft.trials),
        ),
    )


def _remember(space: Workspace, catalog: Catalog, results: Sequence[BucketResult]) -> None:
    """Keep the catalog as it was read, for the next one to be compared with."""
    files = sorted((f for result in results for f in result.files), key=lambda file: file.path)
    save_catalog(space.committed, dataclasses.replace(catalog, files=tuple(files)))
    remove_leftovers(space.store, KEPT_SECONDS)
    remove_old_staging(space.staging(catalog.n_buckets), space.ledger, space.committed)
