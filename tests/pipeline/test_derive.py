"""Derived columns: SQL that sees one trial, its attributes, and nothing else."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import TypeAdapter
from trialfolders import (
    build_checked,
    delivered,
    quarantine_of,
    write_spec,
    write_trial,
    write_trials,
)

from pipeline.build import build
from pipeline.derive import (
    Clock,
    Derivations,
    check_calendar,
    derive_columns,
)
from pipeline.files import RefusedError
from pipeline.sections import Derivation
from pipeline.spec import load_spec
from pipeline.timeline import calendar_part, since_observed
from shards import Store
from shards.errors import InvalidSpecError, TooManyQuarantinedError

FRAME = pl.DataFrame({"t": [1.0, 2.0, 4.0], "x": [3.0, -1.0, 0.5], "word": ["a", "b", "b"]})


def derive(frame: pl.DataFrame, attributes: dict[str, str] | None = None, **expressions: str):
    return derive_columns(frame, derivations_of(dict(expressions)), attributes or {})


def derivations_of(given: dict[str, object]) -> Derivations:
    return Derivations.of(TypeAdapter(dict[str, Derivation]).validate_python(given))


def features(frame: pl.DataFrame, given: dict[str, object], clock: Clock | None = None):
    return derive_columns(frame, derivations_of(given), {}, clock)


def spec_of(root: Path, derived: dict[str, str], channels: list[str], **sections: object) -> Path:
    return write_spec(
        root,
        channels=channels,
        derive=derived,
        windows={"length": 1, "target": {"channels": channels[:1]}},
        normalize={"method": "none"},
        **sections,
    )


# --- expressions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("x * x + t", [10, 3, 4.25]),
        ("max(t) - t", [3, 2, 0]),
        ("t - first(t)", [0, 1, 3]),
        ("CASE WHEN word = 'b' THEN 1 ELSE 0 END", [0, 1, 1]),
        ("abs(x)", [3, 1, 0.5]),
        ("x > 0", [1, 0, 1]),
        ("count(*)", [3, 3, 3]),
        ("3", [3, 3, 3]),
    ],
)
def test_an_expression_gives_a_float_per_row(text: str, wanted: list[float]):
    frame = derive(FRAME, new=text)
    assert frame["new"].dtype == pl.Float64
    assert frame["new"].to_list() == wanted
    assert frame.select(FRAME.columns).equals(FRAME)


def test_attributes_are_constants_and_numbers_where_they_read_as_numbers():
    attributes = {"kg": "2.5", "arm": "s07", "count": "3"}
    frame = derive(FRAME, attributes, f="kg * x + count", g="CASE WHEN arm = 's07' THEN 1 END")
    assert frame["f"].to_list() == [10.5, 0.5, 4.25]
    assert frame["g"].to_list() == [1, 1, 1]


@pytest.mark.parametrize(
    ("text", "expression", "wanted"),
    [("7", "word + x", [10, 6, 7.5]), ("b", "CASE WHEN word = 'b' THEN 1 ELSE 0 END", [1, 1, 1])],
)
def test_an_attribute_wins_over_a_text_column_of_the_same_name(
    text: str, expression: str, wanted: list[float]
):
    frame = derive(FRAME, {"word": text}, y=expression)
    assert frame["y"].to_list() == wanted
    assert frame.select("t", "x").equals(FRAME.select("t", "x"))


def test_earlier_derived_columns_may_be_used_and_columns_replaced():
    frame = derive(FRAME, a="x + 1", b="a * 2", x="b - x")
    assert frame["b"].to_list() == [8, 0, 3]
    assert frame["x"].to_list() == [5, 1, 2.5]


def test_only_what_comes_from_elsewhere_is_asked_of_the_file():
    parsed = derivations_of({"a": "x + t", "b": "a * y", "x2": "max(x) OVER ()"})
    assert parsed.source_columns() == {"x", "t", "y"}
    assert derivations_of({"b": "a", "a": "x"}).source_columns() == {"a", "x"}
    assert derivations_of({"x": "x * 2"}).source_columns() == {"x"}


@pytest.mark.parametrize("text", ["x +* 2", "x, t", "nofunction(x)", "*", "SELECT", "x AS"])
def test_what_is_no_expression_is_refused_by_name_before_any_file_is_read(
    text: str, tmp_path: Path
):
    path = spec_of(tmp_path, {"speed": text}, ["speed"])
    with pytest.raises(InvalidSpecError, match=r"derive\.speed: .* is no SQL expression"):
        build(path, tmp_path / "store")


def test_an_expression_that_fails_on_a_trial_refuses_it_by_name():
    with pytest.raises(RefusedError, match=r"derive\.bad failed") as caught:
        derive(FRAME, good="x + 1", bad="word + 1")
    assert (caught.value.code, caught.value.column) == ("derive_failed", "bad")


def test_the_culprit_is_named_among_others_of_its_level():
    frame = FRAME.with_columns(word=pl.Series(["1", "2", "c"]))
    given = {"a": "x + 1", "b": {"lag": "x"}, "c": "CAST(word AS DOUBLE)", "d": "t"}
    with pytest.raises(RefusedError, match=r"derive\.c failed") as caught:
        features(frame, given)
    assert caught.value.column == "c"


def test_a_column_the_trial_lacks_refuses_it():
    with pytest.raises(RefusedError, match=r"derive\.a failed .*unable to find column"):
        derive(FRAME, a="speed * 2")
    with pytest.raises(RefusedError, match=r"derive\.a reads 'speed', which this trial does not"):
        features(FRAME, {"a": {"lag": "speed"}})
    with pytest.raises(RefusedError, match=r"derive\.a reads 'word', which is text; wanted num"):
        features(FRAME, {"a": {"rolling_mean": "word", "rows": 2}})


@pytest.mark.parametrize(
    "given",
    [
        {"x": "x * 2", "y": "x + 1"},
        {"y": "x + 1", "x": "x * 2", "z": "x"},
        {"y": "t", "x": {"lag": "x"}, "z": {"lag": "x"}},
        {"a": "x + 1", "b": "a * t", "c": {"difference": "b"}, "x": "c", "d": "x + a", "a2": "a"},
        {"t2": "a0", "a0": "x", "a1": "a0 + t2"},
    ],
)
def test_levels_give_what_one_column_after_the_other_gives(given: dict[str, object]):
    """The order written decides, however columns are grouped."""
    frame = FRAME.with_columns(a0=pl.Series([7.0, 8.0, 9.0]))
    wanted = frame
    for name, one in given.items():
        wanted = features(wanted, {name: one})
    got = features(frame, given)
    assert got.select(sorted(got.columns)).equals(wanted.select(sorted(wanted.columns)))


def test_independent_columns_share_a_level():
    given = {"a": "x + 1", "b": {"lag": "t"}, "c": "a + b", "d": "t * 2", "x": "x - 1", "e": "x"}
    assert derivations_of(given).levels == (("a", "b", "d", "x"), ("c", "e"))


def test_source_columns_are_found_through_derived_ones():
    derivations = derivations_of(
        {"a": "x + t", "b": {"lag": "a"}, "c": {"since_observed": "word"}, "x": "x + y", "d": "x",
         "h": {"hook": "f.py:f", "columns": ["d", "kg"]}, "k": {"calendar": "hour"}}
    )  # fmt: skip
    assert derivations.inputs["h"] == {"d", "kg"}
    assert derivations.inputs["k"] == set()
    assert derivations.source_columns() == {"x", "t", "y", "word", "kg"}
    assert derivations.source_columns(["b"]) == {"x", "t"}
    assert derivations.source_columns(["d", "q"]) == {"x", "y", "q"}
    assert derivations.source_columns(["h"]) == {"x", "y", "kg"}
    assert (len(derivations), "a" in derivations, "y" in derivations) == (7, True, False)
    assert not derivations_of({})


@pytest.mark.parametrize("name", ["self", "exprs", "a b", "1", "a.b", "Ä", "x", ""])
def test_a_new_column_may_have_any_name(name: str):
    assert features(FRAME, {name: "t + 1"})[name].to_list() == [2, 3, 5]
    assert features(FRAME, {name: {"lag": "t"}})[name].to_list() == [None, 1, 2]


def test_decimals_are_full_numbers_wherever_they_stand():
    assert derive(FRAME, a="1.0 / 3")["a"][0] == 1 / 3
    assert derive(FRAME, a="x + 1./3.")["a"][0] == 3 + 1 / 3
    assert derive(FRAME, a="CASE WHEN '1.5' = word THEN 1 ELSE .1 END")["a"][0] == 0.1
    frame = pl.DataFrame({"q1.5": [2.0]})
    assert derive(frame, a='"q1.5" * 1.5 -- not 1.5\n + 0.5 /* 2.5 */')["a"].to_list() == [3.5]


@pytest.mark.parametrize("text", ["NOW()", "current_date", "x + 0 * LENGTH(CURRENT_TIMESTAMP)"])
def test_the_day_of_the_build_is_no_input(text: str):
    with pytest.raises(InvalidSpecError, match=r"derive\.a: .* differs from build to build"):
        derivations_of({"a": text})
    assert derivations_of({"a": "'now()' = word"})


def test_an_expression_of_several_columns_is_refused():
    with pytest.raises(InvalidSpecError, match=r"derive\.a: .* of one column"):
        derivations_of({"a": "COLUMNS('^x$')"})


# --- ready-made features ----------------------------------------------------------------------


def naive_rolling(x: list[float], rows: int, starts: list[int]) -> list[float]:
    out = []
    for i in range(len(x)):
        first = max([s for s in starts if s <= i][-1], i - rows + 1)
        seen = [v for v in x[first : i + 1] if not math.isnan(v)]
        out.append(math.fsum(seen) / len(seen) if seen else math.nan)
    return out


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8, 50])
@pytest.mark.parametrize("starts", [[0], [0, 1], [0, 5, 6, 19], [0, 10]])
def test_features_are_what_a_plain_loop_gives(rows: int, starts: list[int]):
    rng = np.random.default_rng(rows)
    x = rng.normal(size=20)
    x[rng.random(20) < 0.3] = math.nan
    given = {
        "lag": {"lag": "x", "rows": rows},
        "difference": {"difference": "x", "rows": rows},
        "mean": {"rolling_mean": "x", "rows": rows},
    }
    frame = features(pl.DataFrame({"x": x}), given, Clock(starts=np.array(starts)))
    begin = [max(s for s in starts if s <= i) for i in range(20)]
    before = [x[i - rows] if i - rows >= begin[i] else math.nan for i in range(20)]
    np.testing.assert_array_equal(frame["lag"].to_numpy(), before)
    np.testing.assert_array_equal(frame["difference"].to_numpy(), x - before)
    wanted = naive_rolling(x.tolist(), rows, starts)
    np.testing.assert_allclose(frame["mean"].to_numpy(), wanted, rtol=1e-12, atol=1e-12)


def test_a_huge_value_leaves_the_rolling_mean_with_its_window():
    x = [1e16, 0.1, 0.2, 0.3, 0.4]
    new = features(pl.DataFrame({"x": x}), {"m": {"rolling_mean": "x", "rows": 2}})["m"]
    np.testing.assert_allclose(new.to_numpy()[2:], [0.15, 0.25, 0.35], rtol=1e-15)


@pytest.mark.parametrize("n", [0, 1])
def test_features_of_hardly_any_rows(n: int):
    given = {"a": {"lag": "x"}, "b": {"difference": "x"}, "c": {"rolling_mean": "x", "rows": 9}}
    frame = features(pl.DataFrame({"x": [2.0] * n}, schema={"x": pl.Float64}), given)
    assert frame.drop("x").rows() == [(None, None, 2.0)] * n


def test_features_of_the_time_are_those_of_the_clock():
    clock = Clock(
        np.array([0, 2]), np.array([0.0, 60.0, 7200.0]), "Europe/Berlin", since_observed,
        calendar_part,
    )  # fmt: skip
    given = {
        "a": {"since_observed": "word"}, "b": {"calendar": "hour"},
        "c": {"calendar": "hour", "zone": "UTC"}, "d": "a + b",
    }  # fmt: skip
    frame = features(FRAME.with_columns(word=pl.Series(["a", None, None])), given, clock)
    assert frame["a"].to_list() == [0, 60, 0]
    assert frame["b"].to_list() == [1, 1, 3]
    assert frame["c"].to_list() == [0, 0, 2]
    assert frame["d"].to_list() == [1, 61, 3]


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_nan_is_no_observation(missing: float | None):
    frame = pl.DataFrame({"x": [1.0, missing, missing]})
    clock = Clock(since_observed=since_observed)
    assert features(frame, {"s": {"since_observed": "x"}}, clock)["s"].to_list() == [0, 1, 2]
    words = pl.DataFrame({"x": ["a", None, "b"]})
    assert features(words, {"s": {"since_observed": "x"}}, clock)["s"].to_list() == [0, 1, 0]


def test_a_calendar_without_dates_is_refused():
    with pytest.raises(InvalidSpecError, match=r"derive\.h\.calendar: needs dates"):
        check_calendar(derivations_of({"h": {"calendar": "hour"}}), is_date=False)
    check_calendar(derivations_of({"h": {"calendar": "hour"}}), is_date=True)
    check_calendar(derivations_of({"h": {"lag": "x"}}), is_date=False)


def test_an_infinite_feature_refuses_the_trial():
    frame = pl.DataFrame({"x": [1.7e308, -1.7e308]})
    with pytest.raises(RefusedError, match=r"derive\.d is infinite at row 2"):
        features(frame, {"d": {"difference": "x"}})


# --- mistakes of the specification ------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{lagg: x}", r"6: derive\.y: got 'lagg'; wanted an SQL .*calendar\. Did you mean 'lag'\?"),
        (
            "{lag: x, row: 2}",
            r"6: derive\.y: no such field 'row' beside 'lag'\. Did you mean 'rows'",
        ),
        ("{lag: x, difference: y}", r"6: derive\.y: got 'lag' and 'difference'; wanted"),
        ("{lag: x, rows: 0}", r"6: derive\.y\.Lag\.rows: got 0; wanted: "),
        ("{lag: 3}", r"6: derive\.y\.Lag\.lag: got 3; wanted: "),
        ("{rolling_mean: x}", r"6: derive\.y\.RollingMean\.rows: missing\. Add it"),
        ("{hook: 'a.py:f'}", r"6: derive\.y\.Hook\.columns: missing\. Add it"),
        (
            "{hook: 'a:f', columns: [x]}",
            r"6: derive\.y\.Hook\.hook: got 'a:f'; wanted file\.py:fun",
        ),
        ("{hook: '/a.py:f', columns: [x]}", r"6: derive\.y\.Hook\.hook: got .*below the folder"),
        ("{hook: 'a.py:f', columns: []}", r"6: derive\.y\.Hook\.columns: got \[\]"),
        ("{calendar: hours}", r"6: derive\.y\.Calendar\.calendar: got 'hours'; wanted: "),
        (
            "{calendar: hour, zone: Mars}",
            r"6: derive\.y\.Calendar\.zone: got 'Mars'; wanted an IANA",
        ),
        ("5", r"6: derive\.y: got 5; wanted an SQL expression as text, or one of sql, hook, lag"),
        ("", r"6: derive\.y: got None; wanted an SQL"),
        ("[x]", r"6: derive\.y: got \['x'\]; wanted an SQL"),
        ("{}", r"6: derive\.y: got nothing; wanted an SQL"),
        ("{5: x}", r"6: derive\.y: got 5; wanted an SQL"),
        ("''", r"6: derive\.y: got ''; wanted an SQL"),
    ],
)
def test_one_mistake_is_one_line_with_its_number(entry: str, message: str, tmp_path: Path):
    path = tmp_path / "dataset.yaml"
    path.write_text(
        "name: a\nsource: {files: '*.csv'}\nchannels: [y]\n"
        "windows: {length: 1, target: {kind: forecast, channels: [y]}}\n"
        f"derive:\n  y: {entry}\n"
    )
    with pytest.raises(InvalidSpecError, match=message) as caught:
        load_spec(path)
    assert "\n" not in str(caught.value)


# --- through a build --------------------------------------------------------------------------


def test_an_aggregate_sees_one_trial_only(tmp_path: Path):
    """Law 1: the two trials share a batch, a shard and a bucket, and have different extremes."""
    trials = {"a": [1.0, 2.0, 9.0], "b": [5.0, 4.0, 3.0, 2.0], "c": [100.0]}
    for name, x in trials.items():
        write_trial(tmp_path, name, {"x": x})
    derived = {
        "left": "max(x) - x",
        "origin": "x - first(x)",
        "share": "x / sum(x)",
        "before": "coalesce(lag(x) OVER (), -1)",
        "rows": "count(*)",
    }
    try:
        derivations_of(derived)
    except InvalidSpecError:
        derived.pop("before")  # not every polars has lag()
    _, store = build_checked(spec_of(tmp_path, derived, list(derived)), tmp_path / "store")
    for name, rows in delivered(store).items():
        x = np.array(trials[name])
        parts = {
            "left": x.max() - x,
            "origin": x - x[0],
            "share": x / x.sum(),
            "before": np.concatenate([[-1], x[:-1]]),
            "rows": np.full(len(x), len(x)),
        }
        wanted = np.stack([parts[key] for key in derived], axis=1).astype(np.float32)
        np.testing.assert_allclose(rows, wanted, rtol=1e-7)


def test_groups_of_the_path_and_tables_are_constants(tmp_path: Path):
    (tmp_path / "masses.csv").write_text("arm,mass\n1,2.5\n2,4\n")
    for arm in (1, 2):
        write_trial(tmp_path, f"arm{arm}", {"x": [1.0, 2.0]})
    table = {"table": "masses.csv", "trial_id": "arm{arm}", "column": "mass"}
    path = spec_of(
        tmp_path,
        {"force": "mass * x", "number": "arm + 0"},
        ["force", "number"],
        source={"trial_id": r"arm(?P<arm>\d)"},
        attributes={"mass": table},
    )
    _, store = build_checked(path, tmp_path / "store")
    assert {name: rows.tolist() for name, rows in delivered(store).items()} == {
        "arm1": [[2.5, 1], [5, 1]],
        "arm2": [[4, 2], [8, 2]],
    }


def test_an_attribute_named_like_its_column_is_a_number_too(tmp_path: Path):
    for name, kg in {"a": 2.0, "b": 3.0}.items():
        write_trial(tmp_path, name, {"x": [1.0, 2.0], "kg": [kg, kg]})
    path = spec_of(tmp_path, {"f": "kg * x"}, ["f"], attributes={"kg": {"column": "kg"}})
    _, store = build_checked(path, tmp_path / "store")
    assert delivered(store)["b"].tolist() == [[3], [6]]


def test_a_column_that_no_file_has_is_named(tmp_path: Path):
    for name in "ab":
        write_trial(tmp_path, name, {"x": [1.0, 2.0]})
    path = spec_of(tmp_path, {"speed": "velocity * 2"}, ["speed"])
    with pytest.raises((InvalidSpecError, TooManyQuarantinedError), match="no column 'velocity'"):
        build(path, tmp_path / "store")


def test_a_column_that_one_file_lacks_refuses_that_file(tmp_path: Path):
    for name in "abc":
        write_trial(tmp_path, name, {"x": [1.0, 2.0], "v": [3.0, 4.0]})
    write_trial(tmp_path, "d", {"x": [1.0, 2.0]})
    path = spec_of(tmp_path, {"speed": "v * 2"}, ["speed", "x"], max_quarantined=0.5)
    _, store = build_checked(path, tmp_path / "store")
    assert quarantine_of(store) == {"raw/d.csv": "missing_column"}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("CASE WHEN x > 0 THEN 1 ELSE 0 END", [1, 0, 0]),
        ("CASE WHEN x IS NULL THEN 1 ELSE 0 END", [0, 1, 0]),
        ("avg(x)", [-1, -1, -1]),
        ("sum(x)", [-2, -2, -2]),
        ("coalesce(x, 7)", [1, 7, -3]),
        ("greatest(x, 0)", [1, 0, 0]),
    ],
)
def test_a_missing_value_is_a_null_of_sql(text: str, wanted: list[float], tmp_path: Path):
    # Beside a column that is there: a line with nothing on it is no row of one missing value.
    write_trial(tmp_path, "a", {"t": [0.0, 1.0, 2.0], "x": [1.0, math.nan, -3.0]})
    _, store = build_checked(spec_of(tmp_path, {"new": text}, ["new"]), tmp_path / "store")
    assert store.trial_rows(0)[:, 0].tolist() == wanted


def test_a_sum_over_a_missing_value_is_missing(tmp_path: Path):
    write_trial(tmp_path, "a", {"x": [1.0, math.nan, -3.0], "y": [1.0, 1.0, 1.0]})
    _, store = build_checked(spec_of(tmp_path, {"z": "x + y"}, ["z"]), tmp_path / "store")
    np.testing.assert_array_equal(store.trial_rows(0)[:, 0], [2, np.nan, -2])
    assert store.trial_rows(0, "observed").tolist() == [[1], [0], [1]]


def test_a_division_by_zero_never_reaches_a_store_as_infinity(tmp_path: Path):
    for name, y in {"a": 0.0, "b": 1.0, "c": 2.0}.items():
        write_trial(tmp_path, name, {"x": [1.0, 2.0], "y": [y, y]})
    path = spec_of(tmp_path, {"z": "x / y"}, ["z"], max_quarantined=0.5)
    build(path, tmp_path / "store")
    store = Store(tmp_path / "store")
    assert all(np.isfinite(rows).all() for rows in delivered(store).values())
    assert quarantine_of(store) == {"raw/a.csv": "infinite"}


def test_a_computed_input_looks_ahead_and_a_renamed_column_does_not(tmp_path: Path):
    write_trials(tmp_path, 5)
    spec = write_spec(
        tmp_path, channels=["x", "again", "highest"], derive={"again": "x", "highest": "max(x)"},
        normalize={"method": "zscore", "scope": "train"},
    )  # fmt: skip
    report, _ = build_checked(spec, tmp_path / "store")
    assert report.lookahead == ("derive.highest sees the whole trial",)
