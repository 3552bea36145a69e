"""`split`: which trial is on which side."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipeline.sections.base import AnyDuration, Fraction, Model, Name


class ValidationSpec(Model):
    """A validation split carved out of another one."""

    of: str = "train"
    name: str = "val"
    fraction: Fraction = 0.1


def _iso(value: Any) -> Any:
    """Return a date as text: YAML makes one of `2024-07-01` that has no quotes."""
    return value.isoformat() if isinstance(value, date) else value


Moment = Annotated[str | float, BeforeValidator(_iso)]


class SplitSpec(Model):
    """Which trial is on which side; decided before any window is cut."""

    method: Literal["hash", "exact", "attribute", "time", "folds", "leave_one_out"] = "hash"
    """`hash`: by a hash of the group, so that a trial never changes side when others come.
    `exact`: the same order, cut at exact counts. `attribute`: as the data says. `time`: by when
    trials were recorded. `folds`: one of k parts is the test split. `leave_one_out`: one group is
    the test split."""
    by: str = "trial"
    """`trial`, or an attribute that keeps trials together, such as a subject."""
    stratify: Name | None = None
    """For `exact` and `folds`: an attribute whose values are shared out in proportion."""
    fractions: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default={"train": 0.8, "val": 0.1, "test": 0.1}
    )
    attribute: str | None = None
    """For `method: attribute`: the attribute whose value is the split's name."""
    names: dict[str, str] = Field(default_factory=dict)
    """For `method: attribute`: value of the attribute -> split."""
    boundaries: dict[str, Moment] = Field(default_factory=dict)
    """For `method: time`: split -> when it begins, in order, as an ISO date or in units of the
    time column; what is before all of them is `train`. A trial that a boundary cuts, or whose end
    is within `purge` of one, is in split `purged`."""
    purge: AnyDuration | None = None
    folds: Annotated[int, Field(ge=2)] = 5
    fold: Annotated[int, Field(ge=0)] = 0
    """For `method: folds`: the part that is the test split, from 0."""
    held_out: str | None = None
    """For `method: leave_one_out`: the value of `by` that is the test split."""
    validation: ValidationSpec | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> SplitSpec:
        for field, method in (
            ("attribute", "attribute"),
            ("held_out", "leave_one_out"),
            ("boundaries", "time"),
        ):
            if (self.method == method) != bool(getattr(self, field)):
                raise ValueError(f"{field}: goes with 'method: {method}', and only with it.")
        if self.purge is not None and self.method != "time":
            raise ValueError("purge: goes with 'method: time'.")
        if self.stratify is not None and self.method not in ("exact", "folds"):
            raise ValueError(
                "stratify: goes with 'method: exact' or 'folds'; a hash shares out every value in "
                "proportion only on average."
            )
        if self.method == "folds" and self.fold >= self.folds:
            raise ValueError(f"fold: got {self.fold}; wanted 0 to {self.folds - 1}.")
        if self.method == "leave_one_out" and self.by == "trial":
            raise ValueError("by: wanted an attribute, such as a subject, to leave one of out.")
        self._check_fractions()
        return self

    def _check_fractions(self) -> None:
        if self.method not in ("hash", "exact"):
            return
        of = self.validation.of if self.validation else None
        if of is not None and of not in self.fractions:
            raise ValueError(
                f"validation.of: got {of!r}; wanted one of {', '.join(self.fractions)}."
            )
        if abs(sum(self.fractions.values()) - 1) > 1e-9:
            raise ValueError(f"fractions: got a sum of {sum(self.fractions.values()):g}; wanted 1.")
