"""Tries out on made-up frames whether an expression's value at a row depends on other rows."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import polars as pl

from pipeline.derive.sql import FAILURES, parse_lenient, split_words
from pipeline.trials import Float64
from shards.errors import InvalidSpecError

_ROWS = 32
_LONGEST = 1_000
"""An offset of more rows cannot be tried out: it would be cheap no more."""
_WORDS = ("a", "b", "7", "s07", "")

Columns = dict[str, list[str | None] | Float64]


@dataclass(frozen=True)
class _Maker:
    """Makes frames of the columns that an expression reads.

    Attributes:
        names: Columns.
        time: The one that increases, if it is among them.
        text: Those of text.
        numbers: Numbers to mix in: those of the expression, and their neighbours.
        mild: No other numbers than those.
        words: Texts to mix in.
    """

    names: tuple[str, ...]
    time: str | None
    text: frozenset[str]
    numbers: Float64
    words: tuple[str, ...]
    mild: bool = False
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def make(self, n_rows: int, *, plain: bool = False) -> Columns:
        """Return columns with missing values and ties; `plain`: constant ones."""
        empty = self.rng.random(n_rows) < (0 if plain else 0.1)
        return {name: self._column(name, n_rows, plain, empty) for name in self.names}

    def _column(
        self,
        name: str,
        n_rows: int,
        plain: bool,
        empty: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    ) -> list[str | None] | Float64:
        rng = self.rng
        if name == self.time:
            return np.cumsum(rng.uniform(0.5, 1.5, n_rows))
        if name in self.text:
            drawn = rng.choice(self.words, 1 if plain else n_rows).tolist()
            texts = drawn * (n_rows if plain else 1)
            return [None if gone else text for text, gone in zip(texts, empty, strict=True)]
        if plain:
            return np.full(n_rows, rng.choice(self.numbers))
        values = rng.normal(size=n_rows) * 10 ** rng.uniform(-2, 6, n_rows)
        known = rng.random(n_rows) < (1.0 if self.mild else 0.6)
        values[known] = rng.choice(self.numbers, int(known.sum()))
        values[empty | (rng.random(n_rows) < 0.15)] = np.nan
        return values

    def join(self, head: Columns, tail: Columns) -> Columns:
        """Return the rows of both; time goes on."""
        joined: Columns = {}
        for name in self.names:
            first, second = head[name], tail[name]
            if isinstance(first, list) or isinstance(second, list):
                joined[name] = [*first, *second]
            else:
                late = first[-1] if name == self.time and len(first) else 0.0
                joined[name] = np.concatenate([first, second + late])
        return joined


def probe(sql: str, time: str | None, text: frozenset[str], *, window: bool) -> bool:
    """Return whether a row's value depends on other rows; with `window`, on later ones.

    What cannot be tried out counts as dependent.

    Args:
        sql: The expression.
        time: Column of increasing times.
        text: Columns of text; the others are numbers, or (attributes) text where numbers fail.
        window: Whether rows may depend on earlier ones.
    """
    tokens = split_words(sql)
    given = np.array([float(token.text) for token in tokens if token.kind == "number"])
    offset = max([0, *given[given % 1 == 0]])
    if offset > _LONGEST:
        return True
    words = (token.text[1:-1].replace("''", "'") for token in tokens if token.kind == "text")
    numbers = np.concatenate([[0.0, 1.0, -1.0, 0.5, 2.0], given, given + 1, given - 1])
    try:
        expression = parse_lenient(sql)
    except InvalidSpecError:
        return True
    names = tuple(sorted(set(expression.meta.root_names())))
    texts = (*_WORDS, *words)
    for maker in (
        _Maker(names, time, text, numbers, texts),
        _Maker(names, time, frozenset(names) - {time}, numbers, texts),
        _Maker(names, time, text, numbers[numbers > 0], texts, mild=True),  # `//` fails for 0
    ):
        try:
            return _depends(maker, expression, _ROWS + 2 * int(offset), window)
        except FAILURES:
            continue
    return True


def _depends(maker: _Maker, expression: pl.Expr, n_rows: int, window: bool) -> bool:
    third = n_rows // 3
    for plain in (False, True):  # constant columns: `x = avg(x)` holds nowhere else
        rows = maker.make(n_rows, plain=plain)
        base = _evaluate(expression, rows, n_rows)
        changes = [(third, n_rows)] if plain else [(third, n_rows), (n_rows - 2, 0)]
        for cut, n_other in changes:  # other rows behind the cut, or none
            late = maker.join(_part(rows, 0, cut), maker.make(n_other))
            result = _evaluate(expression, late, cut + n_other)
            if not np.array_equal(result[:cut], base[:cut], equal_nan=True):
                return True
        if not window:
            early = maker.join(maker.make(5), _part(rows, third, n_rows))
            result = _evaluate(expression, early, 5 + n_rows - third)
            if not np.array_equal(result[5:], base[third:], equal_nan=True):
                return True
    return False


def _part(rows: Columns, first: int, end: int) -> Columns:
    return {name: column[first:end] for name, column in rows.items()}


def _evaluate(expression: pl.Expr, rows: Columns, n_rows: int) -> Float64:
    columns = [pl.Series(name, values, nan_to_null=True) for name, values in rows.items()]
    frame = pl.DataFrame(columns or [pl.Series("", np.zeros(n_rows))])
    result = frame.select(expression.alias("")).to_series()
    values = result.cast(pl.Float64).to_numpy()
    return np.full(n_rows, values[0]) if len(values) == 1 else values
