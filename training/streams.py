"""What a run reads: its config's batches as streams of one store or several."""

from __future__ import annotations

import torch

from loaders import (
    Balance,
    LaneBatches,
    LossWeights,
    TrialBatches,
    TrialStream,
    WindowBatches,
    mix,
)
from loaders.mix import MixedStream
from shards import InvalidSpecError, Store, WindowSpec
from shards.codes import fitted_inputs
from training.config import TrainConfig, choose_windows
from training.sections import By, DataConfig

Ranks = tuple[int, int]


def open_stores(config: TrainConfig) -> tuple[Store, ...]:
    """Return the stores of a run: its own, then those of the mixture.

    Raises:
        StoreNotFoundError: If there is no such store or version.
        InvalidSpecError: If they cannot be learned by one network.
    """
    others = config.mixture.stores if config.mixture else ()
    first = Store(config.store, config.version)
    rest = [Store(other.store, other.version) for other in others]
    for store in rest:
        check_alike(first, store, config)
    return (first, *rest)


def check_alike(first: Store, other: Store, config: TrainConfig) -> None:
    """Refuse a store whose inputs or target one network cannot share with the first one's.

    Raises:
        InvalidSpecError: Naming what differs.
    """
    for what, got, wanted in zip(
        _ASPECTS, _aspects(other, config), _aspects(first, config), strict=True
    ):
        if got != wanted:
            raise InvalidSpecError(
                f"{other.path} has {what} {got}; wanted {wanted}, as {first.path} has. One network "
                "learns from stores of the same columns: build one of them anew."
            )


_ASPECTS = (
    "channels", "target", "observed mask", "codes and statics", "forecast horizon and steps"
)  # fmt: skip


def _aspects(store: Store, config: TrainConfig) -> tuple[object, ...]:
    """Return what decides the shape of a network and the meaning of its columns."""
    manifest, windows = store.manifest, choose_windows(config, store.manifest.windows)
    words = [
        [(each.name, each.encoding, *each.vocabulary) for each in part]
        for part in fitted_inputs(store)
    ]
    ahead = (windows.horizon, windows.steps) if manifest.target.kind == "forecast" else None
    channels = [channel.name for channel in manifest.channels]
    return channels, manifest.target, manifest.observed, words, ahead


def open_stream(
    store: Store,
    config: TrainConfig,
    split: str,
    *,
    train: bool = False,
    ranks: Ranks = (0, 1),
    windows: WindowSpec | None = None,
    where: str | None = None,
    device: torch.device | None = None,
) -> TrialStream:
    """Open the rows of a split.

    Args:
        store: Where.
        config: Batches, batch size, seed, balance, weights.
        split: Which trials.
        train: Shuffled and balanced; else by trial, then start, each row once.
        ranks: This rank, and how many there are.
        windows: Window parameters, by default those of the config.
        where: Which trials, by default as the config says.
        device: A CUDA device to make batches on.

    Raises:
        InvalidSpecError: If the split has no row.
    """
    data = config.data
    return TrialStream(
        store,
        split=split,
        batch_size=data.batch_size,
        batches=choose_batches(data, train=train),
        shuffle=data.shuffle if train else "none",
        seed=data.seed,
        balance=_balance(data.balance) if train else "window",
        weights=_weights(data.weights),
        windows=windows or choose_windows(config, store.manifest.windows),
        where=where or data.where,
        rank=ranks[0],
        world_size=ranks[1],
        device=device if device is not None and device.type == "cuda" else None,
    )


def open_training(
    stores: tuple[Store, ...],
    config: TrainConfig,
    ranks: Ranks,
    device: torch.device | None = None,
) -> TrialStream | MixedStream:
    """Open what a run learns from: one store's train rows, or the mixture of several."""
    streams = open_split(stores, config, config.data.train_split, train=True, ranks=ranks,
                         device=device)  # fmt: skip
    mixture = config.mixture
    if mixture is None:
        return streams[0]
    by = mixture.by if isinstance(mixture.by, str) else list(mixture.by)
    return mix(streams, by, stop="first" if by == "proportional" else mixture.stop)


def open_split(
    stores: tuple[Store, ...],
    config: TrainConfig,
    split: str,
    *,
    train: bool = False,
    ranks: Ranks = (0, 1),
    device: torch.device | None = None,
) -> list[TrialStream]:
    """Open the rows of a split in each store of a run."""
    wheres = [None, *(other.where for other in config.mixture.stores)] if config.mixture else [None]
    return [
        open_stream(store, config, split, train=train, ranks=ranks, where=where, device=device)
        for store, where in zip(stores, wheres, strict=True)
    ]


def choose_batches(
    data: DataConfig, *, train: bool = False
) -> WindowBatches | TrialBatches | LaneBatches:
    """Return what a row of a batch is."""
    if data.batches == "trials":
        return TrialBatches(**data.trials.model_dump())
    if data.batches == "lanes":
        return LaneBatches(**data.lanes.model_dump())
    return WindowBatches(random_offset=train and data.windows is not None
                         and data.windows.random_offset)  # fmt: skip


def has_windows(stream: TrialStream) -> bool:
    """Return whether a row of its batches is a window, so that rows of a trial may overlap."""
    return isinstance(stream.options.batches, WindowBatches)


def _balance(asked: str | By) -> str | Balance:
    return asked if isinstance(asked, str) else Balance(asked.by, asked.column)


def _weights(asked: str | By) -> str | LossWeights:
    return asked if isinstance(asked, str) else LossWeights(asked.by, asked.column)
