"""What a person writes to train a model: one YAML file, validated, every default with its reason.

```yaml
store: ../store          # relative to this file
out: ../../runs/arm      # run folder
epochs: 20
```
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shards.userfile import read_yaml
from shards.windows import WindowSpec

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the file: unknown fields are refused, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """The network."""

    # The size that meets the published C-MAPSS score (bench/cmapss.py) and trains in a minute.
    hidden: Count = 64
    # Two, as Zheng et al. (ICPHM 2017) stack them.
    layers: Count = 2
    # Between the layers only; small, because a trial set is small.
    dropout: Fraction = 0.1
    # One hidden dense layer between the last state and the output.
    head: tuple[Count, ...] = (32,)
    # Forecasts are learned as a change from the last seen value: copying a value through
    # saturating gates is what an LSTM is bad at, and what a short horizon needs most.
    residual: bool = True
    # Columns of the table of each embedded input; null takes fastai's rule of thumb for n words,
    # round(1.6 n^0.56), and 50 at most.
    embedding_dim: Count | None = None


class TargetConfig(Section):
    """What the loss looks at; evaluation always sees the truth as it was recorded."""

    # Training targets only, physical units; for example remaining life is capped: [null, 130].
    clip: tuple[float | None, float | None] | None = None
    # `last` scores only the last valid step of a window, as a model read at its end needs.
    loss_on: Literal["all", "last"] = "all"
    # By default mse for values and cross_entropy for classes. binary_cross_entropy is for targets
    # per step that are 0 or 1: the network then says a probability.
    loss: Literal["mse", "huber", "cross_entropy", "binary_cross_entropy"] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> TargetConfig:
        low, high = self.clip or (None, None)
        if low is not None and high is not None and low >= high:
            raise ValueError(f"clip is [{low}, {high}]; wanted [lower, upper], null for no bound.")
        return self


class WindowsConfig(Section):
    """Window parameters that differ from the store's; what is left out stays the store's."""

    length: Count | None = None
    stride: Count | None = None
    horizon: Count | None = None
    steps: Count | None = None
    short: Literal["pad", "drop"] | None = None


class DataConfig(Section):
    """Which windows make a batch."""

    # Rows per optimizer step over all ranks, so results do not depend on the number of devices.
    batch_size: Count = 256
    # Order of the windows; apart from the seed of the weights, so each can vary alone.
    seed: int = 0
    # `trial` gives a short trial as many draws as a long one.
    balance: Literal["window", "trial"] = "window"
    windows: WindowsConfig | None = None
    # Bounds an epoch where the windows overlap so much that one pass is hours of the same rows;
    # the next epoch goes on where this one stopped.
    steps_per_epoch: Count | None = None
    train_split: str = "train"
    # Choosing an epoch by test data would be peeking; without this split the last epoch counts.
    validation_split: str | None = "val"


class OptimizerConfig(Section):
    """AdamW and how its rate moves."""

    # High for Adam: the one-cycle schedule starts at 1/25 of it and ends near zero.
    lr: Positive = 3e-3
    # 0 makes it plain Adam, the reference recipe.
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    # Super-convergence (Smith & Topin 2018): few epochs, no plateau to detect.
    schedule: Literal["one_cycle", "constant"] = "one_cycle"
    # LSTM gradients explode now and then (Pascanu 2013); null switches it off.
    clip_norm: Positive | None = 1.0


class EarlyStoppingConfig(Section):
    """When to give up."""

    # Epochs without a better validation loss.
    patience: Count = 5


class DeviceConfig(Section):
    """Where it runs; Fabric's words."""

    # The same file trains on a laptop and on a GPU.
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    # One process; a machine with several devices is asked for, never taken.
    devices: Count | Literal["auto"] = 1
    # On the CPU, for arithmetic and gather. Where cores are shared, two threads wait for each
    # other: an LSTM-64 step took 8 times longer. null leaves it to torch.
    cpu_threads: Count | None = 1
    # Full precision: an LSTM of this size is not limited by arithmetic.
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true"] = "32-true"


class EvaluateConfig(Section):
    """Which predictions are scored."""

    split: str = "test"
    # `last`: one prediction per trial, at its last row, as an engine is judged where it stands.
    at: Literal["all", "last"] = "all"


class TrainConfig(Section):
    """A training run. Paths are absolute after `TrainConfig.read`."""

    store: Path
    # Checkpoints, logs, plots; a run is resumed from here.
    out: Path
    # The newest version of the store; name one to train on what another run saw.
    version: str | None = None
    model: ModelConfig = ModelConfig()
    target: TargetConfig = TargetConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    epochs: Count = 20
    # null trains all epochs; the best one is kept either way.
    early_stopping: EarlyStoppingConfig | None = EarlyStoppingConfig()
    device: DeviceConfig = DeviceConfig()
    # Weights and dropout.
    seed: int = 0
    evaluate: EvaluateConfig = EvaluateConfig()
    # A killed run repeats at most this many steps; a save costs some milliseconds.
    checkpoint_steps: Count | None = 500

    @classmethod
    def read(cls, path: str | Path) -> TrainConfig:
        """Read a config file and resolve its paths against its folder.

        Raises:
            InvalidSpecError: If it cannot be read or is not valid; the message names the line.
        """
        path = Path(path)
        config, here = read_yaml(path, cls), path.resolve().parent
        paths = {"store": (here / config.store).resolve(), "out": (here / config.out).resolve()}
        return config.model_copy(update=paths)


def choose_windows(config: TrainConfig, stored: WindowSpec) -> WindowSpec:
    """Return the store's window parameters with the run's own on top.

    Raises:
        InvalidSpecError: If together they make no sense.
    """
    own = config.data.windows
    return dataclasses.replace(stored, **(own.model_dump(exclude_none=True) if own else {}))
