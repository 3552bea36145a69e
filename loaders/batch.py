"""What a stream yields: one batch with everything a training step needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from shards import InvalidSpecError


@dataclass(eq=False)
class Batch:
    """This rank's rows of one optimizer step. B rows, L steps, C channels, K target columns.

    A row is a window, a whole trial, or a lane's chunk of one.

    Beside the channels, N categorical columns, S static inputs and E embedded static attributes.

    The last step of an epoch is filled up with *filler rows*: values 0, trial -1, length 0,
    weight 0. Every tensor belongs to the batch: no later batch writes into it.

    Attributes:
        values: float32 `[B, L, C]`, as delivered (SPEC section 5); 0 where missing or padded.
        targets: By the kind of target. forecast: float32 `[B, steps, K]`, in the units of
            `values`; in batches of trials and lanes `[B, L, steps, K]`, what follows each step,
            missing behind the end of its trial. per_step: float32 `[B, L, K]`, physical units.
            per_trial: float32 `[B]` without classes, else int64 `[B]`. Missing, padded and filler
            targets are NaN; as a class, -1.
        observed: bool `[B, L, C]`, True where the source held a value; None if not stored.
        valid: bool `[B, L]`, False in padding.
        lengths: int64 `[B]`, valid steps.
        weights: float32 `[B]`, weight of the row's trial; 0 for filler rows. In lanes, times the
            share of the chunk's steps that count, so that each step weighs alike.
        global_weight: Sum of the weights of this step over all ranks. The loss of a rank is
            `sum(weights * loss) * world_size / global_weight`, so that filler rows bias nothing.
        trial: int64 `[B]`, trial number; -1 for filler rows.
        start: int64 `[B]`, first row in the trial.
        regimes: uint8 `[B, L]`, the operating regime of each step; the number of regimes where
            there is none, or padding. None without channels of normalization scope `regime`.
        window_offset: float32 `[B, C]`, and `window_scale`: what undoes the normalization of the
            channels of scope `window`, physical = value * scale + offset, also of their forecasts;
            0 and 1 for other channels. None without any. `TrialStream.to_physical` uses them.
        epoch: Epoch of the plan.
        step: Step in the epoch. `TrialStream.state_dict(batch)` is the state after it.
        codes: int64 `[B, L, N]`: 0 where a text is missing, padded or unknown to the train trials,
            else 1 + its place in the column's vocabulary; None without categorical columns.
        statics: float32 `[B, S]`: numbers by the train trials' mean and sd (missing: 0), and
            indicator columns of words (unknown: all 0); None without.
        static_codes: int64 `[B, E]`, like `codes`; None without.
        reset: bool `[B]`, True where the chunk of a lane starts a trial: zero its hidden state
            before the step. None but for lanes.
        counts: bool `[B, L]`, which steps count in the loss; None where all valid ones do.
        source: Number of the stream in a mixture; None outside of one.
    """

    values: Tensor
    targets: Tensor
    observed: Tensor | None
    valid: Tensor
    lengths: Tensor
    weights: Tensor
    global_weight: float
    trial: Tensor
    start: Tensor
    epoch: int
    step: int
    codes: Tensor | None = None
    statics: Tensor | None = None
    static_codes: Tensor | None = None
    regimes: Tensor | None = None
    window_offset: Tensor | None = None
    window_scale: Tensor | None = None
    reset: Tensor | None = None
    counts: Tensor | None = None
    source: int | None = None

    def __len__(self) -> int:
        """Return B, filler rows included."""
        return len(self.values)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch on `device`.

        Args:
            device: Where to.
            non_blocking: Let copies from pinned memory to a device overlap with what the host does
                next. Copies to the host are always complete when they are returned.
        """
        # PyTorch would return host tensors that are still being written.
        overlap = non_blocking and torch.device(device).type != "cpu"
        return self._map(lambda tensor: tensor.to(device, non_blocking=overlap))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory. `DataLoader(pin_memory=True)` calls this.

        Tensors on a device stay there.
        """
        return self._map(lambda x: x.pin_memory() if x.device.type == "cpu" else x)

    def packed(self, inputs: Tensor | None = None) -> PackedSequence:
        """Return rows packed without their padding, for `nn.LSTM`; filler rows are left out.

        Dense batches are faster by far on long rows (15 to 96 times with cuDNN); this is for
        bidirectional networks and such that must not see padding.

        Args:
            inputs: `[B, L, ...]`, by default `values`.

        Returns:
            The rows where `lengths > 0`, in order.

        Raises:
            InvalidSpecError: If there are none: the last step of an epoch may leave a rank filler
                alone. Under DDP it must take part all the same, with a loss of 0 x its parameters.
        """
        rows = self.lengths > 0
        if not bool(rows.any()):
            raise InvalidSpecError(
                f"batch {self.step} of epoch {self.epoch} holds filler rows alone on this rank; "
                "wanted rows to pack. Look first: if batch.lengths.any()."
            )
        inputs = self.values if inputs is None else inputs
        return pack_padded_sequence(
            inputs[rows], self.lengths[rows].cpu(), batch_first=True, enforce_sorted=False
        )

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tensors = {name: change(x) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **tensors)  # type: ignore[arg-type]
