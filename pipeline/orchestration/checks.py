"""Asset checks: a model is not trained on a version that fails one of them."""

from collections.abc import Callable
from dataclasses import dataclass

import dagster as dg

from pipeline.audit import Finding
from pipeline.audit_store import check_bytes, check_finite, check_leaks, check_windows
from pipeline.orchestration.room import Room
from shards.reader import Store


@dataclass(frozen=True)
class DraftCheck:
    """A check that is made before a version is published."""

    name: str
    description: str

    def for_asset(self, key: dg.AssetKey) -> dg.AssetCheckSpec:
        """Return its specification on an asset."""
        return dg.AssetCheckSpec(self.name, asset=key, description=self.description, blocking=True)


DRAFT_CHECKS = (
    DraftCheck("quarantine_share", "No more files were refused than max_quarantined allows."),
    DraftCheck(
        "conservation",
        "Every file is accepted, quarantined or ignored by a named rule; every row is stored or "
        "dropped for a reason.",
    ),
    DraftCheck("ids_unique", "Every trial id occurs once, over all buckets."),
    DraftCheck("splits_disjoint", "No trial, and no group of split.by, is in two splits."),
)
"""Made on the draft, by the asset itself: if one fails, nothing is published."""

STORE_CHECKS: tuple[tuple[str, str, Callable[[Store], Finding]], ...] = (
    (
        "windows_add_up",
        "Windows counted from row ranges are those of index and manifest, and train has some.",
        check_windows,
    ),
    ("finite", "Every stored value is a number, or is known to be masked.", check_finite),
    (
        "leak_audit",
        (
            "Statistics were fitted on train trials alone, no input is derived from the target; "
            "warns if one recording lies in two splits; says what looks ahead inside a trial."
        ),
        check_leaks,
    ),
    ("verify", "Every byte of the version is the one that was written.", check_bytes),
)
"""Made on the published version, and repeatable on any day."""


def build_checks(room: Room) -> list[dg.AssetChecksDefinition]:
    """Return the checks of the published version."""
    return [_store_check(room, *check) for check in STORE_CHECKS]


def _store_check(
    room: Room, name: str, description: str, run: Callable[[Store], Finding]
) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=room.key("training_set"), name=name, description=description, blocking=True
    )
    def check() -> dg.AssetCheckResult:
        return check_result(run(Store(room.space.store)))

    return check


def check_result(finding: Finding, key: dg.AssetKey | None = None) -> dg.AssetCheckResult:
    """Return a finding as Dagster records it."""
    severity = dg.AssetCheckSeverity.ERROR if finding.blocking else dg.AssetCheckSeverity.WARN
    # The page shows a description without its line breaks, and Markdown in a window of its own.
    lines = [line.strip() for line in finding.message.splitlines()]
    listed = "\n".join(f"- {line}" for line in lines[1:])
    details = {"details": dg.MetadataValue.md(f"{lines[0]}\n\n{listed}")} if listed else {}
    return dg.AssetCheckResult(
        passed=finding.passed,
        asset_key=key,
        check_name=finding.name,
        severity=severity,
        description=finding.message,
        metadata={**finding.facts, **details},
    )
