"""One run per settled change of the raw files, whatever happens to the watcher in between."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.watch import Watch, look

QUIET = 60.0
LISTINGS = st.sampled_from(["A", "B", "C"])
LOOKS = st.lists(st.tuples(LISTINGS, st.integers(1, 100)), max_size=40)


def replay(looks, built: str = "A", *, restart=lambda _: False, quiet_s: float = QUIET):
    """Return `(place, listing)` of each run that was started."""
    watch, now, runs = Watch(built), 1_000_000.0, []
    for place, (listing, wait) in enumerate(looks):
        now += wait
        if restart(place):
            watch = Watch.from_text(watch.to_text())
        watch, start = look(watch, listing, now_s=now, quiet_s=quiet_s)
        if start:
            runs.append((place, listing))
    return runs


def settled(looks, built: str = "A", *, quiet_s: float = QUIET):
    """Return the same by the definition: the state lasted, and is not what was built last."""
    runs, now, since, before = [], 0.0, 0.0, built
    for place, (listing, wait) in enumerate(looks):
        now += wait
        if listing != before:
            since = now
        before = listing
        if listing != built and now - since >= quiet_s:
            runs.append((place, listing))
            built = listing
    return runs


@settings(max_examples=120)
@given(LOOKS)
def test_runs_are_those_of_the_definition(looks):
    assert replay(looks) == settled(looks)


@settings(max_examples=60)
@given(LOOKS, st.sets(st.integers(0, 40)))
def test_a_restart_at_any_point_changes_nothing(looks, restarts):
    assert replay(looks, restart=restarts.__contains__) == replay(looks)


@settings(max_examples=40)
@given(LOOKS)
def test_no_two_runs_in_a_row_are_for_the_same_files(looks):
    built = ["A", *(listing for _, listing in replay(looks))]
    assert all(a != b for a, b in itertools.pairwise(built))


@settings(max_examples=10)
@given(st.integers(0, 50))
def test_nothing_changed_starts_nothing(n: int):
    assert replay([("A", 100)] * n) == []


@settings(max_examples=40)
@given(LOOKS)
def test_each_change_gets_its_run_once_the_files_rest(looks):
    """Conservation: after a rest, what was asked for last is what is there."""
    last = looks[-1][0] if looks else "A"
    runs = replay([*looks, (last, 1), (last, QUIET)])
    assert ([listing for _, listing in runs] or ["A"])[-1] == last


@settings(max_examples=20)
@given(st.lists(st.integers(1, 59), min_size=1, max_size=30))
def test_while_files_keep_changing_no_run_starts(waits):
    assert replay([(f"listing {i}", wait) for i, wait in enumerate(waits)]) == []


def test_a_change_that_is_taken_back_in_time_gives_no_run():
    assert replay([("B", 10), ("A", 10), ("A", 1000)]) == []


def test_a_change_seen_only_between_two_equal_looks_waits_anew():
    assert replay([("B", 10), ("A", 10), ("B", 55), ("B", 10), ("B", 50)]) == [(4, "B")]


def test_there_and_back_gives_two_runs():
    assert replay([("B", 10), ("B", 60), ("A", 10), ("A", 60)]) == [(1, "B"), (3, "A")]


def test_quiet_zero_starts_at_the_first_look():
    assert replay([("B", 1), ("B", 1), ("C", 1)], quiet_s=0) == [(0, "B"), (2, "C")]


@settings(max_examples=40)
@given(st.text(), st.text(), st.floats(allow_nan=False, allow_infinity=False))
def test_a_cursor_survives_as_text(built: str, pending: str, since_s: float):
    watch = Watch(built, pending, since_s)
    assert Watch.from_text(watch.to_text()) == watch


@pytest.mark.parametrize("text", ["", "x", "[1]", "{}", '{"built": "a", "more": 1}', "1", '"a"'])
def test_what_is_no_cursor_is_refused(text: str):
    with pytest.raises(ValueError):
        Watch.from_text(text)


@pytest.mark.parametrize(
    "text", ['{"built": 1}', '{"built": "a", "pending": "b", "since_s": "now"}']
)
def test_a_cursor_of_wrong_types_is_refused(text: str):
    with pytest.raises(ValueError):
        Watch.from_text(text)
