"""The work of `bench/read.py`, the same bytes for all methods; NumPy alone, so peers import it too.

Trials of 500 to 4,000 steps x 16 float32 channels lie end to end in one raw file. Windows of 128
steps begin every 16; the target is the first channel, one step behind the window.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

BATCH, LENGTH, STRIDE, CHANNELS = 256, 128, 16, 16
WIDTH = LENGTH * CHANNELS
CUT = 4096
"""Windows that are cut at once where a peer wants them cut."""

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


def make_work(folder: Path, n_trials: int) -> Work:
    """Write the trials, unless they are there from an earlier run."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(500, 4001, n_trials)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "lengths.npy").is_file():
        with (folder / "part.f32").open("wb") as file:
            for length in lengths.tolist():
                file.write(rng.standard_normal((length, CHANNELS), dtype=np.float32).data)
        (folder / "part.f32").rename(folder / "rows.f32")
        np.save(folder / "part.npy", lengths)
        (folder / "part.npy").rename(folder / "lengths.npy")
    return Work(folder)


class Work:
    """The trials of one folder.

    Attributes:
        lengths: int64 `[trials]`, steps.
        ends: int64 `[trials]`, where each trial ends among all rows.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lengths: Int64 = np.load(folder / "lengths.npy")
        self.ends: Int64 = np.cumsum(self.lengths)

    @cached_property
    def rows(self) -> Float32:
        """All rows, float32 `[rows, channels]`, mapped."""
        return np.asarray(
            np.memmap(self.folder / "rows.f32", np.float32, "r").reshape(-1, CHANNELS)
        )

    @cached_property
    def windows(self) -> Int64:
        """First row of each window, int64 `[windows]`, in order."""
        first = self.ends - self.lengths
        return np.concatenate(
            [
                np.arange(begin, end - LENGTH, STRIDE)
                for begin, end in zip(first.tolist(), self.ends.tolist(), strict=True)
            ]
        )

    def trials(self) -> list[Float32]:
        """Return float32 `[steps, channels]` of each trial, in memory."""
        return [part.copy() for part in np.split(self.rows, self.ends[:-1])]

    def cut(self) -> Iterator[tuple[Float32, Float32]]:
        """Yield the windows themselves, float32 `[n, WIDTH]`, and their targets `[n]`."""
        flat = self.rows.reshape(-1)
        for first in range(0, len(self.windows), CUT):
            start = self.windows[first : first + CUT]
            x = np.stack([flat[i * CHANNELS : i * CHANNELS + WIDTH] for i in start.tolist()])
            yield x, self.rows[start + LENGTH, 0]


class Judge:
    """Whether what a method delivers are windows of the work with their targets."""

    def __init__(self, work: Work) -> None:
        self._rows, windows = work.rows, work.windows
        # Two random float32 side by side name a window: no two of them begin alike.
        keys = np.ascontiguousarray(self._rows[windows, :2]).view(np.uint64).ravel()
        order = np.argsort(keys)
        self._keys, self._windows = keys[order], windows[order]

    def starts(self, x: Any, y: Any) -> list[int]:
        """Return the first row of each window of a batch.

        Args:
            x: Tensor of windows, `[B, LENGTH, CHANNELS]`.
            y: Tensor of targets, B of them.

        Raises:
            ValueError: If any of it is not what the work holds.
        """
        if (
            x.shape[1:] != (LENGTH, CHANNELS)
            or not x.is_contiguous()
            or "float32" not in str(x.dtype)
        ):
            raise ValueError(f"a batch is {x.dtype} of shape {tuple(x.shape)}, or not contiguous")
        got = x.numpy()
        keys = np.ascontiguousarray(got[:, 0, :2]).view(np.uint64).ravel()
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        start = self._windows[place]
        want = self._rows[start[:, None] + np.arange(LENGTH)]
        if not np.array_equal(got.view(np.uint32), want.view(np.uint32)):
            raise ValueError("a batch holds what is no window of the trials")
        if not np.array_equal(y.numpy().ravel(), self._rows[start + LENGTH, 0]):
            raise ValueError("a target is not the step behind its window")
        found: list[int] = start.tolist()
        return found


def once(path: Path, make: Any) -> Path:
    """Return `path`; where it is not there, `make(part)` writes it first, under another name."""
    if not path.exists():
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        make(part)
        part.rename(path)
    return path
