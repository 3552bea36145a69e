"""Window arithmetic: a window is a row range of one trial. Pure integers, no files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shards.errors import InvalidSpecError

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class WindowSpec:
    """How windows lie on a trial (SPEC section 6).

    Attributes:
        length: Steps per window.
        stride: Rows between the starts of neighbouring windows.
        horizon: Steps from the last input row to the first target row (forecast targets).
        steps: Target rows per window; 0 when the target needs no later rows.
        short: What becomes of a trial that is shorter than one window.

    Raises:
        InvalidSpecError: If a number is out of range.
    """

    length: int
    stride: int = 1
    horizon: int = 1
    steps: int = 0
    short: Literal["pad", "drop"] = "pad"

    def __post_init__(self) -> None:
        for name, least in (("length", 1), ("stride", 1), ("horizon", 1), ("steps", 0)):
            got = getattr(self, name)
            if isinstance(got, bool) or not isinstance(got, int) or got < least:
                raise InvalidSpecError(f"windows.{name} is {got}; wanted an integer >= {least}.")
        if self.short not in ("pad", "drop"):
            raise InvalidSpecError(f"windows.short is {self.short!r}; wanted 'pad' or 'drop'.")

    @property
    def ahead(self) -> int:
        """Rows that a window needs behind its last input row."""
        return self.horizon - 1 + self.steps if self.steps else 0

    def as_dict(self) -> dict[str, Any]:
        """Return the manifest entry."""
        return dict(vars(self))


def count_windows(n_rows: Int64, spec: WindowSpec) -> Int64:
    """Return the number of windows of trials with `n_rows` rows.

    >>> count_windows(np.array([3, 10, 11]), WindowSpec(length=4, stride=3))
    array([1, 3, 3])
    """
    n = np.asarray(n_rows, dtype=np.int64)
    whole = (n - spec.length - spec.ahead) // spec.stride + 1
    short = np.int64(1 if spec.short == "pad" else 0)
    return np.where(
        n >= spec.length + spec.ahead, whole, np.where(n > spec.ahead, short, 0)
    ).astype(np.int64)


def window_rows(n_rows: Int64, number: Int64, spec: WindowSpec) -> tuple[Int64, Int64]:
    """Return `(start, n_valid)` of window `number` in trials of `n_rows` rows, element-wise.

    The window covers rows `[start, start + n_valid)`; its forecast target begins at row
    `start + n_valid + horizon - 1`. `number` must be below `count_windows(n_rows, spec)`.
    """
    start = np.asarray(number, dtype=np.int64) * spec.stride
    n_valid = np.minimum(np.int64(spec.length), np.asarray(n_rows, dtype=np.int64) - spec.ahead)
    return start, n_valid
