"""Random walks over a folder and its store: after any steps, a build is what a clean one would be.

Each walk changes files, tables, the specification and the store by chance, then builds. The store
must be sound, hold what a build into an empty store holds, and say "nothing to do" right after.
"""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trialfolders import merged, quarantine_of, split_of, write_spec

from loaders import TrialStream
from pipeline import commit as commit_module
from pipeline.build import build
from pipeline.commit import Work, commit_version
from pipeline.fit import is_frozen
from pipeline.outcome import BuildReport
from pipeline.patch import patch_files
from pipeline.settled import find_settled
from pipeline.spec import load_spec
from pipeline.workspace import Workspace
from shards import Store
from shards.compact import compact_store
from shards.errors import CommitConflictError, InvalidSpecError, TrialShardsError
from shards.gc import gc_store
from shards.tags import set_tag
from shards.tombstone import tombstone_trials
from shards.verify import verify_store
from shards.writer import list_versions, newest_version

IDS = {"trial_id": r"(?P<group>g\d)/(?P<id>[^/.]+)"}
TABLE = {
    name: {"table": "facts.csv", "trial_id": "{id}", "column": name} for name in ("mass", "kind")
}
PER_TRIAL = {"target": {"kind": "per_trial", "attribute": "kind", "channels": None}}
SPECS: dict[str, dict[str, Any]] = {
    "own": {"normalize": {"method": "zscore", "scope": "trial"}, "clean": {"missing": "none"}},
    "exact": {
        "source": IDS,
        "normalize": {"method": "minmax", "scope": "train"},
        "shards": {"buckets": 4},
        "split": {"method": "exact", "stratify": "group"},
    },
    "many": {"source": {"split_on": ["unit"], "time": {"column": "t", "max_gap": 3}}},
    "tables": {
        "source": IDS,
        "attributes": TABLE,
        "static": ["mass"],
        "categorical": {"c": "one_hot"},
        "windows": PER_TRIAL,
        "split": {"method": "exact", "stratify": "kind"},
    },
    "joined many": {
        "source": {"split_on": ["unit"]},
        "attributes": {"mass": TABLE["mass"] | {"default": 1}},
        "static": ["mass"],
        "shards": {"buckets": 2},
    },
    "times": {
        "source": {"time": {"column": "t"}},
        "split": {"method": "time", "boundaries": {"val": 60, "test": 80}, "purge": 1},
    },
    "folds": {
        "source": IDS,
        "normalize": {"method": "robust", "scope": "group:group"},
        "split": {"method": "folds", "folds": 3, "fold": 1},
    },
    "by group": {
        "source": IDS,
        "normalize": {"scope": "train"},
        "split": {"by": "group", "fractions": {"train": 0.6, "test": 0.4}},
        "shards": {"layout": "windows"},
    },
    "regimes": {
        "normalize": {
            "scope": "regime",
            "regimes": {"channels": ["y"], "count": 2},
            "channels": {"x": {"scope": "train"}},
        },
        "shards": {"format": "parquet"},
    },
}
EDITS: list[dict[str, Any]] = [
    {"split": {"seed": 5}},
    {"windows": {"length": 3, "stride": 1}},
    {"name": "other"},
    {"clean": {"missing": "ffill"}},
    {"shards": {"target_bytes": 300}},
    {"shards": {"buckets": 8}},
    {"max_quarantined": 0.9},
    {"shards": {"layout": "windows"}},
    {"shards": {"format": "parquet"}},
]


class Walk:
    """A folder of raw files, its store, and what happened to them."""

    def __init__(self, root: Path, sections: dict[str, Any], seed: int) -> None:
        self.root, self.raw, self.store = root, root / "raw", root / "store"
        self.rng = np.random.default_rng(seed)
        self.sections = merged({"max_quarantined": 0.8}, sections)
        self.edits: list[dict[str, Any]] = []
        self.clock, self.number, self.log = 10**9, 0, list[str]()
        self.kept: dict[Path, tuple[bytes, int]] = {}
        self.published: dict[str, tuple[str, Any]] = {}
        self.is_fresh = True  # no tombstone whose splits and fit wait for a build
        (root / "raw").mkdir(parents=True)
        self.facts: dict[str, list[str]] = {}
        for _ in range(12):
            self.create()
        self.write_facts()
        self.spec = write_spec(root, **self.sections)

    # --- raw files ---

    def stamp(self, path: Path) -> None:
        self.clock += 10**9
        os.utime(path, ns=(self.clock, self.clock))

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            path.unlink()
        path.write_text(text)
        self.stamp(path)

    def text(self) -> str:
        rng, lines, start = self.rng, ["unit,t,x,y,c"], self.rng.uniform(0, 90)
        for unit in rng.choice(["u1", "u2", "u3"], int(rng.integers(1, 4)), replace=False):
            steps = np.where(rng.random(12) < 0.2, 5.0, rng.choice([0.5, 0.7], 12))
            regular = rng.random() < 0.5
            for i, t in enumerate(start + np.cumsum(np.full(12, 0.5) if regular else steps)):
                x = "" if rng.random() < 0.1 else repr(float(rng.normal()))
                lines.append(f"{unit},{t + 0.01 * i},{x},{rng.normal()},{rng.choice(list('abc'))}")
            start = t + 1
        return "\n".join(lines) + "\n"

    def files(self) -> list[Path]:
        return sorted(p for p in self.raw.rglob("[!.]*.csv") if p.is_file())

    def some(self) -> Path:
        files = self.files()
        return files[int(self.rng.integers(len(files)))] if files else self.create()

    def create(self) -> Path:
        self.number += 1
        path = self.raw / f"g{self.rng.integers(3)}" / f"t{self.number:02d}.csv"
        self.write(path, self.text())
        if self.rng.random() < 0.9:
            self.tell(path.stem)
        return path

    def change(self) -> None:
        self.write(self.some(), self.text())

    def delete(self) -> None:
        path = self.some()
        if not path.is_symlink():
            self.kept[path] = (path.read_bytes(), path.stat().st_mtime_ns)
        path.unlink()

    def restore(self) -> None:
        if self.kept:
            path, (content, mtime) = self.kept.popitem()
            path.unlink(missing_ok=True)
            path.write_bytes(content)
            os.utime(path, ns=(mtime, mtime))

    def rename(self) -> None:
        path = self.some()
        to = self.raw / f"g{self.rng.integers(3)}" / self.rng.choice([path.name, "moved.csv"])
        to.parent.mkdir(exist_ok=True)
        path.rename(to)

    def touch(self) -> None:
        self.stamp(self.some())

    def cut(self) -> None:
        path = self.some()
        text = path.read_text()
        self.write(path, text[: int(self.rng.integers(0, len(text) + 1))])

    def spoil(self) -> None:
        path, bad = self.some(), self.rng.choice(["two", "1e999", '"', "\x00"])
        lines = path.read_text().split("\n")
        if len(lines) > 2:
            lines[len(lines) // 2] = f"u1,1,{bad},3,a"
        self.write(path, "\n".join(lines))

    def empty(self) -> None:
        self.write(self.some(), str(self.rng.choice(["", "unit,t,x,y,c\n", "x,y\n1,2\n", "\n"])))

    def copy(self) -> None:
        path = self.some()
        to = self.raw / f"g{self.rng.integers(4)}" / self.rng.choice([path.name, "copy.csv"])
        if not to.exists():
            self.write(to, path.read_text())

    def link(self) -> None:
        path, to = self.some(), self.raw / "g1" / f"link{self.number}.csv"
        to.parent.mkdir(exist_ok=True)
        if not to.is_symlink():
            to.symlink_to(path if self.rng.random() < 0.8 else self.raw / "nowhere.csv")

    def unlink(self) -> None:
        for path in self.raw.rglob("*.csv"):
            if path.is_symlink() or path.name.startswith("."):
                path.unlink()

    def hide(self) -> None:
        self.write(self.raw / "g0" / f".hidden{self.rng.integers(2)}.csv", self.text())

    # --- attribute tables and the specification ---

    def tell(self, name: str) -> None:
        mass = repr(float(self.rng.normal())) if self.rng.random() < 0.9 else "heavy"
        self.facts[name] = [mass, str(self.rng.choice(["p", "q", "r"], p=[0.45, 0.45, 0.1]))]

    def write_facts(self) -> None:
        lines = ["id,mass,kind,more"]
        for name, cells in self.facts.items():
            lines.append(",".join([name, *cells, str(self.rng.integers(2))]))
            lines += [f"g{g}/{name}/{u},{cells[0]},p,1" for g in range(3) for u in ("u1", "u2")]
        (self.root / "facts.csv").write_text("\n".join(lines) + "\n")

    def edit_facts(self) -> None:
        names = list(self.facts)
        for name in self.rng.choice(names, min(2, len(names)), replace=False):
            if self.rng.random() < 0.3:
                del self.facts[name]
            else:
                self.tell(str(name))
        self.write_facts()

    def edit_spec(self) -> None:
        edit = EDITS[int(self.rng.integers(len(EDITS)))]
        if edit in self.edits:
            self.edits.remove(edit)
        else:
            self.edits.append(edit)
        sections = copy.deepcopy(self.sections)
        for one in self.edits:
            sections = merged(sections, one)
        write_spec(self.root, **sections)
        try:
            load_spec(self.spec)
        except InvalidSpecError:  # the edit does not suit this specification
            self.edits.clear()
            write_spec(self.root, **self.sections)

    # --- the store ---

    def crash(self) -> None:
        """A build that is killed after its buckets, before its commit."""
        with pytest.MonkeyPatch.context() as patch:

            def killed(*_: Any, **__: Any) -> str:
                raise KeyboardInterrupt

            patch.setattr(commit_module, "publish_version", killed)
            with contextlib.suppress(KeyboardInterrupt, TrialShardsError):
                build(self.spec, self.store)

    def race(self) -> None:
        """A build during which another one, of a further file, is faster."""
        self.change()
        with pytest.MonkeyPatch.context() as patch:
            publish, todo = commit_module.publish_version, [1]

            def publishing(*args: Any, **more: Any) -> str:
                if todo:
                    todo.pop()
                    (self.create, self.change, self.delete)[int(self.rng.integers(3))]()
                    self.quietly(lambda: build(self.spec, self.store))
                return publish(*args, **more)

            patch.setattr(commit_module, "publish_version", publishing)
            self.quietly(lambda: build(self.spec, self.store))

    def patch(self) -> None:
        paths = {self.some() for _ in range(int(self.rng.integers(1, 3)))}
        self.quietly(lambda: patch_files(self.spec, self.store, sorted(paths)))

    def steps(self) -> None:
        """What an orchestrator does: a scan, buckets in any order and with changes in between."""

        def run() -> None:
            space = Workspace.open(self.spec, self.store)
            delta = space.delta(space.scan(), space.base())
            for bucket in self.rng.permutation(sorted({file.bucket for file in delta.read})):
                if self.rng.random() < 0.2:
                    self.change()
                space.build_bucket(delta, int(bucket))
            after, base = newest_version(space.store), space.base()
            delta = space.delta(space.catalog(), base)
            commit_version(space, Work(delta, space.staged_buckets(delta), base, after))

        self.quietly(run)

    def quietly(self, run: Callable[[], Any]) -> None:
        """Run what may be refused."""
        try:
            run()
        except (InvalidSpecError, CommitConflictError, TrialShardsError) as error:
            self.log.append(f"  {type(error).__name__}: {str(error)[:150]}")

    def tombstone(self) -> None:
        if not list_versions(self.store):
            return
        opened = Store(self.store)
        stones = [stone.id for stone in opened.manifest.tombstones]
        self.is_fresh = False
        if stones and self.rng.random() < 0.5:
            name = str(self.rng.choice(stones))
            self.log.append(f"  undo {name}")
            tombstone_trials(self.store, [name], undo=True)
        else:
            names = opened.cold("source").column(0).to_pylist()
            number = int(self.rng.integers(len(names)))
            trial = opened.index.id_of(number).partition("#")[0]
            some = {trial}
            if self.rng.random() < 0.5:  # all of a file with many
                same = [n for n, source in enumerate(names) if source == names[number]]
                some |= {opened.index.id_of(n).partition("#")[0] for n in same}
            self.log.append(f"  out {sorted(some)}")
            self.quietly(lambda: tombstone_trials(self.store, sorted(some), "by chance"))

    def compact(self) -> None:
        if list_versions(self.store):
            compact_store(self.store, force=True)

    def gc(self) -> None:
        if list_versions(self.store):
            removed = gc_store(self.store, keep=int(self.rng.integers(1, 3)))
            for version in removed.versions:
                self.published.pop(version, None)

    def tag(self) -> None:
        if list_versions(self.store):
            set_tag(self.store, "best", force=True)

    def lose(self) -> None:
        """Something of the store is gone, or cut short."""
        kind = str(self.rng.choice(["shards/*", "parts/*", "staging/*", "versions/*", "staging"]))
        found = sorted(self.store.glob(kind))
        if not found or (kind == "versions/*" and self.has_tombstones()):
            return
        lost = found[-1] if kind == "versions/*" else found[int(self.rng.integers(len(found)))]
        self.log.append(f"  {lost.relative_to(self.store)}")
        chunks = sorted(p for p in lost.rglob("[0r]*") if p.is_file())
        if kind == "shards/*" and chunks and self.rng.random() < 0.5:
            os.truncate(chunks[0], chunks[0].stat().st_size - 3)
        elif lost.is_dir():
            shutil.rmtree(lost)
        else:
            lost.unlink()
        self.published.clear()  # they are not what they were, and are not repaired

    def has_tombstones(self) -> bool:
        return bool(list_versions(self.store) and Store(self.store).manifest.tombstones)

    def refit(self) -> None:
        self.quietly(lambda: build(self.spec, self.store, refit=True))

    # --- the law ---

    def attempt(self) -> tuple[BuildReport | None, TrialShardsError | None]:
        try:
            return build(self.spec, self.store), None
        except TrialShardsError as error:
            return None, error

    def check(self) -> None:
        versions = list_versions(self.store)
        report, error = self.attempt()
        if error is not None:
            assert not isinstance(error, CommitConflictError)
            assert "Materialize" not in str(error), error
            self.log.append(f"  refused: {str(error)[:200]}")
            assert list_versions(self.store) == versions
            if not self.has_tombstones():
                with pytest.raises(type(error)):
                    build(self.spec, self.root / "clean")
                shutil.rmtree(self.root / "clean", ignore_errors=True)
            return
        self.is_fresh = self.is_fresh or report.published
        assert [str(problem) for problem in verify_store(self.store)] == []
        opened = Store(self.store)
        self.check_against_clean(opened)
        self.check_settled(opened)
        self.published[report.version] = (opened.fingerprint, batches_of(opened))

    def check_against_clean(self, opened: Store) -> None:
        clean = self.clean_folder(opened)
        fit = opened.folder / "fit.json"
        spec = clean / "dataset.yaml"
        stones = opened.manifest.tombstones
        fitted = {"fit": fit} if is_frozen(load_spec(spec)) or not self.is_fresh else {}
        build(spec, clean / "store", **fitted)
        other = Store(clean / "store")
        assert digests_of(opened) == digests_of(other)
        out = {stone.source for stone in stones}  # here they may be refused as a whole
        refused = [quarantine_of(store) for store in (opened, other)]
        ours, theirs = ({p: code for p, code in one.items() if p not in out} for one in refused)
        assert ours == theirs
        if not stones:
            assert opened.manifest.counts == other.manifest.counts
        if self.is_fresh:
            assert split_of(opened) == split_of(other)
            assert opened.fingerprint == other.fingerprint
            assert batches_of(opened) == batches_of(other)

    def clean_folder(self, opened: Store) -> Path:
        """Return a copy of the raw files without what was taken out by hand."""
        clean = self.root / "clean"
        shutil.rmtree(clean, ignore_errors=True)
        ignore = shutil.ignore_patterns("store", "clean")
        shutil.copytree(self.root, clean, ignore=ignore, symlinks=True)
        found = [path for path in (clean / "raw").rglob("*.csv") if path.is_symlink()]
        links = {path: path.readlink() for path in found}
        for path, target in links.items():
            path.unlink()
            path.symlink_to(clean / target.relative_to(self.root))
        many = load_spec(self.spec).source.holds_many
        for stone in opened.manifest.tombstones:
            for path in (clean / "raw").rglob("[!.]*.csv"):
                if many and stone.id.startswith(path.relative_to(clean / "raw").as_posix()[:-4]):
                    remove_unit(path, stone.id.rpartition("/")[2])
                elif not many and stone.id in (path.stem, f"{path.parent.name}/{path.stem}"):
                    path.unlink()
        for path, target in links.items():
            if target.exists() and not (clean / target.relative_to(self.root)).exists():
                path.unlink()  # it led to what was taken out
        return clean

    def check_settled(self, opened: Store) -> None:
        report = build(self.spec, self.store)
        assert not report.published
        transient = {r.source for r in report.refusals if r.mtime_ns is None}
        assert report.n_read <= len(transient)
        assert report.version == opened.version
        found = find_settled(self.spec, self.store)
        assert found is None or found.counts == report.counts

    def check_old_versions(self) -> None:
        for version, (fingerprint, batches) in self.published.items():
            if version in list_versions(self.store):
                old = Store(self.store, version)
                assert old.fingerprint == fingerprint
                assert batches_of(old) == batches

    def step(self) -> None:
        for _ in range(int(self.rng.integers(1, 4))):
            kind = FILE_STEPS if self.rng.random() < 0.6 else STORE_STEPS
            name = kind[int(self.rng.integers(len(kind)))]
            self.log.append(name)
            getattr(self, name)()
        self.log.append("check")
        self.check()


FILE_STEPS = [
    "create", "change", "delete", "restore", "rename", "touch", "cut", "spoil", "empty", "copy",
    "link", "unlink", "hide", "edit_facts", "edit_facts", "edit_spec", "edit_spec",
]  # fmt: skip
STORE_STEPS = [
    "crash", "race", "patch", "patch", "steps", "tombstone", "tombstone", "compact", "gc", "tag",
    "lose", "refit",
]  # fmt: skip


def remove_unit(path: Path, unit: str) -> None:
    lines = path.read_text().split("\n")
    left = [line for line in lines if not line.startswith(f"{unit},")]
    if len([line for line in left if line]) > 1:
        path.write_text("\n".join(left))
    else:
        path.unlink()


def digests_of(store: Store) -> dict[str, str]:
    cold = store.cold("digest", "id")
    return dict(zip(cold["id"].to_pylist(), cold["digest"].to_pylist(), strict=True))


def batches_of(store: Store) -> dict[str, list[Any]]:
    """Every tensor of one epoch of each split, as bytes."""
    found: dict[str, list[Any]] = {}
    for split in store.manifest.splits:
        if not store.index.n_windows[store.index.split == store.split_code(split)].sum():
            continue
        found[split] = [
            {k: v.numpy().tobytes() for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}
            for batch in TrialStream(store, split=split, batch_size=16, seed=3)
        ]
    return found


@pytest.mark.parametrize("sections", SPECS.values(), ids=SPECS)
def test_after_any_steps_a_build_is_what_a_clean_one_would_be(tmp_path: Path, sections):
    walk = Walk(tmp_path / "walk", sections, seed=1)
    try:
        walk.check()
        for _ in range(5):
            walk.step()
        walk.check_old_versions()
    except BaseException as error:
        error.add_note("\n".join(walk.log))
        raise
