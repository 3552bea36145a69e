"""The network: stacked LSTM, dense head. Shapes: B windows, L steps, C channels, K outputs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from training.config import ModelConfig
from training.extras import NO_EXTRAS, ExtraInputs, Extras


class TrialLSTM(nn.Module):
    """A causal LSTM over dense windows that are padded behind.

    Padding needs no packing: an LSTM looks back only, so what follows the last valid step cannot
    reach it, and dense cuDNN is 15-96 times faster than packed sequences (pytorch#149194).

    Args:
        n_channels: C.
        n_outputs: K, or the number of classes.
        config: Sizes.
        observed: Whether an observed mask comes with the values; it enters as C more inputs.
        steps: Forecast steps. 0: an output per input step; None: one output per window.
        extras: What comes beside the channels.
    """

    def __init__(
        self,
        n_channels: int,
        n_outputs: int,
        config: ModelConfig,
        *,
        observed: bool = False,
        steps: int | None = None,
        extras: ExtraInputs = NO_EXTRAS,
    ) -> None:
        super().__init__()
        self.steps, self.n_outputs = steps, n_outputs
        self.extras = Extras(extras, config.embedding_dim)
        n_inputs = n_channels * (2 if observed else 1) + self.extras.width
        sizes = [n_inputs] + [config.hidden] * config.layers
        # One module per layer with our own dropout between: the masks of a many-layer cuDNN LSTM
        # come from a hidden cuDNN state that no checkpoint can hold, ours from torch's generator.
        self.layers = nn.ModuleList(nn.LSTM(n, m, batch_first=True) for n, m in pairwise(sizes))
        self.dropout = nn.Dropout(config.dropout)
        dense = [config.hidden, *config.head]
        hidden = [part for n, m in pairwise(dense) for part in (nn.Linear(n, m), nn.ReLU())]
        self.head = nn.Sequential(*hidden, nn.Linear(dense[-1], n_outputs * (steps or 1)))
        self._open_forget_gates()

    def _open_forget_gates(self) -> None:
        """Start with forget biases of 1, so that early gradients reach back (Jozefowicz 2015)."""
        for name, bias in self.layers.named_parameters():
            if "bias_ih" in name:
                quarter = bias.shape[0] // 4  # gate order of torch: input, forget, cell, output
                nn.init.ones_(bias.data[quarter : 2 * quarter])

    def forward(
        self,
        values_BLC: Tensor,
        lengths_B: Tensor,
        observed_BLC: Tensor | None,
        codes_BLN: Tensor | None = None,
        statics_BS: Tensor | None = None,
        static_codes_BE: Tensor | None = None,
    ) -> Tensor:
        """Return standardised predictions.

        Returns:
            `[B, steps, K]` (forecast), `[B, L, K]` (per step) or `[B, K]` (per trial).
        """
        parts = [] if observed_BLC is None else [observed_BLC.to(values_BLC.dtype)]
        parts += self.extras(values_BLC, codes_BLN, statics_BS, static_codes_BE)
        x_BLH = torch.cat([values_BLC, *parts], dim=-1) if parts else values_BLC
        for number, layer in enumerate(self.layers):
            x_BLH, _ = layer(self.dropout(x_BLH) if number else x_BLH)
        if self.steps == 0:
            return self._dense(x_BLH)
        out = self._dense(take_last(x_BLH, lengths_B))
        return out if self.steps is None else out.view(-1, self.steps, self.n_outputs)

    def _dense(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x)
        return out


def take_last(x_BLH: Tensor, lengths_B: Tensor) -> Tensor:
    """Return `[B, H]`, each window's last valid step; a window without one gives its first."""
    last_B = (lengths_B - 1).clamp(min=0)
    return x_BLH.take_along_dim(last_B.view(-1, 1, 1), dim=1).squeeze(1)


def last_seen(
    values_BLC: Tensor, lengths_B: Tensor, observed_BLC: Tensor | None, columns: Sequence[int]
) -> Tensor:
    """Return `[B, K]`, the last observed value of some channels in each window.

    A channel that the window never saw gives what was delivered for its last valid step.
    """
    values_BLK = values_BLC[:, :, list(columns)]
    if observed_BLC is None:
        return take_last(values_BLK, lengths_B)
    step_L = torch.arange(values_BLC.shape[1], device=values_BLC.device)
    seen_BLK = observed_BLC[:, :, list(columns)] & (step_L < lengths_B[:, None])[:, :, None]
    newest_BK = torch.where(seen_BLK, step_L[:, None], -1).amax(dim=1)
    last_B1 = (lengths_B - 1).clamp(min=0)[:, None]
    index_BK = torch.where(newest_BK >= 0, newest_BK, last_B1)
    return values_BLK.take_along_dim(index_BK[:, None], dim=1).squeeze(1)
