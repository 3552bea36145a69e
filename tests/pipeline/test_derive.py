"""Derived columns: SQL that sees one trial, its attributes, and nothing else."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from trialfolders import (
    build_checked,
    delivered,
    quarantine_of,
    write_spec,
    write_trial,
    write_trials,
)

from pipeline.build import build
from pipeline.derive import derive_columns, parse_expressions, source_columns
from pipeline.trials import RefusedError
from shards import Store
from shards.errors import InvalidSpecError, TooManyQuarantinedError

FRAME = pl.DataFrame({"t": [1.0, 2.0, 4.0], "x": [3.0, -1.0, 0.5], "word": ["a", "b", "b"]})


def derive(frame: pl.DataFrame, attributes: dict[str, str] | None = None, **expressions: str):
    return derive_columns(frame, parse_expressions(expressions), attributes or {})


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
    parsed = parse_expressions({"a": "x + t", "b": "a * y", "x2": "max(x) OVER ()"})
    assert source_columns(parsed) == {"x", "t", "y"}
    assert source_columns(parse_expressions({"b": "a", "a": "x"})) == {"a", "x"}
    assert source_columns(parse_expressions({"x": "x * 2"})) == {"x"}


@pytest.mark.parametrize("text", ["x +* 2", "", "x, t", "nofunction(x)", "*", "SELECT", "x AS"])
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
        parse_expressions(derived)
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
