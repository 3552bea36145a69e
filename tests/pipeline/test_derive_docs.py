"""docs/derive.md is right: every example in it is run."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from pydantic import TypeAdapter

from pipeline.derive import (
    Clock,
    Derivations,
    check_causal,
    derive_columns,
    reach_of,
)
from pipeline.derive.reach import ROW_FUNCTIONS
from pipeline.files import RefusedError
from pipeline.sections import Derivation
from pipeline.timeline import calendar_part, since_observed
from shards.errors import InvalidSpecError

TEXT = (Path(__file__).parents[2] / "docs" / "derive.md").read_text()
ATTRIBUTES = {"kg": "2.5", "arm": "s07"}
MISSING = "–"  # noqa: RUF001
MOMENT = datetime(2024, 3, 31, 1, 30, tzinfo=UTC).timestamp()


def section(title: str) -> str:
    found = re.search(rf"^#+ {title}\n(.*?)(?=^#+ [A-Z]|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def rows_of(text: str) -> list[tuple[str, str]]:
    """Return (code, second cell) of all table rows that begin with code."""
    found = re.findall(r"^\| `((?:[^`])+)` \| ([^|]*?) \|", text, re.MULTILINE)
    return [(code.replace(r"\|", "|"), cell) for code, cell in found]


def example() -> pl.DataFrame:
    table = re.search(r"^\| t \| x .*?\n\n", TEXT, re.MULTILINE | re.DOTALL)
    assert table
    lines = [
        [c.strip() for c in line.strip("|").split("|")] for line in table[0].split("\n") if line
    ]
    columns = dict(zip(lines[0], zip(*lines[2:], strict=True), strict=True))
    read = {n: [None if v == MISSING else v for v in values] for n, values in columns.items()}
    return pl.DataFrame(read).with_columns(pl.col("t", "x", "y").cast(pl.Float64))


FRAME = example()
SQL = rows_of(TEXT.split("## SQL")[1].split("## Ready-made")[0])
FEATURES = rows_of(section("Ready-made features"))
CLOCK = Clock(
    starts=np.array([0, 3]),
    time=FRAME["t"].to_numpy(),
    since_observed=since_observed,
    calendar_part=calendar_part,
)


def clock_of(entry: str) -> Clock:
    if "calendar" not in entry:
        return CLOCK
    return Clock(CLOCK.starts, np.full(FRAME.height, MOMENT), calendar_part=calendar_part)


def check(new: pl.Series, wanted: str) -> None:
    cells = [cell.strip() for cell in wanted.split(",")]
    numbers = [np.nan if cell == MISSING else float(cell) for cell in cells]
    numbers *= FRAME.height if len(numbers) == 1 else 1
    np.testing.assert_allclose(new.to_numpy(), numbers, rtol=1e-5)


def derivation(text: str) -> Derivation:
    return TypeAdapter(Derivation).validate_python(text)


def derive(given: object, clock: Clock = CLOCK, folder: Path | None = None) -> pl.Series:
    derivations = Derivations.of({"new": derivation(given)}, folder)
    return derive_columns(FRAME, derivations, ATTRIBUTES, clock)["new"]


def test_the_document_has_examples():
    assert FRAME.shape == (5, 4)
    assert len(SQL) > 120
    assert len(FEATURES) == 16


@pytest.mark.parametrize(("sql", "wanted"), SQL, ids=[sql for sql, _ in SQL])
def test_an_expression_gives_what_the_document_says(sql: str, wanted: str):
    if wanted.startswith("refused"):
        with pytest.raises(RefusedError) as caught:
            derive(sql)
        assert wanted == f"refused: `{caught.value.code}`"
    else:
        check(derive(sql), wanted)


@pytest.mark.parametrize("sql", re.findall("`([^`]+)`", section("Not there")))
def test_what_is_not_there_is_refused(sql: str):
    with pytest.raises(InvalidSpecError, match=r"^derive\.new: "):
        Derivations.of({"new": derivation(sql)})


@pytest.mark.parametrize(("entry", "wanted"), FEATURES)
def test_a_feature_gives_what_the_document_says(entry: str, wanted: str):
    check(derive(yaml.safe_load(entry), clock_of(entry)), wanted)


def test_the_hook_gives_what_the_document_says(tmp_path: Path):
    python, entry = re.search(
        r"```python\n# features.py\n(.*?)```.*?```yaml\n(.*?)```", section("Hooks"), re.DOTALL
    ).groups()
    (tmp_path / "features.py").write_text(python)
    given = yaml.safe_load(entry)["force"]
    check(derive(given, folder=tmp_path), dict(rows_of(section("Hooks")))["force"])


@pytest.mark.parametrize(("sql", "wanted"), rows_of(section("Reach")))
def test_an_expression_reaches_as_far_as_the_document_says(sql: str, wanted: str):
    derivations = Derivations.of({"new": derivation(sql)})
    assert reach_of(derivations, time="t", text={"word", "arm"}) == {"new": wanted}


@pytest.mark.parametrize("sql", ["x - AVG(x) OVER (ORDER BY t)", "x / MAX(x) OVER (ORDER BY t)"])
def test_the_causal_alternatives_are_causal(sql: str):
    assert sql.split(" OVER")[0] in section("Reach")
    check_causal(Derivations.of({"new": derivation(sql)}), ["new"], time="t")
    with pytest.raises(InvalidSpecError, match="causal"):
        check_causal(Derivations.of({"new": derivation(sql.split(" OVER")[0])}), ["new"], time="t")


def test_every_function_that_is_known_to_see_one_row_is_in_the_document():
    """Those that are known by name and not by trying had better be there at all."""
    said = set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", TEXT.split("## Ready-made")[0]))
    unsaid = ROW_FUNCTIONS - said
    assert unsaid == {
        "BIT_LENGTH", "CEILING", "CHAR_LENGTH", "CONCAT_WS", "DATE", "DATE_PART", "EXTRACT",
        "OCTET_LENGTH", "POSITION", "STRPTIME", "SUBSTRING", "TRUNCATE",
    }  # fmt: skip
