"""What a check of the doctor says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FINE, FINDING, NOT_CHECKED = "fine", "finding", "not checked"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: Of the check; `--ignore` takes it.
        state: `fine`, `finding` or `not checked`.
        seen: The figure that shows it; of what was not checked, the reason.
        remedy: Of a finding: what to do. Doing it makes the finding go away.
    """

    name: str
    state: str
    seen: str
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of `doctor --json`."""
        return dict(vars(self))


def verdict(name: str, seen: str, remedy: str) -> Check:
    """Return a finding if there is a remedy, else that all is fine."""
    return Check(name, FINDING if remedy else FINE, seen, remedy)


def not_checked(name: str, why: str) -> Check:
    """Return that something could not be looked at."""
    return Check(name, NOT_CHECKED, why)
