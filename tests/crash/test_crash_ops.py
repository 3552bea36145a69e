"""Tags, patches, tombstones, compaction and gc that die leave a whole store, and can go on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from laws import EVEN, ODD, SHARES, SOAK, Case, Corpus, Outcome, photograph

from shards.compact import compact_store
from shards.gc import gc_store
from shards.tags import delete_tag, read_tags, set_tag
from shards.tombstone import tombstone_trials


def set_tags(_: Corpus, store: Path) -> None:
    set_tag(store, "good", "v0002", force=True)
    set_tag(store, "new", "v0002", force=True)


def delete_tags(store: Path) -> None:
    for name in read_tags(store):
        delete_tag(store, name)


def tombstone(_: Corpus, store: Path) -> None:
    tombstone_trials(store, ["g0/t03"], "a broken sensor")


def patch(corpus: Corpus, store: Path) -> None:
    corpus.patch(store)


def compact(_: Corpus, store: Path) -> None:
    compact_store(store, force=True)


def collect(_: Corpus, store: Path) -> None:
    delete_tags(store)
    gc_store(store, keep=1)


ACTS: dict[Callable[[Corpus, Path], None], frozenset[str] | None] = {
    set_tags: frozenset({"v0001", "v0002"}),
    patch: None,
    tombstone: None,
    compact: None,
    collect: frozenset({"v0003"}),
}
"""What is done, and what of the store it leaves alone."""
CASES = {act.__name__: (act, "rows") for act in ACTS}
SHAPED = {compact: SHARES, patch: SHARES if SOAK else {}}  # the others write no shards
CASES |= {f"{act.__name__} of {s}": (act, s) for act in SHAPED for s in SHAPED[act] if s != "rows"}


@pytest.fixture(scope="module", params=CASES)
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    act, shape = CASES[request.param]
    root = tmp_path_factory.mktemp(act.__name__)
    corpus, before = Corpus(root, shape), root / "store"
    corpus.build(before)
    corpus.change()
    corpus.build(before)
    set_tag(before, "good", "v0001")
    if act is collect:
        compact(corpus, before)
    if act is patch:
        corpus.change_all()
    share = SHARES[shape] * (20 if act is patch else 1)  # it commits as a build does
    case = Case(before, partial(act, corpus), ACTS[act], then=corpus.build, share=share)
    return Outcome.of(case, root)


def test_the_case_changes_the_store(outcome: Outcome):
    assert outcome.steps
    assert outcome.new != photograph(outcome.case.before)


def test_who_is_killed_at_any_change_leaves_a_whole_store_and_can_go_on(outcome: Outcome):
    for number, variant in outcome.moments(EVEN):
        outcome.die(number, variant)


def test_a_power_cut_at_any_change_leaves_a_whole_store_and_it_can_go_on(outcome: Outcome):
    for number, variant in outcome.moments(ODD):
        outcome.lose(number, variant)
    for variant in outcome.ends():
        outcome.lose(None, variant)
