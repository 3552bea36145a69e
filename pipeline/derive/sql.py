"""SQL expressions of a user: their words, and what polars makes of them."""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

import polars as pl

from shards.errors import InvalidSpecError

FAILURES = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
"""What polars raises; a panic is no `Exception`, and must not stop a build either."""

_TOKEN = re.compile(
    r"""(?P<blank>\s+|--[^\n]*|/\*.*?\*/)
      | (?P<text>'(?:[^']|'')*')
      | (?P<name>"(?:[^"]|"")*"|`[^`]*`)
      | (?P<word>[^\W\d]\w*)
      | (?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
      | (?P<sign>.)""",
    re.VERBOSE | re.DOTALL,
)
_CLOCKS = {"CURRENT_DATE", "CURRENT_TIME", "CURRENT_TIMESTAMP", "LOCALTIME", "LOCALTIMESTAMP"}


class Token(NamedTuple):
    """A word of an expression: `kind` is text, name, word, number or sign."""

    kind: str
    text: str


def split_words(sql: str) -> list[Token]:
    """Return the words of an expression without blanks and comments."""
    found = (Token(str(match.lastgroup), match[0]) for match in _TOKEN.finditer(sql))
    return [token for token in found if token.kind != "blank"]


def called_names(tokens: list[Token]) -> set[str]:
    """Return the words before a parenthesis, in capitals: functions, and keywords such as IN."""
    pairs = itertools.pairwise(tokens)
    return {word.text.upper() for word, after in pairs if word.kind == "word" and after.text == "("}


def parse_sql(name: str, sql: str) -> pl.Expr:
    """Return the polars expression.

    Args:
        name: The new column, for messages.
        sql: What the user wrote.

    Raises:
        InvalidSpecError: If polars does not know it, if it names several columns at once, or if
            its value depends on the day it is computed.
    """
    try:
        # polars evaluates numbers with a point as decimals: 1.0 / 3 would be 0.3333333.
        parsed = pl.sql_expr(_TOKEN.sub(_as_double, sql))
    except (*FAILURES, TypeError) as error:
        raise InvalidSpecError(
            f"derive.{name}: {sql!r} is no SQL expression that polars knows: {error}. "
            "docs/derive.md lists what there is."
        ) from error
    if parsed.meta.has_multiple_outputs():
        raise InvalidSpecError(
            f"derive.{name}: {sql!r} is no SQL expression of one column; write one per column."
        )
    tokens = split_words(sql)
    words = {token.text.upper() for token in tokens if token.kind == "word"}
    clock = sorted(words & _CLOCKS | called_names(tokens) & {"NOW"})
    if clock:
        raise InvalidSpecError(
            f"derive.{name}: {clock[0]} differs from build to build; wanted the same columns "
            "from the same files."
        )
    return parsed


def parse_lenient(sql: str) -> pl.Expr:
    """Return the expression with casts that give null where they would fail, for probing."""

    def attempt(match: re.Match[str]) -> str:
        return "TRY_CAST" if match[0].upper() == "CAST" else match[0]

    return parse_sql("", _TOKEN.sub(attempt, sql))


def _as_double(match: re.Match[str]) -> str:
    text = match[0]
    decimal = match.lastgroup == "number" and "." in text and "e" not in text.lower()
    return f"{text}e0" if decimal else text


def literal(text: str) -> pl.Expr:
    """Return an attribute as a constant: a number where it reads as one."""
    try:
        return pl.lit(float(text))
    except ValueError:
        return pl.lit(text)
