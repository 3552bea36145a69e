"""Codes and statics as a stream delivers them: look-ups made once, for the selected trials."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards import CorruptStoreError, Store
from shards.codes import (
    FittedInput,
    encode_statics,
    fitted_inputs,
    look_up,
)

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


class CodeTable:
    """From each trial's own codes to those of the vocabularies.

    One flat table holds the delivered codes of all words of all trials, O(words) memory, and one
    offset per trial and column says where its words begin; code 0 stays 0.

    Args:
        store: The open version; it has codes.
        trials: int64 `[n]`, trial numbers; a look-up takes the position in this list.

    Raises:
        CorruptStoreError: If a trial has not one dictionary per column, or nothing was fitted.
    """

    def __init__(self, store: Store, trials: Int64) -> None:
        columns, _ = fitted_inputs(store)
        by_column = _dictionaries(store, trials, len(columns))
        sizes = by_column.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        ends = np.cumsum(sizes + 1)
        self._first: Int64 = (ends - sizes - 1).reshape(len(trials), len(columns))
        self._table: Int32 = np.zeros(ends[-1], np.int32)
        is_word = np.ones(len(self._table), np.bool_)
        is_word[self._first.ravel()] = False
        self._table[is_word] = _fitted_codes(by_column.flatten(), sizes, columns)

    @property
    def tables(self) -> tuple[Int32, Int64]:
        """Delivered codes, int32; int64 `[n, N]`: where those of each trial and column begin."""
        return self._table, self._first

    def deliver(self, trial: Int64, local: npt.NDArray[np.uint16]) -> Int64:
        """Return int64 `[B, L, columns]`.

        Args:
            trial: int64 `[B]`, positions in the list of trials.
            local: uint16 `[B, L, columns]`, codes of the trial's own words.
        """
        places = local + self._first.take(trial, axis=0)[:, None, :]
        return self._table.take(places).astype(np.int64)


def _dictionaries(store: Store, trials: Int64, n_columns: int) -> pa.ListArray:
    """Return a list of words per trial and column, trial by trial."""
    column = store.cold("categories")["categories"].take(pa.array(trials)).combine_chunks()
    lengths = column.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False)
    by_column = column.flatten()
    if (lengths != n_columns).any() or by_column.null_count:
        raise CorruptStoreError(
            f"{store.folder / 'trials.parquet'}: a trial has not {n_columns} lists of categories. "
            f"Run: trialshards verify {store.path}"
        )
    return by_column


def _fitted_codes(words: pa.Array, sizes: Int64, columns: tuple[FittedInput, ...]) -> Int32:
    """Return the code of each word; `sizes` words each belong to column 0, 1, ..., 0, 1, ..."""
    owner = np.repeat(np.arange(len(sizes)) % len(columns), sizes)
    codes: Int32 = np.zeros(len(words), np.int32)
    for place, column in enumerate(columns):
        mine = np.flatnonzero(owner == place)
        codes[mine] = look_up(words.take(pa.array(mine)), column.vocabulary)
    return codes


def static_inputs(store: Store, trials: Int64) -> tuple[Float32 | None, Int64 | None]:
    """Return the static attributes of trials as a model gets them.

    Args:
        store: The open version.
        trials: int64 `[n]`, trial numbers.

    Returns:
        float32 `[n, S]`, numbers and indicator columns in the order of the manifest, and int64
        `[n, E]`, codes of the embedded ones; None where there are none.

    Raises:
        CorruptStoreError: If nothing was fitted for them.
    """
    _, statics = fitted_inputs(store)
    if not statics:
        return None, None
    return encode_statics(store.cold("attributes").take(pa.array(trials)), statics)
