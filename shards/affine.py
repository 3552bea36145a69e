"""Normalization as data: from stored values to delivered ones, and back (SPEC section 5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.lazy import pc
from shards.regimes import AffineTable, Regimes

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Entry = tuple[str, str]
"""Method and scope of one channel."""

METHODS = ("zscore", "minmax", "robust", "none")
AT_REST = ("trial", "prefix", "none")
"""Scopes whose values are stored as they are delivered."""
_KINDS = (*AT_REST, "train", "group", "regime", "window")


def scope_kind(scope: str) -> str:
    """Return `group` for `group:machine`, `prefix` for `prefix(50)`, others as they are."""
    return scope.partition(":")[0].partition("(")[0]


def group_attribute(scope: str) -> str:
    """Return `machine` for `group:machine`."""
    return scope.partition(":")[2]


def describe_entries(entries: Sequence[Entry]) -> dict[str, Any]:
    """Return `method` and `scope` as the manifest says them: of all channels, or channel-wise."""
    if len(set(entries)) == 1:
        method, scope = entries[0]
        return {"method": method, "scope": scope}
    # A reader that knows no mixtures refuses the scope; it would deliver wrong values otherwise.
    channels = [{"method": method, "scope": scope} for method, scope in entries]
    return {"method": "mixed", "scope": "mixed", "channels": channels}


def parse_entries(normalization: Mapping[str, Any], n_channels: int) -> tuple[Entry, ...]:
    """Return method and scope of every channel.

    Raises:
        ValueError: If one is not known, or there are not as many as channels.
    """
    parts = [normalization] * n_channels
    if normalization["scope"] == "mixed":
        parts = normalization["channels"]
    entries = tuple((str(part["method"]), str(part["scope"])) for part in parts)
    if len(entries) != n_channels:
        raise ValueError(f"normalization of {len(entries)} channels; wanted {n_channels}")
    for method, scope in entries:
        if method not in METHODS or scope_kind(scope) not in _KINDS:
            raise ValueError(f"normalization method is {method!r}, scope is {scope!r}")
    return entries


def is_first_minor(normalization: Mapping[str, Any]) -> bool:
    """Return whether readers of format 1.0 know what this says."""
    return normalization["scope"] in ("trial", "train", "none")


GroupsOf = Callable[[str], Any]
"""Attribute -> its value in each trial: texts or None, or an Arrow array of them."""


@dataclass(frozen=True)
class Delivery:
    """What a reader does to stored values.

    Attributes:
        entries: Method and scope of each channel.
        table: `[n, channels]`, the identity for channels of scopes other than train and group.
        row: int64 `[trials]`, each trial's row of the table; None where it has one row for all.
        regimes: Of the channels of scope `regime`, or None.
    """

    entries: tuple[Entry, ...]
    table: AffineTable
    row: Int64 | None
    regimes: Regimes | None

    @classmethod
    def parse(
        cls,
        entries: tuple[Entry, ...],
        fit: Mapping[str, Any],
        names: Sequence[str],
        groups_of: GroupsOf,
    ) -> Delivery:
        """Read `normalize` of `fit.json` (SPEC section 11).

        Args:
            entries: As the manifest says them.
            fit: `normalize`.
            names: Of the channels.
            groups_of: Called for each attribute of a scope `group:<attribute>`.

        Raises:
            ValueError, KeyError, TypeError: If the fit is not what the entries need.
        """
        offset, scale, row = np.zeros((1, len(entries))), np.ones((1, len(entries))), None
        train = channels_of(entries, "train")
        if len(train):
            offset[0, train], scale[0, train] = (_row(fit, k)[train] for k in ("offset", "scale"))
        groups = fit.get("groups", {})
        scopes = sorted({scope for _, scope in entries if scope_kind(scope) == "group"})
        attributes = [group_attribute(scope) for scope in scopes]
        numbers = [_number_groups(groups[name]["values"], groups_of(name)) for name in attributes]
        if numbers:
            combined, row = np.unique(np.stack(numbers), axis=1, return_inverse=True)
            row = row.reshape(-1)
            offset, scale = (x.repeat(combined.shape[1], axis=0) for x in (offset, scale))
            for scope, name, number in zip(scopes, attributes, combined, strict=True):
                places, known = channels_of(entries, scope), groups[name]
                for out, key in ((offset, "offset"), (scale, "scale")):
                    rows = np.concatenate([_matrix(known, key, len(names)), _row(fit, key)[None]])
                    out[:, places] = rows[number][:, places]
        return cls(entries, AffineTable.of(offset, scale), row, _parse_regimes(entries, fit, names))

    @property
    def is_identity(self) -> bool:
        """Whether the table changes nothing."""
        return not any(scope_kind(scope) in ("train", "group") for _, scope in self.entries)

    @property
    def is_constant(self) -> bool:
        """Whether one affine per channel serves all trials and rows."""
        return all(scope_kind(scope) in (*AT_REST, "train") for _, scope in self.entries)

    @cached_property
    def own(self) -> Int64:
        """The channels that are stored normalized by constants of their trial."""
        return np.concatenate([channels_of(self.entries, kind) for kind in ("trial", "prefix")])

    @cached_property
    def windowed(self) -> dict[str, Int64]:
        """Method -> the channels that each window normalizes by its own statistics."""
        places = channels_of(self.entries, "window").tolist()
        return {
            method: np.array([p for p in places if self.entries[p][0] == method], np.int64)
            for method in METHODS
            if any(self.entries[p][0] == method for p in places)
        }

    def is_finite(self) -> bool:
        """Return whether every constant is a number."""
        finite = self.table.is_finite()
        return finite if self.regimes is None else finite and self.regimes.table.is_finite()

    def apply(self, values: Float32, trial: int) -> Float32:
        """Return rows of a trial as they are delivered, but NaN where missing.

        Channels of scope `window` stay as stored: rows alone make no window.

        Args:
            values: Stored rows, `[n, channels]`.
            trial: Trial number.
        """
        at = 0 if self.row is None else int(self.row[trial])
        out: Float32 = np.subtract(values, self.table.offset[at])
        out *= self.table.inv_scale[at]
        if self.regimes is not None:
            table = self.regimes.table.take(self.regimes.of_rows(values))
            places = self.regimes.channels
            out[:, places] = (values[:, places] - table.offset) * table.inv_scale
        return out


def channels_of(entries: Sequence[Entry], scope: str) -> Int64:
    """Return the channels of a scope, or of all scopes of a kind."""
    found = [p for p, (_, own) in enumerate(entries) if scope in (own, scope_kind(own))]
    return np.array(found, np.int64)


def _row(fit: Mapping[str, Any], key: str) -> Float64:
    return np.asarray(fit[key], np.float64)


def _matrix(fit: Mapping[str, Any], key: str, width: int) -> Float64:
    table: Float64 = np.asarray(fit[key], np.float64)
    return table.reshape(-1, width)


def _number_groups(known: Sequence[str], values: Any) -> Int64:
    """Return the number of each trial's group; `len(known)` where train had no such trial."""
    found = pc.index_in(pa.array(values, pa.utf8()), value_set=pa.array(known, pa.utf8()))
    numbers: Int64 = found.fill_null(len(known)).to_numpy().astype(np.int64)
    return numbers


def _parse_regimes(
    entries: Sequence[Entry], fit: Mapping[str, Any], names: Sequence[str]
) -> Regimes | None:
    channels = channels_of(entries, "regime")
    if not len(channels):
        return None
    known, names = fit["regimes"], list(names)
    tables = (
        np.concatenate([_matrix(known, key, len(names)), _row(fit, key)[None]])[:, channels]
        for key in ("offset", "scale")
    )
    return Regimes(
        named=np.array([names.index(name) for name in known["channels"]], np.int64),
        centres=_matrix(known, "centres", len(known["channels"])).astype(np.float32),
        inv_spread=(1.0 / _row(known, "spread")).astype(np.float32),
        channels=channels,
        table=AffineTable.of(*tables),
    )
