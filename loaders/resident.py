"""Where batches are made: on the host, of all rows on a device, or of a pool of blocks there."""

from __future__ import annotations

import torch

from loaders.blocks import BlockPlan
from loaders.choices import WindowBatches
from loaders.device import ROWS_LIE_ON, free_bytes, locked_memory
from loaders.devicegather import DeviceGather
from loaders.devicepools import LEAST_SLOTS, PooledGather, most_pool_rows
from loaders.devicerows import RowSource, place_all
from loaders.gather import RowGather
from loaders.options import StreamOptions
from loaders.selection import Selection
from shards import InvalidSpecError, Store

SHARE = 2
"""`auto` takes the device's free memory divided by this: the model needs some as well."""


def check_layout(store: Store, selection: Selection, options: StreamOptions) -> None:
    """Refuse to keep on a device what cannot be gathered there.

    Raises:
        InvalidSpecError: If the store has layout windows, or pools are asked for where there are
            none.
    """
    if options.resident in (True, "blocks") and store.manifest.layout == "windows":
        raise InvalidSpecError(
            f"resident is {options.resident!r}, but {store.path} has layout 'windows', each row "
            "of which is a window of its own. Leave resident out, or build a store with "
            "shards.layout: rows."
        )
    if options.resident == "blocks" and not _has_pools(selection, options):
        raise InvalidSpecError(
            f"resident is 'blocks', shuffle is {options.shuffle!r} and batches is "
            f"{options.batches}; wanted shuffle='blocks' and batches of windows."
        )


def open_gather(
    store: Store, selection: Selection, options: StreamOptions
) -> RowGather | DeviceGather | PooledGather:
    """Return what makes the batches of a stream.

    Raises:
        InvalidSpecError: If rows shall lie on a device that has no room for them.
    """
    device = options.device
    if device is None:
        return RowGather(store, selection)
    where = choose_place(store, selection, options)
    # Rows outlive the inference mode that the first batch may be asked for in.
    with torch.inference_mode(False):
        if where == "device":
            rows, first = place_all(RowSource(store, selection), device)
            return DeviceGather(store, selection, device, rows, first)
        if where == "pools":
            return PooledGather(store, selection, device, options.batch_size)
    if device.type == "cuda":
        return RowGather(store, selection, locked_memory)
    return RowGather(store, selection)


def choose_place(store: Store, selection: Selection, options: StreamOptions) -> str:
    """Return `host`, `device` or `pools`.

    Raises:
        InvalidSpecError: If rows shall lie on a device that has no room for them.
    """
    device, resident = options.device, options.resident
    if (
        device is None
        or resident is False
        or device.type not in ROWS_LIE_ON
        or store.manifest.layout == "windows"
        or (resident == "auto" and device.type == "cpu")
    ):
        return "host"
    source = RowSource(store, selection)
    all_bytes = int(source.n_rows.sum()) * source.row_bytes
    pool_bytes = None
    if _has_pools(selection, options) and isinstance(selection.plan, BlockPlan):
        pool_bytes = LEAST_SLOTS * most_pool_rows(selection.plan, source) * source.row_bytes
    free = free_bytes(device)
    if resident == "auto":
        most = float("inf") if free is None else free / SHARE
        if all_bytes <= most:
            return "device"
        return "pools" if pool_bytes is not None and pool_bytes <= most else "host"
    needed = all_bytes if resident is True or pool_bytes is None else pool_bytes
    if free is not None and needed > free:
        raise InvalidSpecError(
            f"resident is {resident!r}: the rows of split {options.split!r} of {store.path} "
            f"{store.version} take {needed:,} bytes, {device} has {free:,} free. Use "
            "resident='auto', shuffle='blocks' with smaller pools, or fewer trials (where=)."
        )
    return "device" if resident is True else "pools"


def _has_pools(selection: Selection, options: StreamOptions) -> bool:
    return isinstance(selection.plan, BlockPlan) and isinstance(options.batches, WindowBatches)
