"""A trained network that needs nothing beside it: raw units in, physical units out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from loaders import Batch
from shards import InvalidSpecError, Store
from shards.codes import fitted_inputs
from training.build import model_inputs
from training.loss import to_quantiles, to_target_units
from training.model import TrialLSTM
from training.rawunits import Normalize, Statics
from training.target import Objective


class Standalone(nn.Module):
    """Network, normalization before it, and the way back to physical units behind it.

    Args:
        network: Trained, in evaluation mode.
        store: Where its constants and vocabularies are.
        objective: What it was trained for.

    Raises:
        InvalidSpecError: If a forecast's channel is of scope `regime`: nobody knows the regime of a
            row to come.
    """

    def __init__(self, network: TrialLSTM, store: Store, objective: Objective) -> None:
        super().__init__()
        self.network, self.objective = network, objective
        self.normalize = Normalize(store)
        self.codes, fitted = fitted_inputs(store)
        self.statics = Statics(fitted)
        self.places: list[int] = []
        if objective.kind == "forecast":
            names = [channel.name for channel in store.manifest.channels]
            self.places = [names.index(column) for column in objective.columns]
            scopes = {store.entries[place][1] for place in self.places}
            if "regime" in scopes:
                raise InvalidSpecError(
                    f"a forecast of {list(objective.columns)} has normalization scope regime, "
                    "whose constants are those of rows to come; wanted another scope for them."
                )

    def forward(
        self,
        values: Tensor,
        lengths: Tensor,
        observed: Tensor | None = None,
        codes: Tensor | None = None,
        numbers: Tensor | None = None,
        words: Tensor | None = None,
        groups: Tensor | None = None,
        offset: Tensor | None = None,
        scale: Tensor | None = None,
        state: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return predictions; `training.export.describe` says what each tensor holds."""
        step_L = torch.arange(values.shape[1], device=values.device)
        valid_BL = step_L < lengths[:, None]
        own = None if offset is None or scale is None else (offset, scale)
        delivered_BLC, back = self.normalize(values, valid_BL, groups, own)
        statics, static_codes = self.statics(numbers, words)
        batch = Batch(
            values=delivered_BLC,
            targets=delivered_BLC,
            observed=None if observed is None else observed & valid_BL[:, :, None],
            valid=valid_BL,
            lengths=lengths,
            weights=lengths,
            global_weight=0.0,
            trial=lengths,
            start=lengths,
            epoch=0,
            step=0,
            codes=None if codes is None else torch.where(valid_BL[:, :, None], codes, 0),
            statics=statics,
            static_codes=static_codes,
        )
        output, after = self.network(*model_inputs(batch), state)
        said = self._say(output.double(), batch, back)
        said = {name: part.float() for name, part in said.items()}
        return said if after is None else {**said, "next_state": after}

    def _say(self, output: Tensor, batch: Batch, back: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return what the network says, in physical units, float64."""
        objective = self.objective
        if objective.n_classes:
            return {"probability": output.softmax(-1)}
        said = {"predicted": to_target_units(output, batch, objective)}
        if objective.quantiles:
            said["quantiles"] = to_quantiles(output, batch, objective)
        if objective.kind != "forecast":
            return said
        offset_BK, scale_BK = (part[:, self.places] for part in back)
        physical = {}
        for name, part in said.items():
            # [B, (L,) steps, K(, Q)]: the constants are of B and K.
            inner = (1,) * (part.dim() - (3 if name == "quantiles" else 2))
            ends = (1,) if name == "quantiles" else ()
            shape = (-1, *inner, len(self.places), *ends)
            physical[name] = part * scale_BK.view(shape) + offset_BK.view(shape)
        return physical
