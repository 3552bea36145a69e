"""The network: stacked LSTM, pooling, dense head. B rows, L steps, C channels, K outputs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from training.extras import NO_EXTRAS, ExtraInputs, Extras
from training.pooling import Pool, reverse_valid, take_last
from training.sections import ModelConfig

States = list[tuple[Tensor, Tensor]]


class TrialLSTM(nn.Module):
    """An LSTM over dense rows that are padded behind.

    Padding needs no packing: an LSTM looks back only, so what follows the last valid step cannot
    reach it, and dense cuDNN is 15-96 times faster than packed sequences (pytorch#149194). The
    second direction of a bidirectional one reads the valid steps backwards, padding behind again.

    Args:
        n_channels: C.
        n_outputs: K, or the number of classes; with quantiles, times their number.
        config: Sizes.
        observed: Whether an observed mask comes with the values; it enters as C more inputs.
        steps: Forecast steps. 0: an output per input step; None: one output per row.
        dense: Forecast from every input step.
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
        dense: bool = False,
        extras: ExtraInputs = NO_EXTRAS,
    ) -> None:
        super().__init__()
        self.steps, self.n_outputs, self.per_step = steps, n_outputs, dense or steps == 0
        self.config = config
        self.extras = Extras(extras, config.embedding_dim, at_head=config.statics == "head")
        width = config.hidden * (2 if config.bidirectional else 1)
        n_inputs = n_channels * (2 if observed else 1) + self.extras.width
        sizes = [n_inputs] + [width] * config.layers
        # One module per layer with our own dropout between: the masks of a many-layer cuDNN LSTM
        # come from a hidden cuDNN state that no checkpoint can hold, ours from torch's generator.
        self.layers = _lstms(sizes, config)
        self.backwards = _lstms(sizes, config) if config.bidirectional else None
        norms = config.layers if config.layer_norm else 0
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(norms))
        self.dropout = nn.Dropout(config.dropout)
        self.head_dropout = nn.Dropout(config.head_dropout)
        self.pool = None if self.per_step else Pool(config.pool, width)
        n_features = self.extras.head_width + (self.pool.width if self.pool else width)
        dense_sizes = [n_features, *config.head]
        hidden = [part for n, m in pairwise(dense_sizes) for part in (nn.Linear(n, m), nn.ReLU())]
        self.head = nn.Sequential(*hidden, nn.Linear(dense_sizes[-1], n_outputs * (steps or 1)))

    def forward(
        self,
        values_BLC: Tensor,
        lengths_B: Tensor,
        observed_BLC: Tensor | None = None,
        codes_BLN: Tensor | None = None,
        statics_BS: Tensor | None = None,
        static_codes_BE: Tensor | None = None,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return standardised predictions, and the state after the last step if one came in.

        Args:
            values_BLC: As delivered.
            lengths_B: Valid steps of each row.
            observed_BLC: Where the source held a value, if the store says so.
            codes_BLN: As in a `Batch`, like the next two.
            statics_BS: Numbers of the trial.
            static_codes_BE: Words of the trial.
            state: `[2, layers, B, H]`, h and c before the first step; None: zeros.

        Returns:
            `[B, steps, K]` (forecast; dense: `[B, L, steps, K]`), `[B, L, K]` (per step) or
            `[B, K]` (per trial); and `[2, layers, B, H]` or None.
        """
        steps_BLX, head_BX = self.extras(values_BLC, codes_BLN, statics_BS, static_codes_BE)
        parts = [self._noisy(values_BLC)]
        parts += [] if observed_BLC is None else [observed_BLC.to(values_BLC.dtype)]
        parts += steps_BLX
        x_BLH = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
        states: States = []
        for number in range(len(self.layers)):
            x_BLH = self._layer(number, x_BLH, lengths_B, state=state, states=states)
        out = self._head(x_BLH, lengths_B, head_BX)
        if state is None:
            return out, None
        h, c = (torch.cat(part) for part in zip(*states, strict=True))
        return out, torch.stack([h, c])

    def _noisy(self, values_BLC: Tensor) -> Tensor:
        if not (self.training and self.config.noise):
            return values_BLC
        return values_BLC + self.config.noise * torch.randn_like(values_BLC)

    def _layer(
        self,
        number: int,
        x_BLH: Tensor,
        lengths_B: Tensor,
        *,
        state: Tensor | None,
        states: States,
    ) -> Tensor:
        x_BLH = self.dropout(x_BLH) if number else x_BLH
        if state is None:
            out_BLH, after = self.layers[number](x_BLH)
        else:
            before = tuple(part[number : number + 1].contiguous() for part in state)
            out_BLH, after = self.layers[number](x_BLH, before)
        states.append(after)
        if self.backwards is not None:
            back_BLH, _ = self.backwards[number](reverse_valid(x_BLH, lengths_B))
            out_BLH = torch.cat([out_BLH, reverse_valid(back_BLH, lengths_B)], dim=-1)
        normed_BLH: Tensor = self.norms[number](out_BLH) if self.norms else out_BLH
        return normed_BLH

    def _head(self, x_BLH: Tensor, lengths_B: Tensor, head_BX: list[Tensor]) -> Tensor:
        if self.pool is None:
            n_steps = x_BLH.shape[1]
            beside = [part[:, None].expand(-1, n_steps, -1) for part in head_BX]
            features = torch.cat([x_BLH, *beside], dim=-1)
        else:
            features = torch.cat([self.pool(x_BLH, lengths_B), *head_BX], dim=-1)
        out: Tensor = self.head(self.head_dropout(features))
        return out.view(*out.shape[:-1], self.steps, self.n_outputs) if self.steps else out


def _lstms(sizes: Sequence[int], config: ModelConfig) -> nn.ModuleList:
    lstms = nn.ModuleList(nn.LSTM(n, config.hidden, batch_first=True) for n in sizes[:-1])
    for name, bias in lstms.named_parameters():
        if "bias_ih" in name:
            quarter = bias.shape[0] // 4  # gate order of torch: input, forget, cell, output
            nn.init.constant_(bias.data[quarter : 2 * quarter], config.forget_bias)
    return lstms


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
    return values_BLK.gather(1, index_BK[:, None]).squeeze(1)
