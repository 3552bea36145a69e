"""Choosing trials by SQL: what it means, what it may do, and what it says when it cannot."""

from __future__ import annotations

import math
import operator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from knownstores import Known, known_store

import shards.select
from shards import InvalidSpecError
from shards.manifest import TargetSchema

SUBJECTS = ["s01", "s02", "s'07", "ü", None]

MEAN = np.mean([3 + i % 7 for i in range(60)])


def robots(n=60):
    return [
        Known(
            f"t{i:03}", n_rows=3 + i % 7, split="val" if i % 5 == 0 else "train", weight=1 + i % 3,
            attributes={
                "subject": SUBJECTS[i % 5], "payload": f"{i % 4}.50" if i % 11 else None,
                "session": f"{i:04}", "group": "control" if i % 2 else "test", "split": "odd",
                "a b": "x", "a.c": str(i), "Mode": "1", "mode": "2",
            },
        )
        for i in range(n)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return known_store(tmp_path_factory.mktemp("s"), robots(), n_parts=2)


def rows_where(holds):
    rows = [
        {
            **vars(known),
            **{f"a_{name}": value for name, value in known.attributes.items()},
        }
        for known in robots()
    ]
    return [i for i, row in enumerate(rows) if holds(row)]


@pytest.mark.parametrize(
    ("where", "holds"),
    [
        ("subject = 's01' and n_rows > 5", lambda r: r["a_subject"] == "s01" and r["n_rows"] > 5),
        ("subject = 's''07'", lambda r: r["a_subject"] == "s'07"),
        ("subject = 'ü'", lambda r: r["a_subject"] == "ü"),
        ("subject is null", lambda r: r["a_subject"] is None),
        ("subject <> 's01'", lambda r: r["a_subject"] not in (None, "s01")),
        ("subject in ('s01', 's02') or split = 'x'", None),
        ("payload > 1.5", lambda r: r["a_payload"] is not None and float(r["a_payload"]) > 1.5),
        ("payload = '2.5'", lambda r: r["a_payload"] == "2.50"),
        ("session < '0007'", lambda r: r["a_session"] < "0007"),
        ("CAST(session AS INTEGER) >= 40", lambda r: int(r["a_session"]) >= 40),
        ("\"group\" = 'control'", lambda r: r["a_group"] == "control"),
        ("[group] = 'control'", lambda r: r["a_group"] == "control"),
        ("\"a b\" = 'x' and \"a.c\" < 9", lambda r: int(r["a_a.c"]) < 9),
        ("attributes.\"a.c\" between 3 and 5", lambda r: 3 <= int(r["a_a.c"]) <= 5),
        ("trials.split = 'val' and attributes.split = 'odd'", lambda r: r["split"] == "val"),
        ("weight = 2", lambda r: r["weight"] == 2),
        ("number % 2 = 0 and id like 't00%'", lambda r: int(r["id"][1:]) in range(0, 10, 2)),
        ("source = 't004.csv'", lambda r: r["id"] == "t004"),
        ("n_windows = 0", lambda r: r["n_rows"] <= 1),
        ("label is null", lambda r: True),
        ("n_rows > (select avg(n_rows) from trials)", lambda r: r["n_rows"] > MEAN),
        ("-- nothing ;(\nn_rows = 4 /* no ) */", lambda r: r["n_rows"] == 4),
        ("true", lambda r: True),
        ("null", lambda r: False),
    ],
)  # fmt: skip
def test_an_expression_chooses_what_python_would(store, where, holds):
    if holds is None:
        with pytest.raises(InvalidSpecError, match=r"ambiguous column name: split.*trials\.split"):
            store.select(where)
        return
    chosen = store.select(where)
    assert chosen.dtype == np.int64
    assert chosen.tolist() == rows_where(holds)


def test_labels_are_class_names_or_values(tmp_path):
    rows = [Known(f"t{i}", label=label) for i, label in enumerate([1.0, 0.0, None])]
    named = known_store(
        tmp_path / "a", rows, target=TargetSchema("per_trial", ("act",), ("run", "walk"))
    )
    assert named.select("label = 'walk'").tolist() == [0]
    assert named.select("label is null").tolist() == [2]
    valued = known_store(tmp_path / "b", rows, target=TargetSchema("per_trial", ("kg",)))
    assert valued.select("label < 0.5").tolist() == [1]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("subjct = 's01'", "no such column: subjct.*subject"),
        ('subject = "s01"', "Texts go in single quotes: 's01'"),
        ("split = 'val'", r"ambiguous.*trials\.split.*attributes\.split"),
        ("mode = '1'", "no such column: mode"),
        ("rowid = 1", "no such column: rowid"),
        ("subject = ", "syntax error.*Wanted an SQL expression"),
        ("subject = 's01", "unrecognized token"),
        (
            "session > 7",
            r"session is text, such as '0000', and 7 a number.*CAST\(session AS REAL\)",
        ),
        ("7 <= session", "session is text"),
        ("session not between 1 and 2", "session is text"),
        ("attributes.session in (-7, 8)", "session is text"),
        ("1) or (1", "more than one expression"),
        ("1; drop table trials", "more than one expression"),
        ("1) union select number from trials where (1", "more than one expression"),
        ("n_rows > ?", "no parameters"),
        ("n_rows > :x", "no parameters"),
        ("1 /* x", "incomplete input"),
        ("", "where is ''"),
        ("n_rows > 1 \0", "where is"),
        ("id = '\ud800'", "where is"),
        (7, "where is 7"),
        ("avg(n_rows) > 1", "misuse of aggregate"),
        ("('" + "x" * 2_000_000 + "') = id", "where is"),
    ],
)
def test_a_mistake_is_named_with_the_next_step(store, where, message):
    with pytest.raises(InvalidSpecError, match=message):
        store.select(where)


@pytest.mark.parametrize(
    "where",
    [
        "random() > 0", "date('now') > '2020'", "current_timestamp > '2020'", "changes() = 0",
        "load_extension('x') is null", "randomblob(9) is null", "zeroblob(9) is null",
        "sqlite_version() = '3'", "(select count(*) from sqlite_master) > 0",
        "exists (select * from pragma_table_info('trials'))",
        "exists (select * from json_each('[1]'))",
        "(with recursive t(x) as (select 1 union select x + 1 from t) select max(x) from t) > 1",
    ],
)  # fmt: skip
def test_nothing_but_reading_and_plain_functions_is_allowed(store, where):
    with pytest.raises(
        InvalidSpecError, match=r"not authorized|prohibited|no such (function|table)|vtable"
    ):
        store.select(where)


@pytest.mark.parametrize(
    "statement",
    [
        "ATTACH DATABASE 'x.db' AS x", "PRAGMA writable_schema = 1", "DROP TABLE trials",
        "CREATE TABLE x (y)", "DELETE FROM trials", "UPDATE trials SET n_rows = 1", "VACUUM",
        "INSERT INTO trials VALUES (1)", "DETACH main", "BEGIN", "ANALYZE",
    ],
)  # fmt: skip
def test_the_sandbox_itself_refuses_every_other_statement(store, statement, tmp_path, monkeypatch):
    """Even if such a statement came past the check that there is one expression alone."""
    monkeypatch.chdir(tmp_path)
    columns = shards.select.TrialColumns(store)
    sandbox = shards.select._Sandbox(statement, columns)
    sandbox.create({("trials", "n_rows"): "INTEGER"})
    with pytest.raises(InvalidSpecError, match=r"not authorized|prohibited|denied"):
        sandbox._query(statement)
    assert list(tmp_path.iterdir()) == []
    sandbox.close()


def test_a_query_that_takes_too_long_ends(store, monkeypatch):
    monkeypatch.setattr(shards.select, "LIMIT_S", 0.1)
    cross = ", ".join(f"trials t{i}" for i in range(9))
    with pytest.raises(InvalidSpecError, match=r"interrupted.*give trials="):
        store.select(f"(select count(*) from {cross}) > 1")


def test_only_the_columns_of_the_expression_are_read(store, monkeypatch):
    read = []
    real = shards.select.TrialColumns.load
    monkeypatch.setattr(
        shards.select.TrialColumns, "load", lambda *a: read.append(a[1:]) or real(*a)
    )
    store.select("subject = 's01' and trials.n_rows > 5")
    assert sorted(read) == [("attributes", "subject"), ("trials", "n_rows")]


NUMBERS = st.sampled_from(["0", "7", "-3", "2.50", "1e2", "12345678901234567", "12345678901234568"])
TEXTS = st.sampled_from(["", "007", "a", "7 ", "nan", "1e999", "٣", "+1", ".5", "a'b", '"'])
COMPARE = {"<": operator.lt, "<=": operator.le, "=": operator.eq, "<>": operator.ne}


def number_of(text: str) -> float | int:
    return int(text) if text.lstrip("-").isdecimal() else float(text)


@given(
    values=st.lists(st.none() | NUMBERS, min_size=1, max_size=12)
    | st.lists(st.none() | NUMBERS | TEXTS, min_size=1, max_size=12),
    bound=NUMBERS, sign=st.sampled_from(sorted(COMPARE)), block=st.sampled_from([1, 3, 100]),
)  # fmt: skip
@settings(max_examples=60)
def test_attributes_compare_as_numbers_exactly_where_all_are_plain_ones(
    tmp_path_factory, values, bound, sign, block
):
    """Whatever the blocks, and with repeated and missing values."""
    rows = [Known(f"t{i:02}", attributes={"x": value}) for i, value in enumerate(values)]
    store = known_store(tmp_path_factory.mktemp("s"), rows)
    known = [value for value in values if value is not None]
    plain = {"0", "7", "-3", "2.50", "1e2", "12345678901234567", "12345678901234568"}
    compare, before = COMPARE[sign], shards.select.BLOCK
    shards.select.BLOCK = block
    try:
        if known and set(known) <= plain:
            want = [
                i for i, v in enumerate(values)
                if v is not None and compare(number_of(v), number_of(bound))
            ]  # fmt: skip
            assert store.select(f"x {sign} {bound}").tolist() == want
            assert store.select(f"x {sign} {bound} and id <> ''").tolist() == want
        else:
            with pytest.raises(InvalidSpecError, match="x is text"):
                store.select(f"x {sign} {bound}")
            want = [i for i, v in enumerate(values) if v is not None and compare(v, bound)]
            assert store.select(f"x {sign} '{bound}'").tolist() == want
    finally:
        shards.select.BLOCK = before


@given(st.text(max_size=40) | st.lists(st.sampled_from(
    ["id", "n_rows", "subject", "(", ")", "'", '"', "[", "]", "`", "--", "/*", "*/", "\n", "=", "<",
     "and", "not", "1", "'a'", "null", "in", "select", "from", "trials", ",", ".", "case", "when",
     "%", "x'ab'", "||", "cast", "as", "::", "1e", "0x", "collate", "nocase", "like", "over"]
), max_size=12).map(" ".join))  # fmt: skip
@settings(max_examples=150)
def test_any_text_chooses_trials_or_is_refused(store, where):
    try:
        chosen = store.select(where)
    except InvalidSpecError:
        return
    assert set(chosen.tolist()) <= set(range(60))
    assert not math.isnan(chosen.sum())
    assert (np.diff(chosen) > 0).all()


def test_a_store_without_attributes_or_of_nothing_chosen(tmp_path):
    store = known_store(tmp_path, [Known("a"), Known("b", n_rows=20)])
    assert store.select("n_rows > 10").tolist() == [1]
    assert store.select("n_rows > 100").tolist() == []
    assert store.select("(select count(*) from attributes) >= 0").tolist() == [0, 1]
