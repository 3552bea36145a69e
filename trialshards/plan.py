"""`trialshards plan`: what an epoch of a stream comes to, before training on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loaders.lanes import LaneEpoch, LanePlan, best_lanes
from loaders.lengths import LengthPlan
from loaders.probe import private_bytes, probe_stream
from loaders.quality import rank_correlation, shuffle_quality
from loaders.selection import Selection
from trialshards.sizes import show_bytes, streamed_arrays

if TYPE_CHECKING:
    from loaders import TrialStream

Int64 = npt.NDArray[np.int64]

PLAIN: Any = {"highlight": False, "soft_wrap": True}
NEAR = 0.25
"""Lanes are tried from three quarters to five quarters of the wanted number."""
NO_MORE = 0.005
"""Share of the steps that is not worth another number of lanes: it is another batch size."""
MOST_CANDIDATES = 33
MOST_PASSES = 1_000_000
"""Passes that are laid out to compare numbers of lanes, at about a microsecond each."""


def describe_plan(stream: TrialStream, *, seconds: float, n_workers: int = 0) -> dict[str, Any]:
    """Return what `plan --json` prints; keys are stable.

    Args:
        stream: Stands afterwards where it stood.
        seconds: Of the probe, which iterates the stream.
        n_workers: DataLoader workers of the probe.

    Raises:
        CorruptStoreError: If the shards cannot be read.
    """
    store, options = stream.store, stream.options
    selection = Selection(store, options)
    epoch = int(stream.state_dict()["epoch"])
    probe = probe_stream(stream, seconds, n_workers=n_workers)
    return {
        "store": str(store.path),
        "version": store.version,
        "split": options.split,
        "batches": type(options.batches).__name__.removesuffix("Batches").lower() + "s",
        "batch_size": options.batch_size,
        "shuffle": options.shuffle,
        "balance": options.balance.by,
        "n_trials": len(selection.trials),
        "n_windows": int(selection.plan.n_windows.sum()),
        "n_draws": selection.plan.n_draws,
        "n_steps": selection.n_steps(epoch),
        "padding_share": _padding(stream, selection, epoch),
        "lanes": _lanes(selection, options.batch_size, epoch),
        "bytes": _bytes(stream, selection, epoch),
        "memory": {
            "index_bytes": (store.folder / "index.arrow").stat().st_size,
            "plan_bytes": private_bytes(
                [selection.trials, selection.weights, selection.plan, selection.steps]
            ),
            "batch_bytes": probe.batch_bytes,
            "ahead": (n_ahead := options.n_ahead(n_workers)),
            "batches_bytes": probe.batch_bytes * (1 + n_ahead),
        },
        "quality": _quality(stream, selection, epoch),
        "probe": {
            "n_workers": n_workers,
            "seconds": probe.seconds,
            "first_batch_seconds": probe.first_seconds,
            "rows_per_second": probe.rows_per_second,
            "steps_per_second": probe.n_batches / probe.seconds if probe.seconds else 0.0,
            "epoch_seconds": _epoch_seconds(selection.n_steps(epoch), probe),
        },
    }


def _epoch_seconds(n_steps: int, probe: Any) -> float:
    return n_steps * float(probe.seconds) / int(probe.n_batches)


def _n_rows(stream: TrialStream, selection: Selection, epoch: int) -> int:
    """Return the rows that an epoch delivers; of windows of groups the mean over the epochs."""
    if selection.steps is not None:
        laid = selection.steps.epoch(epoch)
        return int(laid.lengths[laid.trial].sum())
    n_rows = stream.store.index.n_rows[selection.trials] - selection.windows.ahead
    return round(float(np.clip(n_rows, 0, selection.windows.length) @ selection.plan.mean_draws))


def _padding(stream: TrialStream, selection: Selection, epoch: int) -> float:
    """Return the share of an epoch's row slots that hold no row; filler rows do not count."""
    steps, plan = selection.steps, selection.plan
    if isinstance(steps, LanePlan):
        return 1 - steps.epoch(epoch).fill.rows
    if isinstance(steps, LengthPlan):
        return steps.epoch(epoch).padding
    n_rows = _n_rows(stream, selection, epoch)
    return 1 - n_rows / (selection.windows.length * plan.n_draws)


def _lanes(selection: Selection, n_lanes: int, epoch: int) -> dict[str, Any] | None:
    """Return how full the lanes are, and the nearest number with which they would be fullest."""
    plan = selection.steps
    if not isinstance(plan, LanePlan):
        return None
    laid = plan.epoch(epoch)
    fill, bound, passes = laid.fill, laid.bound, plan.lengths[np.sort(laid.trial)]
    near = range(max(1, round(n_lanes * (1 - NEAR))), round(n_lanes * (1 + NEAR)) + 1)
    n_tried = max(1, min(MOST_CANDIDATES, MOST_PASSES // len(passes)))
    choices = best_lanes(passes, plan.chunk, [n_lanes, *near[:: -(-len(near) // n_tried)]])
    good = [choice for choice in choices if choice.fill >= choices[0].fill - NO_MORE]
    best = min(good, key=lambda choice: abs(choice.n_lanes - n_lanes))
    return {
        "chunk": plan.chunk,
        "fill": fill.chunks,
        "fill_bound": bound.chunks,
        "row_fill": fill.rows,
        "row_fill_bound": bound.rows,
        "best": {"batch_size": best.n_lanes, "fill": best.fill, "n_steps": best.n_steps},
    }


def _bytes(stream: TrialStream, selection: Selection, epoch: int) -> dict[str, int]:
    """Return what the trials take in the shards, and what an epoch copies out of them."""
    store = stream.store
    row_bytes = sum(spec.row_bytes for spec in streamed_arrays(store.manifest.shards[0]).values())
    n_copied = _n_rows(stream, selection, epoch)
    if store.manifest.layout == "windows":  # a row of a shard is a window
        n_copied = selection.plan.n_draws
    return {
        "stored": int(store.n_stored[selection.trials].sum()) * row_bytes,
        "copied_per_epoch": n_copied * row_bytes,
    }


def _quality(stream: TrialStream, selection: Selection, epoch: int) -> dict[str, float | None]:
    """Return how well an epoch is shuffled.

    Of windows: distinct trials of a batch over their expectation. Of trials and lanes, which come
    one pass at a time: whether long ones come early. Of all: what storage still shows.
    """
    index, trials = stream.store.index, selection.trials
    storage = np.empty(len(trials), np.int64)
    storage[np.lexsort((index.row_start[trials], index.shard[trials]))] = np.arange(len(trials))
    steps = selection.steps
    if steps is None:
        found = shuffle_quality(selection.plan, stream.options.batch_size, epoch, storage)
        return {
            "distinct_trials_share": found.distinct_share,
            "storage_correlation": found.rank_correlation,
            "length_correlation": None,
        }
    laid = steps.epoch(epoch)
    if isinstance(laid, LaneEpoch):
        position = laid.begins % laid.n_steps
    else:
        position = np.arange(len(laid.trial)) // laid.batch_size
    return {
        "distinct_trials_share": None,
        "storage_correlation": rank_correlation(position, storage[laid.trial]),
        "length_correlation": rank_correlation(position, laid.lengths[laid.trial]),
    }


def print_plan(stream: TrialStream, about: dict[str, Any]) -> None:
    """Print a plan for a person.

    Args:
        stream: The stream.
        about: What `describe_plan` said of it.
    """
    name, windows = stream.store.manifest.name, stream.windows
    console = Console()
    console.print(f"[bold]{escape(name)}[/] {about['version']}  {escape(about['store'])}", **PLAIN)
    of = f" of {windows.length} every {windows.stride}" if about["batches"] == "windows" else ""
    console.print(
        f"split {about['split']}: {about['n_trials']:,} trials; {about['batch_size']:,} "
        f"{about['batches']}{of} a step, shuffle {about['shuffle']}, "
        f"balance {about['balance']}",
        markup=False, **PLAIN,
    )  # fmt: skip
    table = Table(show_header=False, box=None, pad_edge=False)
    for title, text in _lines(about):
        table.add_row(title, text)
    console.print(table)


def _lines(about: dict[str, Any]) -> Iterator[tuple[str, str]]:
    lanes, probe, size, memory = (about[key] for key in ("lanes", "probe", "bytes", "memory"))
    drawn = "windows" if about["batches"] == "windows" else "whole trials"
    what = "chunks" if lanes is not None else about["batches"]
    how = f"with {probe['n_workers']} workers" if probe["n_workers"] else "in process"
    shown = {name: show_bytes(n) for name, n in (size | memory).items() if name != "ahead"}
    yield "epoch", f"{about['n_draws']:,} {drawn} in {about['n_steps']:,} steps"
    yield "padding", f"{about['padding_share']:.1%} of the time steps"
    if lanes is not None:
        yield "lanes", _lane_line(lanes, about["batch_size"])
    yield "bytes", f"{shown['stored']} in the shards, {shown['copied_per_epoch']} copied per epoch"
    batches = f"{shown['batch_bytes']} x {1 + memory['ahead']}"
    index = f"index {shown['index_bytes']} mapped"
    yield "memory", f"{index}, plan {shown['plan_bytes']}, batches {batches}"
    yield "shuffle", "; ".join(_shuffle_lines(about["quality"]))
    speed = f"{probe['rows_per_second']:,.0f} {what}/s {how}"
    first = f"first batch after {probe['first_batch_seconds'] * 1e3:,.0f} ms"
    yield "probe", f"{speed}; {first}; an epoch takes {probe['epoch_seconds']:,.1f} s"


def _lane_line(lanes: dict[str, Any], n_lanes: int) -> str:
    best = lanes["best"]
    other = f"{best['batch_size']} would fill {best['fill']:.1%} in {best['n_steps']:,} steps"
    if best["batch_size"] == n_lanes:
        other = "no number near theirs is much better"
    return (
        f"{lanes['fill']:.1%} of their steps hold a chunk of {lanes['chunk']}, "
        f"{lanes['fill_bound']:.1%} at best; {other}"
    )


def _shuffle_lines(quality: dict[str, float | None]) -> Iterator[str]:
    said = {
        "distinct_trials_share": "distinct trials of a batch: {:.2f} of what chance gives",
        "storage_correlation": "rank correlation with the place in storage: {:.2f}",
        "length_correlation": "with the length: {:.2f}",
    }
    for key, sentence in said.items():
        if (figure := quality[key]) is not None:
            yield sentence.format(figure)
