"""Small PNGs of one version, for whoever looks at a build in a browser.

What a picture shows is decided by plain functions here; `canvas.py` has the ink. No other module of
this room may import matplotlib.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm

from pipeline.canvas import LEGEND, new_figure, number_rows, plain, render_png, trace
from pipeline.storedrows import BLOCK_ROWS, Window, row_blocks, rows_ahead, rows_of_window
from pipeline.trials import Bool, Float32
from shards import InvalidSpecError, Store
from shards.windows import Int64, window_rows

INK, PALE = "#444444", "#c9c9c9"
COLORS = ("#1f6fb4", "#c8782a", "#4a9a62", "#8a5fa8", "#8c8c8c")
MOST_BARS, MOST_BINS, MOST_CHANNELS = 40, 200, 3
MOST_TRIALS, MOST_VALUES = 2_000, 1_000_000_000  # whose missing values are counted: in seconds


def length_histogram(store: Store) -> bytes:
    """Draw how long trials are, by split, against what a window needs."""
    index, windows = store.index, store.manifest.windows
    need = windows.length + windows.ahead
    edges = length_edges(index.n_rows, need)
    short, none = (index.n_rows < need).sum(), (index.n_windows == 0).sum()
    title = f"{len(index):,} trials: {short:,} shorter than a window, {none:,} without any"
    figure = new_figure(3.5, title)
    axes = figure.add_subplot(xlabel="rows of a trial", ylabel="trials")
    below = np.zeros(len(edges) - 1, np.int64)
    for code, split in enumerate(store.manifest.splits):
        counts = np.histogram(index.n_rows[index.split == code], edges)[0]
        color = COLORS[code % len(COLORS)]
        bars = axes.bar(edges[:-1], counts, np.diff(edges), below, align="edge", color=color)
        bars.set_label(f" {plain(split)}: {counts.sum():,}")
        below += counts
    label = f"window: {windows.length:,}" + (f" + {windows.ahead:,} ahead" if windows.ahead else "")
    axes.axvline(need, color=INK, linestyle="--", linewidth=1, label=label)
    axes.locator_params(axis="y", integer=True)
    if edges[-1] > 100 * edges[0]:
        axes.set_xscale("log")
    figure.legend(ncols=4, **LEGEND)
    return render_png(figure)


def length_edges(n_rows: Int64, need: int) -> Int64:
    """Return integer edges of bars over all lengths and `need`, by factors from two decades on."""
    low, high = max(int(n_rows.min(initial=need)), 1), int(n_rows.max(initial=need)) + 1
    if high > 100 * low:
        return np.unique(np.ceil(np.geomspace(low, high, MOST_BARS + 1)).astype(np.int64))
    step = -(-(high - low) // MOST_BARS)
    return np.arange(low, high + step, step)


def missing_map(store: Store) -> bytes:
    """Draw which channels are missing in which trials."""
    names, n_trials = [channel.name for channel in store.manifest.channels], len(store.index)
    missing, n_rows, counted = missing_counts(store)
    share = 100 * missing.sum(axis=1) / max(int(n_rows.sum()), 1)
    what = "in the source" if store.manifest.observed else "after cleaning"
    what += ", of rows in windows" if store.manifest.layout == "windows" else ""
    what = f"missing {what}: {len(names)} channels, {n_trials:,} trials"
    what += f" ({counted.sum():,} of them counted)" if counted.sum() < n_trials else ""
    if not missing.any():
        return render_png(new_figure(0.5, f"No value is {what}"))
    height = float(np.clip(1.4 + 0.12 * len(names), 2.2, 6.5))
    figure = new_figure(height, f"{share.mean():.3g} % of values {what}")
    axes = figure.add_subplot(xlabel="trials, in the order of their ids")
    picture = axes.imshow(
        100 * missing / np.maximum(n_rows, 1), aspect="auto", interpolation="nearest",
        cmap="Blues", extent=(0, n_trials, len(names) - 0.5, -0.5),
        norm=PowerNorm(0.5, 0, 100),  # a root: one in a hundred is worth seeing
    )  # fmt: skip
    ticks = range(0, len(names), -(-len(names) // 45))
    labels = [f"{plain(names[i])}  {share[i]:.3g} %" for i in ticks]
    axes.locator_params(axis="x", integer=True)
    axes.set_yticks(ticks, labels, fontsize=8 if len(ticks) <= 20 else 6)
    figure.colorbar(picture, ticks=[0, 1, 10, 25, 50, 100], pad=0.01, label="% missing")
    return render_png(figure)


def evenly(n: int, most: int) -> Int64:
    """Return at most `most` of the integers below `n`, evenly, both ends among them."""
    return np.arange(min(n, most)) * (n - 1) // max(min(n, most) - 1, 1)


def missing_counts(store: Store) -> tuple[Int64, Int64, Int64]:
    """Count what trials miss, or where they are many or long, an even sample of them.

    In layout windows only rows that lie in a window are counted: the others are not stored.

    Returns:
        Missing values `[channels, bins]`, rows `[bins]` and trials `[bins]`. Missing is what the
        source did not hold, or, where a version has no `observed`, what cleaning left missing.
    """
    index, manifest, n_channels = store.index, store.manifest, len(store.manifest.channels)
    affordable = MOST_VALUES * len(index) // max(int(index.n_rows.sum()) * n_channels, 1)
    trials = evenly(len(index), min(MOST_TRIALS, max(affordable, 1)))
    bins = np.arange(len(trials)) * min(len(trials), MOST_BINS) // max(len(trials), 1)
    counted, n_rows = np.bincount(bins), np.bincount(bins, index.n_rows[trials]).astype(np.int64)
    missing = np.zeros((len(counted), n_channels), np.int64)
    if not manifest.observed and not manifest.counts.get("has_missing", True):
        return missing.T, n_rows, counted
    n_rows[:] = 0
    for at in by_shard(store, trials).tolist():
        place, trial = int(bins[at]), int(trials[at])
        for seen in _seen_blocks(store, trial):
            missing[place] += len(seen) - np.count_nonzero(seen, axis=0)
            n_rows[place] += len(seen)
    return missing.T, n_rows, counted


def by_shard(store: Store, trials: Int64) -> Int64:
    """Return the places of trials so that those of one shard come together.

    A compressed shard is decoded when it is looked at, and the cache may hold few of them.
    """
    return np.argsort(store.index.shard[trials], kind="stable")


def _seen_blocks(store: Store, trial: int) -> Iterator[Bool]:
    """Yield `[rows, channels]`: the source held the value, as far as the version knows."""
    manifest = store.manifest
    stored = store.trial_stored(trial, "observed" if manifest.observed else "values")
    windows = manifest.windows if manifest.layout == "windows" else None
    for block in row_blocks(stored, int(store.index.n_rows[trial]), windows, most=BLOCK_ROWS):
        yield _seen(store, block)


def _seen(store: Store, rows: npt.NDArray[Any]) -> Bool:
    """Return `[rows, channels]` of rows of `observed`, or of `values` where there is none."""
    if not store.manifest.observed:
        return np.asarray(~np.isnan(rows))
    n_channels = len(store.manifest.channels)
    return np.unpackbits(rows, axis=1, count=n_channels, bitorder="little").astype(np.bool_)


def sample_windows(store: Store, *, n: int = 4, seed: int = 0) -> bytes:
    """Draw some train windows as a model gets them, and what it is to predict.

    Solid is what the source held, dotted what cleaning filled in; a gap is delivered as 0.
    """
    windows, target = draw_windows(store, n, seed), store.manifest.target
    if not windows:
        return render_png(new_figure(0.5, "There is no window: the split train has none"))
    names = [channel.name for channel in store.manifest.channels]
    first = target.columns if target.kind == "forecast" else ()
    shown = [names.index(name) for name in dict.fromkeys([*first, *names])][:MOST_CHANNELS]
    n_lines, n_columns = -(-len(windows) // 2), min(len(windows), 2)
    title = f"Train windows as delivered ({_methods(store)}): {len(shown)} of {len(names)} channels"
    figure = new_figure(0.9 + 1.4 * n_lines, title)
    for place, window in enumerate(windows, start=1):
        _draw_window(figure.add_subplot(n_lines, n_columns, place), store, window, shown)
    entries = [(names[column], color) for column, color in zip(shown, COLORS, strict=False)]
    if target.kind == "forecast":
        entries.append(("target rows", PALE))
    elif target.kind == "per_step":
        entries.append((f"{target.columns[0]} (right)", INK))
    return render_png(figure, entries)


def draw_windows(store: Store, n: int, seed: int) -> list[Window]:
    """Return `(trial, first row, valid rows)` of `n` train windows, each equally likely."""
    index, splits = store.index, store.manifest.splits
    train = np.flatnonzero(index.split == (splits.index("train") if "train" in splits else -1))
    n_windows = index.n_windows[train]
    ends, total = np.cumsum(n_windows, dtype=np.int64), int(n_windows.sum())
    chosen = np.sort(np.random.default_rng(seed).choice(total, min(n, total), replace=False))
    place = np.searchsorted(ends, chosen, side="right")
    number = chosen - (ends - n_windows)[place]
    start, n_valid = window_rows(index.n_rows[train[place]], number, store.manifest.windows)
    columns = train[place].tolist(), start.tolist(), n_valid.tolist()
    return [Window(*window) for window in zip(*columns, strict=True)]


def _draw_window(axes: Axes, store: Store, window: Window, shown: list[int]) -> None:
    (trial, start, n_valid), spec, target = window, store.manifest.windows, store.manifest.target
    values = store.delivery.apply(rows_ahead(store, window), trial)
    seen = _seen(
        store, rows_of_window(store, window, "observed" if store.manifest.observed else "values")
    )
    first = n_valid + spec.horizon - 1
    for column, color in zip(shown, COLORS, strict=False):
        line = values[:, column]
        trace(axes, start, line[:n_valid], color, style=":")
        trace(axes, start, np.where(seen[:, column], line[:n_valid], np.nan), color)
        if target.kind == "forecast" and store.manifest.channels[column].name in target.columns:
            trace(axes, start + first, line[first:], color)
    title = f"{plain(store.index.id_of(trial))}, from row {start:,}"
    title += "" if n_valid == spec.length else f" ({n_valid:,} of {spec.length:,} rows)"
    if target.kind == "forecast":
        axes.axvspan(
            start + first - 0.5, start + len(values) - 0.5, color=PALE, alpha=0.5, zorder=0
        )
    elif target.kind == "per_step":
        trace(right := axes.twinx(), start, rows_of_window(store, window, "targets")[:, 0], INK)
        number_rows(right)
    else:
        label, classes = float(store.index.label[trial]), target.classes
        named = f"{label:g}" if classes is None or np.isnan(label) else plain(classes[int(label)])
        title += f": {plain(target.columns[0])} = {named}"
    number_rows(axes)
    axes.set_title(title, fontsize=8)
    axes.set_xlabel("row", fontsize=8)


def before_after(store: Store, *, channel: str | None = None, n: int = 5) -> bytes:
    """Draw a channel (by default `uneven_channel`) of some trials, physical and as delivered.

    In layout windows rows that lie in no window are not stored, and are gaps in the lines.

    Raises:
        InvalidSpecError: If there is no such channel.
    """
    names = [known.name for known in store.manifest.channels]
    if channel not in (None, *names):
        raise InvalidSpecError(f"no channel {channel!r}; the version has: {', '.join(names)}.")
    trials = stored_trials(store, n)
    if not len(trials):
        return render_png(new_figure(0.5, "No row is stored: there is no window"))
    column = uneven_channel(store) if channel is None else names.index(channel)
    unit = store.manifest.channels[column].unit
    figure, entries = new_figure(3.5), []
    left, right = figure.subplots(1, 2, sharex=True)
    for place, trial in enumerate(trials.tolist()):
        color = COLORS[place % len(COLORS)]
        trace(left, 0, store.physical_rows(trial)[:, column], color)
        trace(right, 0, deliver(store, trial)[:, column], color)
        entries.append((store.index.id_of(trial), color))
    for axes in (left, right):
        number_rows(axes)
        axes.set_xlabel("row", fontsize=8)
    left.set_title(plain(names[column]) + (f" [{plain(unit)}]" if unit else ""), fontsize=9)
    right.set_title(f"as delivered ({_method(*store.delivery.entries[column])})", fontsize=9)
    return render_png(figure, entries)


def stored_trials(store: Store, most: int) -> Int64:
    """Return at most `most` of the trials that a shard holds rows of, evenly."""
    held = np.flatnonzero(store.n_stored > 0)
    return held[evenly(len(held), most)]


def uneven_channel(store: Store) -> int:
    """Return the channel whose level differs most from trial to trial, against its own spread.

    It looks at 64 trials, and 1,000 rows of each. A channel that is constant in each trial shows
    nothing of a normalization: it comes last but for one without values.
    """
    trials = stored_trials(store, 64)
    nothing = np.full((len(trials), len(store.manifest.channels)), np.nan)
    levels, spreads = np.ma.masked_invalid(nothing), np.ma.masked_invalid(nothing)
    for place in by_shard(store, trials).tolist():
        trial = int(trials[place])
        rows = slice(None, None, int(store.index.n_rows[trial]) // 1000 + 1)
        present = np.ma.masked_invalid(store.physical_rows(trial, rows).astype(np.float64))
        levels[place] = present.mean(axis=0)
        spreads[place] = present.var(axis=0) * (np.ma.ptp(present, axis=0) > 0)
    between, within = levels.var(axis=0), spreads.mean(axis=0)
    ratio, spread = (between / (between + within)).filled(0), within.filled(-1)
    return int(np.where(spread > 0, ratio, spread - 1).argmax())


def deliver(store: Store, trial: int, rows: slice = slice(None)) -> Float32:
    """Return rows of a trial, `[rows, channels]`, as a model gets them, but with NaN for a gap.

    Channels that each window normalizes by itself are in physical units.
    """
    return store.deliver_rows(trial, rows)


def _method(method: str, scope: str) -> str:
    return "not normalized" if method == "none" else f"{method} by {scope}"


def _methods(store: Store) -> str:
    return ", ".join(_method(*entry) for entry in dict.fromkeys(store.delivery.entries))
