"""A run learns the same, bit for bit, from every shape of a data set that was built from files."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learnable import tiny_config
from stores import SHAPES
from trialfolders import build_checked, write_spec, write_trial

from shards import InvalidSpecError, Store
from training import TrainConfig, evaluate, train
from training.checkpoint import load_checkpoint
from training.target import target_statistics
from training.targetchecks import BINARY, check_codes

CLEAN = {"missing": "none", "then": "mask", "drop_trial_if_missing": 1.0}
PER_STEP = {"kind": "per_step", "channels": None}
PER_TRIAL = {"kind": "per_trial", "attribute": "pace", "channels": None}
KINDS: dict[str, dict[str, Any]] = {
    "forecast": {  # no row behind the last window is stored in layout windows
        "clean": {**CLEAN, "observed": True}, "normalize": {"scope": "train"},
        "windows": {
            "stride": 11, "target": {"kind": "forecast", "channels": ["y", "x"], "steps": 2},
        },
    },
    "per_step": {
        "channels": ["x", "y"], "clean": CLEAN,
        "windows": {"target": {**PER_STEP, "columns": ["effort"]}},
    },
    "binary": {"windows": {"stride": 13, "target": {**PER_STEP, "columns": ["rising"]}}},
    "value": {"windows": {"target": {**PER_TRIAL, "task": "value"}}},
    "class": {"windows": {"target": PER_TRIAL}, "categorical": {"gear": "embed"}},
}  # fmt: skip


def write_waves(root: Path) -> None:
    """Write 24 trials of two waves with gaps, of 9 to 40 rows; the path says their pace."""
    for number in range(24):
        rng = np.random.default_rng(number)
        n_rows, pace = int(rng.integers(9, 41)), number % 2 + 1
        phase = 0.2 * pace * np.arange(n_rows) + rng.uniform(0, 6)
        columns = {"x": np.sin(phase), "y": 5 + 3 * np.cos(phase)}
        columns["effort"] = 100 + 30 * np.abs(columns["x"])
        columns["rising"] = (columns["y"] > 5).astype(float)
        for name in ("x", "y", "effort"):
            columns[name][rng.random(n_rows) < 0.1] = np.nan
        gear = [str(word) for word in rng.choice(["low", "high"], n_rows)]
        write_trial(root, f"p{pace}/t{number:02d}", {**columns, "gear": gear})


def build_shapes(root: Path, kind: str) -> list[Store]:
    write_waves(root)
    sections = {"source": {"trial_id": r"p(?P<pace>\d)/t\d+"}, **KINDS[kind]}
    sections["windows"] = {"length": 9, "stride": 4, **sections["windows"]}
    sections["split"] = {"fractions": {"train": 0.6, "val": 0.2, "test": 0.2}}
    stores = []
    for layout, container in SHAPES:
        shards = {"layout": layout, "format": container, "target_bytes": 4000}
        path = root / f"store_{layout}_{container}"
        stores.append(build_checked(write_spec(root, **sections, shards=shards), path)[1])
    return stores


def config_for(store: Store, kind: str, **changes: Any) -> TrainConfig:
    loss = {"target": {"loss": BINARY}} if kind == "binary" else {}
    where = {"store": store.path, "out": store.path.parent / f"run_{store.path.name}"}
    return tiny_config(store.path.parent, **{**where, "epochs": 2, **loss, **changes})


def learned(config: TrainConfig) -> tuple[Any, ...]:
    """Train; return the losses, what was learned, and the weights."""
    result = train(config)
    figures = ("epoch", "train_loss", "val_loss")
    history = [tuple(row[name] for name in figures) for row in result.history]
    saved = load_checkpoint(config.out / "last.ckpt")
    weights = {name: tensor.numpy().tobytes() for name, tensor in saved["model"].items()}
    return history, saved["run"]["objective"], weights


@pytest.mark.parametrize("kind", KINDS)
def test_every_shape_teaches_the_same(tmp_path: Path, kind: str) -> None:
    configs = [config_for(store, kind) for store in build_shapes(tmp_path, kind)]
    wanted, *others = (learned(config) for config in configs)
    assert len(wanted[0]) == 2
    assert all(np.isfinite(row).all() for row in wanted[0])
    assert others == [wanted] * 3
    scored = [evaluate(config) for config in (configs[0], configs[-1])]
    assert repr(scored[0].metrics) == repr(scored[1].metrics)  # a figure may be NaN
    files = [(each.folder / "predictions.parquet").read_bytes() for each in scored]
    assert files[0] == files[1]


def test_a_run_goes_on_from_another_shape(tmp_path: Path) -> None:
    first, *_, last = build_shapes(tmp_path, "per_step")
    whole = config_for(first, "per_step", out=tmp_path / "whole")
    train(whole)
    half = {"out": tmp_path / "half", "checkpoint_steps": None}
    stopped = train(config_for(first, "per_step", **half), on_metrics=lambda *_: interrupt())
    assert (stopped.status, stopped.epochs) == ("interrupted", 1)
    done = train(config_for(last, "per_step", **half))
    assert (done.status, done.epochs) == ("finished", 2)
    models = [load_checkpoint(tmp_path / name / "last.ckpt")["model"] for name in ("whole", "half")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_statistics_of_targets_do_not_hang_on_the_shape(tmp_path: Path) -> None:
    stores = build_shapes(tmp_path, "per_step")
    fitted = [target_statistics(store, "train") for store in stores]
    for store in stores:
        store.__dict__["fit"] = {}  # as of a version that no trial of split train was fitted on
    said = [target_statistics(store, "train") for store in stores]
    for found in (fitted, said):
        bits = {(mean.tobytes(), sd.tobytes()) for mean, sd in found}
        assert len(bits) == 1
    numbers = np.flatnonzero(stores[0].index.split == stores[0].split_code("train"))
    rows = np.concatenate([stores[0].trial_rows(n, "targets") for n in numbers]).astype(np.float64)
    for mean, sd in (fitted[0], said[0]):
        np.testing.assert_allclose(mean, np.nanmean(rows, axis=0), rtol=1e-6)
        np.testing.assert_allclose(sd, np.nanstd(rows, axis=0), rtol=1e-6)


def test_targets_that_are_not_binary_are_refused_in_every_shape(tmp_path: Path) -> None:
    for store in build_shapes(tmp_path, "per_step"):
        with pytest.raises(InvalidSpecError, match=r"'effort' of trial .* is 1\d\d"):
            check_codes(store, BINARY, 2, ["train"])


def test_windows_are_scored_as_stored_or_refused_with_the_remedy(tmp_path: Path) -> None:
    for store, (layout, _) in zip(build_shapes(tmp_path, "per_step"), SHAPES, strict=True):
        config = config_for(store, "per_step", epochs=1, evaluate={"at": "last"})
        train(config)
        if layout == "rows":
            assert evaluate(config).at == "last"
            continue
        with pytest.raises(InvalidSpecError, match=r"layout 'windows'(.|\n)*shards\.layout: rows"):
            evaluate(config)
