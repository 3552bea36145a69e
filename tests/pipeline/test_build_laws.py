"""What a build promises whatever the batching, the history, the other splits, or a kill."""

from __future__ import annotations

import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killedbuild import Child
from trialfolders import (
    Columns,
    build_checked,
    copy_folder,
    delivered,
    ids_of,
    snapshot,
    split_of,
    write_spec,
    write_trial,
    write_trials,
)

from pipeline import commit as commit_module
from pipeline import workspace as workspace_module
from pipeline.buckets import BucketResult, build_bucket
from pipeline.build import build
from pipeline.catalog import bucket_of
from shards import Store
from shards.verify import verify_store
from shards.writer import list_versions

CLEANED = {
    "clean": {"missing": "interpolate", "limit": 3},
    "derive": {"v": "x - first(x)"},
    "channels": ["x", "y", "v"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folder")
    write_trials(root, 20, missing=0.1, seed=11)
    (root / "raw" / "g0" / "broken.csv").write_text("x,y\n1,two\n")
    return root


def same_rows(a: Store, b: Store) -> bool:
    left, right = delivered(a), delivered(b)
    assert list(left) == list(right)
    return all(rows.tobytes() == right[name].tobytes() for name, rows in left.items())


# --- law 5: the same store, bit for bit -------------------------------------------------------

ONE_WAY = {"n_workers": 1, "batch_bytes": 2**24}
OTHER_WAYS = {
    "four workers": {"n_workers": 4, "batch_bytes": 2**24},
    "a batch per file": {"n_workers": 1, "batch_bytes": 1},
    "small batches, four workers": {"n_workers": 4, "batch_bytes": 700},
}


def build_so(spec: Path, store: Path, n_workers: int, batch_bytes: int) -> Store:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.buckets.BATCH_BYTES", batch_bytes)
        return build_checked(spec, store, n_workers=n_workers)[1]


@pytest.fixture(scope="module", params=[(1, "trial"), (1, "train"), (4, "trial"), (4, "train")])
def built_one_way(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, str]]:
    """Sections of a specification, and the store of one worker and one batch."""
    buckets, scope = request.param
    sections = {
        "normalize": {"method": "zscore", "scope": scope},
        "shards": {"buckets": buckets, "target_bytes": 1500},
        **CLEANED,
    }
    store = tmp_path_factory.mktemp("one_way") / "store"
    build_so(write_spec(folder, **sections), store, **ONE_WAY)
    return sections, snapshot(store)


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_workers_and_batches_change_no_byte_of_the_store(
    way: str, built_one_way: tuple[dict[str, Any], dict[str, str]], folder: Path, tmp_path: Path
):
    sections, one = built_one_way
    build_so(write_spec(folder, **sections), tmp_path / "other", **OTHER_WAYS[way])
    assert len([name for name in one if name.endswith("values/c/0/0")]) > 3
    assert one == snapshot(tmp_path / "other")


def test_a_copied_folder_gives_the_same_store_and_with_other_times_the_same_data(
    folder: Path, tmp_path: Path
):
    spec = write_spec(folder, normalize={"method": "robust", "scope": "train"}, **CLEANED)
    _, here = build_checked(spec, tmp_path / "here")
    _, moved = build_checked(copy_folder(folder, tmp_path / "a"), tmp_path / "moved")
    assert snapshot(tmp_path / "here") == snapshot(tmp_path / "moved")
    touched = copy_folder(folder, tmp_path / "b", mtime_ns=1_234_567_890_123_456_789)
    _, later = build_checked(touched, tmp_path / "later")
    assert later.manifest.fingerprints == here.manifest.fingerprints == moved.manifest.fingerprints
    assert later.fingerprint == here.fingerprint
    assert later.manifest.shards == here.manifest.shards


PACKINGS = {
    "a shard per trial": {"target_bytes": 1},
    "several shards": {"target_bytes": 1200},
    "four buckets": {"buckets": 4},
    "64 buckets": {"buckets": 64, "target_bytes": 500},
}


@pytest.fixture(scope="module", params=["zscore", "robust"])
def plain(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Store]:
    """Sections of a specification, and the store with all trials in one shard."""
    sections = {"normalize": {"method": request.param, "scope": "train"}, **CLEANED}
    store = tmp_path_factory.mktemp("plain") / "store"
    _, opened = build_checked(write_spec(folder, **sections), store)
    assert len(opened.manifest.shards) == 1
    return sections, opened


@pytest.mark.parametrize("packing", PACKINGS)
def test_packing_changes_no_fingerprint_and_no_delivered_row(
    packing: str, plain: tuple[dict[str, Any], Store], folder: Path, tmp_path: Path
):
    sections, plain_store = plain
    spec = write_spec(folder, shards=PACKINGS[packing], **sections)
    _, packed = build_checked(spec, tmp_path / "packed")
    assert len(packed.manifest.shards) > 3
    assert packed.fingerprint == plain_store.fingerprint
    assert packed.manifest.fingerprints == plain_store.manifest.fingerprints
    assert packed.fit == plain_store.fit
    assert same_rows(plain_store, packed)
    assert packed.manifest.counts == plain_store.manifest.counts


def test_what_is_delivered_changes_the_fingerprint(folder: Path, tmp_path: Path):
    """The fingerprints above are equal because the data are, not because they say nothing."""
    specs: list[dict[str, Any]] = [
        {},
        {"normalize": {"scope": "train"}},
        {"normalize": {"method": "minmax"}},
        {"channels": ["y", "x"]},
        {"channels": ["x", {"name": "y", "unit": "m"}]},
        {"windows": {"length": 5}},
        {"windows": {"stride": 3}},
        {"windows": {"target": {"horizon": 2}}},
        {"windows": {"target": {"channels": ["y"]}}},
        {"clean": {"missing": "ffill"}},
        {"clean": {"then": "constant"}},
        {"split": {"seed": 1}},
        {"derive": {"y": "y + 1"}, "normalize": {"method": "none"}},
    ]
    found = set()
    for number, sections in enumerate(specs):
        report = build(write_spec(folder, **sections), tmp_path / str(number))
        found.add(Store(report.store).fingerprint)
    assert len(found) == len(specs)


# --- law 2: nothing of val and test reaches train ---------------------------------------------

SPLIT = {
    "method": "attribute",
    "attribute": "group",
    "names": {"g0": "train", "g1": "val", "g2": "test"},
}
TARGETS: dict[str, dict[str, Any]] = {
    "forecast": {},
    "per_step": {"windows": {"target": {"kind": "per_step", "columns": ["y"], "channels": None}}},
    "value": {
        "windows": {
            "target": {
                "kind": "per_trial", "attribute": "load", "task": "value", "channels": None,
            }
        }
    },
}  # fmt: skip


def split_folder(root: Path) -> dict[str, Columns]:
    trials = write_trials(root, 15, missing=0.1, seed=7)
    for number, (name, columns) in enumerate(trials.items()):
        write_trial(root, name, labelled(columns, str(number * 1.5)))
    return trials


def labelled(columns: Columns, load: str) -> dict[str, Any]:
    return {**columns, "load": [load] * len(columns["x"])}


def shift_test(root: Path, trials: dict[str, Columns]) -> None:
    for name, columns in trials.items():
        if name.startswith("g2"):
            wild = {key: column * 1e6 - 5e9 for key, column in columns.items()}
            write_trial(root, name, labelled(wild, "1e7"))


def remove_val(root: Path, trials: dict[str, Columns]) -> None:
    shutil.rmtree(root / "raw" / "g1")


def add_test(root: Path, trials: dict[str, Columns]) -> None:
    for name in ("g2/aaa", "g2/zzz", "g1/b"):  # before, behind and among the others
        write_trial(root, name, labelled({"x": np.full(50, -1e8), "y": np.full(50, 1e8)}, "-9"))


def empty_test(root: Path, trials: dict[str, Columns]) -> None:
    for name in trials:
        if name.startswith("g2"):
            hollow = {key: np.full(9, np.nan) for key in ("x", "y")}
            write_trial(root, name, labelled(hollow, "0"))


def break_test(root: Path, trials: dict[str, Columns]) -> None:
    (root / "raw" / "g2" / "t02.csv").write_bytes(b"\xff\xfe")


CHANGES = [shift_test, remove_val, add_test, empty_test, break_test]


@pytest.fixture(scope="module")
def built_before(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """For each method and target one folder with its store, to be copied, and its trials."""

    @cache
    def made(method: str, target: str) -> tuple[Path, dict[str, Columns]]:
        root = tmp_path_factory.mktemp("before")
        trials = split_folder(root)
        spec = write_spec(
            root,
            channels=["x"] if target == "per_step" else ["x", "y"],
            source={"trial_id": r"(?P<group>g\d)/\w+"},
            split=SPLIT,
            attributes={"load": {"column": "load"}},
            normalize={"method": method, "scope": "train"},
            max_quarantined=0.5,
            **TARGETS[target],
        )
        build_checked(spec, root / "store")
        return root, trials

    return made


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method", ["zscore", "minmax", "robust"])
def test_train_does_not_know_what_the_other_splits_hold(
    method: str, target: str, change: Any, built_before: Any, tmp_path: Path
):
    root, trials = built_before(method, target)
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    spec = tmp_path / "dataset.yaml"
    before = Store(tmp_path / "store")
    rows_before = delivered(before)
    change(tmp_path, trials)
    _, after = build_checked(spec, tmp_path / "store")
    assert after.version == "v0002"
    assert after.fit == before.fit
    assert after.manifest.fingerprints["train"] == before.manifest.fingerprints["train"]
    train = [name for name, side in split_of(after).items() if side == "train"]
    assert train == [name for name, side in split_of(before).items() if side == "train"]
    rows_after = delivered(after)
    assert all(rows_after[name].tobytes() == rows_before[name].tobytes() for name in train)


def test_train_does_know_what_train_holds(tmp_path: Path):
    trials = split_folder(tmp_path)
    spec = write_spec(
        tmp_path,
        source={"trial_id": r"(?P<group>g\d)/\w+"},
        split=SPLIT,
        normalize={"method": "zscore", "scope": "train"},
    )
    _, before = build_checked(spec, tmp_path / "store")
    trials["g0/t03"]["x"][0] = 1e3
    write_trial(tmp_path, "g0/t03", labelled(trials["g0/t03"], "1"))
    _, after = build_checked(spec, tmp_path / "store")
    assert after.fit != before.fit
    fingerprints = before.manifest.fingerprints, after.manifest.fingerprints
    assert all(fingerprints[0][split] != fingerprints[1][split] for split in ("train", "test"))


def test_classes_are_those_of_train(tmp_path: Path):
    for name, label in {"g0/a": "run", "g0/b": "walk", "g2/c": "run", "g2/d": "climb"}.items():
        columns = {"x": [1.0, 2.0], "y": [3.0, 4.0]}
        write_trial(tmp_path, name, labelled({k: np.array(v) for k, v in columns.items()}, label))
    target = {"kind": "per_trial", "attribute": "load", "channels": None}
    spec = write_spec(
        tmp_path,
        source={"trial_id": r"(?P<group>g\d)/\w+"},
        split=SPLIT,
        attributes={"load": {"column": "load"}},
        windows={"target": target},
    )
    _, before = build_checked(spec, tmp_path / "store")
    # A class that no train trial has gets no code: nothing can have learned it.
    assert before.manifest.target.classes == ("run", "walk")
    np.testing.assert_array_equal(before.index.label, [0, 1, 0, np.nan])
    assert ids_of(before) == ["g0/a", "g0/b", "g2/c", "g2/d"]
    (tmp_path / "raw" / "g2" / "d.csv").unlink()
    _, after = build_checked(spec, tmp_path / "store")
    assert after.version == "v0002"
    assert after.manifest.target.classes == before.manifest.target.classes
    assert after.manifest.fingerprints["train"] == before.manifest.fingerprints["train"]


def test_new_trials_move_no_old_one_and_keep_its_digest(tmp_path: Path):
    write_trials(tmp_path, 20, seed=1)
    spec = write_spec(tmp_path)
    _, before = build_checked(spec, tmp_path / "store")
    for number in range(10):
        columns = {"x": np.arange(5.0) + number, "y": np.arange(5.0) * number}
        write_trial(tmp_path, f"g1/new{number}", columns)
    _, after = build_checked(spec, tmp_path / "store")
    sides = split_of(after)
    assert all(sides[name] == side for name, side in split_of(before).items())
    digests = [
        {row["id"]: row["digest"] for row in store.cold("id", "digest").to_pylist()}
        for store in (before, after)
    ]
    assert len(digests[1]) == len(digests[0]) + 10
    assert digests[0].items() <= digests[1].items()


# --- killed builds ----------------------------------------------------------------------------


def run_to(spec: Path, store: Path, stop: int) -> int:
    child = Child(spec, store, stop)
    child.wait()
    return child.code


def staged_in(store: Path) -> list[Path]:
    return sorted((store / "staging").rglob("[0-9]*.arrow"))


def finish(
    spec: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Store, list[BucketResult]]:
    """Build, and return what came of the buckets that had files to read."""
    results: list[BucketResult] = []

    def watched(*args: Any, **kwargs: Any) -> BucketResult:
        results.append(build_bucket(*args, **kwargs))
        return results[-1]

    monkeypatch.setattr(workspace_module, "build_bucket", watched)
    report, opened = build_checked(spec, store)
    assert report.n_read == sum(len(result.files) for result in results)
    return opened, results


@pytest.fixture(scope="module")
def bucketed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path, Store]:
    """A spec with 8 buckets, a store with an older version, and a clean build of today's."""
    root = tmp_path_factory.mktemp("bucketed")
    trials = write_trials(root, 40, missing=0.1, seed=5)
    (root / "raw" / "g0" / "broken.csv").write_text("x,y\n1,two\n")
    spec = write_spec(
        root,
        shards={"buckets": 8, "target_bytes": 6000},
        normalize={"method": "zscore", "scope": "train"},
        **CLEANED,
    )
    build_checked(spec, root / "store_old")
    for name in ("g1/t04", "g2/t08"):
        trials[name]["x"] += 1
        write_trial(root, name, trials[name])
    (root / "raw" / "g0" / "t09.csv").unlink()
    _, clean = build_checked(spec, root / "store_clean")
    return root, spec, root / "store_old", clean


def _interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def staged(
    bucketed: tuple[Path, Path, Path, Store], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A store in which all 8 buckets are staged and nothing is committed; to be copied."""
    store = tmp_path_factory.mktemp("staged") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commit_module, "draft_version", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(bucketed[1], store)
    assert list_versions(store) == []
    assert len(staged_in(store)) == 8
    return store


@pytest.mark.skipif(
    not os.environ.get("SOAK"),
    reason="SOAK=1; tests/crash kills at each change, tests/shards/test_shards_killed.py 20 times",
)
def test_ten_killed_builds_leave_what_was_readable_and_are_finished_by_the_next(
    bucketed: tuple[Path, Path, Path, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    _, spec, old, clean = bucketed
    stores = [tmp_path / f"killed{i}" for i in range(10)]
    for store in (tmp_path / "whole_old", *stores[::2]):
        shutil.copytree(old, store)
    published = count_operations(spec, [tmp_path / "whole_old", tmp_path / "whole"])
    rng = np.random.default_rng(0)
    # The last pair dies before the rename that publishes, and after it.
    moments = [int(rng.integers(1, published[i % 2])) for i in range(8)]
    moments += [published[0], published[1] + 1]
    n_reused = 0
    with ThreadPoolExecutor(2) as pool:
        codes = [pool.submit(run_to, spec, *pair) for pair in zip(stores, moments, strict=True)]
        for i, (store, code) in enumerate(zip(stores, codes, strict=True)):
            assert code.result() == -signal.SIGKILL
            had_old = i % 2 == 0
            versions = list_versions(store)
            assert len(versions) == had_old + (i == 9)
            for version in versions:
                assert verify_store(store, version) == []
            if had_old:
                assert Store(store).fingerprint == Store(old).fingerprint != clean.fingerprint
            n_staged = len(staged_in(store))
            opened, results = finish(spec, store, monkeypatch)
            reused = sum(result.reused for result in results)
            if had_old:  # what did not change is taken over, and what went is not looked for
                read = sorted(file.path for result in results for file in result.files)
                assert read == ["raw/g1/t04.csv", "raw/g2/t08.csv"]
            elif versions:  # all was done but to say so
                assert results == []
            else:
                assert (len(results), reused) == (8, n_staged)
            n_reused += reused
            assert opened.fingerprint == clean.fingerprint
            assert opened.fit == clean.fit
            assert same_rows(opened, clean)
    assert n_reused > 8


def count_operations(spec: Path, stores: list[Path]) -> list[int]:
    """Build in processes that are left alive; return how many operations each had published by."""
    children = [Child(spec, store, -1) for store in stores]
    counts = [child.wait() for child in children]
    assert [child.code for child in children] == [0, 0]
    totals, published = map(list, zip(*counts, strict=True))
    assert all(0 < at < total for at, total in zip(published, totals, strict=True))
    assert totals[1] > 150
    return published


def test_a_file_changed_between_a_kill_and_the_next_build_is_not_stale(
    bucketed: tuple[Path, Path, Path, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root, _, _, _ = bucketed
    spec = copy_folder(root, tmp_path / "copy")
    store = tmp_path / "store"
    seen: list[int] = []

    def stop(*args: Any, **kwargs: Any) -> BucketResult:
        if len(seen) == 6:
            raise KeyboardInterrupt
        seen.append(len(args[1]))
        return build_bucket(*args, **kwargs)

    monkeypatch.setattr(workspace_module, "build_bucket", stop)
    with pytest.raises(KeyboardInterrupt):
        build(spec, store)
    assert len(staged_in(store)) == 6
    changed, removed = two_files_of_staged_buckets(tmp_path / "copy")
    text = changed.read_text()
    lines = text.split("\n")
    lines[1] = "7" * len(lines[1].split(",")[0]) + "," + lines[1].split(",")[1]
    times = changed.stat().st_mtime_ns
    changed.write_text("\n".join(lines))
    os.utime(changed, ns=(times + 1, times + 1))  # the same size, a nanosecond later
    assert len(changed.read_text()) == len(text)
    removed.unlink()
    opened, results = finish(spec, store, monkeypatch)
    assert [len(results), sum(result.reused for result in results)] == [8, 4]
    _, clean = build_checked(spec, tmp_path / "clean")
    assert opened.fingerprint == clean.fingerprint
    assert same_rows(opened, clean)
    name = changed.relative_to(tmp_path / "copy" / "raw").with_suffix("").as_posix()
    assert opened.cold("max")["max"][opened.trial_number(name)].as_py()[0] > 7e6
    assert removed.stem not in {trial_id[-3:] for trial_id in ids_of(opened)}


def two_files_of_staged_buckets(root: Path) -> tuple[Path, Path]:
    """Return files of two different buckets among the first six of eight."""
    found: dict[int, Path] = {}
    for path in sorted((root / "raw").rglob("t*.csv")):
        rows = path.read_text().splitlines()
        if len(rows) > 5 and len(rows[1].split(",")[0]) > 10:
            found.setdefault(bucket_of(path.relative_to(root).as_posix(), 8), path)
    first, second = sorted(bucket for bucket in found if bucket < 6)[:2]
    return found[first], found[second]


@pytest.mark.parametrize(
    "sections",
    [{"clean": {"missing": "ffill"}}, {"channels": ["y", "x", "v"]}, {"shards": {"buckets": 4}}],
    ids=str,
)
def test_staged_buckets_of_another_specification_are_not_used(
    sections: dict[str, Any], bucketed: tuple[Path, Path, Path, Store], staged: Path, tmp_path: Path
):
    root = bucketed[0]
    store = shutil.copytree(staged, tmp_path / "store")
    copy_folder(root, tmp_path / "copy")
    assert len(staged_in(store)) == 8
    base = {
        "shards": {"buckets": 8, "target_bytes": 6000},
        "normalize": {"method": "zscore", "scope": "train"},
        **CLEANED,
    }
    other = write_spec(tmp_path / "copy", **{**base, **sections})
    _, opened = build_checked(other, store)
    _, alone = build_checked(other, tmp_path / "alone")
    assert opened.fingerprint == alone.fingerprint
    assert same_rows(opened, alone)


def test_a_reused_bucket_gives_the_bytes_of_a_fresh_one(
    bucketed: tuple[Path, Path, Path, Store], staged: Path, tmp_path: Path
):
    _, spec, _, clean = bucketed
    store = shutil.copytree(staged, tmp_path / "store")
    build_checked(spec, store)
    assert snapshot(store / "versions" / "v0001") == snapshot(clean.folder)


@pytest.mark.parametrize("content", [b"", b"PAR1 and not much more"])
def test_a_damaged_staged_bucket_is_built_again(
    content: bytes, bucketed: tuple[Path, Path, Path, Store], staged: Path, tmp_path: Path
):
    _, spec, _, clean = bucketed
    store = shutil.copytree(staged, tmp_path / "store")
    staged_in(store)[3].write_bytes(content)
    _, opened = build_checked(spec, store)
    assert opened.fingerprint == clean.fingerprint


def test_a_staged_bucket_whose_shard_is_gone_is_built_again(
    bucketed: tuple[Path, Path, Path, Store],
    staged: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    _, spec, _, clean = bucketed
    store = shutil.copytree(staged, tmp_path / "store")
    shutil.rmtree(min((store / "shards").iterdir()))
    opened, results = finish(spec, store, monkeypatch)
    assert [len(results), sum(result.reused for result in results)] == [8, 7]
    assert opened.fingerprint == clean.fingerprint
