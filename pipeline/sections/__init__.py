"""The sections of `dataset.yaml`.

Every model refuses fields it does not know. Defaults are the plain thing; a default that is not
obvious says why.
"""

from __future__ import annotations

from pipeline.sections.base import Duration, Model, parse_duration, parse_size
from pipeline.sections.inputs import (
    Attribute,
    Calendar,
    Channels,
    ChannelSpec,
    ColumnAttribute,
    Derivation,
    Difference,
    Encoding,
    Hook,
    Lag,
    RollingMean,
    RunsAttribute,
    SinceObserved,
    Sql,
    StaticEncoding,
    Statics,
    TableAttribute,
)
from pipeline.sections.source import (
    BlocksSpec,
    PivotSpec,
    ResampleSpec,
    SourceSpec,
    TimeSpec,
)
from pipeline.sections.splits import SplitSpec, ValidationSpec
from pipeline.sections.values import (
    ChannelNormalize,
    CleanSpec,
    NormalizeSpec,
    OutlierSpec,
    RegimeSpec,
)
from pipeline.sections.windows import (
    ForecastTarget,
    PerStepTarget,
    PerTrialTarget,
    ShardsSpec,
    Target,
    WindowsSpec,
)

__all__ = [
    "Attribute",
    "BlocksSpec",
    "Calendar",
    "ChannelNormalize",
    "ChannelSpec",
    "Channels",
    "CleanSpec",
    "ColumnAttribute",
    "Derivation",
    "Difference",
    "Duration",
    "Encoding",
    "ForecastTarget",
    "Hook",
    "Lag",
    "Model",
    "NormalizeSpec",
    "OutlierSpec",
    "PerStepTarget",
    "PerTrialTarget",
    "PivotSpec",
    "RegimeSpec",
    "ResampleSpec",
    "RollingMean",
    "RunsAttribute",
    "ShardsSpec",
    "SinceObserved",
    "SourceSpec",
    "SplitSpec",
    "Sql",
    "StaticEncoding",
    "Statics",
    "TableAttribute",
    "Target",
    "TimeSpec",
    "ValidationSpec",
    "WindowsSpec",
    "parse_duration",
    "parse_size",
]
