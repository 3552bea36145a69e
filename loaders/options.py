"""The arguments of a stream, checked once at the door."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from shards import InvalidSpecError, WindowSpec

_CHOICES = {
    "batches": ("windows",),
    "shuffle": ("global", "none"),
    "balance": ("window", "trial"),
}


@dataclass(frozen=True)
class StreamOptions:
    """What `TrialStream` was asked for; see there.

    Raises:
        InvalidSpecError: If an argument is out of range; the message names it.
    """

    split: str
    batch_size: int
    batches: str
    shuffle: str
    seed: int
    balance: str
    windows: WindowSpec | None
    rank: int | None
    world_size: int | None
    where: str | None = None
    trials: TrialIds | None = None

    def __post_init__(self) -> None:
        for name, wanted in _CHOICES.items():
            if getattr(self, name) not in wanted:
                choices = " or ".join(repr(choice) for choice in wanted)
                raise InvalidSpecError(f"{name} is {getattr(self, name)!r}; wanted {choices}.")
        check_integer("batch_size", self.batch_size, 1)
        check_integer("seed", self.seed, 0)
        if self.windows is not None and not isinstance(self.windows, WindowSpec):
            raise InvalidSpecError(
                f"windows is {self.windows!r}; wanted a shards.WindowSpec or None."
            )
        if (self.rank is None) != (self.world_size is None):
            raise InvalidSpecError(
                f"rank is {self.rank} and world_size is {self.world_size}; wanted both or neither."
            )
        if self.rank is not None and self.world_size is not None:
            check_integer("world_size", self.world_size, 1)
            check_integer("rank", self.rank, 0)
            if self.rank >= self.world_size:
                raise InvalidSpecError(
                    f"rank is {self.rank}; wanted less than world_size, {self.world_size}."
                )
            check_share(self.batch_size, self.world_size)


class TrialIds:
    """Ids that a stream was asked for: one Arrow array, however many they are.

    Attributes:
        array: large_utf8, each once, in the order given.

    Raises:
        InvalidSpecError: If they are no ids, or none.
    """

    def __init__(self, ids: Iterable[str]) -> None:
        wanted = "wanted a list of trial ids, or a column of them."
        if isinstance(ids, str | bytes):
            raise InvalidSpecError(f"trials is {ids!r}; {wanted}")
        try:
            given = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(list(ids))
            given = pa.chunked_array([given]) if isinstance(given, pa.Array) else given
        except (TypeError, ValueError, pa.ArrowException) as error:
            raise InvalidSpecError(f"trials cannot be read ({error}); {wanted}") from error
        is_text = pa.types.is_large_string(given.type) or pa.types.is_string(given.type)
        if not is_text or not len(given) or given.null_count:
            raise InvalidSpecError(
                f"trials has {len(given)} values of type {given.type}, {given.null_count} of them "
                f"missing; {wanted}"
            )
        self.array = given.cast(pa.large_utf8()).unique()


def check_share(batch_size: int, world_size: int) -> None:
    """Refuse a step that cannot give each rank a row.

    Raises:
        InvalidSpecError: If `batch_size` is below `world_size`.
    """
    if batch_size < world_size:
        raise InvalidSpecError(
            f"batch_size is {batch_size} over all ranks; wanted at least world_size, {world_size}."
        )


def check_integer(name: str, got: Any, least: int) -> None:
    """Refuse anything but an integer from `least` on.

    Raises:
        InvalidSpecError: With the argument's name.
    """
    if isinstance(got, bool) or not isinstance(got, int) or got < least:
        raise InvalidSpecError(f"{name} is {got!r}; wanted an integer >= {least}.")
