"""The sections of a training configuration: every default with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the file: unknown fields are refused, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """The network."""

    # The size that meets the published C-MAPSS score (bench/scores.py) and trains in a minute.
    hidden: Count = 64
    # Two, as Zheng et al. (ICPHM 2017) stack them.
    layers: Count = 2
    # Between the layers only; small, because a trial set is small.
    dropout: Fraction = 0.1
    # Of what the head sees.
    head_dropout: Fraction = 0.0
    # Of each layer's output (Ba 2016): steadies deep stacks, and costs a fifth of a small step.
    layer_norm: bool = False
    # A second LSTM reads backwards; only where no output may be asked for before the end is known.
    bidirectional: bool = False
    # What one output per window or trial looks at: the last valid step, or all of them.
    pool: Literal["last", "mean", "max", "mean_max", "attention"] = "last"
    # Start with open forget gates, so that early gradients reach back (Jozefowicz 2015).
    forget_bias: float = 1.0
    # Standard deviation of noise on the values while training, in their delivered units: few
    # trials are learned by heart without it.
    noise: NotNegative = 0.0
    # Static inputs enter at every step, or once, beside what the head sees.
    statics: Literal["steps", "head"] = "steps"
    # One hidden dense layer between the last state and the output.
    head: tuple[Count, ...] = (32,)
    # Forecasts are learned as a change from the last seen value: copying a value through
    # saturating gates is what an LSTM is bad at, and what a short horizon needs most.
    residual: bool = True
    # Columns of the table of each embedded input; null takes fastai's rule of thumb for n words,
    # round(1.6 n^0.56), and 50 at most.
    embedding_dim: Count | None = None


Loss = Literal["mse", "mae", "huber", "quantile", "cross_entropy", "binary_cross_entropy"]


class TargetConfig(Section):
    """What the loss looks at; evaluation always sees the truth as it was recorded."""

    # Training targets only, physical units; for example remaining life is capped: [null, 130].
    clip: tuple[float | None, float | None] | None = None
    # `last` scores only the last valid step of a window, as a model read at its end needs.
    loss_on: Literal["all", "last"] = "all"
    # By default mse for values and cross_entropy for classes. binary_cross_entropy is for targets
    # per step that are 0 or 1: the network then says a probability.
    loss: Loss | None = None
    # Of the quantile loss (Koenker & Bassett 1978): what the network says of each target. The one
    # nearest to .5 is the prediction.
    quantiles: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.1, 0.5, 0.9)
    # Where the Huber loss goes from quadratic to linear, in standard deviations of the target.
    huber_delta: Positive = 1.0
    # cross_entropy of a target per step: its values are the codes 0 to classes - 1.
    classes: Annotated[int, Field(ge=2)] | None = None
    # Share of the target's probability that all classes share alike (Szegedy 2016).
    label_smoothing: Fraction = 0.0
    # What a 1 weighs beside a 0 in binary_cross_entropy.
    positive_weight: Positive = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> TargetConfig:
        low, high = self.clip or (None, None)
        if low is not None and high is not None and low >= high:
            raise ValueError(f"clip is [{low}, {high}]; wanted [lower, upper], null for no bound.")
        if not self.quantiles or list(self.quantiles) != sorted(set(self.quantiles)):
            raise ValueError(f"quantiles are {list(self.quantiles)}; wanted them rising.")
        return self


class WindowsConfig(Section):
    """Window parameters that differ from the store's; what is left out stays the store's."""

    length: Count | None = None
    stride: Count | None = None
    horizon: Count | None = None
    steps: Count | None = None
    short: Literal["pad", "drop"] | None = None
    # Shifts each training window by its own number of rows below the stride, anew in each epoch.
    random_offset: bool = False


class TrialsConfig(Section):
    """Whole trials as rows of a batch, padded to the longest."""

    max_length: Count | None = None
    # Which end of a longer trial is cut off.
    truncate: Literal["start", "end"] = "end"
    # Of an epoch, if sorting by length can do it; 1 mixes lengths freely.
    max_padding: Share = 0.1


class LanesConfig(Section):
    """Whole trials in chunks: the hidden state goes from chunk to chunk of a trial."""

    # Steps that the gradient reaches back (truncated backpropagation through time).
    chunk: Count = 128
    # Steps at the start of each trial that warm the state up and do not count in the loss.
    burn_in: Annotated[int, Field(ge=0)] = 0


class By(Section):
    """A balance or a weight that needs an attribute."""

    by: str
    column: str | None = None


class DataConfig(Section):
    """What makes a batch."""

    # Rows per optimizer step over all ranks, so results do not depend on the number of devices;
    # in lanes the number of lanes.
    batch_size: Count = 256
    # Order of the windows; apart from the seed of the weights, so each can vary alone.
    seed: int = 0
    # `windows`: state zero in each. `trials`: whole ones. `lanes`: whole ones, chunk by chunk.
    batches: Literal["windows", "trials", "lanes"] = "windows"
    windows: WindowsConfig | None = None
    trials: TrialsConfig = TrialsConfig()
    lanes: LanesConfig = LanesConfig()
    # `blocks` for stores beyond memory.
    shuffle: Literal["global", "blocks"] = "global"
    # `trial` gives a short trial as many draws as a long one; also sqrt, class, and
    # {by: attribute, column: NAME}.
    balance: str | By = "window"
    # What a row weighs in the loss: own (the store's), trial (each series alike), class, or
    # {by: column, column: NAME}.
    weights: str | By = "own"
    # SQL over attributes: reads only the trials for which it is true, of every split.
    where: str | None = None
    # Bounds an epoch where the windows overlap so much that one pass is hours of the same rows;
    # the next epoch goes on where this one stopped.
    steps_per_epoch: Count | None = None
    train_split: str = "train"
    # Choosing an epoch by test data would be peeking; without this split the last epoch counts.
    validation_split: str | None = "val"


class OtherStore(Section):
    """A further store of a mixture."""

    store: Path
    version: str | None = None
    where: str | None = None


class MixtureConfig(Section):
    """Several stores in turn, a step of one at a time; `store` of the run is the first."""

    stores: Annotated[tuple[OtherStore, ...], Field(min_length=1)]
    # proportional to their rows, round_robin, or a share for each, `store` first.
    by: Literal["proportional", "round_robin"] | tuple[Positive, ...] = "proportional"
    # An epoch ends with the first store that is through, or when all are; the others go round.
    stop: Literal["first", "cycle"] = "cycle"

    @model_validator(mode="after")
    def _a_share_each(self) -> MixtureConfig:
        if not isinstance(self.by, str) and len(self.by) != len(self.stores) + 1:
            raise ValueError(
                f"by has {len(self.by)} shares; wanted {len(self.stores) + 1}: one for `store`, "
                "then one for each of stores."
            )
        return self


class OptimizerConfig(Section):
    """AdamW and how its rate moves."""

    # High for Adam: the one-cycle schedule starts at 1/25 of it and ends near zero.
    lr: Positive = 3e-3
    # 0 makes it plain Adam, the reference recipe.
    weight_decay: NotNegative = 0.0
    # Super-convergence (Smith & Topin 2018): few epochs, no plateau to detect. cosine (Loshchilov
    # & Hutter 2017) falls to zero, exponential by `decay` per epoch.
    schedule: Literal["one_cycle", "cosine", "exponential", "constant"] = "one_cycle"
    # Share of all steps in which the rate rises linearly; one_cycle has a warm-up of its own.
    warmup: Fraction = 0.0
    # Of the exponential schedule, per epoch.
    decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    # LSTM gradients explode now and then (Pascanu 2013); null switches it off.
    clip_norm: Positive | None = 1.0
    # Batches whose gradients make one step: a larger batch than memory holds.
    accumulate: Count = 1

    @model_validator(mode="after")
    def _one_warmup(self) -> OptimizerConfig:
        if self.warmup and self.schedule == "one_cycle":
            raise ValueError("warmup with one_cycle, which warms up itself; wanted one of them.")
        return self


class StartConfig(Section):
    """Weights to start from, and what becomes of them: fine-tuning."""

    checkpoint: Path
    # Parameters that stay as they are, by the start of their names: [layers.0, extras].
    freeze: tuple[str, ...] = ()
    # A head of its own, for another target; the rest is taken over.
    new_head: bool = False
    # Rate of each layer over that of the one above (Howard & Ruder 2018).
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0


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
    # torch.compile: needs a C++ compiler, and a minute before the first step.
    compile: bool = False


class EvaluateConfig(Section):
    """Which predictions are scored."""

    split: str = "test"
    # `last`: one prediction per trial, at its last row, as an engine is judged where it stands.
    at: Literal["all", "last"] = "all"


class StageConfig(Section):
    """One data set in a sequence; what is left out is that of the run."""

    name: str
    store: Path
    version: str | None = None
    epochs: Count | None = None
    optimizer: dict[str, Any] = {}
    data: dict[str, Any] = {}


class MemberConfig(Section):
    """One data set of an ensemble."""

    name: str
    store: Path
    version: str | None = None
