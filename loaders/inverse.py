"""From delivered units back to the channels' physical ones, on any device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from loaders.batch import Batch
from shards import InvalidSpecError, Store


class Inverse:
    """Undoes the normalization of a store's values: `physical = value * scale + offset`.

    Args:
        store: The open version.
    """

    def __init__(self, store: Store) -> None:
        self._names = [channel.name for channel in store.manifest.channels]
        self._entries, self._regimes = store.delivery.entries, store.delivery.regimes
        self._offset, self._scale = store.physical_affine()

    def apply(self, values: Tensor, of: Batch | Tensor, places: list[int]) -> Tensor:
        """Return values in physical units.

        Args:
            values: float `[B, ..., K]`.
            of: Their batch, or int64 `[B]`, their trials.
            places: The channel of each of K.

        Raises:
            InvalidSpecError: If `of` does not tell the affine of a column.
        """
        scopes = {self._entries[place][1] for place in places}
        batch = of if isinstance(of, Batch) else None
        trial = of.trial if isinstance(of, Batch) else of
        inner = [1] * (values.dim() - 2)
        rows = trial.cpu().clamp(min=0).numpy()
        offset, scale = (
            torch.from_numpy(np.take(x if len(x) == 1 else x[rows], places, axis=1))
            .reshape(-1, *inner, len(places))
            .to(values.device)
            for x in (self._offset, self._scale)
        )
        values = values * scale + offset
        if "window" in scopes:
            offset, scale = self._of_window(batch, places)
            shape = (-1, *inner, len(places))
            values = values * scale.reshape(shape).to(values) + offset.reshape(shape).to(values)
        if "regime" in scopes:
            offset, scale = self._of_regime(batch, values, places)
            values = values * scale.to(values) + offset.to(values)
        return values

    def _of_window(self, batch: Batch | None, places: list[int]) -> tuple[Tensor, Tensor]:
        """Return `[B, K]`."""
        if batch is None or batch.window_offset is None or batch.window_scale is None:
            raise self._unknown("window", places, "give the batch, not its trials")
        return batch.window_offset[:, places], batch.window_scale[:, places]

    def _of_regime(
        self, batch: Batch | None, values: Tensor, places: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Return `[B, L, K]`; the identity for columns of other scopes."""
        known = self._regimes
        if batch is None or batch.regimes is None or known is None:
            raise self._unknown("regime", places, "give the batch, not its trials")
        if values.shape[:-1] != batch.regimes.shape:
            wanted = f"give values of the batch's steps, {[*batch.regimes.shape, len(places)]}"
            raise self._unknown("regime", places, f"{wanted} instead of {[*values.shape]}")
        shape = (len(known.table.offset), len(places))
        parts = np.zeros(shape, np.float32), np.ones(shape, np.float32)
        for part, table in zip(parts, (known.table.offset, known.table.scale), strict=True):
            for at, place in enumerate(places):
                found = np.flatnonzero(known.channels == place)
                if len(found):
                    part[:, at] = table[:, found[0]]
        rows = batch.regimes.cpu().long()
        return torch.from_numpy(parts[0])[rows], torch.from_numpy(parts[1])[rows]

    def _unknown(self, scope: str, places: list[int], remedy: str) -> InvalidSpecError:
        names = [self._names[place] for place in places if self._entries[place][1] == scope]
        return InvalidSpecError(
            f"columns {names} have normalization scope {scope}, so what undoes it differs from one "
            f"{'window' if scope == 'window' else 'step'} to the next; {remedy}."
        )
