"""docs/dataset.md is right: its examples are valid, and no field, default or code is left out.

An example with a `name` is a whole file. Others replace sections of `BASE`; `source` and `windows`
are merged into those of `BASE` key by key.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.buckets import plan_digest
from pipeline.fit import DRIFT
from pipeline.recipe import Recipe
from pipeline.sections import Duration, parse_size
from pipeline.spec import DatasetSpec
from shards.localcache import BOUND, FREE_SHARE, MOST_BYTES, PLACE

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "dataset.md").read_text()
BASE: dict[str, Any] = {
    "name": "base",
    "source": {"files": "raw/*.csv"},
    "channels": ["x", "y"],
    "windows": {"length": 8, "target": {"kind": "forecast", "channels": ["x"]}},
}
MERGED = ("source", "windows")
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def whole(text: str) -> dict[str, Any]:
    """Return an example as a whole file."""
    given = yaml.safe_load(text)
    if "name" in given:
        return given
    channels = [one if isinstance(one, str) else one["name"] for one in given.get("channels", "x")]
    base = {**BASE, "windows": {**BASE["windows"]}}
    base["windows"]["target"] = {"kind": "forecast", "channels": channels[:1]}
    return {**base, **given, **{key: {**base[key], **given.get(key, {})} for key in MERGED}}


def sections() -> dict[str, str]:
    """Return the text below each heading that is a field in backticks, up to the next heading."""
    parts = re.split(r"^#{2,3} (.*)\n", TEXT, flags=re.MULTILINE)
    return {"": parts[0]} | {
        head.strip("`"): body for head, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def rows_of(text: str) -> dict[str, str]:
    """Return field -> default of the tables that have a default."""
    tables = re.findall(r"^\| field \| default \|.*?(?=^$)", text, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", "\n".join(tables), re.MULTILINE)
    assert len({name for name, _ in rows}) == len(rows), "a field is listed twice"
    return dict(rows)


def models_in(kind: Any) -> Iterator[type[BaseModel]]:
    """Yield the models that a field's type is made of."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for part in get_args(kind):
        yield from models_in(part)


def walk(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, str, FieldInfo]]:
    """Yield (section, field, about it) of a model and of all below it."""
    for name, info in model.model_fields.items():
        yield path, name, info
        for inner in models_in(info.annotation):
            below = "duration" if inner is Duration else f"{path}.{name}".strip(".")
            yield from walk(inner, below)


SECTIONS = sections()
FIELDS: dict[tuple[str, str], list[FieldInfo]] = {}
for _path, _name, _info in walk(DatasetSpec):
    FIELDS.setdefault((_path, _name), []).append(_info)


def refusal_codes() -> set[str]:
    """Return every code that the pipeline refuses a file or a trial with."""
    trees = [ast.parse(file.read_text()) for file in (ROOT / "pipeline").rglob("*.py")]
    raised = {"RefusedError": 0, "ReadRefusedError": 0, "Refusal": 2}
    return {code for tree in trees for code in _codes_in(tree, raised | _helpers(tree))}


def _helpers(tree: ast.Module) -> dict[str, int]:
    """Return functions that are handed a code -> its place among their arguments."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    places = {f.name: [argument.arg for argument in f.args.args] for f in functions}
    return {name: names.index("code") for name, names in places.items() if "code" in names}


def _codes_in(tree: ast.Module, places: dict[str, int]) -> Iterator[str]:
    for node in ast.walk(tree):
        name = ast.unparse(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.Call) and name in places:
            named = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            for given in [*node.args[places[name] : places[name] + 1], *named]:
                if isinstance(given, ast.Constant) and isinstance(given.value, str):
                    yield given.value


def test_there_are_examples():
    assert len(BLOCKS) > 30
    assert sum("name" in yaml.safe_load(text) for text in BLOCKS) >= 4


@pytest.mark.parametrize("text", BLOCKS)
def test_an_example_is_valid(text: str):
    spec = DatasetSpec.model_validate(whole(text))
    Recipe(spec, ROOT / "docs").check()


@pytest.mark.parametrize(("path", "name"), FIELDS)
def test_a_field_is_documented_with_its_default(path: str, name: str):
    rows = rows_of(SECTIONS[path])
    assert name in rows, f"docs/dataset.md has no row for {name!r} under `{path or 'the top'}`"
    infos = FIELDS[path, name]
    if all(info.is_required() for info in infos):
        assert rows[name] == "required"
        return
    defaults = [
        info.get_default(call_default_factory=True) for info in infos if not info.is_required()
    ]
    if isinstance(defaults[0], BaseModel):
        assert rows[name] == "see below"
        return
    said = parse_size(yaml.safe_load(rows[name].strip("`")))
    wanted = list(defaults[0]) if isinstance(defaults[0], tuple) else defaults[0]
    if said != wanted:
        # A field of several models of one section is required in one and optional in another.
        assert rows[name] == "required", f"{path}.{name}: {said!r} is not {wanted!r}"
        assert any(info.is_required() for info in infos)


def test_no_field_is_documented_that_is_not_there():
    said = {(path, name) for path, text in SECTIONS.items() for name in rows_of(text)}
    assert said == set(FIELDS)


def test_the_codes_are_those_of_the_pipeline():
    table = SECTIONS["What happens to a bad file"]
    said = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert said == sorted(set(said))
    assert set(said) == refusal_codes()


def test_every_link_leads_somewhere():
    anchors = {
        re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-")
        for head in re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    }
    for link in re.findall(r"\]\(([^)]+)\)", TEXT):
        path, _, anchor = link.partition("#")
        if path:
            assert (ROOT / "docs" / path).exists(), link
        else:
            assert anchor in anchors, link


CHANGES: dict[str, Any] = {
    "name": "other",
    "source.files": "raw/*.tsv",
    "source.obtain": "ask for them",
    "source.nulls": ["-1"],
    "channels": [{"name": "x", "unit": "m"}, "y"],
    "derive": {"z": "x + y"},
    "categorical": {"tool": "embed"},
    "static": {"id": "number"},
    "attributes": {"kg": {"column": "kg"}},
    "clean": {"missing": "ffill"},
    "normalize": {"scope": "train"},
    "split": {"method": "exact"},
    "windows.length": 16,
    "windows.stride": 2,
    "windows.short": "drop",
    "windows.target": {"kind": "forecast", "channels": ["y"]},
    "shards.layout": "windows",
    "shards.format": "parquet",
    "shards.target_bytes": 2**20,
    "shards.buckets": 4,
    "causal": True,
    "max_quarantined": 0.5,
}
"""Field -> another value of it than that of `BASE`."""


def changed(field: str, value: Any, base: dict[str, Any]) -> dict[str, Any]:
    document = copy.deepcopy(base)
    section, _, name = field.rpartition(".")
    (document.setdefault(section, {}) if section else document)[name] = value
    return document


def fields_read_again(base: dict[str, Any]) -> set[str]:
    """Return the fields whose change makes another trial of the same file."""

    def plan(document: dict[str, Any]) -> str:
        return plan_digest(Recipe(DatasetSpec.model_validate(document), ROOT / "docs"))

    return {
        field for field, new in CHANGES.items() if plan(changed(field, new, base)) != plan(base)
    }


def test_the_fields_that_cost_no_reading_are_those_of_the_page():
    assert {field.partition(".")[0] for field in CHANGES} == set(DatasetSpec.model_fields)
    table = SECTIONS["What a build reads again"]
    first, second = re.findall(r"^\| (`.*?) \| (?:nothing.*?) \|$", table, re.MULTILINE)
    free, of_rows = (re.findall(r"`([\w.]+)`", row) for row in (first, second))
    of_rows = [of_rows[0], *(f"windows.{name}" for name in of_rows[1:])]
    base = {**BASE, "source": {**BASE["source"], "trial_id": r"(?P<id>\d+)"}}
    assert fields_read_again(base) == set(CHANGES) - set(free) - set(of_rows)
    in_windows = changed("shards.layout", "windows", base)
    assert fields_read_again(in_windows) == set(CHANGES) - set(free) - {"shards.layout"}


def test_the_limits_are_those_of_the_code():
    of_shards = SECTIONS["shards"]
    assert f"`${PLACE}`" in of_shards
    assert f"`${BOUND}`" in of_shards
    assert f"{MOST_BYTES // 2**30} GiB, or a quarter" in of_shards
    assert FREE_SHARE == 4
    assert f"more\nthan {DRIFT * 100:.0f} %" in SECTIONS["What a build reads again"]
