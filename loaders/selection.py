"""What a stream reads: the trials of a split, their windows, quotas and weights."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.chosen import choose_trials, digest_trials
from loaders.options import StreamOptions
from loaders.order import EpochPlan, largest_remainder
from shards import InvalidSpecError, Store, WindowSpec
from shards.windows import count_windows

Int64 = npt.NDArray[np.int64]


class Selection:
    """The part of a store that a stream's options ask for; O(trials) integers.

    Attributes:
        trials: `[n]` int64, numbers of the trials asked for; the plan names one by its position.
        weights: `[n]` float32.
        windows: The windows in force.
        plan: The epoch plan.

    Raises:
        StoreNotFoundError: If the version has no such split.
        TrialNotFoundError: If it has no trial of an id that is asked for.
        InvalidSpecError: If the trials have no windows, or they do not suit the target, or the
            filter is none or chooses nothing.
    """

    def __init__(self, store: Store, options: StreamOptions, chosen: Int64 | None = None) -> None:
        self._store, self._options = store, options
        self.windows: WindowSpec = options.windows or store.manifest.windows
        if store.manifest.layout == "windows" and self.windows != store.manifest.windows:
            raise InvalidSpecError(
                f"windows are {self.windows}, but {store.path} has layout 'windows' and holds "
                f"{store.manifest.windows}. Leave windows out, or build a store with "
                "shards.layout: rows."
            )
        if store.manifest.target.kind == "forecast" and self.windows.steps < 1:
            raise InvalidSpecError("windows.steps is 0; wanted at least 1 for a forecast target.")
        self.trials: Int64 = choose_trials(store, options) if chosen is None else chosen
        self.weights = store.index.weight[self.trials]
        n_rows = store.index.n_rows[self.trials]
        n_windows = count_windows(n_rows, self.windows)
        if not n_windows.any():
            raise self._no_windows(n_rows)
        quotas = n_windows
        if options.balance == "trial":
            quotas = largest_remainder(n_windows > 0, int(n_windows.sum()))
        self.plan = EpochPlan(n_windows, quotas, options.seed, options.shuffle)
        # Of equal weights a sum is a product, and exact: float32 times a count below 2^29.
        same = bool((self.weights == self.weights[0]).all())
        self._one_weight = float(self.weights[0]) if same else None

    def weigh(self, weight: npt.NDArray[np.float32]) -> float:
        """Return the sum of the weights of some draws; the same bits on every machine."""
        if self._one_weight is not None:
            return self._one_weight * len(weight)
        return math.fsum(weight.tolist())

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a state must agree with to be continued: `fingerprint`, `plan`, `seed`.

        And `trials`, where a filter leaves some out.
        """
        options = self._options
        order = {
            "batches": options.batches, "batch_size": options.batch_size,
            "balance": options.balance, "windows": self.windows.as_dict(),
        }  # fmt: skip
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

    def _no_windows(self, n_rows: Int64) -> InvalidSpecError:
        windows = self.windows
        return InvalidSpecError(
            f"split {self._options.split!r} of {self._store.path} {self._store.version} has no "
            f"windows: {len(n_rows)} trials, the longest of {int(n_rows.max(initial=0))} rows; "
            f"wanted {windows.length} rows and {windows.ahead} ahead. Choose shorter windows, "
            "short='pad' or another split."
        )
