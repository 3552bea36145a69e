"""A build that dies at any change it makes leaves a whole store, and the next one ends it.

A death is a `kill -9`, or a power cut that loses what was not forced to the disk (`harness.py`).
"""

from __future__ import annotations

import itertools

import pytest
from laws import EVEN, ODD, SHARES, SOAK, Case, Corpus, Outcome

CASES = [" of ".join(case) for case in itertools.product(("first build", "second build"), SHARES)]


@pytest.fixture(scope="module", params=CASES)
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    when, _, shape = request.param.partition(" of ")
    root = tmp_path_factory.mktemp(when.replace(" ", "-"))
    corpus, before = Corpus(root, shape), root / "store"
    if when == "second build":
        corpus.build(before)
        corpus.change()
    return Outcome.of(Case(before, corpus.build, share=SHARES[shape]), root)


def test_the_case_makes_every_kind_of_change_and_a_new_version(outcome: Outcome):
    kinds = {kind for kind, _ in outcome.steps}
    assert kinds >= {"create", "write", "fsync", "mkdir", "rename"}
    assert len(outcome.new) == len(outcome.old) + 1
    assert len(outcome.steps) > 50


def test_a_build_killed_at_any_change_leaves_a_whole_store_and_the_next_ends_it(
    outcome: Outcome,
):
    for number, variant in outcome.moments(EVEN):
        outcome.die(number, variant)


def test_a_power_cut_at_any_change_of_a_build_leaves_a_whole_store_and_the_next_build_ends_it(
    outcome: Outcome,
):
    for number, variant in outcome.moments(ODD):
        outcome.lose(number, variant)
    for variant in outcome.ends():
        outcome.lose(None, variant)


def test_a_power_cut_after_a_build_that_ended_a_killed_one_loses_nothing(outcome: Outcome):
    for number, variant in outcome.moments(ODD):
        if SOAK or outcome.steps[number - 1][0] in ("mkdir", "rename"):
            outcome.lose_later(number, variant if SOAK else 0)
