"""What an exported model takes and says, in words and as tensors to trace it with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from shards import Store
from training.config import TrainConfig, choose_windows
from training.standalone import Standalone

BATCH, LENGTH = "batch", "length"
Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Port:
    """An input or output.

    Attributes:
        name: By which it is given.
        dtype: Such as `float32`.
        shape: Sizes; `batch` and `length` may be any from 1.
        holds: What it is.
    """

    name: str
    dtype: str
    shape: Shape
    holds: str

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Port:
        """Return what `describe` says of one."""
        return cls(**{**document, "shape": tuple(document["shape"])})

    def example(self) -> Tensor:
        """Return a tensor of it that every model can take: 2 rows of 3 steps."""
        sizes = [n if isinstance(n, int) else {BATCH: 2, LENGTH: 3}[n] for n in self.shape]
        return torch.ones(sizes, dtype=getattr(torch, self.dtype))

    @property
    def dynamic(self) -> dict[int, str]:
        """The axes of any size."""
        return {axis: n for axis, n in enumerate(self.shape) if isinstance(n, str)}


def input_ports(model: Standalone, store: Store, config: TrainConfig, *, state: bool) -> list[Port]:
    """Return what `Standalone.forward` needs of this store, in its order."""
    manifest, statics = store.manifest, model.statics
    n_channels, groups = len(manifest.channels), model.normalize.groups
    takes_own = model.normalize.takes_own
    steps: Shape = (BATCH, LENGTH)
    wide: Shape = (*steps, n_channels)
    own: Shape = (BATCH, n_channels)
    asked = (
        (True, Port("values", "float32", wide, "cleaned, in physical units; NaN where missing")),
        (True, Port("lengths", "int64", (BATCH,), "valid steps of each row; the rest is ignored")),
        (manifest.observed, Port("observed", "bool", wide, "where the source held a value")),
        (bool(model.codes), Port("codes", "int64", (*steps, len(model.codes)), _code("codes"))),
        (bool(statics.numbers), Port("numbers", "float64", (BATCH, len(statics.numbers)),
                                     "attributes of the trial; NaN where missing")),
        (bool(statics.words), Port("words", "int64", (BATCH, len(statics.words)), _code("words"))),
        (bool(groups), Port("groups", "int64", (BATCH, len(groups)), _code("groups"))),
        (takes_own, Port("offset", "float64", own, _OWN)),
        (takes_own, Port("scale", "float64", own, _OWN)),
        (state, Port("state", "float32", _hidden(config), "before the first step; zeros at first")),
    )  # fmt: skip
    return [port for there, port in asked if there]


def _code(name: str) -> str:
    return f"1 + place among the words of `{name}`; 0 where missing or not among them"


def _hidden(config: TrainConfig) -> Shape:
    return (2, config.model.layers, BATCH, config.model.hidden)


_OWN = (
    "of the trial: normalized = (value - offset) / scale, scopes trial and prefix; channels of "
    "other scopes ignore it"
)


def output_ports(
    model: Standalone, store: Store, config: TrainConfig, *, state: bool
) -> list[Port]:
    """Return what `Standalone.forward` says."""
    objective = model.objective
    shape: Shape = (BATCH,) if objective.kind in ("class", "per_trial") else (BATCH, LENGTH)
    if objective.kind == "forecast":
        n_ahead = choose_windows(config, store.manifest.windows).steps
        shape = (BATCH, LENGTH, n_ahead) if objective.dense else (BATCH, n_ahead)
    n_columns, levels = len(objective.columns), objective.quantiles
    meaning = _MEANING.get(objective.loss, "the targets")
    asked = (
        (objective.n_classes > 0, "probability", (*shape, objective.n_classes),
         "in the order of `target.classes`"),
        (not objective.n_classes, "predicted", (*shape, n_columns),
         f"{meaning}, in the order of `target.columns`"),
        (bool(levels), "quantiles", (*shape, n_columns, len(levels)), "rising, of `quantiles`"),
        (state, "next_state", _hidden(config), "after the last step: `state` of the next call"),
    )  # fmt: skip
    return [Port(name, "float32", of, holds) for there, name, of, holds in asked if there]


_MEANING = {
    "binary_cross_entropy": "probability of 1",
    "quantile": "the middle quantile of the targets",
}


def describe(
    model: Standalone, store: Store, config: TrainConfig, saved: Mapping[str, Any], *, state: bool
) -> dict[str, Any]:
    """Return what the file says of itself, as JSON has it.

    Args:
        model: What was traced.
        store: Of the run.
        config: Of the run.
        saved: The checkpoint.
        state: Whether it carries the hidden state.
    """
    manifest, objective, statics = store.manifest, model.objective, model.statics
    windows = choose_windows(config, manifest.windows)
    inputs, outputs = (
        [
            asdict(port) | {"shape": list(port.shape)}
            for port in of(model, store, config, state=state)
        ]
        for of in (input_ports, output_ports)
    )
    return {
        "trialshards": 1,
        "name": manifest.name,
        "store_version": store.version,
        "fingerprint": manifest.fingerprint,
        "epoch": int(saved["state"]["epoch"]),
        "inputs": inputs,
        "outputs": outputs,
        "channels": [{"name": channel.name, "unit": channel.unit} for channel in manifest.channels],
        "normalization": [{"method": method, "scope": scope} for method, scope in store.entries],
        "batches": config.data.batches,
        "windows": {"length": windows.length, "horizon": windows.horizon, "steps": windows.steps},
        "target": {
            "kind": objective.kind,
            "columns": list(objective.columns),
            "classes": list(manifest.target.classes or range(objective.n_classes)),
        },
        "quantiles": list(objective.quantiles),
        "codes": [{"name": entry.name, "words": list(entry.vocabulary)} for entry in model.codes],
        "numbers": list(statics.numbers),
        "words": [{"name": e.name, "words": list(e.vocabulary)} for e in statics.words],
        "groups": [{"name": g.attribute, "words": list(g.values)} for g in model.normalize.groups],
    }
