"""What all sections share: strictness, sizes, durations, names."""

from __future__ import annotations

import re
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
SECONDS = {
    "ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0,
    "w": 604800.0,
}  # fmt: skip
"""Seconds of one unit of time."""


def _known_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"got {value!r}; wanted an IANA zone such as Europe/Berlin.") from error
    return value


Zone = Annotated[str, AfterValidator(_known_zone)]
"""An IANA time zone."""


class Model(BaseModel):
    """Frozen, and strict about names."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def parse_size(value: Any) -> Any:
    """Return bytes for `128MiB`, `1 GB` or a plain number."""
    match = (
        re.fullmatch(r"\s*(\d{1,12}(?:\.\d+)?)\s*((?:[KMG]i?)?B)\s*", value, re.ASCII)
        if isinstance(value, str)
        else None
    )
    if match is None:
        return value
    return int(float(match[1]) * _UNITS[match[2]])


SizeBytes = Annotated[int, BeforeValidator(parse_size), Field(ge=1)]


class Duration(Model):
    """A length of time, or of a time column in its own units."""

    amount: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Seconds where `timed`, else units of the time column."""
    timed: bool = False
    """Whether it was written with a unit, such as `5min`."""


def parse_duration(value: Any) -> Any:
    """Return a `Duration` for `5min`, `250 ms`, `1.5h`, or for a plain number."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return {"amount": value}
    match = (
        re.fullmatch(r"\s*(\d{1,15}(?:\.\d+)?)\s*(ns|us|ms|s|min|h|d|w)\s*", value, re.ASCII)
        if isinstance(value, str)
        else None
    )
    if match is None:
        if isinstance(value, str):
            raise ValueError(
                f"got {value!r}; wanted a number, or a duration such as 250ms, 5min, 1.5h or 2d."
            )
        return value
    return {"amount": float(match[1]) * SECONDS[match[2]], "timed": True}


AnyDuration = Annotated[Duration, BeforeValidator(parse_duration)]
