"""Texts into codes: each trial by its own words, vocabularies and statics by train alone."""

from __future__ import annotations

import math
import re

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from codedstores import text_spec
from hypothesis import given
from hypothesis import strategies as st

from pipeline.codes import (
    CATEGORIES,
    check_statics,
    encode_columns,
    fit_codes,
    fit_vocabularies,
)
from pipeline.files import RefusedError
from shards.codes import clean_words, is_number, look_up, read_numbers

# Any text that UTF-8 can hold.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
CELL = st.none() | TEXT | st.sampled_from([" a", "a ", "a", "", "\t"])


def cleaned(cell):
    """Return a cell as a word, or None."""
    return (clean_words(pa.array([cell], pa.utf8())).to_pylist())[0]


def frame_of(**columns):
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))


@given(st.lists(CELL, max_size=30), st.data())
def test_codes_say_the_words_of_their_rows(cells, data):
    place = st.integers(-1, len(cells) - 1)
    rows = data.draw(st.none() | st.lists(place, max_size=30))
    kept = range(len(cells)) if rows is None else rows
    want = [None if row < 0 else cleaned(cells[row]) for row in kept]
    given_rows = None if rows is None else np.array(rows, np.int64)
    codes, (words,) = encode_columns(frame_of(a=cells), given_rows)
    assert (codes.dtype, codes.shape) == (np.uint16, (len(want), 1))
    assert [None if c == 0 else words[c - 1] for c in codes[:, 0].tolist()] == want
    assert words == list(dict.fromkeys(word for word in want if word is not None))


def test_white_space_around_a_word_is_no_part_of_it():
    codes, words = encode_columns(frame_of(a=[" open", "open\t", "op en", None, "  "]))
    assert codes[:, 0].tolist() == [1, 1, 2, 0, 0]
    assert words == [["open", "op en"]]


def test_columns_have_dictionaries_of_their_own_and_may_come_as_series():
    frame = frame_of(a=["x", "y"], b=["y", "y"])
    codes, words = encode_columns(frame)
    assert codes.tolist() == [[1, 1], [2, 1]]
    assert codes.flags.c_contiguous
    assert words == [["x", "y"], ["y"]]
    again = encode_columns([frame["a"], frame["b"]])
    assert (again[0].tolist(), again[1]) == (codes.tolist(), words)


def test_a_trial_has_at_most_65535_words():
    many = [f"w{i}" for i in range(65_536)]
    codes, (words,) = encode_columns(frame_of(a=many[:-1]))
    assert (codes.max(), len(words)) == (65_535, 65_535)
    with pytest.raises(RefusedError, match=r"'a' has 65,536 different texts") as error:
        encode_columns(frame_of(a=many))
    assert (error.value.code, error.value.column) == ("too_many_categories", "a")


lists = st.lists(st.tuples(st.lists(TEXT, max_size=4), st.lists(TEXT, max_size=4)), max_size=6)


@given(lists, st.randoms())
def test_vocabularies_are_sorted_by_bytes_whatever_the_order_of_trials(trials, random):
    got = fit_vocabularies(pa.array(trials, CATEGORIES), 2)
    for place in (0, 1):
        words = {word for trial in trials for word in trial[place]}
        assert got[place] == sorted(words, key=lambda word: word.encode())
    random.shuffle(trials)
    parts = [pa.array([trial], CATEGORIES) for trial in trials]
    assert fit_vocabularies(pa.chunked_array(parts, CATEGORIES), 2) == got


@given(st.lists(CELL), st.lists(TEXT, unique=True))
def test_a_word_is_looked_up_exactly(cells, vocabulary):
    codes = look_up(pa.array(cells, pa.utf8()), vocabulary)
    want = [vocabulary.index(c) + 1 if c in vocabulary else 0 for c in cells]
    assert codes.tolist() == want


number_like = st.from_regex(r"[ \t]?[+-]?[0-9]{0,3}\.?[0-9]{0,3}([eE][+-]?[0-9]{1,3})?[ \t]?")


@given(st.lists(TEXT | number_like | st.sampled_from(["nan", "inf", "1_0", "0x1", "1e39", "٣"])))
def test_builder_and_reader_agree_what_a_number_is(texts):
    found = read_numbers(pa.array(texts, pa.utf8()))
    assert [is_number(text) for text in texts] == np.isfinite(found).tolist()
    for text, number in zip(texts, found.tolist(), strict=True):
        if math.isfinite(number):
            assert number == float(text)
            assert re.fullmatch(r"[0-9+\-.eE \t]+", text)


def table_of(attributes, categories=None):
    names = sorted({name for row in attributes for name in row})
    texts = [pa.array([row.get(name) for row in attributes], pa.utf8()) for name in names]
    columns = {"attributes": pa.StructArray.from_arrays(texts, names=names)}
    if categories is not None:
        columns["categories"] = pa.array(categories, CATEGORIES)
    return pa.table(columns)


def test_fit_json_gets_an_entry_per_input_and_nothing_without():
    spec = text_spec({"mode": "embed"}, {"load": "number", "site": "one_hot"})
    train = table_of(
        [{"load": "1", "site": "b"}, {"load": " 4 ", "site": " a"}, {"load": None, "site": ""}],
        [[["z", "y"]], [[]], [["y", "ä"]]],
    )
    assert fit_codes(spec, train) == {
        "categorical": [{"name": "mode", "encoding": "embed", "vocabulary": ["y", "z", "ä"]}],
        "static": [
            {"name": "load", "encoding": "number", "mean": 2.5, "sd": 1.5},
            {"name": "site", "encoding": "one_hot", "vocabulary": ["a", "b"]},
        ],
    }
    assert fit_codes(text_spec({}), train) == {}


def test_no_train_trial_gives_empty_vocabularies():
    spec = text_spec({"mode": "embed"}, {"load": "number", "site": "one_hot"})
    train = table_of([{"load": "1", "site": "b"}], [[["z"]]]).slice(0, 0)
    fit = fit_codes(spec, train)
    assert fit["categorical"][0]["vocabulary"] == fit["static"][1]["vocabulary"] == []
    assert (fit["static"][0]["mean"], fit["static"][0]["sd"]) == (0.0, 1.0)


@given(st.floats(-1e30, 1e30), st.integers(1, 40))
def test_a_constant_has_no_spread(value, n):
    train = table_of([{"load": repr(value)}] * n)
    (entry,) = fit_codes(text_spec({}, ["load"]), train)["static"]
    assert (entry["mean"], entry["sd"]) == (value, 1.0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_mean_and_sd_are_those_of_the_numbers(values):
    train = table_of([{"load": repr(value)} for value in values] + [{"load": None}])
    (entry,) = fit_codes(text_spec({}, ["load"]), train)["static"]
    spread = max(values) - min(values)
    assert math.isclose(entry["mean"], np.mean(values), rel_tol=1e-9, abs_tol=1e-9 * spread)
    sd = np.std(values)
    assert math.isclose(entry["sd"], sd, rel_tol=1e-6) or sd <= 1e-9 * max(map(abs, values))


def test_statics_come_in_the_order_of_the_specification():
    spec = text_spec({}, {"b": "one_hot", "a": "number", "c": "embed"})
    texts = check_statics({"a": "1", "b": "x", "d": "y"}, spec)
    assert list(texts.items()) == [("b", "x"), ("a", "1"), ("c", None)]
    assert check_statics({}, text_spec({})) == {}


@pytest.mark.parametrize("text", ["heavy", "1,5", "nan", "inf", "1e39", "1_000", "0x10", "1 2"])
def test_a_static_number_must_be_one(text):
    with pytest.raises(RefusedError, match=r"attribute 'load' is .*static: \{load: one_hot\}") as e:
        check_statics({"load": text}, text_spec({}, ["load"]))
    assert e.value.code == "static_not_a_number"
    assert check_statics({"load": text}, text_spec({}, {"load": "embed"})) == {"load": text}


@pytest.mark.parametrize("text", [None, "", "  ", "-1.5e3", " +.5\t", "7."])
def test_a_static_number_may_be_missing(text):
    assert check_statics({"load": text}, text_spec({}, ["load"])) == {"load": text}
