"""The parts that training and evaluation build alike: device, model, a batch on its device."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric
from torch import Tensor

from loaders import Batch
from shards import Store
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


def build_model(store: Store, config: TrainConfig, objective: Objective) -> TrialLSTM:
    """Return the untrained network for a store's inputs and target."""
    manifest = store.manifest
    n_ahead = choose_windows(config, manifest.windows).steps
    steps = {"per_step": 0, "step_class": 0, "forecast": n_ahead}
    return TrialLSTM(
        n_channels=len(manifest.channels),
        n_outputs=objective.n_outputs,
        config=config.model,
        observed=manifest.observed,
        steps=steps.get(objective.kind),
        dense=objective.dense,
        extras=extra_inputs(store),
    )


def model_inputs(batch: Batch) -> tuple[Tensor | None, ...]:
    """Return what `TrialLSTM` is called with, but for the state."""
    parts = (batch.values, batch.lengths, batch.observed)
    return (*parts, batch.codes, batch.statics, batch.static_codes)


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on the device; pinned first on CUDA, so that the copy overlaps the step."""
    if device.type == "cuda":
        return batch.pin_memory().to(device, non_blocking=True)
    return batch if device.type == "cpu" else batch.to(device)
