"""The hidden state between the chunks of lanes: carried, detached, zeroed where a trial starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from lightning_fabric import Fabric
from torch import Tensor

from loaders import Batch
from training.build import model_inputs
from training.sections import ModelConfig


class Carry:
    """What each lane of this rank remembers; of windows and whole trials nothing.

    A mixture's stores have lanes of their own.

    Args:
        model: Layers and width of the state.
    """

    def __init__(self, model: ModelConfig) -> None:
        self.n_layers, self.width = model.layers, model.hidden
        self._states: dict[int, Tensor] = {}

    def before(self, batch: Batch) -> Tensor | None:
        """Return `[2, layers, B, H]` for a batch of lanes: zero where a trial starts."""
        if batch.reset is None:
            return None
        state = self._states.get(batch.source or 0)
        if state is None:
            return batch.values.new_zeros(2, self.n_layers, len(batch), self.width)
        return torch.where(batch.reset[:, None], 0.0, state)

    def after(self, batch: Batch, state: Tensor | None) -> None:
        """Keep the state for the lanes' next chunks; no gradient goes back over it."""
        if state is not None:
            self._states[batch.source or 0] = state.detach()

    def gather(self, fabric: Fabric) -> dict[str, Tensor]:
        """Return the states of all ranks by store, `[2, layers, lanes, H]`.

        Every rank must call it. Rank r holds the lanes `[r * G // R, (r + 1) * G // R)`, so they
        lie in the order of the ranks.
        """
        mine = {str(source): state.cpu() for source, state in self._states.items()}
        if fabric.world_size == 1:
            return mine
        every: list[dict[str, Tensor]] = [{}] * fabric.world_size
        torch.distributed.all_gather_object(every, mine)
        return {key: torch.cat([part[key] for part in every], dim=2) for key in mine}

    def restore(self, saved: Mapping[str, Tensor], fabric: Fabric) -> None:
        """Take this rank's lanes of what `gather` returned, for any number of ranks."""
        rank, n_ranks = fabric.global_rank, fabric.world_size
        for key, state in saved.items():
            n_lanes = state.shape[2]
            mine = state[:, :, rank * n_lanes // n_ranks : (rank + 1) * n_lanes // n_ranks]
            self._states[int(key)] = mine.clone().to(fabric.device)


def run_model(
    model: Callable[..., tuple[Tensor, Tensor | None]], batch: Batch, carry: Carry
) -> Tensor:
    """Return what the model says of a batch: the one way of training, validation, prediction."""
    output, state = model(*model_inputs(batch), carry.before(batch))
    carry.after(batch, state)
    return output
