"""Affines of many kinds of rows, and operating regimes: which of them a row is in.

Pure float32 arithmetic in a fixed order, so that a row's regime is the same wherever it is decided.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class AffineTable:
    """`delivered = (x - offset) * inv_scale`, each operation rounded to float32, and back.

    Attributes:
        offset: float32 `[n, channels]`.
        inv_scale: The same shape; the inverse is taken in float64, then rounded.
        scale: The same shape: `x = delivered * scale + offset`.
    """

    offset: Float32
    inv_scale: Float32
    scale: Float32

    @classmethod
    def of(cls, offset: Float64, scale: Float64) -> AffineTable:
        """Round a table that was fitted in float64."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            inverse = (1.0 / scale).astype(np.float32)
            return cls(offset.astype(np.float32), inverse, scale.astype(np.float32))

    def take(self, rows: Int64) -> AffineTable:
        """Return some rows."""
        return AffineTable(self.offset[rows], self.inv_scale[rows], self.scale[rows])

    def is_finite(self) -> bool:
        """Return whether every constant is a number."""
        parts = (self.offset, self.inv_scale, self.scale)
        return all(bool(np.isfinite(part).all()) for part in parts)


@dataclass(frozen=True)
class Regimes:
    """Which regime a row is in, and what that means for the channels of scope `regime`.

    Attributes:
        named: int64 `[m]`, the channels that decide.
        centres: float32 `[regimes, m]`, physical units.
        inv_spread: float32 `[m]`.
        channels: int64 `[p]`, the channels of scope `regime`.
        table: `[regimes + 1, p]`; the last row is for rows in no regime.
    """

    named: Int64
    centres: Float32
    inv_spread: Float32
    channels: Int64
    table: AffineTable

    def of_rows(self, values: Float32) -> Int64:
        """Return int64 `[n]`, the regimes of stored rows `[n, channels]`."""
        return nearest_centre(values[:, self.named], self.centres, self.inv_spread)


def nearest_centre(named: Float32, centres: Float32, inv_spread: Float32) -> Int64:
    """Return int64 `[n]`, the nearest centre of each row; of equally near ones the lowest.

    The distance is the sum over columns, in their order, of `((x - centre) * inv_spread) ** 2`:
    float32 operations, each rounded. A row with a missing value, and one that is infinitely far
    from all, is nearest to none: `len(centres)`.

    Args:
        named: float32 `[n, m]`.
        centres: float32 `[regimes, m]`.
        inv_spread: float32 `[m]`.
    """
    columns = np.ascontiguousarray(named.T)
    best = np.full(len(named), np.inf, np.float32)
    regime = np.full(len(named), len(centres), np.int64)
    with np.errstate(over="ignore", invalid="ignore"):
        for number, centre in enumerate(centres):
            far = np.zeros(len(named), np.float32)
            for column, level, inverse in zip(columns, centre, inv_spread, strict=True):
                part = column - level
                part *= inverse
                part *= part
                far += part
            nearer = far < best  # NaN is not nearer
            best[nearer], regime[nearer] = far[nearer], number
    return regime
