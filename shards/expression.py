"""An SQL expression seen as words, to refuse what SQLite would take for something else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from shards.errors import InvalidSpecError

_TOKEN = re.compile(
    r"""
    (?P<text>'(?:[^']|'')*')
  | (?P<quoted>"(?:[^"]|"")*")
  | (?P<other>\[[^\]]*\]|`(?:[^`]|``)*`)
  | (?P<comment>--[^\n]*|/\*.*?(?:\*/|\Z)|\s+)
  | (?P<number>0[xX][0-9a-fA-F]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
  | (?P<word>[A-Za-z_\u0080-\U0010ffff][\w$\u0080-\U0010ffff]*)
  | (?P<compare><=|>=|<>|!=|==|=|<|>)
  | (?P<mark>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_COMPARING = {"between", "in"}
_MOST_SHOWN = 300


def shown(where: object) -> str:
    """Return an expression for a message: however long, a few lines of it."""
    text = repr(where)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


class Token(NamedTuple):
    """A word of an expression.

    Attributes:
        kind: Group of the pattern: `word` (also where brackets quote it), `number`, ...
        text: What it says, without quotes.
    """

    kind: str
    text: str


class Expression:
    """An expression, taken apart.

    Args:
        where: As the user wrote it.

    Raises:
        InvalidSpecError: If it is no text, empty, or more than one expression.
    """

    def __init__(self, where: str) -> None:
        if not isinstance(where, str) or not where.strip():
            raise InvalidSpecError(
                f"where is {shown(where)}; wanted an SQL expression such as "
                "\"subject = 's07' and n_rows > 500\"."
            )
        self._where = where
        self._tokens = [token for token in _tokens(where) if token.kind != "comment"]
        depth = 0
        for token in self._tokens:
            depth += {"(": 1, ")": -1}.get(token.text, 0) if token.kind == "mark" else 0
            if depth < 0 or (token.kind == "mark" and token.text in ";?:@$"):
                raise InvalidSpecError(
                    f"where is {shown(where)}: {token.text!r} ends or opens more than one "
                    "expression. Wanted one expression, with as many '(' as ')' and no parameters."
                )

    def check_names(self, names: Mapping[str, Sequence[str]], listing: str) -> None:
        """Refuse words in double quotes that name nothing: SQLite would take them for texts.

        Raises:
            InvalidSpecError: With what to write instead.
        """
        known = {name.lower() for table in names for name in (table, *names[table])}
        for kind, text in self._tokens:
            if kind == "quoted" and text.lower() not in known:
                raise InvalidSpecError(
                    f'where is {shown(self._where)}: no such column: "{text}". Texts go in single '
                    f"quotes: '{text}'. The columns are: {listing}."
                )

    def check_numbers(
        self, kinds: Mapping[tuple[str, str], str], examples: Mapping[tuple[str, str], str]
    ) -> None:
        """Refuse to compare a text column with a number: SQLite would compare both as texts.

        Args:
            kinds: Affinity of each column, by table and name.
            examples: A value of each.

        Raises:
            InvalidSpecError: With what to write instead.
        """
        texts = {name.lower(): examples[t, name] for (t, name), k in kinds.items() if k == "TEXT"}
        numbers = {name.lower() for (_, name), kind in kinds.items() if kind != "TEXT"}
        for name, number in self._compared():
            key = name.lower()
            if key in texts and key not in numbers:
                raise InvalidSpecError(
                    f"where is {shown(self._where)}: {name} is text, such as {texts[key]!r}, and "
                    f"{number} a number. Put it in quotes: '{number}', or compare "
                    f"CAST({name} AS REAL)."
                )

    def _compared(self) -> Iterator[tuple[str, str]]:
        """Yield each (name, number) that stand at both sides of a comparison."""
        tokens = [t for t in self._tokens if t.text not in ("+", "-") or t.kind != "mark"]
        # A list or a range begins with its first number: `x in (1, 2)`, `x not between 1 and 2`.
        tokens = [t for t in tokens if not (t.kind == "word" and t.text.lower() == "not")]
        for left, middle, right in zip(tokens, tokens[1:], tokens[2:], strict=False):
            is_range = middle.kind == "word" and middle.text.lower() in _COMPARING
            if middle.kind == "compare" or is_range:
                names = [t.text for t in (left, right) if t.kind in ("word", "quoted", "other")]
                given = [t.text for t in (left, right) if t.kind == "number"]
                if names and given:
                    yield names[0], given[0]
        for left, middle, mark, right in zip(
            tokens, tokens[1:], tokens[2:], tokens[3:], strict=False
        ):
            if middle.text.lower() == "in" and mark.text == "(" and right.kind == "number":
                yield left.text, right.text


def _tokens(where: str) -> Iterator[Token]:
    for match in _TOKEN.finditer(where):
        kind, text = str(match.lastgroup), match.group()
        if kind == "quoted":
            text = text[1:-1].replace('""', '"')
        elif kind == "other":
            text = text[1:-1].replace("``", "`")
        yield Token(kind, text)
