"""What a stream can be asked for that does not fit a word: small frozen classes.

Wherever `TrialStream` takes one of them it takes the word for its defaults as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shards import InvalidSpecError, WindowSpec

MIB = 1 << 20
MOST = (1 << 31) - 1
"""Steps of a row; more than any machine holds."""


@dataclass(frozen=True)
class WindowBatches:
    """Dense windows, each at its place in its trial. What is None is the store's.

    Attributes:
        length: Steps per window.
        stride: Rows between the starts of neighbouring windows.
        horizon: Steps from the last input row to the first target row.
        steps: Target rows per window (forecast).
        short: `pad` or `drop`: what becomes of a trial that is shorter than one window.
        random_offset: Shift each window by its own number of rows below the stride, another one in
            each epoch, by the seed; a window never leaves its trial, and none is lost.
    """

    length: int | None = None
    stride: int | None = None
    horizon: int | None = None
    steps: int | None = None
    short: Literal["pad", "drop"] | None = None
    random_offset: bool = False

    def apply(self, windows: WindowSpec) -> WindowSpec:
        """Return the windows of a store with what is asked for.

        Raises:
            InvalidSpecError: If a number is out of range.
        """
        given = {k: v for k, v in vars(self).items() if v is not None and k != "random_offset"}
        return replace(windows, **given)


@dataclass(frozen=True)
class TrialBatches:
    """Whole trials, padded to the longest of their step.

    Attributes:
        max_length: Longest part of a trial that is taken, or None.
        truncate: Which end of a longer trial is cut off: `end` or `start`.
        max_padding: Largest share of padding in an epoch, if sorting by length can do it: trials of
            like length are put together in pools as small as this allows.

    Raises:
        InvalidSpecError: If one is out of range.
    """

    max_length: int | None = None
    truncate: Literal["end", "start"] = "end"
    max_padding: float = 0.1

    def __post_init__(self) -> None:
        if self.max_length is not None:
            check_integer("max_length", self.max_length, 1, MOST)
        check_choice("truncate", self.truncate, ("end", "start"))
        got = self.max_padding
        if isinstance(got, bool) or not isinstance(got, int | float) or not 0 <= got <= 1:
            raise InvalidSpecError(f"max_padding is {got!r}; wanted a number from 0 to 1.")
        object.__setattr__(self, "max_padding", float(got))  # 0 and 0.0 are the same request


@dataclass(frozen=True)
class LaneBatches:
    """Stateful chunks: each of `batch_size` lanes walks one trial after the other.

    Attributes:
        chunk: Steps per chunk, T.
        burn_in: Steps at the start of each trial that warm the hidden state up and do not count in
            the loss.

    Raises:
        InvalidSpecError: If one is out of range.
    """

    chunk: int = 128
    burn_in: int = 0

    def __post_init__(self) -> None:
        check_integer("chunk", self.chunk, 1, MOST)
        check_integer("burn_in", self.burn_in, 0, MOST)


@dataclass(frozen=True)
class BlockShuffle:
    """A shuffle that reads a pool of neighbouring bytes at a time, for stores beyond memory.

    The order depends on how the version is packed, so `compact` ends it.

    Attributes:
        block_bytes: Values that lie together: about as many of neighbouring trials of a shard.
        pool_bytes: Blocks that are mixed at a time hold about as many.

    Raises:
        InvalidSpecError: If one is out of range.
    """

    block_bytes: int = 16 * MIB
    pool_bytes: int = 256 * MIB

    def __post_init__(self) -> None:
        check_integer("block_bytes", self.block_bytes, 1, 1 << 60)
        check_integer("pool_bytes", self.pool_bytes, 1, 1 << 60)


@dataclass(frozen=True, eq=False)
class Balance:
    """How often each trial is drawn in an epoch: integer quotas, exact in every epoch.

    By class and attribute the quota is that of the class, or value; each window of it comes before
    any comes again, over as many epochs as that takes. But with `shuffle="blocks"` and `"none"`
    each trial has a quota of its own, which is 0 where its share is below a draw (a warning says
    so).

    Attributes:
        by: `window`: each window once. `trial`: each trial alike. `sqrt`: by the square root of its
            windows. `class`: each class alike. `attribute`: each value of `column` alike. `quota`:
            as often as `column` or `quotas` says. In batches of trials and lanes a trial counts as
            one window.
        column: Attribute of the trials.
        quotas: Trial id -> draws, or draws of the trials of the split in the order of their ids.

    Raises:
        InvalidSpecError: If they do not go together.
    """

    by: str = "window"
    column: str | None = None
    quotas: Mapping[str, int] | npt.NDArray[np.integer[Any]] | None = None

    def __post_init__(self) -> None:
        kinds = ("window", "trial", "sqrt", "class", "attribute", "quota")
        check_choice("balance", self.by, kinds)
        given = (self.column is not None, self.quotas is not None)
        wanted = {"attribute": [(True, False)], "quota": [(True, False), (False, True)]}
        if given not in wanted.get(self.by, [(False, False)]):
            raise InvalidSpecError(
                f"balance by {self.by!r} got column {self.column!r} and "
                f"{'some' if given[1] else 'no'} quotas; wanted a column for 'attribute', a column "
                "or quotas for 'quota', and neither for the others."
            )


@dataclass(frozen=True)
class LossWeights:
    """What the rows of each trial weigh in the loss.

    Attributes:
        by: `own`: what the store says. `trial`: all series alike over an epoch, however often they
            are drawn. `class`: all classes alike. `column`: what the attribute `column` says. Where
            a balance by class or attribute draws a trial more often in one epoch than in another,
            they count alike on average over the epochs.
        column: Attribute of the trials.

    Raises:
        InvalidSpecError: If they do not go together.
    """

    by: str = "own"
    column: str | None = None

    def __post_init__(self) -> None:
        check_choice("weights", self.by, ("own", "trial", "class", "column"))
        if (self.by == "column") != (self.column is not None):
            raise InvalidSpecError(
                f"weights by {self.by!r} got column {self.column!r}; wanted a column for 'column' "
                "alone."
            )


def check_integer(name: str, got: Any, least: int, most: int | None = None) -> None:
    """Refuse anything but an integer from `least` on.

    Raises:
        InvalidSpecError: With the argument's name.
    """
    if isinstance(got, bool) or not isinstance(got, int) or got < least:
        raise InvalidSpecError(f"{name} is {got!r}; wanted an integer >= {least}.")
    if most is not None and got > most:
        raise InvalidSpecError(f"{name} is {got!r}; wanted at most {most}.")


def check_choice(name: str, got: Any, wanted: tuple[str, ...]) -> None:
    """Refuse anything but one of some words.

    Raises:
        InvalidSpecError: With the argument's name.
    """
    if not isinstance(got, str) or got not in wanted:
        choices = ", ".join(repr(choice) for choice in wanted[:-1])
        raise InvalidSpecError(f"{name} is {got!r}; wanted {choices} or {wanted[-1]!r}.")
