"""Which rows a derived column looks at for one row's value: that row, earlier ones, or all.

What SQL calls by name decides first: row functions are `row`, an aggregate without a window is
`trial`. Windows are probed: the expression is evaluated on made-up frames, and where later rows
are changed or cut off and an earlier result moves, it looks ahead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Literal

from pipeline.derive.plan import Derivations
from pipeline.derive.probe import probe
from pipeline.derive.sql import Token, called_names, split_words
from pipeline.sections import Calendar, Hook, Sql
from shards.errors import InvalidSpecError

Reach = Literal["row", "past", "trial"]
_ORDER: tuple[Reach, ...] = ("row", "past", "trial")

ROW_FUNCTIONS = frozenset(
    {
        "ABS", "ACOS", "ACOSD", "ASIN", "ASIND", "ATAN", "ATAN2", "ATAN2D", "ATAND",
        "BIT_LENGTH", "CAST", "CBRT", "CEIL", "CEILING", "CHAR_LENGTH", "COALESCE", "CONCAT",
        "CONCAT_WS", "COS", "COSD", "COT", "COTD", "DATE", "DATE_PART", "DEGREES", "DIV",
        "ENDS_WITH", "EXP", "EXTRACT", "FLOOR", "GREATEST", "IF", "IFNULL", "INITCAP", "LEAST",
        "LEFT", "LENGTH", "LN", "LOG", "LOG10", "LOG1P", "LOG2", "LOWER", "LPAD", "LTRIM",
        "MOD", "NULLIF", "OCTET_LENGTH", "PI", "POSITION", "POW", "POWER", "RADIANS",
        "REGEXP_LIKE", "REGEXP_REPLACE", "REPLACE", "REVERSE", "RIGHT", "ROUND", "RPAD",
        "RTRIM", "SIGN", "SIN", "SIND", "SPLIT_PART", "SQRT", "STARTS_WITH", "STRPOS",
        "STRPTIME", "SUBSTR", "SUBSTRING", "TAN", "TAND", "TRIM", "TRUNC", "TRUNCATE",
        "TRY_CAST", "UPPER",
    }
)  # fmt: skip
"""Functions whose value at a row follows from that row."""
_KEYWORDS = frozenset(
    {
        "ALL", "AND", "ANY", "AS", "BETWEEN", "BY", "CASE", "CHAR", "DECIMAL", "DISTINCT",
        "DOUBLE", "ELSE", "END", "FILTER", "FLOAT", "FROM", "ILIKE", "IN", "IS", "LIKE", "NOT",
        "NULL", "NUMERIC", "OR", "SYMMETRIC", "THEN", "VARCHAR", "WHEN", "WHERE", "XOR",
    }
)  # fmt: skip
_AGGREGATES = frozenset(
    {
        "ARRAY_AGG", "AVG", "CORR", "COUNT", "COVAR", "COVAR_POP", "COVAR_SAMP", "FIRST",
        "LAST", "MAX", "MEDIAN", "MIN", "QUANTILE_CONT", "QUANTILE_DISC", "STDDEV",
        "STDDEV_SAMP", "STDEV", "STRING_AGG", "SUM", "VAR", "VARIANCE", "VAR_SAMP",
    }
)  # fmt: skip
_AHEAD = frozenset({"CUME_DIST", "LEAD", "NTH_VALUE", "NTILE", "PERCENT_RANK"})


def reach_of(
    derivations: Derivations, *, time: str | None = None, text: Collection[str] = ()
) -> dict[str, Reach]:
    """Return the reach of each derived column, that of the columns it reads included.

    Args:
        derivations: The derived columns.
        time: Column of the trial's time, which increases from row to row: in a window that is
            ordered by it, the rows before are earlier ones.
        text: Columns of text.
    """
    found: dict[str, Reach] = {}
    for name, read in derivations.inputs.items():
        own = _own_reach(derivations, name, None if time in found else time, text)
        found[name] = max([own, *(found[other] for other in read & found.keys())], key=_ORDER.index)
    return found


def check_causal(
    derivations: Derivations,
    wanted: Iterable[str],
    *,
    time: str | None = None,
    text: Collection[str] = (),
) -> None:
    """Refuse derived inputs that look ahead inside a trial; what `causal: true` asks for.

    Args:
        derivations: The derived columns.
        wanted: The channels.
        time: See `reach_of`.
        text: See `reach_of`.

    Raises:
        InvalidSpecError: Naming the channel, the column to blame and what to write instead.
    """
    found = reach_of(derivations, time=time, text=text)
    for channel in wanted:
        if found.get(channel) == "trial":
            name = _to_blame(derivations, channel, found, time, text)
            through = "" if name == channel else f" (through derive.{name})"
            column = f"by {time!r}" if time else "by the column of source.time, which is not set"
            raise InvalidSpecError(
                f"derive.{channel} sees the whole trial{through}; causal: true wants earlier rows "
                "only. Write lag, difference, rolling_mean or since_observed, an SQL window over "
                f"earlier rows (ordered {column}), or a hook with reach: past."
            )


def _to_blame(
    derivations: Derivations,
    name: str,
    found: dict[str, Reach],
    time: str | None,
    text: Collection[str],
) -> str:
    """Return the column nearest to the files whose own reach is the trial."""
    order = list(derivations)
    before = order[: order.index(name)]
    for other in before:
        if other in derivations.inputs[name] and found[other] == "trial":
            return _to_blame(derivations, other, found, time, text)
    return name


def _own_reach(
    derivations: Derivations, name: str, time: str | None, text: Collection[str]
) -> Reach:
    given = derivations.given[name]
    if isinstance(given, Sql):
        read = derivations.inputs[name]
        return sql_reach(given.sql, time if time in read else None, read & set(text))
    if isinstance(given, Hook):
        return given.reach
    return "row" if isinstance(given, Calendar) else "past"


@lru_cache(maxsize=4096)
def sql_reach(sql: str, time: str | None, text: frozenset[str]) -> Reach:
    """Return the reach of an expression, by its words or else by probing."""
    tokens = split_words(sql)
    words = {token.text.upper() for token in tokens if token.kind == "word"}
    called = called_names(tokens)
    if "OVER" not in words and called <= ROW_FUNCTIONS | _KEYWORDS:
        return "row"
    if called & _AHEAD or "FOLLOWING" in words or _aggregates_all(tokens):
        return "trial"
    window = "OVER" in words
    if probe(sql, time, text, window=window):
        return "trial"
    return "past" if window else "row"


def _aggregates_all(tokens: list[Token]) -> bool:
    """Whether an aggregate stands without a window."""
    for place, token in enumerate(tokens):
        after = _behind_parentheses(tokens, place + 1)
        if token.kind == "word" and token.text.upper() in _AGGREGATES and after > place + 1:
            if _word(tokens, after) == "FILTER":
                after = _behind_parentheses(tokens, after + 1)
            if _word(tokens, after) != "OVER":
                return True
    return False


def _word(tokens: list[Token], place: int) -> str:
    return tokens[place].text.upper() if place < len(tokens) else ""


def _behind_parentheses(tokens: list[Token], place: int) -> int:
    """Return the place behind the parentheses that open at `place`; `place` if none does."""
    depth = 0
    for here in range(place, len(tokens)):
        depth += {"(": 1, ")": -1}.get(tokens[here].text, 0)
        if depth == 0:
            return here if here == place else here + 1
    return len(tokens)
