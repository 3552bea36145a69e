"""Two writers of one store at the same time, one of which dies: what must hold for the other."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import Machine
from laws import LOSSES, Corpus, Picture, photograph, scratch
from trialfolders import draw_trial, write_trial

from pipeline.patch import patch_files
from shards.errors import CommitConflictError, StoreBusyError
from shards.gc import gc_store

State = tuple[int, int]
"""Which content the files `X` and `Y` have."""
X, Y = "g1/t01", "g2/t02"
OLD_NS, TICK_NS = 1_700_000_000 * 10**9, 10**9


class Rivals(Corpus):
    """A corpus of which two files change, and what a clean build makes of each of their contents.

    Attributes:
        before: A store of the first contents, with dead rows in it.
    """

    def __init__(self, root: Path, shape: str = "rows") -> None:
        super().__init__(root, shape)
        self.before, self._clean = root / "store", dict[State, tuple[str, ...]]()
        for state in ((1, 1), (0, 0)):
            self.put(*state)
            self.build(self.before)
        photograph(self.before)  # so that the cache holds its shards, or the first one fills it

    def put(self, x: int, y: int) -> None:
        """Give both files a content; the same content always has the same time."""
        self.put_one(X, x)
        self.put_one(Y, y)

    def put_one(self, name: str, content: int) -> None:
        """Give one of them a content."""
        rng = np.random.default_rng([content, *name.encode()])
        path = write_trial(self.root, name, draw_trial(rng, 9 + content, ("x", "y")))
        os.utime(path, ns=(OLD_NS + content * TICK_NS,) * 2)

    def clean(self, state: State) -> tuple[str, ...]:
        """Return what a build delivers that nobody disturbs, in a store of its own."""
        if state not in self._clean:
            self.put(*state)
            with scratch() as work:
                self.build(work / "store")
                self._clean[state] = photograph(work / "store")["v0001"]
        return self._clean[state]

    def patch_one(self, store: Path, name: str) -> None:
        """Read one file, and look at no other."""
        with self.known_spec():
            patch_files(self.spec, store, [f"raw/{name}.csv"])


Act = Callable[[Rivals, Path], Any]


@dataclass(frozen=True)
class Duel:
    """Two who change a store at once.

    Attributes:
        first: What the one does who is stopped, or who is visited while at work.
        second: What the other does.
        begins: The contents of the files when the first one begins.
        after: The contents, of which the newest version holds one set when the second one is done.
        ends: The contents at last, which the next build publishes.
        may_lose: Whether the first one, going on, may say that the second one won.
    """

    first: Act
    second: Act
    begins: State
    after: frozenset[State]
    ends: State
    may_lose: bool = False

    @property
    def known(self) -> frozenset[State]:
        """The contents that any version may have."""
        return self.after | {(0, 0), (1, 1), self.begins, self.ends}


class Ring:
    """Where a duel is fought, again and again, each time with another death.

    Attributes:
        n_steps: Changes that the first one makes if nobody disturbs it.
        n_visitor: Those that the second one makes then.
        claim: Number of the change by which the first one publishes, or the last one.
        named: Number of the change after that by which a shard gets its name, which is not forced
            to the disk yet; 0 if none does.
    """

    def __init__(self, duel: Duel, rivals: Rivals) -> None:
        self.duel, self.rivals = duel, rivals
        self.pictures = {rivals.clean(state) for state in duel.known}
        self._after = {rivals.clean(state) for state in duel.after}
        with scratch() as work:
            store, machine = self._copy(work), Machine()
            assert machine.run(lambda: duel.first(rivals, store))
        with scratch() as work:
            store, visitor = self._copy(work), Machine()
            assert visitor.run(lambda: duel.second(rivals, store))
        self.n_steps, self.n_visitor = len(machine.steps), len(visitor.steps)
        self.claim = _last_rename(machine, "versions", self.n_steps - 1)
        self.named = _last_rename(machine, "shards", -1) + 1

    def _copy(self, work: Path) -> Path:
        self.rivals.put(*self.duel.begins)
        shutil.copytree(self.rivals.before, work / "store")
        return work / "store"

    def dies_before(self, number: int) -> None:
        """The first one dies, then the second one comes."""
        with scratch() as work:
            store = self._copy(work)
            machine = Machine(dies_at=number)
            assert not machine.run(lambda: self.duel.first(self.rivals, store))
            won: Picture = {}
            assert Machine().run(lambda: self._act(store, won))
            assert won  # locks died, too
            self._check(store, won)

    def is_stopped(self, number: int, variant: int | None) -> None:
        """The first one is stopped, the second one does its work, then the first one is killed.

        Args:
            number: The change that it is stopped at.
            variant: Which of the `LOSSES` of a power cut then follows; None if the power stays.
        """
        with scratch() as work:
            store, won = self._copy(work), Picture()
            visit = (number, lambda: self._act(store, won))
            morgue = None if variant is None else work / "morgue"
            machine = Machine(dies_at=number, visit=visit, morgue=morgue)
            assert not machine.run(lambda: self.duel.first(self.rivals, store))
            if variant is not None:
                _cut_power(machine, variant)
            self._check(store, won)

    def goes_on(self, number: int) -> None:
        """The first one is stopped, the second one does its work, then the first one goes on."""
        with scratch() as work:
            store, won, lost = self._copy(work), Picture(), list[str]()
            machine = Machine(visit=(number, lambda: self._act(store, won)))
            assert machine.run(lambda: self._first(store, lost))
            assert self.duel.may_lose or not lost
            assert all("v0003" in said for said in lost)  # it says who won
            newest = self._check_whole(store, won)
            assert newest == self.rivals.clean(self.duel.ends)
            self._check(store, won)

    def dies_later(self, after: int) -> bool:
        """The second one publishes right before the first one would, which then dies on its way.

        Args:
            after: How many changes later.

        Returns:
            Whether it came so far.
        """
        with scratch() as work:
            store, won = self._copy(work), Picture()
            visit = (self.claim, lambda: self._act(store, won))
            machine = Machine(dies_at=self.claim + after, visit=visit)
            ended = machine.run(lambda: self._first(store, []))
            self._check(store, won)
            return not ended

    def visitor_dies(self, at: int, number: int, variant: int) -> None:
        """The second one is stopped, the first one comes and dies, then the second one goes on.

        Args:
            at: The change that the second one is stopped at.
            number: That at which the first one dies, if it comes so far.
            variant: Which of the `LOSSES` of a power cut then follows.
        """
        with scratch() as work:
            store, won = self._copy(work), Picture()

            def visit() -> None:
                Machine(dies_at=number, beside=host).run(lambda: self._first(store, []))

            host = Machine(visit=(at, visit), morgue=work / "morgue")
            # What the first one has published it has, even if it died of telling.
            with contextlib.suppress(CommitConflictError):
                assert host.run(lambda: self._act(store, won))
            assert won or len(photograph(store)) > 2
            _cut_power(host, variant)
            self._check(store, won)

    def _first(self, store: Path, lost: list[str]) -> None:
        try:
            self.duel.first(self.rivals, store)
        except CommitConflictError as error:
            lost.append(str(error))  # itself, it would keep versions open

    def _act(self, store: Path, won: Picture) -> None:
        """Do what the second one does, and note what is there then."""
        try:
            self.duel.second(self.rivals, store)
        except StoreBusyError:  # gc: it has done nothing
            return
        won.update(photograph(store))
        assert won[max(won)] in self._after

    def _check_whole(self, store: Path, won: Picture) -> tuple[str, ...]:
        found = photograph(store)
        assert found.items() >= won.items()
        assert set(found.values()) <= self.pictures
        return found[max(found)]

    def _check(self, store: Path, won: Picture) -> None:
        """Every version is a whole one of contents that there were, and all goes on from there."""
        self._check_whole(store, won)
        self.rivals.put(*self.duel.ends)
        self.rivals.build(store)
        assert self._check_whole(store, won) == self.rivals.clean(self.duel.ends)
        gc.collect()  # or what was read just now counts as open
        gc_store(store, keep=1)
        assert list(store.rglob(".tmp-*")) == []
        assert set(photograph(store).values()) == {self.rivals.clean(self.duel.ends)}


def _last_rename(machine: Machine, folder: str, default: int) -> int:
    """Return the number of the last change that gave a name in a folder of the store."""
    numbers = [
        number
        for number, (kind, path) in enumerate(machine.steps)
        if kind == "rename" and Path(path).parent.name == folder and ".tmp-" not in path
    ]
    return max(numbers, default=default)


def _cut_power(machine: Machine, variant: int) -> None:
    portion, is_lost = LOSSES[variant % len(LOSSES)]
    machine.cut_power(portion=portion, is_lost=is_lost)
