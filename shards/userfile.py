"""YAML that a person writes, into a validated model, with errors that name the line.

This lives beside the format because both the pipeline (`dataset.yaml`) and the training job
(their configs) need it, and neither may import the other.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from shards.errors import InvalidSpecError

M = TypeVar("M", bound=pydantic.BaseModel)
Location = tuple[int | str, ...]

QUOTE_LIMIT = 60


def read_yaml(path: Path, model: type[M]) -> M:
    """Read and validate a YAML file.

    Args:
        path: The file.
        model: What it must hold.

    Raises:
        InvalidSpecError: If it cannot be read, is not YAML, repeats a key, or does not fit the
            model; every mistake is listed with its line, what was found and what is wanted.
    """
    try:
        text = path.read_text(encoding="utf-8")
        root, document = _parse(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpecError(f"cannot read {path}: {error}. Check the path.") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-02-30
        raise InvalidSpecError(f"{path} is not YAML: {error}") from error
    repeated = [
        f"{path}:{line}: key {key!r} is given twice."
        for key, line in sorted(_repeated(root), key=lambda found: found[1])
    ]
    if repeated:
        raise InvalidSpecError("\n".join(repeated) + " Keep one of them.")
    if not isinstance(document, Mapping):
        raise InvalidSpecError(f"{path} holds {_quote(document)}; wanted fields like 'name: ...'.")
    try:
        return model.model_validate(document)
    except pydantic.ValidationError as error:
        lines = [_explain(path, root, model, part) for part in error.errors()]
        raise InvalidSpecError("\n".join(dict.fromkeys(lines))) from error


def _parse(text: str) -> tuple[yaml.Node | None, Any]:
    """Return the nodes of a document, which know their lines, and what they say."""
    # libyaml reads a file in a tenth of the time, which a build that has nothing to do would feel.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        root = loader.get_single_node()
        return root, None if root is None else loader.construct_document(root)
    except yaml.YAMLError:
        # Its errors quote the text.
        return yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    finally:
        loader.dispose()


def _repeated(node: yaml.Node | None) -> Iterator[tuple[str, int]]:
    """Yield keys that a mapping holds twice: YAML readers keep the last one silently."""
    visited: set[int] = set()  # an alias may lead back to where it came from
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in visited:
            continue
        visited.add(id(node))
        if isinstance(node, yaml.MappingNode):
            seen: set[tuple[str, str]] = set()
            for key, value in node.value:
                if (key.tag, str(key.value)) in seen:
                    yield key.value, key.start_mark.line + 1
                seen.add((key.tag, str(key.value)))
                waiting.append(value)
        elif isinstance(node, yaml.SequenceNode):
            waiting.extend(node.value)


def _line_of(root: yaml.Node | None, location: Location) -> int:
    """Return the 1-based line of a validation location; parts unknown to the file are skipped."""
    node, line = root, 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(part)]
            if found:
                line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and part in range(len(node.value)):
            node = node.value[int(part)]
            line = node.start_mark.line + 1
    return line


def _explain(path: Path, root: yaml.Node | None, model: type[Any], error: Any) -> str:
    location: Location = error["loc"]
    where = ".".join(str(part) for part in location) or "the file"
    head = f"{path}:{_line_of(root, location)}: {where}"
    kind = error["type"]
    if kind == "extra_forbidden":
        known = _known_fields(model, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        return f"{head}: no such field. {hint}Known here: {', '.join(known) or 'nothing'}."
    if kind == "missing":
        return f"{head}: missing. Add it."
    message = error["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        # A rule between fields begins with the field to blame, as seen from where it is checked.
        blamed = re.match(r"([a-z_]\w*(?:\.\w+)*): (?=\S)", message)
        if blamed and blamed[1].split(".")[0] in _known_fields(model, location):
            parts = blamed[1].split(".")
            location = (*location, *(int(p) if p.isdigit() else p for p in parts))
            where = ".".join(map(str, location))
            message = message[blamed.end() :]
        return f"{path}:{_line_of(root, location)}: {where}: {message}"
    return f"{head}: got {_quote(error['input'])}; wanted: {message}."


def _known_fields(model: type[Any], location: Sequence[int | str]) -> list[str]:
    """Return the field names at a location, over all models that may stand there."""
    models = [model]
    for part in location:
        if isinstance(part, int):
            continue
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        if fields:  # a union's tag is part of the location but no field: it changes nothing
            models = [found for field in fields for found in _models_in(field.annotation)]
        else:
            models = [m for m in models if _tag_of(m, str(part))] or models
    return sorted({field.alias or name for m in models for name, field in m.model_fields.items()})


def _tag_of(model: type[Any], tag: str) -> bool:
    return any(
        tag in typing.get_args(field.annotation)
        for field in model.model_fields.values()
        if typing.get_origin(field.annotation) is typing.Literal
    )


def _models_in(annotation: Any) -> Iterator[type[Any]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models_in(part)


def _quote(value: object) -> str:
    text = repr(value)
    return text if len(text) <= QUOTE_LIMIT else text[: QUOTE_LIMIT - 3] + "..."
