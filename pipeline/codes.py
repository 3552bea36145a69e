"""Texts into codes: a trial's own dictionaries, and what the train trials' words and numbers are.

A trial is stored with codes of its own words, so its shard depends on no other trial; what the
words mean to a model is fitted afterwards, on train trials alone (law 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.files import RefusedError, quote
from pipeline.spec import DatasetSpec
from shards.codes import CODE_LIMIT, clean_words, is_number, read_numbers, static_texts

# As Parquet gives lists back, so that a bucket is the same table fresh and from staging.
CATEGORIES = pa.list_(pa.field("element", pa.list_(pa.field("element", pa.utf8()))))
"""Type of the column `categories`: per trial, per categorical column, its words."""

SMALLEST_SD = 1e-30
"""Below it a number counts as constant, as a channel does (SPEC section 5)."""

Codes = npt.NDArray[np.uint16]


def encode_columns(
    text: pl.DataFrame | Sequence[pl.Series], rows: npt.NDArray[np.int64] | None = None
) -> tuple[Codes, list[list[str]]]:
    """Return codes and the trial's own dictionaries.

    Words are texts without blanks around them, in order of first appearance among the kept rows;
    an empty one is missing.

    Args:
        text: The categorical columns of one trial, String.
        rows: int64 `[kept]`, the row that each kept row takes its texts from, -1 for none; by
            default all rows as they are.

    Returns:
        uint16 `[kept, columns]` in C order, 0 = missing, else 1 + the word's place in the column's
        dictionary; and a dictionary per column.

    Raises:
        RefusedError: `too_many_categories`.
    """
    columns = list(text)
    n_rows = len(columns[0]) if rows is None else len(rows)
    codes = np.zeros((n_rows, len(columns)), np.uint16)
    dictionaries = []
    for place, column in enumerate(columns):
        words = _words(column, rows).dictionary_encode()
        dictionary = words.dictionary.to_pylist()
        if len(dictionary) > CODE_LIMIT:
            raise RefusedError(
                "too_many_categories",
                f"column {column.name!r} has {len(dictionary):,} different texts; wanted at most "
                f"{CODE_LIMIT:,} in one trial. Is it a number? Then make it a channel.",
                column=column.name,
            )
        codes[:, place] = pc.add(pc.fill_null(words.indices, -1), 1).to_numpy()
        dictionaries.append(dictionary)
    return codes, dictionaries


def _words(column: pl.Series, rows: npt.NDArray[np.int64] | None) -> pa.Array:
    # Arrow's kernels know no string views, which polars would hand over.
    words = clean_words(column.to_arrow(compat_level=pl.CompatLevel.oldest()))
    return words if rows is None else words.take(pa.array(rows, mask=rows < 0))


def check_statics(attributes: Mapping[str, str | None], spec: DatasetSpec) -> dict[str, str | None]:
    """Return name -> text of a trial's static attributes, in the order of the specification.

    Raises:
        RefusedError: `static_not_a_number`, if one that shall be a number is none. An absent or
            empty one is missing.
    """
    texts = {name: attributes.get(name) for name in spec.static}
    for name, text in texts.items():
        if text is None or not text.strip() or spec.static[name] != "number":
            continue
        if not is_number(text):
            raise RefusedError(
                "static_not_a_number",
                f"attribute {name!r} is {quote(text)}; static wants a decimal number within "
                f"float32. Mend it, or write static: {{{name}: one_hot}}.",
            )
    return texts


def fit_codes(
    spec: DatasetSpec, train: pa.Table, frozen: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Return the entries `categorical` and `static` of `fit.json`; none for what is not asked for.

    Args:
        spec: The specification.
        train: The train trials, with `categories` (see `CATEGORIES`) and `attributes`.
        frozen: The entry `categorical` of an earlier fit, which stays as it is.
    """
    fit: dict[str, Any] = {}
    if frozen:
        fit["categorical"] = [dict(entry) for entry in frozen]
    elif spec.categorical:
        vocabularies = fit_vocabularies(train["categories"], len(spec.categorical))
        fit["categorical"] = [
            {"name": name, "encoding": encoding, "vocabulary": words}
            for (name, encoding), words in zip(spec.categorical.items(), vocabularies, strict=True)
        ]
    if spec.static:
        fit["static"] = [
            {"name": name, "encoding": encoding, **_fit_static(encoding, static_texts(train, name))}
            for name, encoding in spec.static.items()
        ]
    return fit


def fit_vocabularies(categories: pa.Array | pa.ChunkedArray, n_columns: int) -> list[list[str]]:
    """Return the words of each categorical column over all trials, sorted by their UTF-8 bytes.

    Args:
        categories: Per trial, per column, its words (`CATEGORIES`).
        n_columns: Categorical columns.
    """
    by_column = pc.list_flatten(categories)
    places = [pa.array(np.arange(first, len(by_column), n_columns)) for first in range(n_columns)]
    return [_sorted_words(pc.list_flatten(by_column.take(mine))) for mine in places]


def _sorted_words(words: pa.Array | pa.ChunkedArray) -> list[str]:
    # Python compares code points, and UTF-8 keeps their order.
    return sorted(pc.unique(words).drop_null().to_pylist())


def _fit_static(encoding: str, texts: pa.Array) -> dict[str, Any]:
    if encoding != "number":
        return {"vocabulary": _sorted_words(clean_words(texts))}
    numbers = read_numbers(texts)
    there = numbers[np.isfinite(numbers)]
    if not len(there):
        return {"mean": 0.0, "sd": 1.0}
    shift = float(there[0])  # so that a constant has no spread, whatever its last digit
    mean, sd = float((there - shift).mean()), float((there - shift).std())
    return {"mean": shift + mean, "sd": sd if sd >= SMALLEST_SD else 1.0}
