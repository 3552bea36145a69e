"""Compose files as `docker compose` reads them: anchors, `${VAR:-...}`, `${VAR:?...}`, `$$`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
REFERENCE = re.compile(
    r"\$(?:(?P<dollar>\$)"
    r"|(?P<bare>[A-Za-z_]\w*)"
    r"|\{(?P<name>[A-Za-z_]\w*)(?:(?P<operator>:?[-?+])(?P<argument>[^{}]*))?\})"
)


@dataclass(frozen=True)
class Variable:
    """One `${...}` of a compose file."""

    name: str
    operator: str = ""
    argument: str = ""

    @property
    def is_required(self) -> bool:
        """Whether compose refuses to start when it is missing or empty."""
        return self.operator == ":?"

    @property
    def default(self) -> str | None:
        return self.argument if self.operator in (":-", "-") else None


def load(path: Path = COMPOSE) -> dict[str, Any]:
    """Return a compose file with its anchors resolved and its variables as they stand."""
    document = yaml.safe_load(path.read_text())
    assert isinstance(document, dict)
    return document


def strings(node: Any) -> Iterator[str]:
    """Walk over every string value."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from strings(value)


def variables(node: Any) -> set[Variable]:
    """Return every variable that a document asks for."""
    found = set()
    for text in strings(node):
        for match in REFERENCE.finditer(text):
            if not match["dollar"]:
                name = match["bare"] or match["name"]
                found.add(Variable(name, match["operator"] or "", match["argument"] or ""))
    return found


def interpolate(node: Any, environ: Mapping[str, str]) -> Any:
    """Return the document with every variable replaced.

    Raises:
        ValueError: If a required variable is missing or empty.
    """
    if isinstance(node, str):
        return REFERENCE.sub(lambda match: _value(match, environ), node)
    if isinstance(node, Mapping):
        return {key: interpolate(value, environ) for key, value in node.items()}
    if isinstance(node, list):
        return [interpolate(value, environ) for value in node]
    return node


def _value(match: re.Match[str], environ: Mapping[str, str]) -> str:
    if match["dollar"]:
        return "$"
    name, operator = match["bare"] or match["name"], match["operator"]
    value = environ.get(name)
    if operator == ":?" and not value:
        raise ValueError(f"required variable {name} is missing a value: {match['argument']}")
    if operator == ":-":
        return value or match["argument"]
    if operator not in (None, ":?"):
        raise ValueError(f"{match[0]}: only ${{VAR}}, :- and :? are used here")
    return value or ""


def changed(document: Any, path: str, value: Any) -> Any:
    """Return a copy in which one place has another value; no other place shares it."""
    document = yaml.safe_load(yaml.dump(document, Dumper=_NoAliases))
    *folders, last = [int(word) if word.isdigit() else word for word in path.split(".")]
    place = document
    for folder in folders:
        place = place[folder]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return document


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True
