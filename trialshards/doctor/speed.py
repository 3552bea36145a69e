"""Checks that need a running stream: workers that slow it down, a device that waits for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trialshards.doctor.check import Check, not_checked, verdict

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from loaders import Batch, TrialStream
    from loaders.probe import Probe, Waiting

HIDDEN, LAYERS = 256, 2
"""The model that stands in for the user's: small, so that it waits before a larger one would."""
MOST_WAITING = 0.02


def check_workers(alone: Probe, shared: Probe, *, is_asked: bool) -> Check:
    """Compare reading in process with DataLoader workers.

    Args:
        alone: What reading in process came to.
        shared: What reading with workers came to.
        is_asked: Whether training uses workers; else there is nothing to mend.
    """
    ratio = shared.rows_per_second / alone.rows_per_second
    seen = (
        f"{alone.rows_per_second:,.0f} rows/s in process, {shared.rows_per_second:,.0f} with "
        f"{shared.n_workers} workers ({ratio:.2f}x)"
    )
    if ratio >= 1 or not is_asked:
        return verdict("workers", seen, "")
    return verdict(
        "workers", seen, "num_workers=0: a worker copies each batch once more than it saves"
    )


def check_waiting(waiting: Waiting | None, *, device: str) -> Check:
    """Look how long a device waits for its batches.

    Args:
        waiting: What `share_waiting` came to; None where there is no such device.
        device: Its name.
    """
    if waiting is None:
        return not_checked(
            "waiting", "no CUDA device; loaders.probe.share_waiting measures your own loop"
        )
    seen = (
        f"{waiting.share:.1%} of {waiting.n_steps} steps of a {LAYERS}-layer LSTM-{HIDDEN} on "
        f"{device}"
    )
    if waiting.share <= MOST_WAITING:
        return verdict("waiting", seen, "")
    return verdict(
        "waiting",
        seen,
        "TrialStream(..., device='cuda', resident='auto'): rows are uploaded once, then only "
        "indices travel; without room for them it copies ahead on a stream of its own",
    )


def measure_waiting(
    stream: TrialStream, device: torch.device | str, *, n_steps: int = 50, n_warm_up: int = 5
) -> Waiting:
    """Train a stand-in for a model on a stream; measure how long it waits for batches.

    Args:
        stream: Moves on by some steps.
        device: Where to train.
        n_steps: Steps to measure.
        n_warm_up: Steps before these.
    """
    from loaders.probe import share_waiting

    step = make_step(stream.n_channels, device)
    return share_waiting(stream, step, n_steps=n_steps, n_warm_up=n_warm_up, device=device)


def make_step(n_channels: int, device: torch.device | str) -> Callable[[Batch], Tensor]:
    """Return a step of forward, backward and update that takes a batch of any kind."""
    import torch
    from torch import nn

    model = nn.LSTM(n_channels, HIDDEN, LAYERS, batch_first=True).to(device)
    head = nn.Linear(HIDDEN, 1).to(device)
    weights = [*model.parameters(), *head.parameters()]

    def step(batch: Batch) -> Tensor:
        values = batch.values.to(device, non_blocking=True)
        loss: Tensor = head(model(values)[0]).square().mean()
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():  # torch.optim takes seconds to import
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.sub_(gradient, alpha=1e-6)
        return loss

    return step
