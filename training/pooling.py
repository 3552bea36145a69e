"""From a state per step to one per row: the last one, or a summary of all valid ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Pool(nn.Module):
    """Sums up the valid steps of each row; padding never enters.

    Args:
        kind: `last`, `mean`, `max`, `mean_max`, or `attention`: a mean with learned weights, the
            softmax of v tanh(W h) (Bahdanau 2015).
        width: H, of a step.

    Attributes:
        width: Of what comes out.
    """

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.width = 2 * width if kind == "mean_max" else width
        if kind == "attention":
            self.score = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, x_BLH: Tensor, lengths_B: Tensor) -> Tensor:
        """Return `[B, width]`; of a row without a valid step, something finite."""
        if self.kind == "last":
            return take_last(x_BLH, lengths_B)
        valid_BL1 = valid_steps(x_BLH, lengths_B)[:, :, None]
        if self.kind == "attention":
            score_BL1 = self.score(x_BLH)
            score_BL1 = score_BL1.to(torch.promote_types(score_BL1.dtype, torch.float32))
            lowest = torch.finfo(score_BL1.dtype).min
            share_BL1 = score_BL1.masked_fill(~valid_BL1, lowest).softmax(dim=1).to(x_BLH.dtype)
            mean_BH: Tensor = (torch.where(valid_BL1, x_BLH, 0.0) * share_BL1).sum(dim=1)
            return mean_BH
        parts = []
        if self.kind in ("mean", "mean_max"):
            n_B1 = lengths_B.clamp(min=1)[:, None].to(x_BLH.dtype)
            parts.append(torch.where(valid_BL1, x_BLH, 0.0).sum(dim=1) / n_B1)
        if self.kind in ("max", "mean_max"):
            # A state lies between -1 and 1, but layer norm goes beyond: only valid steps compete.
            lowest = torch.finfo(x_BLH.dtype).min
            highest_BH = x_BLH.masked_fill(~valid_BL1, lowest).amax(dim=1)
            parts.append(torch.where((lengths_B > 0)[:, None], highest_BH, 0.0))
        return torch.cat(parts, dim=-1)


def valid_steps(x_BLH: Tensor, lengths_B: Tensor) -> Tensor:
    """Return bool `[B, L]`, True before the padding."""
    return torch.arange(x_BLH.shape[1], device=x_BLH.device) < lengths_B[:, None]


def take_last(x_BLH: Tensor, lengths_B: Tensor) -> Tensor:
    """Return `[B, H]`, each row's last valid step; a row without one gives its first."""
    last_B = (lengths_B - 1).clamp(min=0)
    return take_steps(x_BLH, last_B[:, None]).squeeze(1)


def reverse_valid(x_BLH: Tensor, lengths_B: Tensor) -> Tensor:
    """Return the rows with their valid steps backwards and the padding where it was."""
    step_L = torch.arange(x_BLH.shape[1], device=x_BLH.device)
    mirror_BL = lengths_B[:, None] - 1 - step_L
    return take_steps(x_BLH, torch.where(mirror_BL >= 0, mirror_BL, step_L))


def take_steps(x_BLH: Tensor, index_BM: Tensor) -> Tensor:
    """Return `[B, M, H]`, some steps of each row.

    Not `take_along_dim`, which does the same, but fixes the sizes when it is traced for export.
    """
    return x_BLH.gather(1, index_BM[:, :, None].expand(-1, -1, x_BLH.shape[2]))
