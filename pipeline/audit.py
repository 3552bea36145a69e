"""Checks of a version before it is published; `audit_store.py` has those of a published one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.delta import Delta
from pipeline.files import Refusal, count_of
from pipeline.spec import DatasetSpec
from pipeline.staging import BucketResult
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
    spec: DatasetSpec, delta: Delta, refusals: Sequence[Refusal], n_accepted: int
) -> Finding:
    """Check that no more files, or trials of such with many, were refused than allowed."""
    n_candidates, what = delta.n_files - sum(delta.ignored.values()), "files"
    if spec.source.holds_many:
        n_candidates, what = n_accepted + len(refusals), "trials"
    share = len(refusals) / max(n_candidates, 1)
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
    spec: DatasetSpec,
    delta: Delta,
    results: Sequence[BucketResult],
    trials: pa.Table,
    draft: VersionDraft,
    refusals: Sequence[Refusal],
) -> tuple[Finding, ...]:
    """Check a version before it is published: conservation, ids, splits.

    Args:
        spec: The specification.
        delta: The raw files.
        results: What came of those that were read.
        trials: All trials, with their splits and row counts.
        draft: What shall be published.
        refusals: All that is quarantined.
    """
    return (
        _conservation(delta, results, trials, draft, refusals),
        _ids_unique(trials),
        _splits_disjoint(spec, trials),
    )


def _conservation(
    delta: Delta,
    results: Sequence[BucketResult],
    trials: pa.Table,
    draft: VersionDraft,
    refusals: Sequence[Refusal],
) -> Finding:
    """Check law 3 for files, and for rows."""
    lost, foreign, twice = _fates(delta, results)
    refused = {refusal.source for refusal in refusals}
    # A file with many trials is accepted when one of them is; the others are refused by name.
    accepted = pc.unique(trials["source"])
    both = pc.is_in(pa.array(sorted(refused), pa.utf8()), value_set=accepted)
    n_refused = len(refused) - int(pc.sum(both).as_py() or 0)
    n_ignored = sum(draft.counts["ignored"].values())
    n_accepted = len(accepted)
    adds_up = n_accepted + n_refused + n_ignored == delta.n_files
    rows_in, rows = (int(pc.sum(trials[n]).as_py() or 0) for n in ("n_rows_in", "n_rows"))
    dropped, inserted = sum(draft.counts["rows_dropped"].values()), draft.counts["rows_inserted"]
    passed = adds_up and not (lost or foreign or twice) and rows_in - dropped + inserted == rows
    said = (
        f"{delta.n_files:,} files = {n_accepted:,} accepted + {n_refused:,} quarantined + "
        f"{n_ignored:,} ignored; {rows_in:,} rows read = {rows:,} stored + "
        f"{dropped:,} dropped" + (f" - {inserted:,} inserted." if inserted else ".")
    )
    for what, paths in (("lost", lost), ("unknown to the catalog", foreign), ("twice", twice)):
        if paths:
            said += f" {count_of(len(paths), 'file')} {what}, such as {', '.join(paths[:SHOWN])}."
    said += "" if passed else " Materialize catalog and trial_shards again."
    return Finding("conservation", passed, said, {"rows_read": rows_in, "rows_stored": rows})


def _fates(delta: Delta, results: Sequence[BucketResult]) -> tuple[list[str], list[str], list[str]]:
    """Return which of the files to be read are lost, which nobody asked for, and which came twice.

    Those that are taken over from the base are accounted for by their number.
    """
    accepted, refused = set[str](), set[str]()
    for result in results:
        if result.rows is not None:
            accepted |= set(result.rows["source"].to_pylist())
        refused |= {refusal.source for refusal in result.refusals if refusal.trial is None}
    partly = {r.source for result in results for r in result.refusals} - accepted - refused
    asked = {file.path for file in delta.read}
    known = accepted | refused | partly
    return sorted(asked - known), sorted(known - asked), sorted(accepted & refused)


def _ids_unique(trials: pa.Table) -> Finding:
    ids = trials["id"].combine_chunks()  # sorted, so that equal ones are neighbours
    equal = pc.equal(ids.slice(1), ids.slice(0, max(len(ids) - 1, 0)))
    twice = sorted(set(ids.slice(1).filter(equal).to_pylist()))
    said = f"{len(ids) - int(pc.sum(equal).as_py() or 0):,} trials, each id once."
    if twice:
        said = (
            f"{count_of(len(twice), 'trial id')} more than once, such as "
            f"{', '.join(twice[:SHOWN])}. "
            "Make source.trial_id tell the files apart."
        )
    return Finding("ids_unique", not twice, said, {"n_trials": trials.num_rows})


def _splits_disjoint(spec: DatasetSpec, trials: pa.Table) -> Finding:
    """Check that no group of trials is on two sides."""
    splits = trials["split"]
    groups = trials["trial" if "trial" in trials.column_names else "id"]
    if spec.split.by != "trial":
        groups = trials["attributes"].combine_chunks().field(spec.split.by)
    n_groups, torn = trials.num_rows, list[str]()
    if spec.split.by != "trial" or "trial" in trials.column_names:  # else each row is a group
        pairs = pa.table({"group": groups, "split": splits})
        sides = pairs.group_by(["group", "split"]).aggregate([]).group_by("group")
        counted = sides.aggregate([("split", "count")])
        n_groups = counted.num_rows
        several = counted.filter(pc.greater(counted["split_count"], 1))["group"]
        torn = sorted(str(group) for group in several.to_pylist())
    counts = {c["values"]: c["counts"] for c in pc.value_counts(splits).to_pylist()}
    counts = dict(sorted(counts.items()))
    shown = ", ".join(f"{name} {n:,}" for name, n in counts.items())
    said = f"{n_groups:,} groups by {spec.split.by}, each in one split: {shown} trials."
    if torn:
        said = (
            f"{count_of(len(torn), 'group')} by {spec.split.by} in more than one split, such as "
            f"{', '.join(torn[:SHOWN])}. Mend split in dataset.yaml."
        )
    return Finding("splits_disjoint", not torn, said, {f"trials_{k}": v for k, v in counts.items()})
