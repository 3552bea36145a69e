"""Which transforms use later rows of a trial for earlier ones, and the refusal of such."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.derive import Derivations, reach_of
from pipeline.derive import check_causal as check_derived
from pipeline.normalize import channel_entries
from pipeline.sections import ColumnAttribute
from pipeline.spec import DatasetSpec
from shards.affine import scope_kind
from shards.errors import InvalidSpecError

_SCOPES = {
    "trial": "uses statistics of the whole trial",
    "prefix": "uses statistics of those first rows for each of them too",
    "window": "uses statistics of the whole window for each of its steps",
}


def describe_lookahead(spec: DatasetSpec) -> list[str]:
    """Return the transforms that look ahead inside a trial, in sentences."""
    ahead = [f"{what} {why}" for what, why, _ in _stages(spec)] + _describe_scopes(spec)
    time, text = _time_and_text(spec)
    found = reach_of(Derivations.of(spec.derive), time=time, text=text)
    seen = {channel.name for channel in spec.channels}
    return ahead + [
        f"derive.{name} sees the whole trial"
        for name, reach in sorted(found.items())
        if name in seen and reach == "trial"
    ]


def check_causal(spec: DatasetSpec) -> None:
    """Refuse what looks ahead inside a trial, for `causal: true`.

    Scopes `prefix(n)` and `window` are allowed: what they look ahead is bounded, and can be had
    when a model is used.

    Raises:
        InvalidSpecError: Naming the field and what to write instead.
    """
    for what, why, instead in _stages(spec):
        raise InvalidSpecError(f"{what} {why}; causal: true wants earlier rows only. {instead}")
    for channel, (_, scope) in zip(spec.inputs(), channel_entries(spec), strict=True):
        if scope_kind(scope) == "trial":
            raise InvalidSpecError(
                f"normalize.scope: trial, of channel {channel.name!r}, {_SCOPES['trial']}; "
                "causal: true wants earlier rows only. Write scope: train, prefix(n) or window."
            )
    time, text = _time_and_text(spec)
    channels = [channel.name for channel in spec.channels]
    check_derived(Derivations.of(spec.derive), channels, time=time, text=text)


def _time_and_text(spec: DatasetSpec) -> tuple[str | None, set[str]]:
    """Return the time column, and the columns that are read as text."""
    columns = [a.column for a in spec.attributes.values() if isinstance(a, ColumnAttribute)]
    text = {*columns, *spec.categorical, *spec.source.split_on}
    return spec.source.time.column if spec.source.time else None, text


def _stages(spec: DatasetSpec) -> Iterator[tuple[str, str, str]]:
    """Yield each setting that looks ahead, how, and what does not."""
    time, outliers = spec.source.time, spec.clean.outliers
    if time is not None and time.resample is not None and time.resample.method == "interpolate":
        yield ("source.time.resample.method: interpolate", "uses the next present value",
               "Write method: last.")  # fmt: skip
    if outliers is not None and outliers.deviations is not None:
        yield ("clean.outliers.deviations", "uses the median of the whole trial",
               "Write clean.outliers.bounds.")  # fmt: skip
    if spec.clean.missing == "interpolate":
        yield ("clean.missing: interpolate", "uses the next present value",
               "Write clean.missing: ffill.")  # fmt: skip


def _describe_scopes(spec: DatasetSpec) -> list[str]:
    """Return the scopes that look ahead inside a trial, in sentences."""
    entries = channel_entries(spec)
    members: dict[str, list[str]] = {}
    for channel, (_, scope) in zip(spec.inputs(), entries, strict=True):
        members.setdefault(scope, []).append(channel.name)
    ahead = []
    for scope, names in members.items():
        if scope_kind(scope) in _SCOPES:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            of = "" if len(members) == 1 else f" (of {', '.join(names[:3])}{more})"
            ahead.append(f"normalize.scope: {scope}{of} {_SCOPES[scope_kind(scope)]}")
    return ahead
