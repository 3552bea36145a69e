"""Checks of a version before it is published; `audit_store.py` has those of a published one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.catalog import Catalog
from pipeline.draft import trial_ids
from pipeline.spec import DatasetSpec
from pipeline.trials import Refusal, count_of
from shards.version import VersionDraft

SHOWN = 10


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        name: Of the check.
        passed: Whether all is well.
        message: What was found; if it did not pass, with what was wanted and what to do.
        facts: Numbers and short texts behind it.
        blocking: Whether no model may be trained if it did not pass.
    """

    name: str
    passed: bool
    message: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    blocking: bool = True


def audit_quarantine(
    spec: DatasetSpec, catalog: Catalog, refusals: Sequence[Refusal], n_accepted: int
) -> Finding:
    """Check that no more files, or trials of such with many, were refused than allowed."""
    n_candidates, what = catalog.n_files - sum(catalog.ignored.values()), "files"
    if spec.source.holds_many:
        n_candidates, what = n_accepted + len(refusals), "trials"
    share = len(refusals) / n_candidates
    passed = share <= spec.max_quarantined and len(refusals) < n_candidates
    counts = Counter(refusal.code for refusal in refusals)
    facts = {"n_quarantined": len(refusals), "n_files": n_candidates, "share": share}
    codes = ", ".join(f"{n} {code}" for code, n in counts.most_common())
    said = f"{len(refusals)} of {n_candidates} {what} were refused ({share:.1%}"
    said += f": {codes})" if codes else ")"
    said += f"; max_quarantined allows {spec.max_quarantined:.1%}."
    if not passed:
        shown = [f"  {r.source}: {r.code}: {r.message}" for r in refusals[:SHOWN]]
        more = len(refusals) - len(shown)
        said += " Nothing was published.\n" + "\n".join(shown)
        said += f"\n  ... and {more} more" if more else ""
        said += "\nMend the files, follow the advice above, or raise max_quarantined."
    return Finding("quarantine_share", passed, said, facts | {"codes": dict(counts)})


def audit_draft(
    spec: DatasetSpec, catalog: Catalog, draft: VersionDraft, refusals: Sequence[Refusal]
) -> tuple[Finding, ...]:
    """Check a version before it is published: conservation, ids, splits."""
    return (
        _conservation(catalog, draft, refusals),
        _ids_unique(draft.trials),
        _splits_disjoint(spec, draft.trials),
    )


def _conservation(catalog: Catalog, draft: VersionDraft, refusals: Sequence[Refusal]) -> Finding:
    """Check law 3 for files, and for rows."""
    accepted = set(draft.trials["source"].to_pylist())
    # A file with many trials is accepted when one of them is; the others are refused by name.
    refused = {refusal.source for refusal in refusals if refusal.trial is None}
    refused |= {refusal.source for refusal in refusals} - accepted
    listed = {f.path for f in catalog.files} | {r.source for r in catalog.refusals}
    lost = sorted(listed - accepted - refused)
    foreign = sorted((accepted | refused) - listed)
    twice = sorted(accepted & refused)
    rows_in, rows = (int(pc.sum(draft.trials[n]).as_py() or 0) for n in ("n_rows_in", "n_rows"))
    dropped, inserted = sum(draft.counts["rows_dropped"].values()), draft.counts["rows_inserted"]
    passed = not (lost or foreign or twice) and rows_in - dropped + inserted == rows
    said = (
        f"{catalog.n_files:,} files = {len(accepted):,} accepted + {len(refused):,} quarantined + "
        f"{sum(catalog.ignored.values()):,} ignored; {rows_in:,} rows read = {rows:,} stored + "
        f"{dropped:,} dropped" + (f" - {inserted:,} inserted." if inserted else ".")
    )
    for what, paths in (("lost", lost), ("unknown to the catalog", foreign), ("twice", twice)):
        if paths:
            said += f" {count_of(len(paths), 'file')} {what}, such as {', '.join(paths[:SHOWN])}."
    said += "" if passed else " Materialize catalog and trial_shards again."
    return Finding("conservation", passed, said, {"rows_read": rows_in, "rows_stored": rows})


def _ids_unique(trials: pa.Table) -> Finding:
    ids = trials["id"].to_pylist()
    n_ids = len(set(ids))
    counts = Counter(ids) if n_ids < len(ids) else {}
    twice = sorted(trial_id for trial_id, n in counts.items() if n > 1)
    said = f"{n_ids:,} trials, each id once."
    if twice:
        said = (
            f"{count_of(len(twice), 'trial id')} more than once, such as "
            f"{', '.join(twice[:SHOWN])}. "
            "Make source.trial_id tell the files apart."
        )
    return Finding("ids_unique", not twice, said, {"n_trials": trials.num_rows})


def _splits_disjoint(spec: DatasetSpec, trials: pa.Table) -> Finding:
    """Check that no group of trials is on two sides."""
    splits = trials["split"].to_pylist()
    groups = trial_ids(trials)
    if spec.split.by != "trial":
        groups = trials["attributes"].combine_chunks().field(spec.split.by).to_pylist()
    sides = dict(zip(groups, splits, strict=True))
    pairs = set(zip(groups, splits, strict=True))
    # A group on two sides is in more pairs than one.
    torn = sorted({group for group, split in pairs if sides[group] != split})
    counts = dict(sorted(Counter(splits).items()))
    shown = ", ".join(f"{name} {n:,}" for name, n in counts.items())
    said = f"{len(sides):,} groups by {spec.split.by}, each in one split: {shown} trials."
    if torn:
        said = (
            f"{count_of(len(torn), 'group')} by {spec.split.by} in more than one split, such as "
            f"{', '.join(torn[:SHOWN])}. Mend split in dataset.yaml."
        )
    return Finding("splits_disjoint", not torn, said, {f"trials_{k}": v for k, v in counts.items()})
