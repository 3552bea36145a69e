"""Whether a store holds what a stream asks for: its windows and its target."""

from __future__ import annotations

from dataclasses import replace

from loaders.choices import LaneBatches, WindowBatches
from loaders.options import StreamOptions
from shards import InvalidSpecError, Store, WindowSpec
from shards.affine import scope_kind
from shards.manifest import TargetSchema


def choose_target(store: Store, options: StreamOptions) -> TargetSchema:
    """Return what a stream predicts: what it was asked for, or what the store says.

    Raises:
        InvalidSpecError: If the store does not hold that target.
    """
    manifest, wanted = store.manifest, options.target
    if wanted is not None:  # a list of the same names is the same request
        classes = None if wanted.classes is None else tuple(wanted.classes)
        wanted = replace(wanted, columns=tuple(wanted.columns), classes=classes)
    if wanted is None or wanted == manifest.target:
        return manifest.target
    where = f"{store.path} {store.version}"
    if manifest.layout == "windows":
        raise InvalidSpecError(
            f"target is {wanted}, but {where} has layout 'windows' and holds {manifest.target}. "
            "Leave target out, or build a store with shards.layout: rows."
        )
    if wanted.kind != "forecast":
        raise InvalidSpecError(
            f"target is of kind {wanted.kind!r}; {where} holds {manifest.target}. Wanted that one, "
            "or a forecast of its channels."
        )
    names = [channel.name for channel in manifest.channels]
    if not wanted.columns or not set(wanted.columns) <= set(names):
        raise InvalidSpecError(
            f"target forecasts {list(wanted.columns)}; wanted channels of {where}: {names}."
        )
    scopes = dict(zip(names, (scope for _, scope in store.delivery.entries), strict=True))
    regimes = [name for name in wanted.columns if scope_kind(scopes[name]) == "regime"]
    if regimes:
        raise InvalidSpecError(
            f"target forecasts {regimes}, which have normalization scope regime; what undoes it is "
            "not known ahead. Choose channels of another scope."
        )
    return wanted


def choose_windows(store: Store, options: StreamOptions, target: TargetSchema) -> WindowSpec:
    """Return the windows of a stream.

    Raises:
        InvalidSpecError: If the store cannot give them, or they do not suit the target.
    """
    manifest, batches = store.manifest, options.batches
    windows = options.windows or manifest.windows
    if target != manifest.target and options.windows is None:
        windows = replace(windows, steps=max(1, windows.steps))  # the store's own needs none ahead
    if isinstance(batches, WindowBatches):
        windows = batches.apply(windows)
    elif manifest.layout == "windows":
        raise InvalidSpecError(
            f"batches is {batches}, but {store.path} has layout 'windows' and holds no whole "
            "trials. Use batches='windows', or build a store with shards.layout: rows."
        )
    if manifest.layout == "windows" and (windows != manifest.windows or options.shifts):
        raise InvalidSpecError(
            f"windows are {windows}{', shifted at random' if options.shifts else ''}, but "
            f"{store.path} has layout 'windows' and holds {manifest.windows}. Leave windows out, "
            "or build a store with shards.layout: rows."
        )
    if target.kind == "forecast" and windows.steps < 1:
        raise InvalidSpecError("windows.steps is 0; wanted at least 1 for a forecast target.")
    scopes = [scope_kind(scope) for _, scope in store.delivery.entries]
    if isinstance(batches, LaneBatches) and "window" in scopes:
        raise InvalidSpecError(
            f"batches is {batches}, but channels of {store.path} have normalization scope window: "
            "each chunk of a trial would be scaled otherwise, and a hidden state carried from one "
            "to the next. Use batches='windows', or scope train, trial or prefix."
        )
    return windows
