"""Trials of one file told apart, and long form into wide: nothing is lost, added or reordered."""

import csv
import itertools
import math
import os
import tarfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import reshape
from pipeline.files import RefusedError, SourceFile
from pipeline.reshape import pivot_table, split_table
from pipeline.sections.source import PivotSpec
from pipeline.sources.delimited import read_delimited
from pipeline.sources.lines import DelimitedLayout
from pipeline.trials import Table

ROOT = Path(__file__).parents[2]
PLACES = [Path(os.environ.get("TRIALSHARDS_DATA", "nowhere")), ROOT.parent / "shared" / "data"]
FILE = SourceFile("d/a.csv", 1, 1, "d/a")


def table_of(numbers, text):
    names = tuple(numbers)
    matrix = np.array([numbers[name] for name in names], np.float64).reshape(len(names), -1).T
    frame = pl.DataFrame(
        {name: pl.Series(values, dtype=pl.String) for name, values in text.items()}
    )
    return Table(FILE, "digest", names, np.ascontiguousarray(matrix), frame)


def refused(call, *arguments):
    with pytest.raises(RefusedError) as caught:
        call(*arguments)
    return caught.value


def test_interleaved_trials_keep_their_rows_in_order():
    table = table_of({"x": [1, 2, 3, 4, 5]}, {"unit": ["b", "a", "b", "c", "a"]})
    parts = split_table(table, ["unit"])
    assert [t.trial_id for t in parts] == ["d/a/b", "d/a/a", "d/a/c"]
    assert [t.numbers[:, 0].tolist() for t in parts] == [[1, 3], [2, 5], [4]]
    assert [(t.number, t.found) for t in parts] == [
        (1, {"unit": "b"}), (2, {"unit": "a"}), (3, {"unit": "c"})
    ]  # fmt: skip
    assert all(t.source_xxh3 == "digest" and t.file is FILE for t in parts)


def test_two_columns_name_a_trial_together():
    table = table_of({"x": [1, 2, 3]}, {"s": ["p", "q", "p"], "r": ["1", "1", "2"]})
    assert [t.trial_id for t in split_table(table, ["s", "r"])] == ["d/a/p/1", "d/a/q/1", "d/a/p/2"]


def test_keys_that_name_no_trial_are_refused():
    table = table_of({"x": [1, 2, 3]}, {"s": ["a", "b", None]})
    error = refused(split_table, table, ["s"])
    assert (error.code, error.column) == ("split_key_missing", "s")
    assert "row 3" in str(error)
    twice = table_of({"x": [1, 2]}, {"s": ["a/b", "a"], "r": ["c", "b/c"]})
    assert refused(split_table, twice, ["s", "r"]).code == "duplicate_trial_id"


keys = st.sampled_from(["a", "b", "é", "", "a b", "10"])


@settings(max_examples=150)
@given(st.lists(st.tuples(keys, keys), min_size=1, max_size=30))
def test_splitting_conserves_and_orders_rows(pairs):
    first, second = ([pair[at] for pair in pairs] for at in (0, 1))
    numbered = [str(i) for i in range(len(pairs))]
    table = table_of({"row": range(len(pairs))}, {"s": first, "r": second, "more": numbered})
    parts = split_table(table, ["s", "r"])
    rows = [part.numbers[:, 0].astype(int).tolist() for part in parts]
    assert sorted(itertools.chain(*rows)) == list(range(len(pairs)))
    assert [r[0] for r in rows] == sorted(r[0] for r in rows)
    assert [tuple(part.found.values()) for part in parts] == list(dict.fromkeys(pairs))
    for part, own in zip(parts, rows, strict=True):
        assert own == sorted(own)
        assert {pairs[i] for i in own} == {tuple(part.found.values())}
        assert part.text["more"].to_list() == [str(i) for i in own]


def test_many_trials_take_little_time_each():
    n = 50_000
    table = table_of({"x": np.arange(n)}, {"unit": [str(i % (n // 5)) for i in range(n)]})
    parts = split_table(table, ["unit"])
    assert len(parts) == n // 5
    assert all(np.diff(part.numbers[:, 0]).min() == n // 5 for part in parts)


SPEC = PivotSpec(index="t", columns="what", values="v")


def long(rows, more=()):
    t, what, v = zip(*rows, strict=True)
    numbers = {"v": v}
    text = {"what": what} | dict(more)
    if isinstance(t[0], str) or t[0] is None:
        return table_of(numbers, {"t": t} | text)
    return table_of({"t": t} | numbers, text)


def test_long_form_becomes_wide():
    nan = math.nan
    table = long(
        [(5, "a", 1), (5, "b", 2), (3, "b", nan), (9, "no", 7), (3, "a", nan), (5, "c", 4)]
    )
    wide = pivot_table(table, SPEC, ("b", "a", "never"), False)
    assert wide.names == ("t", "b", "a", "never")
    np.testing.assert_array_equal(wide.numbers, [[5, 2, 1, nan], [3, nan, nan, nan]])
    assert wide.numbers.flags.c_contiguous
    assert wide.text.width == 0


def test_the_index_may_be_text_and_other_text_stays():
    table = long([("00:10", "a", 1), ("00:05", "a", 2), ("00:10", "b", 3)], [("who", list("xyz"))])
    wide = pivot_table(table, SPEC, ("a", "b"), True)
    assert wide.names == ("a", "b")
    np.testing.assert_array_equal(wide.numbers, [[1, 3], [2, math.nan]])
    assert wide.text.to_dict(as_series=False) == {"t": ["00:10", "00:05"], "who": ["x", "y"]}


def test_zero_is_one_moment_whatever_its_sign():
    wide = pivot_table(long([(-0.0, "a", 1), (0.0, "b", 2)]), SPEC, ("a", "b"), False)
    assert wide.numbers.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("policy", "kept"), [("first", 1.0), ("last", 6.0), ("mean", 3.0), ("refuse", None)]
)
def test_several_values_of_one_moment(policy, kept):
    rows = [(1, "a", math.nan), (1, "a", 1), (2, "a", 9), (1, "a", 2), (1, "b", 5), (1, "a", 6)]
    spec = PivotSpec(index="t", columns="what", values="v", duplicates=policy)
    if kept is None:
        error = refused(pivot_table, long(rows), spec, ("a", "b"), False)
        assert (error.code, error.column) == ("pivot_duplicate", "a")
        assert "'a' has several values at 't' 1.0" in str(error)
        as_text = [(str(t), what, v) for t, what, v in rows]
        assert "at 't' '1'" in str(refused(pivot_table, long(as_text), spec, ("a", "b"), True))
    else:
        wide = pivot_table(long(rows), spec, ("a", "b"), False)
        np.testing.assert_array_equal(wide.numbers, [[1, kept, 5], [2, 9, math.nan]])


def test_the_mean_of_large_values_is_finite():
    spec = PivotSpec(index="t", columns="what", values="v", duplicates="mean")
    wide = pivot_table(long([(1, "a", 1.5e308), (1, "a", 1.7e308)]), spec, ("a",), False)
    assert wide.numbers.tolist() == [[1, 1.6e308]]


@pytest.mark.parametrize("policy", ["refuse", "first", "last", "mean"])
def test_moments_without_any_value(policy):
    spec = PivotSpec(index="t", columns="what", values="v", duplicates=policy)
    wide = pivot_table(long([(1, "a", math.nan), (2, "a", math.nan)]), spec, ("a",), False)
    np.testing.assert_array_equal(wide.numbers, [[1, math.nan], [2, math.nan]])


def test_what_cannot_be_placed_is_refused():
    nan = math.nan
    cases = {
        "no_wanted_parameter": ([(1, "x", 1), (1, None, nan)], "'x'"),
        "pivot_name_missing": ([(1, "a", 1), (1, None, 1)], "row 2"),
        "pivot_index_missing": ([(1, "no", 1), (nan, "a", 1)], "row 2"),
    }
    for code, (rows, said) in cases.items():
        error = refused(pivot_table, long(rows), SPEC, ("a",), False)
        assert error.code == code
        assert said in str(error)
    texts = long([("1", "a", 1), (None, "a", 1)])
    assert refused(pivot_table, texts, SPEC, ("a",), True).code == "pivot_index_missing"
    unwanted = long([(nan, "no", 1), (1, "a", 1)])
    assert pivot_table(unwanted, SPEC, ("a",), False).numbers.tolist() == [[1, 1]]


def test_wide_form_is_limited(monkeypatch):
    monkeypatch.setattr(reshape, "LIMIT_BYTES", 100)
    rows = [(i, "a", i) for i in range(100)]
    assert refused(pivot_table, long(rows), SPEC, ("a",), False).code == "too_large"


values = st.one_of(st.just(math.nan), st.floats(allow_nan=False, allow_infinity=False))


@settings(max_examples=150)
@given(st.data(), st.booleans())
def test_the_pivot_of_a_melt_is_the_table(data, text_index):
    names = ("a", "b", "c")
    times = data.draw(st.lists(st.integers(-5, 50), min_size=1, max_size=8, unique=True))
    wide = np.array([[data.draw(values) for _ in names] for _ in times])
    rows = [(t, name, wide[i, j]) for i, t in enumerate(times) for j, name in enumerate(names)]
    order = data.draw(st.permutations(range(len(rows))))
    rows = [rows[i] for i in order]
    if text_index:
        rows = [(str(t), name, v) for t, name, v in rows]
    found = pivot_table(long(rows), SPEC, names, text_index)
    first_seen = list(dict.fromkeys(t for t, _, _ in rows))
    index = found.text["t"].to_list() if text_index else found.numbers[:, 0].tolist()
    assert index == first_seen
    places = [times.index(int(t)) for t in first_seen]
    assert found.numbers[:, 0 if text_index else 1 :].tobytes() == wide[places].tobytes()


def test_physionet_2012(tmp_path):
    found = [place / "physionet2012_seta.tar.xz" for place in PLACES]
    archive = next((path for path in found if path.is_file()), None)
    if archive is None:
        pytest.skip("physionet2012_seta.tar.xz is not here; set TRIALSHARDS_DATA to its folder")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    paths = sorted((tmp_path / "set-a").glob("*.txt"))[:200]
    files = [
        SourceFile(f"set-a/{p.name}", p.stat().st_size, p.stat().st_mtime_ns, p.stem) for p in paths
    ]
    layout = DelimitedLayout(",", numeric=("Value",), text=("Time", "Parameter"))
    tables, refusals = read_delimited(tmp_path, files, layout)
    assert (len(tables), refusals) == (200, [])
    spec = PivotSpec(index="Time", columns="Parameter", values="Value", duplicates="last")
    wanted = ("Age", "HR", "GCS", "Temp", "Cholesterol")
    for path, table in zip(paths, tables, strict=True):
        slow = {}
        with path.open() as lines:
            for row in csv.DictReader(lines):
                if row["Parameter"] in wanted:
                    slow.setdefault(row["Time"], {})[row["Parameter"]] = float(row["Value"])
        wide = pivot_table(table, spec, wanted, True)
        assert wide.text["Time"].to_list() == list(slow)
        expected = [[cells.get(name, math.nan) for name in wanted] for cells in slow.values()]
        np.testing.assert_array_equal(wide.numbers, expected)
