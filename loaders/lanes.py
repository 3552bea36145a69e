"""The lane plan: which lane walks which trial from which step on. Pure NumPy, no files.

Truncated backpropagation through time keeps one hidden state per lane, so a lane must walk a trial
from its first chunk to its last, and then begin another. In seeded order alone the longest trials
run on while the other lanes are empty; the longest first wastes nothing, but then training sees
long trials early and short ones late in every epoch. The rule here keeps the seeded order until a
long trial would come too late, and loses neither.

Checkpoints hold (seed, epoch, step) and hidden states by lane, so what this file computes may
never change; a better rule gets another number in `LANES_VERSION` beside it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heapreplace
from typing import NamedTuple

import numpy as np

from loaders.order import Int64, permute
from loaders.plans import DrawPlan
from loaders.steprows import StepRows

LANES_VERSION = 1


class LaneFill(NamedTuple):
    """How full the lanes are: 1 means that no step of no lane is spent on nothing.

    Attributes:
        chunks: Share of the steps of all lanes that hold a chunk.
        rows: Share of their row slots, `chunk` a step, that hold a row; the rest is empty lanes and
            the tails of trials.
    """

    chunks: float
    rows: float


@dataclass(frozen=True, eq=False)
class LaneEpoch:
    """One epoch laid out on lanes: 16 bytes per pass over a trial.

    All lanes lie end to end on one tape, each `n_steps` long; a lane is never empty before its last
    trial, so the last beginning at or before a place tells what lies there.

    Attributes:
        epoch: The epoch.
        n_steps: Optimizer steps, the same for all ranks.
        n_lanes: B, lanes over all ranks.
        chunk: T, rows per step of a lane.
        trial: `[passes]` int64, position of the trial of each pass, by place on the tape.
        begins: `[passes]` int64, lane * n_steps + first step of each pass, rising.
        lengths: `[trials]` int64, rows of each trial.
        fill: How full the lanes are in this epoch.
        bound: How full they could be at best, in `fewest_steps`. The same in every epoch where
            trials have quotas; where groups of them have, it is that of this epoch's trials.
    """

    epoch: int
    n_steps: int
    n_lanes: int
    chunk: int
    trial: Int64
    begins: Int64
    lengths: Int64
    fill: LaneFill
    bound: LaneFill

    def rows(self, step: int, first: int, last: int) -> StepRows:
        """Return what the lanes `[first, last)` hold at `step`: a search among the passes each.

        Rank r of R owns the lanes `[r * n_lanes // R, (r + 1) * n_lanes // R)`.
        """
        assert 0 <= step < self.n_steps
        assert 0 <= first <= last <= self.n_lanes
        place = np.arange(first, last, dtype=np.int64) * self.n_steps + step
        found = np.searchsorted(self.begins, place, "right") - 1
        trial = self.trial[found]
        start = (place - self.begins[found]) * self.chunk
        # No pass runs into the next lane of the tape: in an empty lane the pass found has ended.
        left = self.lengths[trial] - start
        busy = left > 0
        return StepRows(
            trial=np.where(busy, trial, -1),
            start=np.where(busy, start, 0),
            n_rows=np.clip(left, 0, self.chunk),
            length=self.chunk,
            reset=busy & (start == 0),
        )


@dataclass(frozen=True, eq=False)
class LanePlan:
    """Every epoch's passes over whole trials, in chunks on parallel lanes.

    A pass takes ceil(length / chunk) steps of one lane. S* is the fewest steps that an epoch can
    have: those of its longest pass, or of all passes spread evenly. Passes go in the order of
    `passes` to the lane that is free first (ties: the lowest), except that the longest one waiting
    (ties: the first) goes as soon as it would not end before S* otherwise.

    Attributes:
        passes: Order of the passes; a draw is a pass. A trial drawn twice is walked twice.
        lengths: `[trials]` int64, rows of each trial; at least 1 where it is drawn.
        n_lanes: B, lanes over all ranks; part of what the order is.
        chunk: T, rows per step of a lane.
    """

    passes: DrawPlan
    lengths: Int64
    n_lanes: int
    chunk: int
    _kept: list[LaneEpoch] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        assert self.n_lanes > 0
        assert self.chunk > 0
        assert self.lengths.shape == self.passes.n_windows.shape
        assert (self.lengths[self.passes.mean_draws > 0] > 0).all()

    @property
    def version(self) -> int:
        """What the rule is called; states of another do not fit."""
        return LANES_VERSION

    def epoch(self, epoch: int) -> LaneEpoch:
        """Return the lanes of `epoch`; the last two are kept, another takes 1 us per pass."""
        for known in tuple(self._kept):
            if known.epoch == epoch:
                return known
        made = self._lay_out(epoch)
        self._kept[:] = [made, *self._kept[:1]]  # one step, in the face of other threads
        return made

    def _lay_out(self, epoch: int) -> LaneEpoch:
        n_passes, n_lanes = self.passes.n_draws, self.n_lanes
        trial = self.passes.draws(epoch, 0, n_passes)[0] if n_passes else np.zeros(0, np.int64)
        lengths = self.lengths[trial]
        chunks = -(-lengths // self.chunk)
        starts, lanes, n_steps = _walk(chunks, n_lanes)
        begins = lanes * n_steps + starts
        by_place = np.argsort(begins)
        n_chunks, n_rows = int(chunks.sum()), int(lengths.sum())
        return LaneEpoch(
            epoch=epoch,
            n_steps=n_steps,
            n_lanes=n_lanes,
            chunk=self.chunk,
            trial=trial[by_place],
            begins=begins[by_place],
            lengths=self.lengths,
            fill=_fill(n_chunks, n_rows, n_lanes * n_steps, self.chunk),
            bound=_fill(n_chunks, n_rows, n_lanes * fewest_steps(chunks, n_lanes), self.chunk),
        )


class LaneChoice(NamedTuple):
    """What a number of lanes would do.

    Attributes:
        n_lanes: B.
        n_steps: Steps of an epoch; another seeded order may need slightly more or fewer.
        fill: Share of the steps of all lanes that hold a chunk.
        bound: The best possible of it.
    """

    n_lanes: int
    n_steps: int
    fill: float
    bound: float


def best_lanes(lengths: Int64, chunk: int, candidates: Iterable[int]) -> list[LaneChoice]:
    """Return what each number of lanes would do, the fullest first; ties as they came.

    Fewer lanes are easier to fill: give candidates near the number that is wanted, that one first.

    Args:
        lengths: `[passes]` int64, rows of each pass over a trial, at least 1.
        chunk: T, rows per step of a lane.
        candidates: Numbers of lanes, at least 1; each costs as much as an epoch of `LanePlan`.
    """
    # The order of ids may be one of lengths; an epoch's is not.
    order = permute(np.arange(len(lengths)), len(lengths), 0) if len(lengths) else slice(0)
    chunks = -(-lengths[order] // chunk)
    total = int(chunks.sum())
    choices = []
    for n_lanes in dict.fromkeys(candidates):
        n_steps = _walk(chunks, n_lanes)[2]
        bound = _share(total, n_lanes * fewest_steps(chunks, n_lanes))
        choices.append(LaneChoice(n_lanes, n_steps, _share(total, n_lanes * n_steps), bound))
    return sorted(choices, key=lambda choice: -choice.fill)


def fewest_steps(chunks: Int64, n_lanes: int) -> int:
    """Return S*, the steps below which no plan can go.

    Args:
        chunks: `[passes]` int64, chunks of each pass.
        n_lanes: B.
    """
    return max(int(chunks.max(initial=0)), -(-int(chunks.sum()) // n_lanes))


def _walk(chunks: Int64, n_lanes: int) -> tuple[Int64, Int64, int]:
    """Return the first step and the lane of each pass, and the steps of the epoch.

    A lane and the step at which it is free are one integer, step * n_lanes + lane: the smallest is
    the lane that is free first and, of several, the lowest one.
    """
    n_passes = len(chunks)
    deadline = fewest_steps(chunks, n_lanes) * n_lanes
    spans = (chunks * n_lanes).tolist()
    by_length = np.argsort(-chunks, kind="stable").tolist()
    free = list(range(n_lanes))  # sorted, so a heap
    placed = bytearray(n_passes)
    begins = array("q", bytes(8 * n_passes))
    next_long = next_up = 0
    for _ in range(n_passes):
        while placed[by_length[next_long]]:
            next_long += 1
        chosen = by_length[next_long]
        now = free[0]
        if now + spans[chosen] < deadline:  # it may wait
            while placed[next_up]:
                next_up += 1
            chosen = next_up
        placed[chosen] = 1
        begins[chosen] = now
        heapreplace(free, now + spans[chosen])
    starts, lanes = np.divmod(np.frombuffer(begins, np.int64), n_lanes)
    return starts, lanes, max(free) // n_lanes


def _fill(n_chunks: int, n_rows: int, n_slots: int, chunk: int) -> LaneFill:
    return LaneFill(_share(n_chunks, n_slots), _share(n_rows, n_slots * chunk))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
