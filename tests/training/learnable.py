"""Stores whose targets an LSTM can learn in seconds, and the numbers to check it by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shards import Store, WindowSpec
from shards.identity import trial_digest
from shards.manifest import Channel, TargetSchema
from shards.version import QUARANTINE_SCHEMA, VersionDraft, publish_version
from shards.writer import write_shard
from training import TrainConfig

TARGETS = {
    "forecast": TargetSchema("forecast", ("q", "p")),
    "per_step": TargetSchema("per_step", ("effort",)),
    "binary": TargetSchema("per_step", ("rising",)),
    "per_trial": TargetSchema("per_trial", ("size",)),
    "class": TargetSchema("per_trial", ("tempo",), ("slow", "fast")),
}
OFFSET, SCALE = np.array([3.0, -2.0]), np.array([2.0, 0.5])


def trial(kind: str, i: int, seed: int) -> tuple[dict[str, np.ndarray[Any, Any]], float | None]:
    """Return arrays and label of one trial: two phase-shifted waves in physical units."""
    rng = np.random.default_rng([seed, i])
    n = int(rng.integers(30, 60)) if i % 9 else 9
    fast = i % 3 == 0
    size, pace = rng.uniform(0.5, 1.5), rng.uniform(0.6, 0.8) if fast else rng.uniform(0.2, 0.4)
    wave = pace * np.arange(n)[:, None] + rng.uniform(0, 6) + np.array([0, np.pi / 2])
    clean = size * np.sin(wave)
    values = (clean + rng.normal(0, 0.02, clean.shape)) * SCALE + OFFSET
    arrays = {"values": values.astype(np.float32)}
    if kind == "per_step":
        effort = 100 + 30 * np.abs(clean[:, :1]) + 10 * clean[:, 1:]
        effort[rng.random(n) < 0.1] = np.nan
        arrays["targets"] = effort.astype(np.float32)
    if kind == "binary":
        rising = (clean[:, 1:] > 0.5 * size).astype(np.float32)
        rising[rng.random(n) < 0.1] = np.nan
        arrays["targets"] = rising
    label = {"per_trial": 50 * size, "class": float(fast)}.get(kind)
    return arrays, None if i in (4, 10, 11) else label  # one of each split


def learnable_store(
    path: Path,
    kind: str,
    *,
    n_trials: int = 60,
    seed: int = 0,
    missing: bool = False,
    normalize: dict[str, Any] | None = None,
) -> Store:
    """Write a store with scope-train normalization; every 5th trial is val, every 5th + 1 test."""
    normalize = normalize or {
        "method": "zscore", "scope": "train", "offset": OFFSET.tolist(), "scale": SCALE.tolist(),
    }  # fmt: skip
    said = {key: normalize[key] for key in ("method", "scope", "channels") if key in normalize}
    made = [trial(kind, i, seed) for i in range(n_trials)]
    if missing:
        for i, (arrays, _) in enumerate(made):
            seen = np.random.default_rng([seed, 99, i]).random(arrays["values"].shape) > 0.2
            arrays["values"][~seen] = np.nan
            arrays["observed"] = np.packbits(seen, axis=1, bitorder="little")
    joined = {name: np.concatenate([a[name] for a, _ in made]) for name in made[0][0]}
    entry = write_shard(path, joined, n_trials)
    lengths = [len(arrays["values"]) for arrays, _ in made]
    starts = np.cumsum([0, *lengths])
    rows = [
        {
            "id": f"t{i:03d}", "digest": trial_digest(f"t{i:03d}", arrays, label),
            "n_rows": lengths[i], "source": f"t{i:03d}.csv", "shard": entry.digest,
            "row_start": int(starts[i]), "weight": 1.0, "label": label,
            "split": {0: "val", 1: "test"}.get(i % 5, "train"),
        }
        for i, (arrays, label) in enumerate(made)
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows)
    at = table.schema.get_field_index("label")
    table = table.set_column(at, "label", table["label"].cast(pa.float64()))
    ahead = {"horizon": 3, "steps": 2} if kind == "forecast" else {}
    draft = VersionDraft(
        name="learnable",
        channels=(Channel("q"), Channel("p")),
        target=TARGETS[kind],
        windows=WindowSpec(length=16, stride=6, **ahead),
        splits=("train", "val", "test"),
        observed=missing,
        normalization={**said, "lookahead": []},
        counts={"files": n_trials, "trials": n_trials, "rows": int(starts[-1])},
        spec={},
        trials=table,
        shards=(entry,),
        quarantine=QUARANTINE_SCHEMA.empty_table(),
        fit={"normalize": normalize},
    )  # fmt: skip
    return Store(path, publish_version(path, draft, after=None))


def tiny_config(folder: Path, **changes: Any) -> TrainConfig:
    """Return a config for the store in `folder / store` that trains in a second or two."""
    fields: dict[str, Any] = {
        "store": folder / "store", "out": folder / "run", "epochs": 3, "seed": 3,
        "model": {"hidden": 16, "layers": 2, "dropout": 0.2, "head": [8]},
        "data": {"batch_size": 32}, "early_stopping": None, "device": {"accelerator": "cpu"},
        "optimizer": {"lr": 1e-2},
    }  # fmt: skip
    return TrainConfig(**{**fields, **changes})


def sigmoid(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return 1 / (1 + np.exp(-x))


def numpy_network(weights: dict[str, Any], x_LC: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return `[L, outputs]`: the head at every step, written from the LSTM's equations."""
    w = {name: tensor.double().numpy() for name, tensor in weights.items()}
    layer = 0
    while f"layers.{layer}.weight_ih_l0" in w:
        pre = f"layers.{layer}."
        h = c = np.zeros(w[pre + "weight_hh_l0"].shape[1])
        out = []
        for x in x_LC:
            gates = w[pre + "weight_ih_l0"] @ x + w[pre + "bias_ih_l0"]
            gates = gates + w[pre + "weight_hh_l0"] @ h + w[pre + "bias_hh_l0"]
            i, f, g, o = np.split(gates, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            out.append(h)
        x_LC, layer = np.array(out), layer + 1
    hidden = np.maximum(x_LC @ w["head.0.weight"].T + w["head.0.bias"], 0)
    return hidden @ w["head.2.weight"].T + w["head.2.bias"]
