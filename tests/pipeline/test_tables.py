"""Attribute tables and runs: one row per trial, however the table is written."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline.tables
from pipeline.files import RefusedError
from pipeline.sections import ColumnAttribute, RunsAttribute, TableAttribute
from pipeline.tables import JoinedTables, read_tables, runs_value
from shards.errors import InvalidSpecError


def read(root: Path, text: str | bytes, name: str = "table.csv", **entry: Any) -> JoinedTables:
    """Read one attribute, `end`, from a table with the columns `unit` and `rul`."""
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    attribute = {"table": name, "trial_id": "e{unit:04d}", "column": "rul", **entry}
    return read_tables(root, {"end": TableAttribute.model_validate(attribute)})


# --- how tables are written -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "unit,rul\n1,10\n2,20\n"),
        ("t.CSV", "unit,rul\r\n1,10\r\n2,20\r\n"),
        ("t.csv", "unit,rul\n1,10\n\n2,20\n\n"),
        ("t.csv", "\ufeffunit,rul\n1,10\n2,20"),
        ("t.csv", "#unit, rul\n1, 10\n2 ,20 \n"),
        ("t.csv", " # unit ,\trul\n1,10\n2,20\n"),
        ("t.txt", "unit,rul\n1,10\n2,20\n"),
        ("t", "unit,rul\n1,10\n2,20\n"),
        ("t.tsv", "unit\trul\n1\t10\n2\t20\n"),
        ("t.psv", "unit|rul\n1|10\n2|20\n"),
        ("t.psv.gz", gzip.compress(b"unit|rul\n1|10\n2|20\n", mtime=0)),
        ("t[1]*.csv", "unit,rul\n1,10\n2,20\n"),
    ],
)
def test_the_same_table_in_many_hands(name: str, text: str | bytes, tmp_path: Path):
    tables = read(tmp_path, text, name)
    assert tables.values == {"end": {"e0001": "10", "e0002": "20"}}
    assert tables.lookup("e0002") == {"end": "20"}


def test_parquet_is_a_table_too(tmp_path: Path):
    pl.DataFrame({"unit": [1, 2], "rul": [10, None], "kind": ["a ", ""]}).write_parquet(
        tmp_path / "t.parquet"
    )
    entry = {"table": "t.parquet", "trial_id": "e{unit:04d}"}
    tables = read_tables(
        tmp_path,
        {
            "end": TableAttribute(column="rul", **entry),
            "kind": TableAttribute(column="kind", **entry, default="none"),
        },
    )
    assert tables.values == {"end": {"e0001": "10"}, "kind": {"e0001": "a"}}
    assert tables.lookup("e0001") == {"end": "10", "kind": "a"}


def test_headers_that_mark_themselves_as_comments_and_names_that_are_no_identifiers(tmp_path: Path):
    (tmp_path / "target.csv").write_text("#sequence_ID, class_label\n1,1\n2,-1\n")
    (tmp_path / "outcomes.txt").write_text(
        "RecordID,SAPS-I,Length_of_stay,In-hospital_death\n132539,6,5,0\n132540,16,8,1\n"
    )
    label = TableAttribute(
        table="target.csv", trial_id="RSS_{sequence_ID}", column="class_label", default=0
    )
    died = TableAttribute(
        table="outcomes.txt", trial_id="{RecordID}", column="In-hospital_death", default="?"
    )
    tables = read_tables(tmp_path, {"label": label, "died": died})
    assert tables.lookup("RSS_2") == {"label": "-1", "died": "?"}
    assert tables.lookup("132540") == {"label": "0", "died": "1"}


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "t.csv").write_text("unit,a,b\n1,2,3\n")
    calls = []
    real = pl.read_csv
    monkeypatch.setattr(
        pipeline.tables.pl, "read_csv", lambda *a, **k: calls.append(a) or real(*a, **k)
    )
    attributes = {
        name: TableAttribute(table="t.csv", trial_id="{unit}", column=name) for name in "ab"
    }
    tables = read_tables(tmp_path, attributes)
    assert tables.lookup("1") == {"a": "2", "b": "3"}
    assert len(calls) == 1


def test_other_attributes_are_passed_over(tmp_path: Path):
    attributes = {"age": ColumnAttribute(column="Age"), "run": RunsAttribute(runs={"a": (1,)})}
    tables = read_tables(tmp_path, attributes)
    assert (tables.values, tables.lookup("anything"), tables.unmatched(["a"])) == ({}, {}, [])


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("unit,rul\n1,10,5\n", "t.csv", "more fields than defined"),
        ("unit, unit,rul\n1,10,5\n", "t.csv", "'unit' has more than one occurrence"),
        ("", "t.csv", "cannot read t.csv"),
        (b"unit,rul\n1,\xe4\n", "t.csv", "cannot read t.csv: "),
        (b"PAR1", "t.parquet", r"cannot read t\.parquet: .*Check the path"),
        ("unit,rul\n1,10\n1,\n", "t.csv", "names trial 'e0001' twice"),
        ("unit,rul\nx,10\n", "t.csv", "'x' does not take the format '04d'"),
        ("unit|rul\n1|10\n", "t.csv", r"no column 'rul'; it has: unit\|rul"),
    ],
)
def test_a_table_that_cannot_be_used_is_an_error(
    text: str | bytes, name: str, message: str, tmp_path: Path
):
    with pytest.raises(InvalidSpecError, match=rf"(?s)^attributes\.end.*{message}"):
        read(tmp_path, text, name)


def test_a_folder_is_no_table(tmp_path: Path):
    (tmp_path / "t.csv").mkdir()
    attribute = TableAttribute(table="t.csv", trial_id="{a}", column="a")
    with pytest.raises(InvalidSpecError, match=r"attributes\.x: cannot read t\.csv: .*directory"):
        read_tables(tmp_path, {"x": attribute})


# --- asking -----------------------------------------------------------------------------------


def test_a_trial_without_a_row_is_refused_in_a_sentence_and_a_default_saves_it(tmp_path: Path):
    table = "unit,rul\n1,10\n2,\n"
    for trial in ("e0002", "e0003"):
        with pytest.raises(RefusedError) as caught:
            read(tmp_path, table).lookup(trial)
        assert caught.value.code == "no_table_row"
        assert str(caught.value) == (
            f"table.csv has no row for trial '{trial}' (attribute 'end'). Add the row, or give "
            "attributes.end.default."
        )
        assert read(tmp_path, table, default=0).lookup(trial) == {"end": "0"}


def test_rows_that_name_no_trial_are_told(tmp_path: Path):
    tables = read(tmp_path, "unit,rul\n1,1\n2,2\n3,3\n4,4\n5,5\n6,\n")
    assert tables.unmatched([f"e000{i}" for i in range(1, 6)]) == []
    (sentence,) = tables.unmatched(["e0001", "e0002", "e0003", "e0004"])
    assert sentence == (
        "attributes.end: 1 row of table.csv names no trial, such as 'e0005'; check "
        "attributes.end.trial_id."
    )
    (sentence,) = tables.unmatched([])
    assert sentence.startswith(
        "attributes.end: 5 rows of table.csv name no trial, such as 'e0001', 'e0002', 'e0003', ...;"
    )


cells = st.dictionaries(
    st.from_regex(r"[a-z0-9]{1,4}", fullmatch=True),
    st.from_regex(r"[a-z0-9.-]{0,4}", fullmatch=True),
    max_size=8,
)


@given(rows=cells, others=cells, order=st.randoms(use_true_random=False))
def test_the_digest_is_that_of_what_the_table_says(
    rows: dict[str, str], others: dict[str, str], order: Any, tmp_path: Path
):
    def text(said: dict[str, str], names: list[str], comma: str) -> str:
        return "\n".join([f"k{comma}v", *(f"{name}{comma}{said[name]}" for name in names), ""])

    entry = {"trial_id": "{k}", "column": "v"}
    one = read(tmp_path, text(rows, list(rows), ","), "one.csv", **entry)
    shuffled = order.sample(list(rows), len(rows))
    same = read(tmp_path, text(rows, shuffled, "|"), "same.psv", **entry)
    other = read(tmp_path, text(others, list(others), ","), "other.csv", **entry)
    assert one.values == {"end": {name: value for name, value in rows.items() if value}}
    assert one.digest == same.digest
    assert (one.digest == other.digest) == (one.values == other.values)


# --- runs -------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_every_trial_of_a_file_is_in_its_run(lengths: list[int]):
    attribute = RunsAttribute(runs={"raw/a.txt": tuple(lengths)})
    values = [runs_value(attribute, "raw/a.txt", n + 1) for n in range(sum(lengths))]
    assert values == [str(run + 1) for run, length in enumerate(lengths) for _ in range(length)]


def test_a_file_whose_runs_nobody_knows_is_refused():
    attribute = RunsAttribute(runs={"raw/a.txt": (30, 30)})
    with pytest.raises(RefusedError, match=r"do not list 'raw/b\.txt'; listed: 'raw/a\.txt'") as e:
        runs_value(attribute, "raw/b.txt", 1)
    assert e.value.code == "no_runs"
