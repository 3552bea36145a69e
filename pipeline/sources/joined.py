"""Files joined in memory and parsed by one call of polars."""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from pipeline.sources.lines import DelimitedLayout, Lines
from pipeline.trials import NO_TEXT, Float64


def parse_joined(parts: list[Lines], layout: DelimitedLayout) -> pl.DataFrame:
    """Return the rows of all files below each other, numbers with nulls and NaN as read."""
    columns = parts[0].columns
    # Polars takes zlib and byte order marks at the start for its own: the first row is ours.
    guard = layout.mark.join("0" * columns.n_fields).encode() + b"\n"
    joined = b"".join([guard, *(part.body for part in parts)])
    sources = [f"column_{at + 1}" for at in columns.positions]
    schema: dict[str, type[pl.DataType]] = {
        f"column_{i + 1}": pl.String for i in range(columns.n_fields)
    }
    schema.update(dict.fromkeys(sources[: len(layout.numeric)], pl.Float64))
    frame = pl.read_csv(
        joined,
        has_header=False,
        schema=schema,
        columns=sources,
        separator=layout.mark,
        quote_char=None,
        null_values=_nulls_to_look_for(joined, layout),
        empty_string_is_null="" in layout.nulls,
        truncate_ragged_lines=False,
        infer_schema=False,
    )
    n_wanted = sum(part.n_rows for part in parts)
    if frame.height != n_wanted + 1:
        raise ValueError(f"{frame.height - 1} rows were parsed from {n_wanted} lines")
    renamed = [pl.col(a).alias(b) for a, b in zip(sources, layout.wanted, strict=True)]
    return frame.select(renamed).slice(1)


def _nulls_to_look_for(joined: bytes, layout: DelimitedLayout) -> list[str] | None:
    """Return the spellings that may occur: each one costs the parser a comparison per field."""
    found = [
        null
        for null in layout.nulls
        # In numbers alone the parser reads NaN by itself. A search per byte beats one per word.
        if null
        and (layout.text or null.lower() != "nan")
        and all(byte in joined for byte in null.encode())
    ]
    return found or None


def matrix_of(frame: pl.DataFrame, layout: DelimitedLayout) -> Float64:
    """Return the numeric columns as one C-contiguous matrix."""
    if not layout.numeric:
        return np.empty((frame.height, 0))
    return np.ascontiguousarray(frame.select(layout.numeric).to_numpy(), np.float64)


def text_of(frame: pl.DataFrame, layout: DelimitedLayout) -> pl.DataFrame:
    """Return the text columns, if any are wanted."""
    return frame.select(layout.text) if layout.text else NO_TEXT


def settle_numbers(frame: pl.DataFrame, layout: DelimitedLayout) -> tuple[pl.DataFrame, list[int]]:
    """Return the frame with every missing number as the same NaN, and the rows with infinities."""
    numbers = frame.select(layout.numeric)
    has_nulls = any(column.null_count() for column in numbers)
    # One sum per column proves that nothing needs a second look; an overflow only costs the look.
    if not has_nulls and all(math.isfinite(column.sum()) for column in numbers):
        return frame, []
    columns = pl.col(layout.numeric)
    # Both fills: a NaN that was spelled "-nan" has its sign bit set, which no digest should see.
    filled = frame.with_columns(columns.fill_nan(math.nan).fill_null(math.nan))
    infinite = filled.select(pl.any_horizontal(columns.is_infinite()).arg_true())
    return filled, infinite.to_series().to_list()
