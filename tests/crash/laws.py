"""What must hold after any crash: each version whole or not there, and the same end as without."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import Machine
from trialfolders import write_spec, write_trials

from loaders import TrialStream
from pipeline import workspace
from pipeline.build import build
from pipeline.patch import patch_files
from pipeline.spec import load_spec
from shards import Store
from shards.tags import read_tags
from shards.verify import verify_store
from shards.writer import list_versions

Picture = dict[str, tuple[str, ...]]
"""Version -> fingerprint, and a digest of all its batches; tag -> what it stands for."""

SOAK = bool(os.environ.get("SOAK"))
"""Whether every change is tried with every variant, as `make soak` does. The gate kills at every
other change and cuts the power at the ones between, so that each is one of the two."""
EVEN, ODD = 0, 1
PORTIONS = (0.0, 0.5, 1.0)
LOSSES: tuple[tuple[float, Callable[[int], bool]], ...] = (
    (0.0, lambda _: True),
    (0.5, lambda number: number % 2 == 0),
    (0.0, lambda number: number % 2 == 1),
    (0.5, lambda _: True),
    (0.0, lambda _: False),
)
"""Shares of unconfirmed bytes that are kept, and folders whose unconfirmed names are lost."""


SHAPES: dict[str, dict[str, str]] = {
    "rows": {},
    "parquet": {"format": "parquet"},
    "windows": {"layout": "windows"},
    "windows-parquet": {"layout": "windows", "format": "parquet"},
}
"""Layout and container of the shards, as in `dataset.yaml`."""
SHARES = {"rows": 1, "parquet": 14, "windows": 25} | ({"windows-parquet": 1} if SOAK else {})
"""Shapes that are tried; of what the gate does with the first one, it does a so-many-th with the
others: they differ in the files of a shard, and in nothing that comes after these."""

_SEEN: dict[str, Picture] = {}


def photograph(store: Path) -> Picture:
    """Verify every version of a store, and return what it delivers.

    Most crashes leave the same bytes but for temporary names: these are looked at once, and then
    once for each set of folders with such names in them.
    """
    seen = set()
    for folder, _, names in os.walk(store):
        place = folder.removeprefix(str(store))
        for name in [] if place.startswith("/staging") else names:
            if ".tmp-" in f"{place}/{name}":
                seen.add(f"{place}/{name}".partition(".tmp-")[0])
            else:
                content = Path(folder, name).read_bytes()
                seen.add(f"{place}/{name} {hashlib.sha256(content).hexdigest()}")
    key = "\n".join(sorted(seen))
    if key not in _SEEN:
        _SEEN[key] = _photograph(store)
        gc.collect()  # or what was read just now counts as open
    return _SEEN[key]


def _photograph(store: Path) -> Picture:
    picture: Picture = {f"tag {name}": tuple(tag) for name, tag in read_tags(store).items()}
    for version in list_versions(store):
        assert [str(problem) for problem in verify_store(store, version)] == []
        picture[version] = (Store(store, version).fingerprint, batches_of(store, version))
    return picture


def batches_of(store: Path, version: str) -> str:
    """Return a digest of all batches of all splits."""
    digest = hashlib.sha256()
    opened = Store(store, version)
    for code, split in enumerate(opened.manifest.splits):
        if not opened.index.n_windows[opened.index.split == code].sum():
            continue
        for batch in TrialStream(opened, split=split, batch_size=8, seed=1):
            for name, part in sorted(vars(batch).items()):
                digest.update(f"{split} {name}".encode())
                digest.update(part.numpy().tobytes() if hasattr(part, "numpy") else b"")
    return digest.hexdigest()


@dataclass(frozen=True)
class Case:
    """Something that changes a store.

    Attributes:
        before: The store before it, or a path where nothing is.
        act: What is done to a store; done once more, it ends what was broken off.
        kept: Versions and tags of `before` that it leaves alone; None stands for all.
        then: What must also be possible after it.
        share: The gate tries a so-many-th of the moments.
    """

    before: Path
    act: Callable[[Path], Any]
    kept: frozenset[str] | None = None
    then: Callable[[Path], Any] = lambda _: None
    share: int = 1

    def copy(self, target: Path) -> Path:
        """Make the store as it is before, elsewhere."""
        if self.before.exists():
            shutil.copytree(self.before, target)
        return target


@dataclass(frozen=True)
class Outcome:
    """What a case comes to without a crash.

    Attributes:
        case: The case.
        old: What must still be there after a crash.
        new: What is there in the end.
        last: What is there after `Case.then`.
        steps: The changes that it makes.
    """

    case: Case
    old: Picture
    new: Picture
    last: Picture
    steps: list[tuple[str, str]]

    @classmethod
    def of(cls, case: Case, folder: Path) -> Outcome:
        """Do it once, undisturbed."""
        old = photograph(case.before)
        store, machine = case.copy(folder / "undisturbed"), Machine()
        assert machine.run(lambda: case.act(store))
        kept = old.keys() if case.kept is None else case.kept
        old = {version: old[version] for version in kept}
        new = photograph(store)
        case.then(store)
        return cls(case, old, new, photograph(store), machine.steps)

    def moments(self, parity: int) -> Iterator[tuple[int, int]]:
        """Yield the numbers of changes to die at, each with one variant; in the soak with all.

        Args:
            parity: `EVEN` for kills, `ODD` for power cuts. In the gate, take these alone, and of
                them the share of the case; and of what is removed from a folder that has lost its
                name, every fifth.
        """
        stride = 2 * self.case.share
        for number, (kind, path) in enumerate(self.steps):
            is_hidden = kind in ("unlink", "rmdir") and ".tmp-" in path
            if SOAK:  # how much of it happens before a kill matters for a write alone
                n_kills = len(PORTIONS) if kind == "write" else 1
                n_variants = n_kills if parity == EVEN else len(LOSSES)
                yield from ((number, variant) for variant in range(n_variants))
            elif number % stride == parity and number % (5 if is_hidden else 1) == 0:
                yield number, number // stride

    def ends(self) -> range:
        """Return the variants of a power cut when all is done."""
        return range(len(LOSSES) if SOAK or self.case.share == 1 else 1)

    def check_whole(self, store: Path) -> None:
        """The old versions are what they were, and a new one is there as a whole or not at all."""
        found = photograph(store)
        assert found.items() >= self.old.items()
        assert found.items() <= photograph(self.case.before).items() | self.new.items()

    def check_end(self, store: Path) -> None:
        """Done once more, it comes to the same end."""
        assert Machine().run(lambda: self.case.act(store))
        assert photograph(store) == self.new
        assert Machine().run(lambda: self.case.then(store))
        assert photograph(store) == self.last

    def die(self, number: int, variant: int) -> None:
        """Die at a change, in one of the `PORTIONS` of a write; then look, and go on."""
        with scratch() as work:
            store = self.case.copy(work / "store")
            machine = Machine(dies_at=number, portion=PORTIONS[variant % len(PORTIONS)])
            assert not machine.run(lambda: self.case.act(store))
            self.check_whole(store)
            self.check_end(store)

    def lose(self, number: int | None, variant: int) -> None:
        """Die at a change by a power cut, with one of the `LOSSES`; or when all is done."""
        with scratch() as work:
            store = self.case.copy(work / "store")
            machine = Machine(dies_at=number, portion=0.5, morgue=work / "morgue")
            assert machine.run(lambda: self.case.act(store)) == (number is None)
            portion, is_lost = LOSSES[variant % len(LOSSES)]
            machine.cut_power(portion=portion, is_lost=is_lost)
            if number is None:  # who was told that it is done must not lose it
                assert photograph(store) == self.new
            self.check_whole(store)
            self.check_end(store)

    def lose_later(self, number: int, variant: int) -> None:
        """Be killed at a change, go on, and lose power when all is done: nothing is lost."""
        with scratch() as work:
            store = self.case.copy(work / "store")
            machine = Machine(dies_at=number, morgue=work / "morgue")
            assert not machine.run(lambda: self.case.act(store))
            machine.revive()
            assert machine.run(lambda: self.case.act(store))
            portion, is_lost = LOSSES[variant % len(LOSSES)]
            machine.cut_power(portion=portion, is_lost=is_lost)
            assert photograph(store) == self.new


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Give a folder that is gone afterwards, in memory if possible: no power is really cut."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="trialshards-", dir=memory) as folder:
        yield Path(folder)


class Corpus:
    """A few CSV files in two buckets, one of them refused, and what a build makes of them.

    Args:
        root: Where they are written.
        shape: One of `SHAPES`.
    """

    def __init__(self, root: Path, shape: str = "rows") -> None:
        write_trials(root, 5, seed=3, longest=12)
        (root / "raw" / "g0" / "broken.csv").write_text("x,y\n1,two\n")
        self.root = root
        self.spec = write_spec(
            root,
            shards={"buckets": 2, **SHAPES[shape]},
            normalize={"scope": "train"},
            max_quarantined=0.5,
            split={"method": "hash", "fractions": {"train": 0.6, "val": 0.4}},
        )
        self._parsed = load_spec(self.spec)

    def change(self) -> None:
        """Change a file, add one, delete one."""
        trials = write_trials(self.root, 6, seed=4, longest=12)
        assert len(trials) == 6
        (self.root / "raw" / "g1" / "t01.csv").unlink()

    def change_all(self) -> None:
        """Change every file, and add one."""
        write_trials(self.root, 7, seed=5, longest=12)

    def build(self, store: Path) -> None:
        """Build."""
        with self.known_spec():
            build(self.spec, store, n_workers=1)

    def patch(self, store: Path) -> None:
        """Read a file again and add one, whatever became of the others."""
        with self.known_spec():
            patch_files(self.spec, store, ["raw/g2/t05.csv", "raw/g0/t06.csv"])

    @contextlib.contextmanager
    def known_spec(self) -> Iterator[None]:
        """Have the specification not read again each time, which takes half the time."""
        read, workspace.load_spec = workspace.load_spec, lambda _: self._parsed
        try:
            yield
        finally:
            workspace.load_spec = read
