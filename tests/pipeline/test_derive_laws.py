"""Laws of derived columns: no trial sees another one, and what says so looks at no later row."""

from __future__ import annotations

import re
import time as clocks

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from pipeline.derive import Clock, Derivations, check_causal, derive_columns, reach_of
from pipeline.derive.probe import probe
from pipeline.derive.reach import ROW_FUNCTIONS, sql_reach
from pipeline.sections import Derivation
from pipeline.timeline import calendar_part, since_observed
from shards.errors import InvalidSpecError

TEXT = frozenset({"word"})
ROW = [
    "x", "3", "x + y", "x / NULLIF(y, 0)", "CASE WHEN x > 0 THEN y END", "COALESCE(x, y, 0)",
    "word = 'a'", "GREATEST(x, y) - LEAST(x, y)", "SIN(x) * ATAN2(x, y)", "x IS NULL",
    "ROUND(x / 3, 2)", "CAST(TRUNC(SIGN(x)) AS INTEGER)", "LENGTH(CONCAT(word, 'b'))", "MOD(x, 3)",
    "TRY_CAST(word AS DOUBLE)", "x IN (1, 2)", "NOT (x > 0 AND y > 0)",
    "EXTRACT(YEAR FROM DATE '2020-01-01')", "x // 2",
]  # fmt: skip
PAST = [
    "LAG(x) OVER (ORDER BY t)", "x - LAG(x, 3) OVER (ORDER BY t)", "SUM(x) OVER (ORDER BY t)",
    "AVG(x) OVER (ORDER BY t)", "MIN(x) OVER (ORDER BY t)", "COUNT(x) OVER (ORDER BY t)",
    "AVG(x) OVER (ORDER BY t ROWS BETWEEN 2 PRECEDING AND CURRENT ROW)",
    "MAX(x) OVER (ORDER BY t ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)",
    "SUM(x) OVER (PARTITION BY word ORDER BY t)", "FIRST_VALUE(x) OVER (ORDER BY t)",
    "LAST_VALUE(x) OVER (ORDER BY t)", "ROW_NUMBER() OVER ()", "RANK() OVER (ORDER BY t)",
    "x / NULLIF(MAX(ABS(x)) OVER (ORDER BY t), 0)",
    "LAG(word) OVER (ORDER BY t) = word",
    "SUM(x) FILTER (WHERE x > 0) OVER (ORDER BY t)", "LAG(x, 90) OVER (ORDER BY t)",
    "AVG(LAG(x) OVER (ORDER BY t)) OVER (ORDER BY t)",
    "SUM(CAST(word AS DOUBLE)) OVER (ORDER BY t)",
    "SUM(x // y) OVER (ORDER BY t)",
]  # fmt: skip
TRIAL = [
    "AVG(x)", "SUM(x)", "x - FIRST(x)", "LAST(x)", "COUNT(*)", "COUNT(x)", "MAX(t) - t",
    "MEDIAN(x)",
    "(x - AVG(x)) / NULLIF(STDDEV(x), 0)", "SUM(x) OVER ()", "AVG(x) OVER (PARTITION BY word)",
    "LEAD(x) OVER (ORDER BY t)", "LEAD(x, 90) OVER (ORDER BY t)", "LAG(x, -90) OVER (ORDER BY t)",
    "LAG(x, -9000) OVER (ORDER BY t)", "LAST_VALUE(x) OVER ()", "NTH_VALUE(x, 90) OVER ()",
    "SUM(x) OVER (ORDER BY t DESC)", "SUM(x) OVER (ORDER BY x)", "RANK() OVER (ORDER BY x)",
    "SUM(x) OVER (ORDER BY t ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING)",
    "SUM(x) OVER (ORDER BY t) - MAX(x)", "CASE WHEN x > 12345 THEN MAX(x) ELSE x END",
    "CASE WHEN x > 12345 THEN MAX(x) OVER () ELSE x END", "NULLIF(x, AVG(x) OVER ())",
    "CASE WHEN word = 'rare' THEN MAX(x) OVER () ELSE x END", "COALESCE(x, y, AVG(x) OVER ())",
    "SUM(x) FILTER (WHERE x > 0)", "NTILE(2) OVER (ORDER BY t)", "PERCENT_RANK() OVER (ORDER BY t)",
    "SUM(word) OVER (ORDER BY t)",
]  # fmt: skip
FEATURES: list[object] = [
    {"lag": "x"}, {"lag": "x", "rows": 4}, {"difference": "x"}, {"rolling_mean": "x", "rows": 3},
    {"rolling_mean": "x", "rows": 500}, {"since_observed": "x"}, {"since_observed": "word"},
    {"calendar": "minute", "form": "sin"},
]  # fmt: skip


def derivations_of(given: dict[str, object]) -> Derivations:
    return Derivations.of(TypeAdapter(dict[str, Derivation]).validate_python(given))


SAFE = derivations_of({f"c{i}": one for i, one in enumerate([*ROW, *PAST[:-2], *FEATURES])})
ALL = derivations_of(
    {f"c{i}": one for i, one in enumerate([*ROW, *PAST[:-2], *TRIAL[:-1], *FEATURES])}
)


@st.composite
def trials(draw: st.DrawFn) -> tuple[pl.DataFrame, np.ndarray]:
    """A trial: times that increase, numbers with gaps, text, and segments."""
    n = draw(st.integers(1, 14))
    steps = draw(st.lists(st.sampled_from([0.1, 1.0, 30.0]), min_size=n, max_size=n))
    number = st.one_of(
        st.sampled_from([0.0, 1.0, -1.0, 12346.0, None]), st.floats(-1e6, 1e6, width=32)
    )
    column = st.lists(number, min_size=n, max_size=n)
    words = st.lists(st.sampled_from(["a", "b", "rare", "7", None]), min_size=n, max_size=n)
    frame = pl.DataFrame(
        {"t": np.cumsum(steps), "x": draw(column), "y": draw(column), "word": draw(words)},
        schema={"t": pl.Float64, "x": pl.Float64, "y": pl.Float64, "word": pl.String},
    )
    others = draw(st.sets(st.integers(1, n))) - {n}
    return frame, np.array([0, *sorted(others)])


def derive(frame: pl.DataFrame, starts: np.ndarray, derivations: Derivations) -> pl.DataFrame:
    clock = Clock(starts, frame["t"].to_numpy(), "UTC", since_observed, calendar_part)
    return derive_columns(frame, derivations, {}, clock).select(list(derivations))


def bits(frame: pl.DataFrame) -> bytes:
    return frame.to_numpy().astype(np.float64).tobytes()


@settings(max_examples=12, deadline=None)
@given(st.lists(trials(), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_a_trial_alone_or_among_others_gives_the_same_bits(many, random):
    """Law 1, for every kind of derived column, whatever was derived before."""
    alone = [bits(derive(frame, starts, ALL)) for frame, starts in many]
    order = list(range(len(many)))
    random.shuffle(order)
    for place in order:
        frame, starts = many[place]
        assert bits(derive(frame, starts, ALL)) == alone[place]


@settings(max_examples=25, deadline=None)
@given(trials(), st.integers(0, 13))
def test_a_trial_cut_off_has_the_same_earlier_rows(trial, kept):
    """What has the reach `row` or `past` looks at no later row, not even in the last bit."""
    frame, starts = trial
    kept = min(kept, frame.height)
    short = derive(frame.head(kept), starts[starts < max(kept, 1)], SAFE)
    assert bits(short) == bits(derive(frame, starts, SAFE).head(kept))


@settings(max_examples=25, deadline=None)
@given(trials(), trials(), st.integers(0, 13))
def test_other_later_rows_change_no_earlier_one(trial, other, kept):
    frame, starts = trial
    kept = min(kept, frame.height)
    late = other[0].with_columns(t=pl.col("t") + frame["t"].max())
    joined = pl.concat([frame.head(kept), late])
    begin = starts[starts < max(kept, 1)]
    got, wanted = derive(joined, begin, SAFE), derive(frame, starts, SAFE)
    assert bits(got.head(kept)) == bits(wanted.head(kept))


@settings(max_examples=25, deadline=None)
@given(trials(), st.randoms(use_true_random=False))
def test_what_has_the_reach_of_a_row_does_not_mind_the_order(trial, random):
    frame, _ = trial
    order = list(range(frame.height))
    random.shuffle(order)
    rows = derivations_of({f"c{i}": one for i, one in enumerate(ROW)})
    got = derive_columns(frame[order], rows, {}).select(list(rows))
    assert bits(got) == bits(derive_columns(frame, rows, {}).select(list(rows))[order])


@pytest.mark.parametrize(
    ("sql", "wanted"),
    [
        (one, name)
        for name, many in (("row", ROW), ("past", PAST), ("trial", TRIAL))
        for one in many
    ],
)
def test_the_reach_of_sql(sql: str, wanted: str):
    assert sql_reach(sql, "t", TEXT & {"word"}) == wanted


@pytest.mark.parametrize("sql", ROW)
def test_trying_agrees_with_names_of_row_functions(sql: str):
    assert not probe(sql, "t", TEXT, window=False)


@pytest.mark.parametrize("sql", [one for one in TRIAL if "90" not in one])
def test_trying_agrees_with_names_of_what_sees_all(sql: str):
    assert probe(sql, "t", TEXT, window=False)


CALLS = """
ABS(x) ACOS(x) ACOSD(x) ASIN(x) ASIND(x) ATAN(x) ATAN2(x,y) ATAN2D(x,y) ATAND(x) BIT_LENGTH(word)
CAST(x$AS$DOUBLE) CBRT(x) CEIL(x) CEILING(x) CHAR_LENGTH(word) COALESCE(x,y) CONCAT(word,'a')
CONCAT_WS('-',word,'a') COS(x) COSD(x) COT(x) COTD(x) DATE('2020-01-01') DEGREES(x) DIV(x,2)
DATE_PART('year',DATE$'2020-01-01') ENDS_WITH(word,'a') EXP(x) EXTRACT(YEAR$FROM$DATE$'2020-01-01')
FLOOR(x) GREATEST(x,y) IF(x>0,x,y) IFNULL(x,y) INITCAP(word) LEAST(x,y) LEFT(word,1) LENGTH(word)
LN(x) LOG(x,2) LOG10(x) LOG1P(x) LOG2(x) LOWER(word) LPAD(word,4) LTRIM(word) MOD(x,y) NULLIF(x,y)
OCTET_LENGTH(word) PI() POSITION('a'$IN$word) POW(x,2) POWER(x,2) RADIANS(x) REGEXP_LIKE(word,'a')
REGEXP_REPLACE(word,'a','b') REPLACE(word,'a','b') REVERSE(word) RIGHT(word,1) ROUND(x) RPAD(word,4)
RTRIM(word) SIGN(x) SIN(x) SIND(x) SPLIT_PART(word,'a',1) SQRT(x) STARTS_WITH(word,'a')
STRPOS(word,'a') STRPTIME('2020-01-01','%Y-%m-%d') SUBSTR(word,2) SUBSTRING(word,2,1) TAN(x) TAND(x)
TRIM(word) TRUNC(x) TRUNCATE(x) TRY_CAST(word$AS$DOUBLE) UPPER(word)
""".replace("$", " ")


def test_every_row_function_is_one():
    calls = re.findall(r"(\w+)(\(.*?\))(?=\s(?:[A-Z]+[A-Z0-9_]*\(|$))", CALLS.replace("\n", " "))
    assert {name for name, _ in calls} == ROW_FUNCTIONS
    for name, arguments in calls:
        call = f"{name}{arguments}"
        sql = f"CASE WHEN {call} = LAG({call}) OVER (ORDER BY t) THEN 1 ELSE 0 END"
        assert sql_reach(sql, "t", TEXT) == "past", sql
        assert not probe(f"CAST({call} AS VARCHAR) = 'a'", "t", TEXT, window=False), name


def test_windows_are_causal_only_by_the_column_of_time():
    assert sql_reach("SUM(x) OVER (ORDER BY t)", "t", frozenset()) == "past"
    assert sql_reach("SUM(x) OVER (ORDER BY t)", None, frozenset()) == "trial"
    given = derivations_of({"t": "0 - t", "s": "SUM(x) OVER (ORDER BY t)"})
    assert reach_of(given, time="t") == {"t": "row", "s": "trial"}


def test_a_column_named_like_a_function_is_a_column():
    assert sql_reach("lead + avg * first", None, frozenset()) == "row"
    assert sql_reach("SUM(lead) OVER (ORDER BY t)", "t", frozenset()) == "past"
    assert sql_reach("\"max\" + 'SUM(x) OVER ()'", None, frozenset()) == "row"
    assert sql_reach("x /* AVG(x) */ + 1 -- MAX(x)", None, frozenset()) == "row"


def test_an_attribute_may_be_text_or_a_number():
    assert sql_reach("SUM(CASE WHEN arm = 's' THEN x END) OVER (ORDER BY t)", "t", frozenset()) in (
        "past", "trial",
    )  # fmt: skip
    assert sql_reach("SUM(kg * x) OVER (ORDER BY t)", "t", frozenset()) == "past"


def test_a_function_nobody_listed_is_tried():
    assert sql_reach("QUARTER(DATE '2020-01-01') + x", "t", frozenset()) == "row"
    assert sql_reach("ROW_NUMBER()", "t", frozenset()) == "trial"


def test_reach_is_passed_on():
    found = reach_of(
        derivations_of(
            {"a": "x + 1", "b": {"lag": "a"}, "c": "b * 2", "d": "MAX(c)", "e": "d + 1",
             "f": {"lag": "e"}, "g": {"calendar": "hour"}, "x": "AVG(x)", "h": "x", "i": "g + a",
             "k": {"hook": "f.py:f", "columns": ["b"], "reach": "row"},
             "l": {"hook": "f.py:f", "columns": ["a"]}}
        ),
        time="t",
    )  # fmt: skip
    assert found == {
        "a": "row", "b": "past", "c": "past", "d": "trial", "e": "trial", "f": "trial", "g": "row",
        "x": "trial", "h": "trial", "i": "row", "k": "past", "l": "trial",
    }  # fmt: skip


def test_causal_refuses_what_a_channel_sees_ahead_and_says_what_to_write():
    given = derivations_of(
        {"m": "MAX(x)", "n": "m + 1", "z": "n - x", "y": "AVG(x)", "p": {"lag": "x"}}
    )
    check_causal(given, ["p", "x"], time="t")
    with pytest.raises(InvalidSpecError) as caught:
        check_causal(given, ["p", "z"], time="t")
    said = str(caught.value)
    assert said.startswith("derive.z sees the whole trial (through derive.m); causal: true")
    assert all(word in said for word in ("lag", "rolling_mean", "ordered by 't'", "reach: past"))
    with pytest.raises(InvalidSpecError, match=r"^derive\.y sees the whole trial; .*source\.time"):
        check_causal(given, ["y"])


@pytest.mark.parametrize("sql", [ROW[4], PAST[0], PAST[2], PAST[3], TRIAL[8], TRIAL[9]])
def test_finding_the_reach_is_cheap(sql: str):
    """Under 5 ms on an idle machine (most: 1-3 ms); the bound here leaves room for a busy one."""
    best = np.inf
    for _ in range(5):
        sql_reach.cache_clear()
        begin = clocks.perf_counter()
        sql_reach(sql, "t", TEXT)
        best = min(best, clocks.perf_counter() - begin)
    assert best < 0.05
