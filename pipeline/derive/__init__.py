"""New columns of one trial: SQL expressions, ready-made features and Python hooks.

A trial is derived alone, so an aggregate such as `max(t)` cannot see another one (law 1).
What a user can write is in `docs/derive.md`.
"""

from __future__ import annotations

from pipeline.derive.columns import derive_columns
from pipeline.derive.features import Clock
from pipeline.derive.plan import Derivations, check_calendar
from pipeline.derive.reach import Reach, check_causal, reach_of

__all__ = [
    "VERSION",
    "Clock",
    "Derivations",
    "Reach",
    "check_calendar",
    "check_causal",
    "derive_columns",
    "reach_of",
]
