"""Tags, tombstones, compaction and gc that die at any change leave a whole store, and can go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from laws import EVEN, LOSSES, ODD, Case, Corpus, Outcome, photograph

from shards.compact import compact_store
from shards.gc import gc_store
from shards.tags import delete_tag, read_tags, set_tag
from shards.tombstone import tombstone_trials


def set_tags(store: Path) -> None:
    set_tag(store, "good", "v0002", force=True)
    set_tag(store, "new", "v0002", force=True)


def delete_tags(store: Path) -> None:
    for name in read_tags(store):
        delete_tag(store, name)


def tombstone(store: Path) -> None:
    tombstone_trials(store, ["g0/t03"], "a broken sensor")


def compact(store: Path) -> None:
    compact_store(store, force=True)


def collect(store: Path) -> None:
    delete_tags(store)
    gc_store(store, keep=1)


ACTS: dict[Callable[[Path], None], frozenset[str] | None] = {
    set_tags: frozenset({"v0001", "v0002"}),
    tombstone: None,
    compact: None,
    collect: frozenset({"v0003"}),
}
"""What is done, and what of the store it leaves alone."""


@pytest.fixture(scope="module", params=list(ACTS), ids=lambda act: act.__name__)
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    act = request.param
    root = tmp_path_factory.mktemp(act.__name__)
    corpus, before = Corpus(root), root / "store"
    corpus.build(before)
    corpus.change()
    corpus.build(before)
    set_tag(before, "good", "v0001")
    if act is collect:
        compact(before)
    return Outcome.of(Case(before, act, ACTS[act], then=corpus.build), root)


def test_the_case_changes_the_store(outcome: Outcome):
    assert outcome.steps
    assert outcome.new != photograph(outcome.case.before)


def test_who_is_killed_at_any_change_leaves_a_whole_store_and_can_go_on(outcome: Outcome):
    for number, variant in outcome.moments(EVEN):
        outcome.die(number, variant)


def test_a_power_cut_at_any_change_leaves_a_whole_store_and_it_can_go_on(outcome: Outcome):
    for number, variant in outcome.moments(ODD):
        outcome.lose(number, variant)
    for variant in range(len(LOSSES)):
        outcome.lose(None, variant)
