"""Checkpoints: everything that the next step depends on, in one file, replaced atomically.

A resumed run goes on exactly: weights, optimizer moments, the rate's schedule, the place in the
stream and the random generators behind dropout are all in the file, as plain tensors and numbers
(`torch.load(weights_only=True)` reads it, so a checkpoint cannot run code).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from shards import CorruptStoreError, Store
from shards.errors import ResumeError, TrialShardsError
from training.config import TrainConfig
from training.schedule import is_stretched
from training.sections import OptimizerConfig
from training.target import Objective

LAST, BEST = "last.ckpt", "best.ckpt"
VERSION = 2


class CheckpointNotFoundError(TrialShardsError, FileNotFoundError):
    """No checkpoint at that place: train first, or mend the path."""


def describe_run(
    config: TrainConfig, stores: Sequence[Store], objectives: Sequence[Objective]
) -> dict[str, Any]:
    """Return what must be the same for a run to go on."""
    splits = [config.data.train_split, config.data.validation_split]
    fingerprints: dict[str, str] = {}
    for number, store in enumerate(stores):
        known = store.manifest.fingerprints
        place = f"store {number} " if number else ""
        fingerprints |= {f"{place}{s}": known[s] for s in splits if s is not None and s in known}
    return {
        "version": VERSION,
        "config": config.model_dump(mode="json"),
        "objective": dataclasses.asdict(objectives[0]),
        "objectives": [dataclasses.asdict(objective) for objective in objectives],
        "store_version": stores[0].version,
        "fingerprints": fingerprints,
    }


def digest_run(run: Mapping[str, Any], **more: Any) -> str:
    """Return a digest of what decides the weights: the config's identity and the splits' data.

    Args:
        run: What `describe_run` returned.
        more: Further plain values to tell apart.
    """
    document = [_identity(run["config"]), run["fingerprints"], more]
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def save_checkpoint(fabric: Fabric, path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint; whenever the machine dies, `path` is the old file or the new one.

    Every rank must call it. The random states of all ranks are added.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    precision = fabric.strategy.precision.state_dict()
    fabric.save(temporary, {**state, "rng": _gather_rng(fabric), "precision": precision})
    if fabric.is_global_zero:
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    fabric.barrier()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointNotFoundError: If there is none.
        CorruptStoreError: If it is not a checkpoint that this version reads.
    """
    if not path.is_file():
        raise CheckpointNotFoundError(
            f"no checkpoint {path}. Train first: trialshards train CONFIG"
        )
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = saved["run"]["version"]
    except Exception as error:  # torch raises whatever the damaged bytes lead to
        raise CorruptStoreError(
            f"{path} is not a readable checkpoint ({type(error).__name__}). "
            "Remove it, or train again with --fresh."
        ) from error
    if found != VERSION:
        raise CorruptStoreError(
            f"{path} has checkpoint version {found}, wanted {VERSION}. Train again with --fresh."
        )
    return saved


def check_same_run(saved: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Refuse a checkpoint of other data or another configuration.

    Raises:
        ResumeError: With all differences.
    """
    data = _differences(saved["fingerprints"], now["fingerprints"], "split ")
    if data:
        raise ResumeError(
            f"{path} was trained on other data ({saved['store_version']}): {'; '.join(data)}. "
            f"Set version: {saved['store_version']} in the config to go on with the old data, "
            "or start over with --fresh."
        )
    config = _differences(_identity(saved["config"]), _identity(now["config"]), "")
    objectives = [] if config else zip(saved["objectives"], now["objectives"], strict=True)
    for number, (was, is_now) in enumerate(objectives):
        place = f" of store {number}" if number else ""
        config += _differences(was, is_now, f"target statistics{place}: ")
    if config:
        raise ResumeError(
            f"{path} was trained with another config: {'; '.join(config)}. "
            "Restore those fields to go on, choose another out:, or start over with --fresh."
        )


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that decide the next step; the others may change on the way."""
    names = ("model", "target", "data", "mixture", "optimizer", "start", "seed")
    kept = {name: config[name] for name in names}
    if config["mixture"] is not None:  # where its stores lie may change, what they hold may not
        stores = [store["where"] for store in config["mixture"]["stores"]]
        kept["mixture"] = {**config["mixture"], "stores": stores}
    kept["device"] = {name: config["device"][name] for name in ("precision", "compile")}
    if is_stretched(OptimizerConfig(**config["optimizer"])):
        kept["epochs"] = config["epochs"]
    return kept


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> list[str]:
    found = []
    for name in sorted({*old, *new}):
        was, now = old.get(name), new.get(name)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            found += _differences(was, now, f"{prefix}{name}.")
        elif was != now:
            found.append(f"{prefix}{name} was {_short(was)}, is {_short(now)}")
    return found


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:16] + "..."


def _gather_rng(fabric: Fabric) -> list[dict[str, Any]]:
    """Return the random states of every rank, by rank."""
    mine = _rng_state(fabric.device)
    if fabric.world_size == 1:
        return [mine]
    every: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(every, mine)
    return every


def _rng_state(device: torch.device) -> dict[str, Any]:
    name, keys, *rest = np.random.get_state()  # noqa: NPY002  the global one is what we must keep
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        "python": random.getstate(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng(fabric: Fabric, saved: list[dict[str, Any]]) -> bool:
    """Put this rank's random states back; returns False if another number of ranks saved them."""
    if len(saved) != fabric.world_size:
        return False
    mine = saved[fabric.global_rank]
    torch.set_rng_state(mine["torch"])
    name, keys, *rest = mine["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, internal, gauss = mine["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in mine and fabric.device.type == "cuda":
        torch.cuda.set_rng_state(mine["cuda"], fabric.device)
    return True
