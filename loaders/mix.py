"""Several streams as one: each step is a whole step of one of them."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from loaders.batch import Batch
from loaders.choices import check_choice
from loaders.epochs import EpochStream
from loaders.reader import EpochReader
from loaders.stream import TrialStream
from loaders.turns import share_steps, turn
from shards import InvalidSpecError

MIX_VERSION = 1


class MixedStream(EpochStream):
    """Steps of several streams in turn, evenly spread; see `mix`.

    Batches say by `source` which stream they are of; trial numbers and units are that stream's.

    Attributes:
        streams: What is mixed, in order.
    """

    def __init__(
        self, streams: Sequence[TrialStream], by: str | Sequence[float], stop: str
    ) -> None:
        super().__init__()
        if isinstance(streams, EpochStream) or isinstance(by, EpochStream):
            # To look what is in it would read an epoch of it.
            raise InvalidSpecError("streams is a stream; wanted a list of them: mix([one, other]).")
        self.streams = tuple(streams)
        if len(self.streams) < 1 or not all(isinstance(x, TrialStream) for x in self.streams):
            raise InvalidSpecError(f"streams are {streams!r}; wanted one TrialStream or more.")
        check_choice("stop", stop, ("first", "cycle"))
        if isinstance(by, str):
            check_choice("by", by, ("proportional", "round_robin"))
        if len({stream.ranks for stream in self.streams}) > 1:
            ranks = [stream.ranks for stream in self.streams]
            raise InvalidSpecError(f"ranks of the streams are {ranks}; wanted the same of all.")
        if len({stream.device for stream in self.streams}) > 1:
            devices = [str(stream.device) for stream in self.streams]
            raise InvalidSpecError(f"devices of the streams are {devices}; wanted the same of all.")
        self._by, self._stop = by, stop
        # First steps of epochs, as far as asked for, of streams whose epochs differ in steps.
        self._ends: list[list[int]] = [[0] for _ in self.streams]
        proportional = isinstance(by, str) and by == "proportional"  # an array compares by element
        self._fixed = None if proportional else self._share(by)

    @property
    def batch_size(self) -> int:
        """Rows per optimizer step over all ranks, of the stream with the fewest."""
        return min(stream.batch_size for stream in self.streams)

    @property
    def ahead(self) -> int:
        """Batches that threads of this process make early; 0: none."""
        return max(stream.ahead for stream in self.streams)

    @property
    def on_device(self) -> bool:
        """Whether batches are made on a device, in the order in which they are asked for."""
        return any(stream.on_device for stream in self.streams)

    @property
    def ranks(self) -> tuple[int, int] | None:
        """The rank that was asked for, and of how many."""
        return self.streams[0].ranks

    @property
    def device(self) -> torch.device | None:
        """Where a loop gives batches; None: on the host."""
        return self.streams[0].device

    @property
    def identity(self) -> dict[str, Any]:
        """What a state must agree with to be continued here."""
        parts = [stream.identity for stream in self.streams]
        said = {
            "mix": MIX_VERSION, "quotas": self._fixed, "plans": [part["plan"] for part in parts]
        }  # fmt: skip
        return {
            "fingerprint": [part["fingerprint"] for part in parts],
            "plan": hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest(),
            "seed": [part["seed"] for part in parts],
        }

    def n_steps(self, epoch: int) -> int:
        """Return the optimizer steps of an epoch."""
        return sum(self.quotas(epoch))

    def quotas(self, epoch: int) -> list[int]:
        """Return how many steps of an epoch each stream takes."""
        if self._fixed is not None:
            return self._fixed
        return [stream.n_steps(epoch) for stream in self.streams]

    def place(self, epoch: int, step: int) -> tuple[int, int, int]:
        """Return the stream that a step is of, and the epoch and step there.

        A stream goes on where it stood at the end of the mixture's last epoch, so no window comes
        again before the others of its stream came.
        """
        source, done = turn(step, self.quotas(epoch))
        if self._fixed is None:
            return source, epoch, done
        return source, *self._walk(source, epoch * self._fixed[source] + done)

    def reader(self, epoch: int, ranks: tuple[int, int] | None = None) -> EpochReader:
        """Return what reads any step of an epoch.

        Args:
            epoch: The epoch.
            ranks: Which rank of how many; by default this process among its like.
        """
        return _MixedReader(self, epoch, self._rank() if ranks is None else ranks)

    def to_physical(
        self, values: Tensor, of: Batch, columns: Sequence[str] | None = None
    ) -> Tensor:
        """Return values of a batch in the physical units of its stream; see `TrialStream`.

        Raises:
            InvalidSpecError: If the batch is not of a mixture, or its stream cannot tell.
        """
        if of.source is None:
            raise InvalidSpecError("batch.source is None; wanted a batch of this mixture.")
        return self.streams[of.source].to_physical(values, of, columns)

    def __getstate__(self) -> dict[str, Any]:
        """Return what to send, with what only this process knows of ranks."""
        return {**vars(self), "_parent_rank": self._found_rank()}

    def _walk(self, source: int, step: int) -> tuple[int, int]:
        """Return the epoch and step of the `step`-th step of a stream since its first epoch."""
        stream = self.streams[source]
        if not stream.varies:
            return divmod(step, stream.n_steps(0))
        ends = self._ends[source]
        if ends[-1] <= step:
            ends = list(ends)  # another thread may be at it too
            while ends[-1] <= step:
                ends.append(ends[-1] + stream.n_steps(len(ends) - 1))
            self._ends[source] = ends
        epoch = bisect_right(ends, step) - 1
        return epoch, step - ends[epoch]

    def _share(self, by: str | Sequence[float]) -> list[int]:
        shares = [1.0] * len(self.streams) if isinstance(by, str) else list(by)
        return share_steps(shares, [stream.n_steps(0) for stream in self.streams], stop=self._stop)


def mix(
    streams: Sequence[TrialStream],
    by: str | Sequence[float] = "proportional",
    *,
    stop: str = "first",
) -> MixedStream:
    """Mix streams, of one store or many, into one; each step is a whole step of one of them.

    The streams may differ in channels, batch size and kind of batches. The mixture has the same
    methods: it has epochs, resumes exactly, and is the same for any number of ranks and workers.

    Args:
        streams: What to mix.
        by: `proportional`: each step of each stream once per epoch. `round_robin`: in turn. Or
            proportions, one positive number per stream.
        stop: But for `proportional`: an epoch ends with the stream that ends `first`; or streams
            `cycle` until each has ended once.

    Raises:
        InvalidSpecError: If an argument is out of range.
    """
    return MixedStream(streams, by, stop)


class _MixedReader:
    """One epoch of a mixture."""

    def __init__(self, mixed: MixedStream, epoch: int, ranks: tuple[int, int]) -> None:
        self.n_steps = mixed.n_steps(epoch)
        self._mixed, self._epoch, self._ranks = mixed, epoch, ranks
        self._readers: dict[int, tuple[int, EpochReader]] = {}

    def read(self, step: int) -> Batch:
        """Return the batch of a step."""
        source, epoch, own_step = self._mixed.place(self._epoch, step)
        known, reader = self._readers.get(source, (-1, None))
        if reader is None or known != epoch:
            reader = self._mixed.streams[source].reader(epoch, self._ranks)
            self._readers[source] = (epoch, reader)
        batch = reader.read(own_step)
        batch.source, batch.epoch, batch.step = source, self._epoch, step
        return batch
