"""`trialshards doctor`: what slows a stream down here, the figure that shows it, and the remedy."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trialshards.doctor.check import FINDING, Check, not_checked
from trialshards.doctor.machine import Machine, read_machine
from trialshards.doctor.memory import (
    WARM_SHARE,
    check_cache,
    check_disk,
    check_huge_pages,
    check_open_files,
    check_room,
    check_shm,
)
from trialshards.doctor.pages import DiskSpeed, Residency, measure_disk, residency
from trialshards.doctor.stored import (
    check_container,
    check_fast_path,
    check_format,
    check_shards,
    data_files,
)
from trialshards.doctor.threads import check_omp, check_quota, check_threads
from trialshards.sizes import streamed_arrays

if TYPE_CHECKING:
    from loaders import TrialStream
    from loaders.probe import Probe
    from shards import Store

__all__ = ["FINDING", "Check", "Question", "diagnose"]

_TRIED_WORKERS = 2


@dataclass(frozen=True)
class Question:
    """What the doctor is asked; see `trialshards doctor --help`.

    Attributes:
        split: Split that is trained on.
        batch_size: Rows per step.
        shuffle: `global`, `blocks` or `none`.
        n_workers: DataLoader workers of each process.
        n_processes: Training processes on this machine; None: what their launcher says, else 1.
        rate: Windows per second that training takes; None: as fast as they come.
        seconds: Of each probe.
    """

    split: str = "train"
    batch_size: int = 256
    shuffle: str = "global"
    n_workers: int = 0
    n_processes: int | None = None
    rate: float | None = None
    seconds: float = 1.0


def diagnose(
    store: Store | None, question: Question, machine: Machine | None = None
) -> list[Check]:
    """Look at the machine and, if there is one, at a store.

    Args:
        store: The open version, or None.
        question: How it is trained on.
        machine: Facts of the machine; by default they are read.

    Raises:
        InvalidSpecError, StoreNotFoundError, CorruptStoreError: If nothing can be read.
    """
    machine = read_machine() if machine is None else machine
    case = None if store is None else _Case(store, question, machine)
    checks = [*_of_machine(machine, question, case)]
    return checks if case is None else [*checks, *_of_store(case)]


def _of_machine(machine: Machine, question: Question, case: _Case | None) -> Iterator[Check]:
    n_processes = question.n_processes or machine.n_local_processes or 1
    torch_threads = None
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch_threads = torch.get_num_threads()
    yield check_threads(
        machine,
        torch_threads=torch_threads,
        n_workers=question.n_workers,
        n_processes=n_processes,
    )
    yield check_omp(machine, n_processes)
    yield check_quota(machine)
    yield check_shm(
        machine,
        batch_bytes=case.probe.batch_bytes if case and case.probe else None,
        n_workers=question.n_workers,
    )
    yield check_open_files(machine)
    yield check_huge_pages(machine)
    yield check_fast_path()


class _Case:
    """A store, the stream that is asked for, and what was measured of them.

    Attributes:
        numbers: Shards that hold trials of the split.
        files: Their data files and sizes; None if they are compressed and not decoded.
        probe: What reading in process came to; None if that would decode them.
        speed: Of the disk, or None.
    """

    def __init__(self, store: Store, question: Question, machine: Machine) -> None:
        from loaders import TrialStream
        from loaders.probe import probe_stream

        self.store, self.question, self.machine = store, question, machine
        self.stream: TrialStream = TrialStream(
            store, split=question.split, batch_size=question.batch_size, shuffle=question.shuffle
        )
        index = store.index
        self._mine = index.split == store.split_code(question.split)
        self.numbers: list[int] = np.unique(index.shard[self._mine]).tolist()
        self.container = check_container(store, self.numbers)  # before anything decodes them
        self.files = data_files(store, self.numbers)
        self.resident: Residency | None = None
        self.speed: DiskSpeed | None = None
        self.probe: Probe | None = None
        if self.files is not None:
            # Before the probe reads them; of what is mapped here, the system forgets nothing.
            self.resident = residency(self.files)
            largest = max(self.files, key=lambda file: file[1])[0]
            self.speed = measure_disk(largest, self.window_bytes)
            self.probe = probe_stream(self.stream, question.seconds)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in all arrays; in layout windows, of a window."""
        arrays = streamed_arrays(self.store.manifest.shards[self.numbers[0]])
        return sum(spec.row_bytes for spec in arrays.values())

    @property
    def window_bytes(self) -> int:
        """Bytes of a window in the shards."""
        is_rows = self.store.manifest.layout == "rows"
        return self.row_bytes * (self.stream.windows.length if is_rows else 1)

    @property
    def split_bytes(self) -> int:
        """Bytes of the rows of the split in the shards."""
        return int(self.store.n_stored[self._mine].sum()) * self.row_bytes

    @property
    def fits(self) -> bool:
        """Whether memory can keep the split."""
        return self.machine.memory_bytes is None or self.split_bytes <= self.machine.memory_bytes

    @property
    def needed(self) -> float | None:
        """Bytes per second that the loop takes: from the disk while they are not in memory.

        What memory can keep comes once from the disk, however many windows it is in.
        """
        rate = self.question.rate
        if rate is None and self.probe is not None:
            rate = self.probe.rows_per_second
        if rate is None:
            return None
        if not self.fits:
            return rate * self.window_bytes
        n_draws = max(1, len(self.stream) * self.question.batch_size)
        return rate * min(self.window_bytes, self.split_bytes / n_draws)


def _of_store(case: _Case) -> Iterator[Check]:
    store, question = case.store, case.question
    yield check_shards(store)
    yield case.container
    yield check_format(store)
    yield check_room(case.machine, split_bytes=case.split_bytes, shuffle=question.shuffle)
    if case.files is None:
        why = "the shards are not decoded yet; run it again when they are"
        yield from (not_checked(name, why) for name in ("page cache", "disk", "workers", "waiting"))
        return
    yield check_cache(case.resident, case.speed, [path for path, _ in case.files])
    is_cold = not case.fits or (case.resident is not None and case.resident.share < WARM_SHARE)
    yield check_disk(
        case.speed,
        needed=case.needed,
        is_cold=is_cold,
        what="training" if question.rate else "this stream at its fastest",
    )
    yield from _of_stream(case)


def _of_stream(case: _Case) -> Iterator[Check]:
    import torch

    from loaders.probe import probe_stream
    from trialshards.doctor.speed import check_waiting, check_workers, measure_waiting

    question = case.question
    assert case.probe is not None
    n_workers = question.n_workers or _TRIED_WORKERS
    shared = probe_stream(case.stream, question.seconds, n_workers=n_workers)
    yield check_workers(case.probe, shared, is_asked=question.n_workers > 0)
    waiting, device = None, ""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
        waiting = measure_waiting(case.stream, "cuda")
    yield check_waiting(waiting, device=device)
