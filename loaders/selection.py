"""What a stream reads: the trials of a split, their windows, quotas and weights."""

from __future__ import annotations

import hashlib
import math
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.balance import GROUPED, draw_groups, draw_quotas, group_quotas, loss_weights
from loaders.blocks import BlockPlan, cut_blocks, pool_blocks_of
from loaders.choices import LaneBatches, TrialBatches, WindowBatches
from loaders.chosen import choose_trials, digest_trials
from loaders.groups import GroupPlan
from loaders.lanes import LanePlan
from loaders.lengths import LengthPlan
from loaders.options import StreamOptions
from loaders.order import EpochPlan
from loaders.plans import DrawPlan
from loaders.request import choose_target, choose_windows
from shards import InvalidSpecError, Store, WindowSpec
from shards.manifest import TargetSchema
from shards.windows import count_windows

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


class Selection:
    """The part of a store that a stream's options ask for; O(trials) integers.

    Attributes:
        trials: `[n]` int64, numbers of the trials asked for; the plan names one by its position.
        weights: `[n]` float32, what a row of each trial weighs.
        target: What is predicted.
        windows: The windows in force; of batches of trials and lanes, what lies ahead of a step.
        plan: Which window, or trial, comes at which position of an epoch.
        steps: Of batches of trials and lanes: which rows of which trials are in which step.

    Raises:
        StoreNotFoundError: If the version has no such split.
        TrialNotFoundError: If it has no trial of an id that is asked for.
        InvalidSpecError: If the trials have no windows, or they do not suit the target, or the
            filter is none or chooses nothing, or the store does not hold what is asked for.
    """

    def __init__(self, store: Store, options: StreamOptions, chosen: Int64 | None = None) -> None:
        self._store, self._options = store, options
        self.target: TargetSchema = choose_target(store, options)
        self.windows: WindowSpec = choose_windows(store, options, self.target)
        self.trials: Int64 = choose_trials(store, options) if chosen is None else chosen
        n_rows = store.index.n_rows[self.trials]
        n_windows = self._n_windows(n_rows)
        if not n_windows.any():
            raise self._no_windows(n_rows)
        self.plan = self._draws(n_windows)
        self.weights: Float32 = loss_weights(
            store, options.weights, self.trials, self.plan.mean_draws * self._counted
        )
        self.steps = self._steps()
        # Of equal weights a sum is a product, and exact: float32 times a count below 2^29.
        same = bool((self.weights == self.weights[0]).all())
        self._one_weight = float(self.weights[0]) if same else None

    @property
    def longest(self) -> int:
        """Steps of the longest row that may be delivered."""
        batches = self._options.batches
        if isinstance(batches, LaneBatches):
            return batches.chunk
        if isinstance(batches, TrialBatches):
            return int(self._taken[1].max())
        return self.windows.length

    def n_steps(self, epoch: int) -> int:
        """Return the optimizer steps of an epoch."""
        if self.steps is None:
            return self.plan.n_steps(self._options.batch_size)
        return self.steps.epoch(epoch).n_steps

    def first_rows(self, trial: Int64, window: Int64, epoch: int) -> Int64:
        """Return the first row of windows.

        Args:
            trial: int64 `[n]`, positions in the list of trials.
            window: int64 `[n]`, numbers of their windows.
            epoch: Epoch of the draw, which a random offset depends on.
        """
        start = window * self.windows.stride
        batches = self._options.batches
        if isinstance(batches, WindowBatches) and batches.random_offset:
            start += self.plan.offsets(trial, window, epoch, self._slack(trial, start))
        return start

    def weigh(self, weight: Float32) -> float:
        """Return the sum of the weights of some rows; the same bits on every machine."""
        if self._one_weight is not None and self.steps is None:
            return self._one_weight * len(weight)
        return math.fsum(weight.tolist())

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a state must agree with to be continued: `fingerprint`, `plan`, `seed`.

        And `trials`, where a filter leaves some out.
        """
        options = self._options
        order = options.order(
            self.windows, None if self.target == self._store.manifest.target else self.target
        )
        if options.weights.by != "own":
            order["weights"] = hashlib.sha256(self.weights.astype("<f4").tobytes()).hexdigest()
        if self.steps is not None:
            taken = np.stack(self._taken).astype("<i8")
            order["steps"] = self.steps.version
            order["rows"] = hashlib.sha256(taken.tobytes()).hexdigest()
        filtered: dict[str, Any] = {}
        # A filter that chooses all is none: the same batches have the same identity.
        code = self._store.split_code(options.split)
        if len(self.trials) < np.count_nonzero(self._store.index.split == code):
            filtered["trials"] = digest_trials(self._store, self.trials)
        return {
            "fingerprint": self._store.manifest.fingerprints[options.split],
            "plan": self.plan.digest(order | filtered),
            "seed": options.seed,
            **filtered,
        }

    # How it is made

    def _n_windows(self, n_rows: Int64) -> Int64:
        if isinstance(self._options.batches, WindowBatches):
            return count_windows(n_rows, self.windows)
        return (n_rows > self.windows.ahead).astype(np.int64)

    def _draws(self, n_windows: Int64) -> DrawPlan:
        options, store = self._options, self._store
        asked = (store, options.balance, self.trials, n_windows)
        if options.shuffle == "global" and options.balance.by in GROUPED:
            groups = draw_groups(*asked)
            of_group = group_quotas(n_windows, groups, int(n_windows.sum()))[0]
            return GroupPlan(n_windows, groups, of_group, options.seed)
        quotas = draw_quotas(*asked)
        if options.blocks is None:
            return EpochPlan(n_windows, quotas, options.seed, options.shuffle)
        index, first = store.index, store.manifest.shards[int(store.index.shard[self.trials[0]])]
        row_bytes = first.arrays["values"].row_bytes
        taken = n_windows if store.manifest.layout == "windows" else index.n_rows[self.trials]
        blocks = cut_blocks(
            index.shard[self.trials], index.row_start[self.trials], taken,
            row_bytes=row_bytes, block_bytes=options.blocks.block_bytes,
        )  # fmt: skip
        n_pool = pool_blocks_of(blocks, taken * row_bytes, options.blocks.pool_bytes)
        return BlockPlan(n_windows, quotas, options.seed, blocks=blocks, pool_blocks=n_pool)

    def _steps(self) -> LanePlan | LengthPlan | None:
        batches, size = self._options.batches, self._options.batch_size
        if isinstance(batches, WindowBatches):
            return None
        starts, lengths = self._taken
        if isinstance(batches, LaneBatches):
            return LanePlan(self.plan, lengths, n_lanes=size, chunk=batches.chunk)
        return LengthPlan(
            self.plan, lengths, batch_size=size, max_padding=batches.max_padding, starts=starts
        )

    @cached_property
    def _taken(self) -> tuple[Int64, Int64]:
        """First row and number of rows that are taken of each trial."""
        batches, n_rows = self._options.batches, self._store.index.n_rows[self.trials]
        n_rows = np.where(n_rows > self.windows.ahead, n_rows, 0)
        starts = np.zeros(len(n_rows), np.int64)
        if isinstance(batches, TrialBatches) and batches.max_length is not None:
            lengths = np.minimum(n_rows, batches.max_length)
            return (n_rows - lengths if batches.truncate == "start" else starts), lengths
        return starts, n_rows

    @property
    def _counted(self) -> Int64:
        """How often each trial counts in the loss per draw: once, but in lanes by the step."""
        batches = self._options.batches
        if isinstance(batches, LaneBatches):
            counted: Int64 = np.maximum(0, self._taken[1] - batches.burn_in)
            if not counted.any():
                raise InvalidSpecError(
                    f"burn_in is {batches.burn_in}, and the longest trial has "
                    f"{int(self._taken[1].max())} rows: no step would count in the loss. Wanted "
                    "fewer steps."
                )
            return counted
        return np.ones(len(self.trials), np.int64)

    def _slack(self, trial: Int64, start: Int64) -> Int64:
        """Return how far each window may be shifted and still lie in its trial."""
        n_rows = self._store.index.n_rows[self.trials.take(trial)]
        room = n_rows - self.windows.length - self.windows.ahead - start
        slack: Int64 = np.clip(room, 0, self.windows.stride - 1)
        return slack

    def _no_windows(self, n_rows: Int64) -> InvalidSpecError:
        windows = self.windows
        return InvalidSpecError(
            f"split {self._options.split!r} of {self._store.path} {self._store.version} has no "
            f"windows: {len(n_rows)} trials, the longest of {int(n_rows.max(initial=0))} rows; "
            f"wanted {windows.length} rows and {windows.ahead} ahead. Choose shorter windows, "
            "short='pad' or another split."
        )
