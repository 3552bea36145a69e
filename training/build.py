"""The parts that training and evaluation build alike: streams, model, a batch on its device."""

from __future__ import annotations

from typing import Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor

from loaders import Batch, TrialStream
from shards import Store, WindowSpec
from training.config import TrainConfig, choose_windows
from training.extras import extra_inputs
from training.model import TrialLSTM
from training.target import Objective


def start_fabric(config: TrainConfig) -> Fabric:
    """Return Fabric on the configured device, launched and seeded alike on all ranks."""
    device = config.device
    fabric = Fabric(
        accelerator=device.accelerator, devices=device.devices, precision=device.precision
    )
    fabric.launch()
    if fabric.device.type == "cpu" and device.cpu_threads is not None:
        torch.set_num_threads(device.cpu_threads)
    fabric.seed_everything(config.seed, verbose=False)
    return fabric


def open_stream(
    store: Store,
    config: TrainConfig,
    split: str,
    *,
    shuffle: Literal["global", "none"] = "none",
    ranks: tuple[int, int] = (0, 1),
    windows: WindowSpec | None = None,
) -> TrialStream:
    """Open the windows of a split.

    Args:
        store: Where.
        config: Batch size, seed, balance.
        split: Which trials.
        shuffle: `global` to train; `none` by trial, then start, each window once.
        ranks: This rank, and how many there are.
        windows: Window parameters, by default those of the config.

    Raises:
        InvalidSpecError: If the split has no window.
    """
    return TrialStream(
        store,
        split=split,
        batch_size=config.data.batch_size,
        shuffle=shuffle,
        seed=config.data.seed,
        balance=config.data.balance if shuffle == "global" else "window",
        windows=windows or choose_windows(config, store.manifest.windows),
        rank=ranks[0],
        world_size=ranks[1],
    )


def build_model(store: Store, config: TrainConfig, objective: Objective) -> TrialLSTM:
    """Return the untrained network for a store's inputs and target."""
    manifest = store.manifest
    steps = {"per_step": 0, "forecast": choose_windows(config, manifest.windows).steps}
    return TrialLSTM(
        n_channels=len(manifest.channels),
        n_outputs=len(manifest.target.classes or objective.columns),
        config=config.model,
        observed=manifest.observed,
        steps=steps.get(objective.kind),
        extras=extra_inputs(store),
    )


def model_inputs(batch: Batch) -> tuple[Tensor | None, ...]:
    """Return what `TrialLSTM` is called with."""
    parts = (batch.values, batch.lengths, batch.observed)
    return (*parts, batch.codes, batch.statics, batch.static_codes)


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on the device; pinned first on CUDA, so that the copy overlaps the step."""
    if device.type == "cuda":
        return batch.pin_memory().to(device, non_blocking=True)
    return batch if device.type == "cpu" else batch.to(device)
