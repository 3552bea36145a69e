"""The arguments of a stream, checked once at the door."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from loaders.choices import (
    MOST,
    Balance,
    BlockShuffle,
    LaneBatches,
    LossWeights,
    TrialBatches,
    WindowBatches,
    check_choice,
    check_integer,
)
from loaders.device import check_resident, parse_device
from shards import InvalidSpecError, WindowSpec
from shards.manifest import TargetSchema

EARLY = 2
"""Batches of which the windows are being copied, or about to be, by a second thread."""
AHEAD = 2
"""Batches gathered early for a GPU: one is being copied while the next one is made."""


@dataclass(frozen=True, eq=False)
class StreamOptions:
    """What `TrialStream` was asked for; see there.

    Raises:
        InvalidSpecError: If an argument is out of range; the message names it.
    """

    split: str
    batch_size: int
    batches: WindowBatches | TrialBatches | LaneBatches
    shuffle: str
    blocks: BlockShuffle | None
    seed: int
    balance: Balance
    weights: LossWeights
    windows: WindowSpec | None
    target: TargetSchema | None
    rank: int | None
    world_size: int | None
    where: str | None
    trials: TrialIds | None
    ahead: int
    copies_early: bool
    device: torch.device | None
    resident: str | bool

    @classmethod
    def of(cls, **flat: Any) -> StreamOptions:
        """Make options of the arguments of a stream, words or option classes."""
        batches, shuffle, trials = flat["batches"], flat["shuffle"], flat["trials"]
        if not isinstance(batches, WindowBatches | TrialBatches | LaneBatches):
            check_choice("batches", batches, tuple(_BATCHES))
            batches = _BATCHES[batches]()
        blocks = shuffle if isinstance(shuffle, BlockShuffle) else None
        if blocks is None:
            check_choice("shuffle", shuffle, ("global", "blocks", "none"))
            blocks = BlockShuffle() if shuffle == "blocks" else None
        balance, weights, device = flat["balance"], flat["weights"], parse_device(flat["device"])
        cuda = device is not None and device.type == "cuda"
        numbers = ("batch_size", "seed", "rank", "world_size", "ahead")
        plain = {n: int(flat[n]) for n in numbers if isinstance(flat[n], np.integer)}
        return cls(
            **flat | plain | {
                "batches": batches, "blocks": blocks,
                "shuffle": "blocks" if blocks is not None else shuffle,
                "balance": balance if isinstance(balance, Balance) else Balance(balance),
                "weights": weights if isinstance(weights, LossWeights) else LossWeights(weights),
                "trials": None if trials is None else TrialIds(trials),
                "device": device,
                "copies_early": flat["ahead"] is None,
                "ahead": (AHEAD if cuda else 0) if flat["ahead"] is None else flat["ahead"],
            }
        )  # fmt: skip

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, 1, MOST)
        check_integer("seed", self.seed, 0)
        check_integer("ahead", self.ahead, 0)
        check_resident(self.resident, self.device)
        for name, kind in (("windows", WindowSpec), ("target", TargetSchema)):
            got = getattr(self, name)
            if got is not None and not isinstance(got, kind):
                raise InvalidSpecError(f"{name} is {got!r}; wanted a {kind.__name__} or None.")
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

    def n_ahead(self, n_workers: int) -> int:
        """Return how many batches there are at most beside the one in use.

        Args:
            n_workers: Of the DataLoader; each holds two.
        """
        if n_workers:
            return 2 * n_workers
        return max(self.ahead, EARLY if self.copies_early else 0)

    @property
    def shifts(self) -> bool:
        """Whether windows are shifted at random."""
        return isinstance(self.batches, WindowBatches) and self.batches.random_offset

    def order(self, windows: WindowSpec, target: TargetSchema | None) -> dict[str, Any]:
        """Return what decides the batches beside the plan's numbers, as JSON types.

        Args:
            windows: The windows in force.
            target: The target in force, or None if it is the store's own.

        What a stream could not be asked for once is left out where it is as it was then, so that
        the states of that time still fit.
        """
        said: dict[str, Any] = {
            "batches": "windows", "batch_size": self.batch_size, "balance": self.balance.by,
            "windows": windows.as_dict(),
        }  # fmt: skip
        if not isinstance(self.batches, WindowBatches):
            said["batches"] = {type(self.batches).__name__: vars(self.batches)}
            said["windows"] = {"horizon": windows.horizon, "steps": windows.steps}
        elif self.shifts:
            said["random_offset"] = True
        if target is not None:
            said["target"] = [target.kind, *target.columns]
        return said


_BATCHES = {"windows": WindowBatches, "trials": TrialBatches, "lanes": LaneBatches}


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
