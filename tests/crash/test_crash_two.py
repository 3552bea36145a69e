"""Of two who change a store at once one is killed, at any change: the other one's work stands.

No bytes of the dead one's work are published in part, what the living one said is there stays, and
the next build comes to what a clean one does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from laws import SHAPES, SOAK
from rivals import Duel, Ring, Rivals, X, Y

from shards.compact import compact_store
from shards.gc import gc_store


def build(rivals: Rivals, store: Path) -> None:
    rivals.build(store)


def patch_other(rivals: Rivals, store: Path) -> None:
    rivals.put_one(Y, 1)
    rivals.patch_one(store, Y)


def build_other(rivals: Rivals, store: Path) -> None:
    rivals.put_one(X, 2)
    rivals.build(store)


def build_new(rivals: Rivals, store: Path) -> None:
    rivals.put_one(X, 1)
    rivals.build(store)


def compact(_: Rivals, store: Path) -> None:
    compact_store(store, force=True)


def collect(_: Rivals, store: Path) -> None:
    gc_store(store, keep=1)


OLD, NEW = (0, 0), (1, 0)
ONLY_OLD, ONLY_NEW, EITHER = frozenset({OLD}), frozenset({NEW}), frozenset({OLD, NEW})
DUELS = {
    "a build, and a patch of another file": Duel(
        build, patch_other, NEW, frozenset({(0, 1), (1, 1)}), (1, 1)
    ),
    "a build, and one of the same file": Duel(
        build, build_other, NEW, frozenset({(2, 0)}), (2, 0), may_lose=True
    ),
    "a build, and the same": Duel(build, build, NEW, ONLY_NEW, NEW),
    "a build, and a compaction": Duel(build, compact, NEW, EITHER, NEW),
    "a compaction, and a build": Duel(compact, build_new, OLD, ONLY_NEW, NEW, may_lose=True),
    "two compactions": Duel(compact, compact, OLD, ONLY_OLD, OLD, may_lose=True),
    "a build, and gc": Duel(build, collect, NEW, EITHER, NEW),
    "a compaction, and gc": Duel(compact, collect, OLD, ONLY_OLD, OLD),
    "gc, and a build": Duel(collect, build_new, OLD, ONLY_NEW, NEW),
    "gc, and a compaction": Duel(collect, compact, OLD, ONLY_OLD, OLD),
}
SHAPED = ("a build, and a patch of another file", "a compaction, and a build")
ALIKE = ("two compactions", "a compaction, and gc", "gc, and a compaction")
"""What the gate leaves out: nothing happens there that does not with a build."""
CASES = [(name, "rows") for name in DUELS if SOAK or name not in ALIKE]
CASES += [(name, shape) for name in SHAPED for shape in SHAPES if SOAK and shape != "rows"]
# Nobody begins to build while gc is at work: all wait until it is done or dead.
BESIDE = [case for case in CASES if DUELS[case[0]].first is not collect]
WITHIN = [case for case in BESIDE if DUELS[case[0]].second is not collect]


@pytest.fixture(scope="module")
def rivals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Rivals]:
    return functools.cache(lambda shape: Rivals(tmp_path_factory.mktemp(shape), shape))


@pytest.fixture(scope="module")
def ring(request: pytest.FixtureRequest, rivals: Callable[[str], Rivals]) -> Ring:
    name, shape = request.param
    return Ring(DUELS[name], rivals(shape))


def of(cases: list[tuple[str, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("ring", cases, ids=", ".join, indirect=True, scope="module")


def some(n: int, n_gate: int) -> list[int]:
    """Return all of n numbers in the soak; in the gate a few, spread out."""
    return list(range(n)) if SOAK else [(2 * i + 1) * n // (2 * n_gate) for i in range(n_gate)]


@of(CASES)
def test_who_comes_when_the_other_one_is_dead_finds_a_whole_store_and_does_its_work(ring: Ring):
    for number in some(ring.n_steps, 1):
        ring.dies_before(number)


@of(BESIDE)
def test_who_comes_while_the_other_one_is_stopped_does_its_work_and_it_stays(ring: Ring):
    for number in some(ring.n_steps, 1):
        ring.is_stopped(number, None)


@of(BESIDE)
def test_what_was_published_beside_a_stopped_one_outlives_a_power_cut(ring: Ring):
    for number in some(ring.n_steps, 0) or [ring.claim]:
        ring.is_stopped(number, number)


@of(BESIDE)
def test_who_goes_on_after_the_other_one_has_published_adds_to_it_or_says_who_won(ring: Ring):
    for number in {*some(ring.n_steps, 1), ring.claim}:
        ring.goes_on(number)


@of(BESIDE)
def test_who_dies_while_it_puts_its_work_on_top_of_the_others_leaves_that_alone(ring: Ring):
    after = 0
    while ring.dies_later(after):
        after += 1 if SOAK else 23


@of(WITHIN)
def test_who_is_at_work_when_another_one_comes_and_dies_ends_its_work_for_good(ring: Ring):
    for at in range(4, ring.n_visitor, 40) if SOAK else [ring.n_visitor // 10]:
        for number in some(ring.n_steps, 1):
            ring.visitor_dies(at, number, number)
        ring.visitor_dies(at, ring.named, 0)
        ring.visitor_dies(at, ring.claim + 1, 0)
