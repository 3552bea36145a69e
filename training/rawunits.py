"""From raw units to what a network gets, as parts of its graph (SPEC section 5).

What the loaders do on the way from a store, once more on tensors, so that a model can be handed
over alone. No size is read while it is traced: the graph must serve batches of any.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from loaders.rescale import window_statistics
from shards import Store
from shards.affine import channels_of, group_attribute, scope_kind
from shards.codes import FittedInput
from shards.regimes import AffineTable, Regimes

_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = 1e-30
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Affine = tuple[Tensor, Tensor, Tensor]
"""Offset, inverse scale and scale, float32 `[B or 1, L or 1, C]`."""


class Groups(NamedTuple):
    """An attribute whose values have constants of their own: code 1 is the first of them.

    Code 0 stands for no value, and for one that no train trial has.
    """

    attribute: str
    values: tuple[str, ...]


class Normalize(nn.Module):
    """Physical values to delivered ones, and what leads back.

    A channel has one scope; the affines of all others leave it as it is, exactly.

    Args:
        store: Whose constants are frozen in.

    Attributes:
        groups: Attributes whose codes a call needs.
        takes_own: Whether a call needs offset and scale of each trial: scopes trial and prefix.
    """

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.n_channels = len(store.entries)
        delivery = store.parse_delivery(lambda _: [None])  # of a trial in no known group
        self.takes_own = bool(len(delivery.own))
        self.groups = _known_groups(store)
        self.of_train = self._table(delivery.table, channels_of(store.entries, "train"))
        self.by_group = nn.ModuleList(self._group_table(store, known) for known in self.groups)
        self.own_C = self._flags(delivery.own)
        self.windowed = {m: self._flags(places) for m, places in delivery.windowed.items()}
        self.regimes = delivery.regimes
        if self.regimes is not None:
            every = np.arange(len(self.regimes.channels))
            self.by_regime = self._table(self.regimes.table, self.regimes.channels, every)

    def forward(
        self,
        values_BLC: Tensor,
        valid_BL: Tensor,
        groups_BA: Tensor | None,
        own: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return values as delivered, 0 where missing or padded, and `[B or 1, C]` of the way back.

        That is offset and scale, physical = delivered * scale + offset; the identity for channels
        of scope `regime`.

        Args:
            values_BLC: float32, physical units, NaN where missing.
            valid_BL: Not padding.
            groups_BA: int64 codes of the trial's groups.
            own: float64 `[B, C]` offset and scale of the trial.
        """
        present_BLC = valid_BL[:, :, None] & ~values_BLC.isnan()
        parts: list[Affine] = [self.of_train(torch.zeros_like(valid_BL[:1, :1], dtype=torch.int64))]
        if groups_BA is not None:
            codes = groups_BA[:, :, None].unbind(1)
            parts += [table(code_B1) for table, code_B1 in zip(self.by_group, codes, strict=True)]
        for method, flags_C in self.windowed.items():
            parts.append(_of_window(method, values_BLC, present_BLC, flags_C))
        offset, scale = (_joined(parts, which)[:, 0] for which in (0, 2))
        if self.regimes is not None:
            parts.append(self.by_regime(nearest_regime(values_BLC, self.regimes)))
        stored_BLC = values_BLC
        if own is not None:
            stored_BLC = torch.where(self.own_C, _as_built(values_BLC, *own), values_BLC)
            offset = offset + torch.where(self.own_C, own[0].float(), 0.0)
            scale = scale * torch.where(self.own_C, own[1].float(), 1.0)
        out_BLC = (stored_BLC - _joined(parts, 0)) * _joined(parts, 1)
        return torch.where(present_BLC, out_BLC, 0.0), (offset, scale)

    def _table(self, table: AffineTable, places: Int64, columns: Int64 | None = None) -> Lookup:
        """Return a table for all channels, the identity but for `places`."""
        columns = places if columns is None else columns
        wide = []
        for start, part in zip(
            (0, 1, 1), (table.offset, table.inv_scale, table.scale), strict=True
        ):
            wide.append(np.full((len(part), self.n_channels), start, np.float32))
            wide[-1][:, places] = part[:, columns]
        return Lookup(*wide)

    def _group_table(self, store: Store, known: Groups) -> Lookup:
        """Return a row of constants for each code of a group."""
        trials = [None, *known.values]

        def values_of(attribute: str) -> list[str | None]:
            return trials if attribute == known.attribute else [None] * len(trials)

        delivery = store.parse_delivery(values_of)
        assert delivery.row is not None
        places = channels_of(store.entries, f"group:{known.attribute}")
        return self._table(delivery.table.take(delivery.row), places)

    def _flags(self, places: Int64) -> Tensor:
        flags = torch.zeros(self.n_channels, dtype=torch.bool)
        flags[torch.from_numpy(places)] = True
        return flags


class Lookup(nn.Module):
    """Constants by number: float32 tables `[n, C]`."""

    def __init__(self, offset: Float32, inv_scale: Float32, scale: Float32) -> None:
        super().__init__()
        self.register_buffer("offset", torch.from_numpy(offset))
        self.register_buffer("inv_scale", torch.from_numpy(inv_scale))
        self.register_buffer("scale", torch.from_numpy(scale))

    def forward(self, number_BL: Tensor) -> Affine:
        """Return the constants of each number, `[B, L, C]`."""
        offset, inv_scale, scale = (
            self.get_buffer(name)[number_BL] for name in ("offset", "inv_scale", "scale")
        )
        return offset, inv_scale, scale


class Statics(nn.Module):
    """Attributes of a trial to static inputs.

    Args:
        fitted: What was fitted for them, in the order of the store.

    Attributes:
        numbers: Names of the columns of `numbers`, in order.
        words: Attributes that are the columns of `words`, in order.
    """

    def __init__(self, fitted: tuple[FittedInput, ...]) -> None:
        super().__init__()
        self.fitted = fitted
        self.numbers = tuple(entry.name for entry in fitted if entry.encoding == "number")
        self.words = tuple(entry for entry in fitted if entry.encoding != "number")

    def forward(
        self, numbers_BN: Tensor | None, words_BW: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return `statics` and `static_codes` as a `Batch` has them.

        Args:
            numbers_BN: float64, NaN where there is none.
            words_BW: int64, as codes: 0 where unknown or missing.
        """
        numbers = iter(() if numbers_BN is None else numbers_BN.unbind(1))
        words = iter(() if words_BW is None else words_BW.unbind(1))
        columns, codes = [], []
        for entry in self.fitted:
            if entry.encoding == "number":
                scaled_B = (next(numbers) - entry.mean) / entry.sd
                scaled_B = torch.where(scaled_B.isnan(), 0.0, scaled_B)
                columns.append(scaled_B.clamp(-_LARGEST, _LARGEST).float()[:, None])
            elif entry.encoding == "embed":
                codes.append(next(words))
            else:
                known = torch.arange(1, len(entry.vocabulary) + 1)
                columns.append((next(words)[:, None] == known).float())
        return (
            torch.cat(columns, dim=1) if columns else None,
            torch.stack(codes, dim=1) if codes else None,
        )


def nearest_regime(values_BLC: Tensor, regimes: Regimes) -> Tensor:
    """Return int64 `[B, L]`, as `shards.regimes.nearest_centre` does: the same roundings."""
    best = torch.full_like(values_BLC[:, :, 0], torch.inf)
    number_BL = torch.full_like(best, len(regimes.centres), dtype=torch.int64)
    for number, centre in enumerate(regimes.centres.tolist()):
        far = torch.zeros_like(best)
        inverses = regimes.inv_spread.tolist()
        for place, level, inverse in zip(regimes.named.tolist(), centre, inverses, strict=True):
            part = (values_BLC[:, :, place] - level) * inverse
            far = far + part * part
        nearer = far < best  # NaN is not nearer
        best = torch.where(nearer, far, best)
        number_BL = torch.where(nearer, number, number_BL)
    return number_BL


def _as_built(values_BLC: Tensor, offset_BC: Tensor, scale_BC: Tensor) -> Tensor:
    """Normalize as a build does what it stores so: in float64, rounded once."""
    return ((values_BLC.double() - offset_BC[:, None]) / scale_BC[:, None]).float()


def _joined(parts: list[Affine], which: int) -> Tensor:
    """Return all affines as one; in any channel at most one of them changes anything."""
    whole = parts[0][which]
    for part in parts[1:]:
        whole = whole * part[which] if which else whole + part[which]
    return whole


def _of_window(method: str, values_BLC: Tensor, present_BLC: Tensor, flags_C: Tensor) -> Affine:
    """Return what a window's own rows say of the channels of scope `window`, `[B, 1, C]`."""
    values = values_BLC.double()
    if method == "zscore":
        offset, scale = _zscore(values, present_BLC)
    else:
        offset, scale = window_statistics(method, values, present_BLC)
    parts = (offset.float(), (1.0 / scale).float(), scale.float())
    found = (
        torch.where(flags_C, x, start) for start, x in zip((0.0, 1.0, 1.0), parts, strict=True)
    )
    offset, inverse, scale = (x[:, None] for x in found)
    return offset, inverse, scale


def _zscore(values: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """As `loaders.rescale`, but for the order of the sums, which there hangs on the length."""
    n = present.sum(dim=1).clamp(min=1).double()
    least = torch.where(present, values, torch.inf).amin(dim=1)
    least = torch.where(least == torch.inf, 0.0, least)
    mean = least + torch.where(present, values - least[:, None], 0.0).sum(dim=1) / n
    deviation = torch.where(present, values - mean[:, None], 0.0)
    total, squares = deviation.sum(dim=1), (deviation * deviation).sum(dim=1)
    scale = ((squares - total * total / n) / n).clamp(min=0).sqrt()
    empty = ~present.any(dim=1)
    return torch.where(empty, 0.0, mean), torch.where((scale > _SMALLEST) & ~empty, scale, 1.0)


def _known_groups(store: Store) -> tuple[Groups, ...]:
    scopes = sorted({scope for _, scope in store.entries if scope_kind(scope) == "group"})
    known = store.fit["normalize"].get("groups", {})
    names = [group_attribute(scope) for scope in scopes]
    return tuple(Groups(name, tuple(known[name]["values"])) for name in names)
