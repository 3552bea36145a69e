"""Progress bars with rate and time left, on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

if TYPE_CHECKING:
    from pipeline.outcome import Progress as BuildProgress


@contextmanager
def build_progress() -> Iterator[Callable[[BuildProgress], None]]:
    """Show bytes and files of a build."""
    bar = Progress(
        TextColumn("building"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TextColumn("{task.fields[files]}"),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task("building", total=None, files="scanning")

        def show(progress: BuildProgress) -> None:
            bar.update(
                task,
                total=progress.n_bytes,
                completed=progress.n_bytes_done,
                files=f"{progress.n_files_done:,}/{progress.n_files:,} files",
            )

        yield show


@contextmanager
def shard_progress() -> Iterator[Callable[[int, int], None]]:
    """Show how many shards are checked."""
    bar = Progress(
        TextColumn("verifying"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} shards"),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task("verifying", total=None, rate="")
        began = time.perf_counter()

        def show(done: int, total: int) -> None:
            rate = f"{done / (time.perf_counter() - began):.1f}/s"
            bar.update(task, completed=done, total=total, rate=rate)

        yield show
