"""Normalization at delivery, on tensors: by trial, by row, by window (SPEC section 5).

Every operation is elementwise and rounded by itself, and a window's sums are folded in an order
that its own rows give, so that a window's bits depend on no batch, thread or device. Statistics of
a window, and putting forecasts back by them: Kim et al. (2022), "Reversible instance normalization
for accurate time-series forecasting against distribution shift".
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shards.affine import Delivery
from shards.regimes import AffineTable, Regimes

Int64 = npt.NDArray[np.int64]
Statistics = tuple[Tensor, Tensor]
"""Offset and scale."""
Table = tuple[Tensor, Tensor, Tensor]
"""Offset, inverse scale, scale."""

_LARGEST = 1e30
_SMALLEST = 1e-30
"""Within these a float32 holds the inverse scale, as in the pipeline."""


class Applied(NamedTuple):
    """What was decided window by window.

    Attributes:
        regimes: uint8 `[B, L]`, or None without channels of scope `regime`.
        offset: float32 `[B, C]`, 0 but for channels of scope `window`; None without any.
        scale: float32 `[B, C]`, 1 likewise.
        inv_scale: float32 `[B, C]`, 1 likewise.
    """

    regimes: Tensor | None = None
    offset: Tensor | None = None
    scale: Tensor | None = None
    inv_scale: Tensor | None = None


class Rescale:
    """Normalizes the windows of a split as they are delivered.

    Args:
        delivery: Of the store.
        trials: int64 `[n]`, the trials of the split; calls name a trial by its position in it.
        length: L.
        columns: Channels of the forecast target.
        may_miss: Whether any stored value may be NaN.
    """

    def __init__(
        self, delivery: Delivery, trials: Int64, length: int, columns: Int64, *, may_miss: bool
    ) -> None:
        self._may_miss = may_miss
        self._windowed = {m: torch.from_numpy(x) for m, x in delivery.windowed.items()}
        self._columns = torch.from_numpy(columns)
        self._flat = self._row = None
        self._length = length
        self._table = _tensors(delivery.table)
        if delivery.row is not None:
            self._row = torch.from_numpy(delivery.row[trials])
        elif not delivery.is_identity:
            self._flat = [x[0].repeat(length) for x in self._table[:2]]
        self._regimes = None if delivery.regimes is None else _RegimeTensors(delivery.regimes)

    def to(self, device: torch.device) -> Rescale:
        """Return the same for tensors on a device."""
        moved = copy.copy(self)
        moved._windowed = {method: x.to(device) for method, x in self._windowed.items()}
        moved._columns = self._columns.to(device)
        moved._table = _moved(self._table, device)
        if self._flat is not None:
            moved._flat = [x.to(device) for x in self._flat]
        if self._row is not None:
            moved._row = self._row.to(device)
        if self._regimes is not None:
            moved._regimes = self._regimes.to(device)
        return moved

    @property
    def is_identity(self) -> bool:
        """Whether stored values are delivered as they are."""
        return (
            self._flat is None
            and self._row is None
            and self._regimes is None
            and not self._windowed
        )

    def values(self, values: Tensor, position: Tensor, lengths: Tensor) -> Applied:
        """Normalize stored values in place; NaN stays NaN.

        Args:
            values: float32 `[B, L, C]`.
            position: int64 `[B]`, each window's trial.
            lengths: int64 `[B]`, valid steps.
        """
        decided = self._decide(values, lengths)
        if self._flat is not None:  # two roundings: SPEC section 5
            if values.shape[1] == self._length:  # as one long row it goes faster
                values.flatten(1).sub_(self._flat[0]).mul_(self._flat[1])
            else:
                values.sub_(self._table[0][0]).mul_(self._table[1][0])
        elif self._row is not None:
            rows = self._row[position]
            values.sub_(self._table[0][rows][:, None]).mul_(self._table[1][rows][:, None])
        if decided.regimes is not None and self._regimes is not None:
            self._regimes.apply(values, decided.regimes)
        if decided.offset is not None and decided.inv_scale is not None:
            values.sub_(decided.offset[:, None]).mul_(decided.inv_scale[:, None])
        return decided

    def targets(self, targets: Tensor, position: Tensor, applied: Applied) -> None:
        """Normalize forecast targets in place, as the channels of their windows.

        Args:
            targets: float32 `[B, steps, K]`.
            position: int64 `[B]`, each window's trial.
            applied: What `values` returned of the same windows.
        """
        columns = self._columns
        if self._row is not None:
            rows = self._row[position]
            offset, inv_scale = (x[rows][:, None, columns] for x in self._table[:2])
            targets.sub_(offset).mul_(inv_scale)
        elif self._flat is not None:
            targets.sub_(self._table[0][0, columns]).mul_(self._table[1][0, columns])
        if applied.offset is not None and applied.inv_scale is not None:
            targets.sub_(applied.offset[:, None, columns]).mul_(applied.inv_scale[:, None, columns])

    def _decide(self, values: Tensor, lengths: Tensor) -> Applied:
        """Look at what is stored, before it is changed."""
        if self._regimes is None and not self._windowed:
            return Applied()
        step = torch.arange(values.shape[1], device=values.device)
        valid = step < lengths[:, None]
        regimes = None if self._regimes is None else self._regimes.of_rows(values, valid)
        if not self._windowed:
            return Applied(regimes)
        offset = values.new_zeros(values.shape[0], values.shape[2], dtype=torch.float64)
        scale = torch.ones_like(offset)
        for method, places in self._windowed.items():
            every = len(places) == values.shape[2]
            own = (values if every else values[:, :, places]).double()
            present = valid[:, :, None].expand_as(own)
            if self._may_miss:
                present = present & ~own.isnan()
            offset[:, places], scale[:, places] = window_statistics(method, own, present)
        return Applied(regimes, offset.float(), scale.float(), (1.0 / scale).float())


def window_statistics(method: str, values: Tensor, present: Tensor) -> Statistics:
    """Return float64 offset and scale `[B, C]` of each window.

    Args:
        method: `zscore`, `minmax` or `robust`.
        values: float64 `[B, L, C]`.
        present: bool, the same shape: what counts.

    Returns:
        Offset 0, scale 1 where nothing is present, scale 1 where all present values are equal.
    """
    offset, scale = _METHODS[method](values, present)
    empty = ~present.any(dim=1)
    usable = (scale > _SMALLEST) & ~empty
    return torch.where(empty, 0.0, offset), torch.where(usable, scale, 1.0)


def _zscore(values: Tensor, present: Tensor) -> Statistics:
    """Mean and population sd; deviations from the least value are exactly 0 where all are equal."""
    n = present.sum(dim=1).clamp(min=1).double()
    least = _least(values, present)
    deviation = torch.where(present, values - least[:, None], 0.0)
    mean = least + fold_sum(deviation) / n
    deviation = torch.where(present, values - mean[:, None], 0.0)
    total, squares = fold_sum(deviation), fold_sum(deviation * deviation)
    return mean, ((squares - total * total / n) / n).clamp(min=0).sqrt()


def _minmax(values: Tensor, present: Tensor) -> Statistics:
    least = _least(values, present)
    return least, -_least(-values, present) - least


def _robust(values: Tensor, present: Tensor) -> Statistics:
    """Median and interquartile range; between two values linear, as NumPy's default."""
    ordered = torch.where(present, values, torch.inf).sort(dim=1).values
    n = present.sum(dim=1)
    low, median, high = (_quantile(ordered, n, share) for share in (0.25, 0.5, 0.75))
    last = ordered.gather(1, (n - 1).clamp(min=0)[:, None]).squeeze(1)
    reach = torch.maximum((ordered[:, 0] - median).abs(), (last - median).abs())
    scale = torch.where(high - low > _SMALLEST, high - low, 1.0)
    return median, torch.where(scale * _LARGEST > reach, scale, reach)


def _quantile(ordered: Tensor, n: Tensor, share: float) -> Tensor:
    place = (n - 1).clamp(min=0).double() * share
    below = place.floor()
    first = below.long()
    last = torch.minimum(first + 1, (n - 1).clamp(min=0))
    lower, upper = (ordered.gather(1, at[:, None]).squeeze(1) for at in (first, last))
    step = (upper - lower) * (place - below)  # apart from the sum: a fused product rounds otherwise
    return lower + step


def _least(values: Tensor, present: Tensor) -> Tensor:
    """Return `[B, C]`; 0 where nothing is present."""
    least = torch.where(present, values, torch.inf).amin(dim=1)
    return torch.where(least == torch.inf, 0.0, least)


def fold_sum(values: Tensor) -> Tensor:
    """Return the sum over dim 1 of `[B, L, C]`: the second half of the steps is added to the first.

    Elementwise, so that the order is the same on any device; `torch.sum` promises none.
    """
    n_steps = values.shape[1]
    values = values.clone()
    while n_steps > 1:
        half = (n_steps + 1) // 2
        values[:, : n_steps - half] += values[:, half:n_steps]
        n_steps = half
    return values[:, 0]


class _RegimeTensors:
    """`shards.regimes.Regimes` on tensors: the same operations in the same order."""

    def __init__(self, regimes: Regimes) -> None:
        self._regimes = regimes
        self._table = _tensors(regimes.table)
        self._channels = torch.from_numpy(regimes.channels)

    def to(self, device: torch.device) -> _RegimeTensors:
        """Return the same for tensors on a device."""
        moved = copy.copy(self)
        moved._table, moved._channels = _moved(self._table, device), self._channels.to(device)
        return moved

    def of_rows(self, values: Tensor, valid: Tensor) -> Tensor:
        """Return uint8 `[B, L]`; the number of regimes where there is none, or padding."""
        known = self._regimes
        columns = [values[:, :, place].contiguous() for place in known.named.tolist()]
        best = torch.full_like(columns[0], torch.inf)
        regime = torch.full_like(best, len(known.centres), dtype=torch.uint8)
        for number, centre in enumerate(known.centres.tolist()):
            far = torch.zeros_like(best)
            for column, level, inverse in zip(
                columns, centre, known.inv_spread.tolist(), strict=True
            ):
                part = (column - level).mul_(inverse)
                far.add_(part.mul_(part))
            nearer = (far < best) & valid  # NaN is not nearer
            best = torch.where(nearer, far, best)
            regime.masked_fill_(nearer, number)
        return regime

    def apply(self, values: Tensor, regimes: Tensor) -> None:
        """Normalize the channels of scope `regime` in place."""
        rows = regimes.long()
        offset, inv_scale = (part[rows] for part in self._table[:2])
        if len(self._channels) == values.shape[2]:
            values.sub_(offset).mul_(inv_scale)
        else:
            values[:, :, self._channels] = (values[:, :, self._channels] - offset) * inv_scale


def _moved(table: Table, device: torch.device) -> Table:
    offset, inv_scale, scale = (x.to(device) for x in table)
    return offset, inv_scale, scale


def _tensors(table: AffineTable) -> Table:
    offset, inv_scale, scale = (
        torch.from_numpy(np.ascontiguousarray(x))
        for x in (table.offset, table.inv_scale, table.scale)
    )
    return offset, inv_scale, scale


_METHODS: dict[str, Callable[[Tensor, Tensor], Statistics]] = {
    "zscore": _zscore,
    "minmax": _minmax,
    "robust": _robust,
}
