"""Inputs that are no channels: what was fitted for them, and how texts become numbers.

Builder and reader share these look-ups, so that what a fit saw is what a delivery finds
(SPEC sections 5 and 11).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.errors import CorruptStoreError
from shards.lazy import pc
from shards.manifest import EncodedInput
from shards.reader import Store

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

CODE_LIMIT = np.iinfo(np.uint16).max
"""Most words of one categorical column of one trial: codes are uint16, and 0 is taken."""

_LARGEST = float(np.finfo(np.float32).max)
# One grammar for Python and for Arrow (RE2), so that both call the same texts numbers.
_DECIMAL = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
_BLANKS = " \t"


@dataclass(frozen=True)
class FittedInput:
    """A categorical column or a static attribute, with what was fitted on train trials.

    Attributes:
        name: Of the column or attribute.
        encoding: `one_hot`, `embed` or `number`.
        vocabulary: Words in code order from 1; empty for a number.
        mean: Of a number.
        sd: Of a number, never 0.
    """

    name: str
    encoding: str
    vocabulary: tuple[str, ...] = ()
    mean: float = 0.0
    sd: float = 1.0

    @property
    def width(self) -> int:
        """Columns it adds to a matrix of inputs; an embedded one adds none."""
        return {"number": 1, "one_hot": len(self.vocabulary)}.get(self.encoding, 0)


def fitted_inputs(store: Store) -> tuple[tuple[FittedInput, ...], tuple[FittedInput, ...]]:
    """Return the categorical columns and the static attributes of a version.

    Raises:
        CorruptStoreError: If `fit.json` does not hold what the manifest announces.
    """
    manifest = store.manifest
    if not (manifest.codes or manifest.statics):
        return (), ()
    try:
        return (
            _fitted(manifest.codes, store.fit, "categorical"),
            _fitted(manifest.statics, store.fit, "static"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptStoreError(
            f"{store.folder / 'fit.json'} does not fit the manifest ({type(error).__name__}: "
            f"{error}). Run: trialshards verify {store.path}"
        ) from error


def _fitted(
    announced: Sequence[EncodedInput], fit: Mapping[str, Any], key: str
) -> tuple[FittedInput, ...]:
    entries = fit[key] if announced else []
    parsed = tuple(
        FittedInput(**{**entry, "vocabulary": tuple(entry.get("vocabulary", ()))})
        for entry in entries
    )
    got = [(entry.name, entry.encoding) for entry in parsed]
    if got != [(entry.name, entry.encoding) for entry in announced]:
        raise ValueError(f"{key} is {got}, announced are {list(announced)}")
    return parsed


def look_up(words: pa.Array, vocabulary: Sequence[str]) -> Int32:
    """Return the code of each word: its place in the vocabulary from 1; 0 if unknown or null."""
    place = pc.index_in(words, value_set=pa.array(vocabulary, words.type))
    codes: Int32 = pc.add(pc.fill_null(place, -1), 1).to_numpy(zero_copy_only=False)
    return codes


def encode_statics(
    trials: pa.Table, statics: Sequence[FittedInput]
) -> tuple[Float32 | None, Int64 | None]:
    """Return static attributes as a model gets them.

    Args:
        trials: n trials with the struct column `attributes` (SPEC section 9), if there are any.
        statics: What was fitted for them.

    Returns:
        float32 `[n, S]`, numbers and indicator columns in order, and int64 `[n, E]`, codes of the
        embedded ones; None where there are none.
    """
    matrices: list[Float32] = []
    codes: list[Int32] = []
    for entry in statics:
        texts = static_texts(trials, entry.name)
        if entry.encoding == "number":
            matrices.append(_standardized(texts, entry))
            continue
        code = look_up(clean_words(texts), entry.vocabulary)
        if entry.encoding == "embed":
            codes.append(code)
        else:  # an unknown word has no column
            known = np.arange(1, len(entry.vocabulary) + 1)
            matrices.append((code[:, None] == known).astype(np.float32))
    return (
        np.concatenate(matrices, axis=1) if matrices else None,
        np.stack(codes, axis=1).astype(np.int64) if codes else None,
    )


def _standardized(texts: pa.Array, entry: FittedInput) -> Float32:
    """Return float32 `[n, 1]` by the train trials' mean and sd; 0 where there is no number."""
    scaled = (read_numbers(texts) - entry.mean) / entry.sd
    # A trial far beyond those of train must not become infinite on its way to float32.
    near = np.clip(np.where(np.isnan(scaled), 0.0, scaled), -_LARGEST, _LARGEST)
    return near.astype(np.float32)[:, None]


def static_texts(trials: pa.Table, name: str) -> pa.Array:
    """Return an attribute of each trial as utf8, null where a trial has none.

    Args:
        trials: With the struct column `attributes` (SPEC section 9), where there are any.
        name: The attribute.
    """
    if "attributes" in trials.column_names:
        column = trials["attributes"].combine_chunks()
        if column.type.get_field_index(name) >= 0:
            return column.field(name).cast(pa.utf8())
    return pa.nulls(trials.num_rows, pa.utf8())


def clean_words(texts: pa.Array) -> pa.Array:
    """Return texts as words: without white space around them; an empty one is null."""
    trimmed = pc.utf8_trim_whitespace(texts)
    return pc.if_else(pc.equal(trimmed, ""), None, trimmed)


def read_numbers(texts: pa.Array) -> Float64:
    """Return texts as float64: NaN where one is no decimal number that float32 can hold."""
    trimmed = pc.utf8_trim(texts, characters=_BLANKS)
    decimal = pc.match_substring_regex(trimmed, f"^(?:{_DECIMAL})$")
    numbers = pc.if_else(decimal, trimmed, None).cast(pa.float64())
    found: Float64 = numbers.fill_null(np.nan).to_numpy(zero_copy_only=False)
    return np.where(np.abs(found) <= _LARGEST, found, np.nan)


def is_number(text: str) -> bool:
    """Return whether `read_numbers` finds a number in a text."""
    trimmed = text.strip(_BLANKS)
    return re.fullmatch(_DECIMAL, trimmed) is not None and abs(float(trimmed)) <= _LARGEST
