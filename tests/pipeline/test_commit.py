"""Steps that run alone, in any order, on any day, publish what one build would: or nothing."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from trialfolders import (
    check_conservation,
    csv_text,
    delivered,
    ids_of,
    quarantine_of,
    snapshot,
    split_of,
    write_spec,
    write_trial,
    write_trials,
)

from pipeline import commit as commit_module
from pipeline import draft as draft_module
from pipeline.audit import Finding
from pipeline.build import build
from pipeline.catalog import bucket_of
from pipeline.commit import Commit, Work, commit_version
from pipeline.delta import Changes, Delta
from pipeline.ledger import CatalogNotFoundError, listing_digest
from pipeline.versions import STAGES
from pipeline.workspace import BucketsMissingError, Workspace, files_of
from shards import Store
from shards.errors import CommitConflictError, TooManyQuarantinedError
from shards.tombstone import tombstone_trials
from shards.verify import verify_store
from shards.writer import list_versions, newest_version

BUCKETS: dict[str, Any] = {"shards": {"buckets": 4}, "max_quarantined": 0.5}
TRIAL = {"x": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "y": [2.0, 1.0, 4.0, 3.0, 6.0, 5.0]}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder that nobody changes, and the store that one build makes of it."""
    root = tmp_path_factory.mktemp("shared")
    write_trials(root, 14, missing=0.1, seed=3)
    (root / "raw" / "g0" / "broken.csv").write_text("x,y\n1,two\n")
    spec = write_spec(root, **BUCKETS, normalize={"scope": "train"})
    build(spec, root / "store_once")
    return spec, snapshot(root / "store_once")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_trials(tmp_path, 12, seed=5)
    write_spec(tmp_path, **BUCKETS)
    return tmp_path


def open_space(root: Path) -> Workspace:
    return Workspace.open(root / "dataset.yaml", root / "store")


def delta_now(space: Workspace) -> Delta:
    """Return what of the catalog on disk the newest version does not hold."""
    return space.delta(space.catalog(), space.base())


def build_all(space: Workspace, buckets: Iterable[int] = range(4)) -> list[int]:
    """Build buckets of the catalog on disk; return how many files of each were read for it."""
    delta, n_read = delta_now(space), []
    for bucket in buckets:
        found = space.build_bucket(delta, bucket)
        n_read.append(0 if found.reused else len(found.files))
    return n_read


def work_now(space: Workspace) -> Work:
    after, base = newest_version(space.store), space.base()
    delta = space.delta(space.catalog(), base)
    return Work(delta, space.staged_buckets(delta), base, after)


def commit(space: Workspace) -> Commit:
    return commit_version(space, work_now(space))


def changes_of(space: Workspace) -> Changes:
    """Scan, and return what differs from the newest version."""
    return space.delta(space.scan(), space.base()).changes


def step_by_step(root: Path) -> Commit:
    space = open_space(root)
    space.scan()
    build_all(space)
    return commit(space)


def change_spec(root: Path, **sections: Any) -> None:
    write_spec(root, **{**BUCKETS, **sections})


def one_file_of(space: Workspace, bucket: int) -> Path:
    return space.root / files_of(space.catalog(), bucket)[0].path


# --- the same as one build ------------------------------------------------------------------------


@settings(max_examples=6)
@given(
    order=st.permutations(range(4)),
    again=st.lists(st.integers(0, 3), max_size=3),
    lost=st.sets(st.integers(0, 3), max_size=2),
)
def test_buckets_in_any_order_again_and_in_other_runs_give_the_store_of_one_build(
    tmp_path_factory: pytest.TempPathFactory, shared, order, again, lost
):
    spec, wanted = shared
    store = tmp_path_factory.mktemp("any") / "store"
    Workspace.open(spec, store).scan()
    for bucket in [*order, *again]:
        space = Workspace.open(spec, store)  # a run of its own
        space.build_bucket(delta_now(space), bucket, n_workers=1 + bucket % 2)
    for bucket in lost:  # a disk that was cleaned, and the bucket built again
        (Workspace.open(spec, store).staging(4) / f"{bucket}.arrow").unlink()
    space = Workspace.open(spec, store)
    sizes = [len(files_of(space.catalog(), bucket)) for bucket in range(4)]
    assert build_all(space) == [n if b in lost else 0 for b, n in enumerate(sizes)]
    outcome = commit(space)
    assert (outcome.version, outcome.published) == ("v0001", True)
    assert snapshot(store) == wanted
    assert build_all(space) == [0] * 4
    assert (commit(space).version, commit(space).published) == ("v0001", False)
    assert snapshot(store) == wanted


PROCESS = """
import sys
from pipeline.workspace import Workspace
space = Workspace.open(*sys.argv[1:3])
for bucket in sys.argv[3:]:
    space.build_bucket(space.delta(space.catalog(), space.base()), int(bucket))
"""


def test_processes_side_by_side_give_the_store_of_one_build(tmp_path: Path, shared):
    spec, wanted = shared
    store = tmp_path / "store"
    Workspace.open(spec, store).scan()
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(spec), str(store), *buckets])
        for buckets in ("0123", "3210")  # all buckets twice, at the same time
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    commit(Workspace.open(spec, store))
    assert snapshot(store) == wanted


def test_a_build_after_the_steps_changes_nothing(tmp_path: Path, shared):
    spec, wanted = shared
    store = tmp_path / "store"
    space = Workspace.open(spec, store)
    space.scan()
    build_all(space)
    commit(space)
    assert not build(spec, store).published
    assert snapshot(store) == wanted


@pytest.fixture(scope="module")
def optional(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    """The same trials in one and in eight buckets; two attributes that only some of them have."""
    root = tmp_path_factory.mktemp("optional")
    for n in range(12):
        write_trial(root, [f"t{n}", f"s{n}_t{n}", f"e{n}_t{n}"][n % 3], TRIAL)
    source = {"trial_id": r"((?P<subject>s\d+)_)?((?P<session>e\d+)_)?(?P<id>t\d+)"}
    for buckets in (1, 8):
        spec = write_spec(root, source=source, shards={"buckets": buckets})
        build(spec, root / f"store{buckets}")
    return Store(root / "store1"), Store(root / "store8")


def test_attributes_that_only_some_trials_have_merge_over_buckets(optional: tuple[Store, Store]):
    one, many = optional
    assert one.fingerprint == many.fingerprint
    assert one.cold("id", "digest").equals(many.cold("id", "digest"))
    texts = []
    for store in optional:
        rows = store.cold("attributes")["attributes"].to_pylist()
        texts.append([{k: v for k, v in (row or {}).items() if v is not None} for row in rows])
    assert texts[0] == texts[1]
    assert {"subject": "s1"} in texts[0]
    assert {"session": "e2"} in texts[0]


def test_absent_attributes_look_the_same_with_any_number_of_buckets(
    optional: tuple[Store, Store],
):
    one, many = (store.cold("attributes")["attributes"].to_pylist() for store in optional)
    assert one == many


def test_other_bucket_counts_give_the_same_data(tmp_path: Path, shared):
    spec, _ = shared
    store = Store(spec.parent / "store_once")
    for buckets in (1, 8):
        document = yaml.safe_load(spec.read_text())
        document["shards"] = {"buckets": buckets}
        other = spec.parent / f"dataset{buckets}.yaml"
        other.write_text(yaml.safe_dump(document))
        build(other, tmp_path / str(buckets))
        assert Store(tmp_path / str(buckets)).fingerprint == store.fingerprint


# --- what is not ready ----------------------------------------------------------------------------


def named(error: BaseException) -> tuple[set[str], set[str]]:
    """Return the buckets that a message calls missing, and stale."""
    parts = re.search(r"not ready: (.*?)\. Nothing", str(error))
    assert parts is not None
    found: dict[str, set[str]] = {"not built": set(), "other files": set()}
    for part in parts[1].split("; "):
        (kind,) = [kind for kind in found if kind in part]
        found[kind] |= set(re.findall(r"\bb\d+\b", part))
    return found["not built"], found["other files"]


@settings(max_examples=8)
@given(missing=st.sets(st.integers(0, 3)), stale=st.sets(st.integers(0, 3)))
def test_exactly_the_buckets_that_do_not_fit_are_named(
    tmp_path_factory: pytest.TempPathFactory, missing: set[int], stale: set[int]
):
    root = tmp_path_factory.mktemp("named")
    write_trials(root, 12, seed=5)
    write_spec(root, **BUCKETS)
    space = open_space(root)
    space.scan()
    build_all(space)
    for bucket in missing:
        (space.staging(4) / f"{bucket}.arrow").unlink()
    stale -= missing
    for bucket in stale:
        touch_later(one_file_of(space, bucket))
    delta = space.delta(space.scan(), None)
    if not missing | stale:
        assert len(space.staged_buckets(delta)) == 4
        return
    with pytest.raises(BucketsMissingError) as caught:
        space.staged_buckets(delta)
    assert named(caught.value) == ({f"b{b}" for b in missing}, {f"b{b}" for b in stale})
    again = ",".join(f"b{b}" for b in sorted(missing | stale))
    assert f"Materialize the partitions {again} of trial_shards" in str(caught.value)
    assert not list_versions(space.store)
    build_all(space, sorted(missing | stale))
    assert commit(space).published


def touch_later(path: Path, seconds: int = 5) -> None:
    later = path.stat().st_mtime_ns + seconds * 10**9
    os.utime(path, ns=(later, later))


def test_without_a_catalog_the_steps_say_what_to_do(root: Path):
    space = open_space(root)
    with pytest.raises(CatalogNotFoundError, match="Materialize the asset 'catalog' first"):
        space.catalog()


# --- files that move between the steps ------------------------------------------------------------


def broken_file(root: Path) -> Path:
    path = root / "raw" / "g0" / "broken.csv"
    path.write_text("x,y\n1,two\n")
    return path


def test_a_file_mended_after_its_bucket_was_built_is_read_again_without_a_new_scan(root: Path):
    path = broken_file(root)
    space = open_space(root)
    space.scan()
    build_all(space)
    path.write_text(csv_text(TRIAL))
    bucket = bucket_of("raw/g0/broken.csv", 4)
    n_files = len(files_of(space.catalog(), bucket))
    assert build_all(space) == [n_files if b == bucket else 0 for b in range(4)]
    outcome = commit(space)
    assert (outcome.version, outcome.counts["quarantined"]) == ("v0001", 0)
    store = Store(space.store)
    assert "g0/broken" in ids_of(store)
    check_conservation(store)


def test_a_file_mended_after_its_refusal_was_committed_comes_with_the_next_scan(root: Path):
    path = broken_file(root)
    space = open_space(root)
    space.scan()
    build_all(space)
    assert commit(space).counts["quarantined"] == 1
    path.write_text(csv_text(TRIAL))
    assert build_all(space) == [0] * 4  # by the catalog, the version holds everything
    assert not commit(space).published
    assert changes_of(space).changed == ("raw/g0/broken.csv",)
    bucket = bucket_of("raw/g0/broken.csv", 4)
    assert build_all(space) == [int(b == bucket) for b in range(4)]
    outcome = commit(space)
    assert (outcome.version, outcome.counts["quarantined"]) == ("v0002", 0)
    store = Store(space.store)
    assert "g0/broken" in ids_of(store)
    check_conservation(store)


def test_a_scan_after_a_mended_file_was_committed_publishes_nothing_new(root: Path):
    path = broken_file(root)
    space = open_space(root)
    space.scan()
    path.write_text(csv_text(TRIAL))
    build_all(space)
    commit(space)
    assert Store(space.store).manifest.counts["source_bytes"] == sum(
        p.stat().st_size for p in root.rglob("*.csv")
    )
    assert not step_by_step(root).published


def test_a_mended_file_that_is_committed_is_no_change_any_more(root: Path):
    path = broken_file(root)
    space = open_space(root)
    space.scan()
    path.write_text(csv_text(TRIAL))
    build_all(space)
    commit(space)
    assert not changes_of(space)


def test_a_file_touched_after_its_bucket_is_committed_as_it_was_read(root: Path):
    space = open_space(root)
    space.scan()
    build_all(space)
    before = delivered_of(commit(space), space)
    path = one_file_of(space, 2)
    path.write_text(csv_text(TRIAL))
    touch_later(path)
    assert not commit(space).published
    assert delivered_of(commit(space), space) == before


def delivered_of(outcome: Commit, space: Workspace) -> dict[str, bytes]:
    store = Store(space.store, outcome.version)
    return {name: rows.tobytes() for name, rows in delivered(store).items()}


def test_a_file_that_is_new_since_the_catalog_comes_with_the_next_scan(root: Path):
    space = open_space(root)
    space.scan()
    write_trial(root, "g0/new", TRIAL)
    build_all(space)
    assert commit(space).published
    assert "g0/new" not in ids_of(Store(space.store))
    assert changes_of(space).new == ("raw/g0/new.csv",)
    bucket = bucket_of("raw/g0/new.csv", 4)
    with pytest.raises(BucketsMissingError, match=f"b{bucket} built from other files"):
        commit(space)
    assert build_all(space) == [int(b == bucket) for b in range(4)]
    assert commit(space).version == "v0002"
    assert "g0/new" in ids_of(Store(space.store))
    assert not changes_of(space)


def test_a_file_deleted_after_the_catalog_is_refused_and_leaves_with_the_next_scan(root: Path):
    space = open_space(root)
    found = space.scan()
    file = files_of(found, 1)[0]
    (root / file.path).unlink()
    build_all(space)
    commit(space)
    store = Store(space.store)
    assert quarantine_of(store) == {file.path: "unreadable"}
    check_conservation(store)
    assert not changes_of(space)  # no trial went with it
    assert build_all(space) == [0] * 4
    assert commit(space).version == "v0002"
    store = Store(space.store)
    assert quarantine_of(store) == {}
    check_conservation(store)
    assert not commit(space).published


def test_a_deleted_file_leaves_with_the_next_scan_and_nothing_is_read_for_it(root: Path):
    step_by_step(root)
    space = open_space(root)
    path = one_file_of(space, 1)
    path.unlink()
    assert changes_of(space).gone == (path.relative_to(root).as_posix(),)
    assert build_all(space) == [0] * 4
    shutil.rmtree(space.staging(4))  # nothing of it is needed
    assert commit(space).version == "v0002"
    store = Store(space.store)
    assert len(ids_of(store)) == 11
    assert path.stem not in {name[-3:] for name in ids_of(store)}
    check_conservation(store)
    assert verify_store(space.store) == []
    assert not changes_of(space)


def test_a_file_that_comes_back_after_its_bucket_was_built_is_read(root: Path):
    space = open_space(root)
    files = files_of(space.scan(), 1)
    hidden = (root / files[0].path).rename(root / "elsewhere")
    build_all(space)
    hidden.rename(root / files[0].path)  # same size, same time
    assert build_all(space) == [0, len(files), 0, 0]
    assert commit(space).counts["quarantined"] == 0


def test_a_file_that_comes_back_after_its_refusal_was_committed_is_read(root: Path):
    space = open_space(root)
    file = files_of(space.scan(), 1)[0]
    hidden = (root / file.path).rename(root / "elsewhere")
    build_all(space)
    assert commit(space).counts["quarantined"] == 1
    hidden.rename(root / file.path)  # same size, same time: the refusal says nothing of those
    assert build_all(space) == [0, 1, 0, 0]
    assert commit(space).counts["quarantined"] == 0


def test_an_older_file_put_back_is_not_covered_by_the_newer_one(root: Path):
    """`cp -p` from a backup: the new catalog knows the older time, the bucket the newer one."""
    space = open_space(root)
    space.scan()
    path = one_file_of(space, 0)
    backup = (path.read_bytes(), path.stat().st_mtime_ns)
    path.write_text(csv_text(TRIAL))
    touch_later(path)
    step_by_step(root)
    path.write_bytes(backup[0])
    os.utime(path, ns=(backup[1], backup[1]))
    assert changes_of(space).changed == (path.relative_to(root).as_posix(),)
    with pytest.raises(BucketsMissingError, match="b0 built from other files"):
        commit(space)


# --- nothing is published where a check fails -----------------------------------------------------


def failed(outcome: Commit) -> set[str]:
    return {finding.name for finding in outcome.findings if not finding.passed}


def prepared(root: Path) -> tuple[Workspace, dict[str, str]]:
    """Commit a version, change a file, build its bucket: ready for the next one."""
    step_by_step(root)
    before = snapshot(root / "store" / "versions")
    space = open_space(root)
    path = one_file_of(space, 0)
    path.write_text(csv_text(TRIAL))
    touch_later(path)
    space.scan()
    build_all(space)
    return space, before


def assert_untouched(space: Workspace, before: dict[str, str]) -> None:
    assert snapshot(space.store / "versions") == before
    assert newest_version(space.store) == "v0001"
    assert verify_store(space.store) == []
    assert delta_now(space).changes  # the last commit is still the first one


def test_too_many_refused_files_publish_nothing(root: Path):
    space, before = prepared(root)
    for n in range(20):
        (root / "raw" / f"bad{n}.csv").write_text("x,y\n1,two\n")
    space.scan()
    build_all(space)
    outcome = commit(space)
    assert outcome.version is None
    assert {finding.name: finding.passed for finding in outcome.findings} == {
        "quarantine_share": False,
        "conservation": True,
        "ids_unique": True,
        "splits_disjoint": True,
    }
    assert len(outcome.refusals) == 20
    assert_untouched(space, before)
    with pytest.raises(TooManyQuarantinedError, match="max_quarantined"):
        build(root / "dataset.yaml", space.store)
    assert_untouched(space, before)


def test_too_many_refused_files_are_told_even_where_the_others_make_no_draft(tmp_path: Path):
    """All files of one class are broken: that is what to mend, and not the target."""
    for n in range(6):
        write_trial(tmp_path, f"a/t{n}", TRIAL)
        path = write_trial(tmp_path, f"b/t{n}", TRIAL)
        path.write_text("x,y\n1,two\n")
    spec = write_spec(
        tmp_path,
        source={"trial_id": r"(?P<kind>\w)/t\d+"},
        split={"method": "exact", "fractions": {"train": 1.0}},
        windows={"target": {"kind": "per_trial", "attribute": "kind", "channels": None}},
    )
    with pytest.raises(TooManyQuarantinedError, match="6 of 12 files were refused"):
        build(spec, tmp_path / "store")


def test_a_lost_bucket_publishes_nothing(root: Path):
    space, before = prepared(root)
    work = work_now(space)
    assert len(work.results) == 1
    outcome = commit_version(space, dataclasses.replace(work, results=()))
    assert (outcome.version, failed(outcome)) == (None, {"conservation"})
    assert_untouched(space, before)


def test_a_bucket_given_twice_publishes_nothing(root: Path):
    space, before = prepared(root)
    work = work_now(space)
    outcome = commit_version(space, dataclasses.replace(work, results=[*work.results] * 2))
    assert outcome.version is None
    assert "ids_unique" in failed(outcome)
    assert_untouched(space, before)


def test_a_torn_group_publishes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch):
    change_spec(
        root,
        source={"trial_id": r"(?P<group>g\d)/t\d+"},
        split={"by": "group", "method": "exact", "fractions": {"train": 0.5, "test": 0.5}},
    )
    space, before = prepared(root)
    monkeypatch.setattr(
        draft_module,
        "assign_splits",
        lambda ids, *_, **__: [("train", "test")[n % 2] for n in range(len(ids))],
    )
    outcome = commit(space)
    assert (outcome.version, failed(outcome)) == (None, {"splits_disjoint"})
    assert_untouched(space, before)


def test_any_failed_finding_publishes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch):
    space, before = prepared(root)
    finding = Finding("other", False, "no", blocking=True)
    monkeypatch.setattr(commit_module, "audit_draft", lambda *_: (finding,))
    assert commit(space).version is None
    assert_untouched(space, before)


def overtaken(root: Path, *, changed: bool = False, **sections: Any) -> tuple[Workspace, Work]:
    """Prepare a commit to an empty store, and let somebody else commit meanwhile."""
    space = open_space(root)
    space.scan()
    build_all(space)
    work = work_now(space)
    if changed:
        path = one_file_of(space, 0)
        path.write_text(csv_text(TRIAL))
        touch_later(path)
    if sections:
        change_spec(root, **sections)
    assert step_by_step(root).version == "v0001"
    return space, work


def test_a_commit_of_a_file_that_somebody_else_committed_otherwise_conflicts(root: Path):
    space, work = overtaken(root, changed=True)
    before = snapshot(space.store / "versions")
    with pytest.raises(CommitConflictError, match=r"v0001.*both touched 1 of the same files"):
        commit_version(space, work)
    assert snapshot(space.store / "versions") == before
    assert verify_store(space.store) == []


def test_a_commit_beside_one_of_another_specification_conflicts(root: Path):
    space, work = overtaken(root, clean={"missing": "ffill"})
    before = snapshot(space.store / "versions")
    with pytest.raises(CommitConflictError, match="v0001 was committed by somebody else"):
        commit_version(space, work)
    assert snapshot(space.store / "versions") == before
    assert verify_store(space.store) == []


def test_a_commit_of_what_somebody_else_committed_publishes_nothing_more(root: Path):
    space, work = overtaken(root)
    before = snapshot(space.store / "versions")
    outcome = commit_version(space, work)
    assert (outcome.version, outcome.published) == ("v0001", False)
    assert snapshot(space.store / "versions") == before


# --- what a changed specification uses again ------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reused"),
    [
        ({"windows": {"length": 3, "stride": 1, "short": "drop"}}, True),
        ({"split": {"method": "exact", "seed": 7}}, True),
        ({"name": "other", "max_quarantined": 0.4, "source": {"obtain": "Ask."}}, True),
        ({"channels": ["y", "x"]}, False),
        ({"clean": {"missing": "ffill"}}, False),
        ({"normalize": {"scope": "train"}}, False),
        ({"derive": {"z": "x+y"}}, False),
        ({"shards": {"layout": "windows", "buckets": 4}}, False),
        ({"shards": {"format": "parquet", "buckets": 4}}, False),
    ],
    ids=str,
)
def test_what_decides_the_content_of_a_trial_reads_all_files_again(
    root: Path, change: dict[str, Any], reused: bool
):
    step_by_step(root)
    change_spec(root, **change)
    space = open_space(root)
    space.scan()
    if not reused:
        with pytest.raises(BucketsMissingError, match="b0, b1, b2, b3 not built for this spec"):
            commit(space)
    sizes = [len(files_of(space.catalog(), bucket)) for bucket in range(4)]
    assert build_all(space) == ([0] * 4 if reused else sizes)
    fresh = root / "fresh"
    report = build(root / "dataset.yaml", fresh)
    outcome = commit(space)
    assert outcome.counts == report.counts
    old, new = Store(space.store), Store(fresh)
    assert old.fingerprint == new.fingerprint
    assert split_of(old) == split_of(new)
    assert old.fit == new.fit
    assert snapshot(old.folder) == snapshot(new.folder)


@pytest.mark.parametrize("stage", STAGES)
def test_another_version_of_any_stage_reads_all_files_again(
    root: Path, stage: str, monkeypatch: pytest.MonkeyPatch
):
    step_by_step(root)
    assert delta_now(open_space(root)).is_empty
    monkeypatch.setitem(STAGES, stage, STAGES[stage] + 1)
    assert len(delta_now(open_space(root)).read) == 12
    assert build(root / "dataset.yaml", root / "store").n_read == 12


def test_shards_of_another_size_are_wanted_of_new_trials_alone(root: Path):
    step_by_step(root)
    before = Store(root / "store")
    change_spec(root, shards={"target_bytes": 100, "buckets": 4})
    space = open_space(root)
    space.scan()
    assert build_all(space) == [0] * 4
    assert commit(space).version == "v0002"  # it says what it was asked for
    after = Store(space.store)
    assert after.fingerprint == before.fingerprint
    assert after.manifest.shards == before.manifest.shards
    for n in range(4):
        write_trial(root, f"g9/t{n}", {name: xs[: n + 3] for name, xs in TRIAL.items()})
    step_by_step(root)
    kept = {entry.digest for entry in before.manifest.shards}
    added = [entry for entry in Store(space.store).manifest.shards if entry.digest not in kept]
    assert [entry.n_trials for entry in added] == [1] * 4
    assert verify_store(space.store) == []


@pytest.mark.parametrize(
    "change",
    [
        {"source": {"trial_id": r"t\d+"}},
        {"source": {"files": "raw/g1/*.csv"}},
        {"attributes": {"kind": {"table": "kinds.csv", "trial_id": "{id}", "column": "kind"}}},
        {"shards": {"buckets": 8}},
    ],
    ids=["trial_id", "files", "attributes", "buckets"],
)
def test_a_catalog_of_another_source_is_not_used(root: Path, change: dict[str, Any]):
    """Else a version says one `source` and holds the trials, or the ids, of another one."""
    step_by_step(root)
    change_spec(root, **change)
    with pytest.raises(CatalogNotFoundError, match="Materialize the asset 'catalog' first"):
        open_space(root).catalog()
    change_spec(root)
    assert not step_by_step(root).published


@pytest.mark.parametrize(
    "change",
    [{"source": {"obtain": "Ask."}}, {"windows": {"length": 3}}, {"channels": ["x"]}],
    ids=["obtain", "windows", "channels"],
)
def test_what_finds_no_other_files_needs_no_new_catalog(root: Path, change: dict[str, Any]):
    found = open_space(root).scan()
    change_spec(root, **change)
    assert open_space(root).catalog() == found


def test_two_specifications_take_turns_in_one_store(root: Path):
    other = root / "other.yaml"
    document = yaml.safe_load((root / "dataset.yaml").read_text())
    other.write_text(yaml.safe_dump({**document, "channels": ["x"]}))
    for turn in range(2):
        for path, n_channels in ((root / "dataset.yaml", 2), (other, 1)):
            space = Workspace.open(path, root / "store")
            space.scan()
            sizes = [len(files_of(space.catalog(), bucket)) for bucket in range(4)]
            assert build_all(space) == ([0] * 4 if turn else sizes)  # from its own staging
            assert commit(space).published
            assert len(Store(space.store).manifest.channels) == n_channels
    assert list_versions(root / "store") == ["v0001", "v0002", "v0003", "v0004"]
    assert all(verify_store(root / "store", v) == [] for v in list_versions(root / "store"))
    first, third = (Store(root / "store", v).fingerprint for v in ("v0001", "v0003"))
    assert first == third


# --- buckets: auto --------------------------------------------------------------------------------


@pytest.mark.parametrize("auto", [None, 1, 2, 8])
def test_auto_stands_for_what_the_caller_says(root: Path, auto: int | None):
    change_spec(root, shards={"buckets": "auto"})
    space = Workspace.open(root / "dataset.yaml", root / "store", auto_buckets=auto)
    assert space.scan().n_buckets == (auto or 1)
    build_all(space, range(auto or 1))
    outcome = commit(space)
    report = build(root / "dataset.yaml", root / "plain")
    assert Store(space.store, outcome.version).fingerprint == Store(report.store).fingerprint


def test_a_written_number_of_buckets_wins(root: Path):
    space = Workspace.open(root / "dataset.yaml", root / "store", auto_buckets=16)
    assert space.scan().n_buckets == 4


# --- what the newest version says of its files ----------------------------------------------------


def test_what_was_committed_is_no_change_any_more(root: Path):
    space = open_space(root)
    found = space.scan()
    names = tuple(file.path for file in found.files)
    assert delta_now(space).changes == Changes(new=names, changed=(), gone=(), n_same=0)
    build_all(space)
    assert delta_now(space).changes.new == names
    commit(space)
    assert delta_now(space).changes == Changes((), (), (), n_same=12)
    base = space.base()
    assert base is not None
    assert base.listing == listing_digest(found)


def test_the_listing_of_a_version_is_that_of_the_catalog_whatever_was_refused(root: Path):
    """The sensor compares the two: a version must not look like other files than it was made of."""
    broken_file(root)
    for folder in ("g0", "g1"):  # ids of the file names alone, so these two claim one
        write_trial(root, f"{folder}/twice", TRIAL)
    (root / "raw" / "g0" / ".hidden.csv").write_text("x,y\n1,2\n")
    change_spec(root, source={"trial_id": r"[a-z0-9]+(?=\.csv$)|(?<=/)\w+$"})
    space = open_space(root)
    found = space.scan()
    assert {refusal.code for refusal in found.refusals} == {"duplicate_id"}
    build_all(space)
    assert commit(space).counts["quarantined"] == 3
    base = space.base()
    assert base is not None
    assert base.listing == listing_digest(found) == listing_digest(space.scan())
    (root / "raw" / "g0" / "twice.csv").unlink()
    assert base.listing != listing_digest(space.scan())


DAMAGED = {
    "index": lambda store: store.folder / "index.arrow",
    "quarantine": lambda store: store.folder / "quarantine.parquet",
    "part": lambda store: next((store.path / "parts").iterdir()),
    "shard": lambda store: next((store.path / "shards").rglob("values/c/0/0")),
    "manifest": lambda store: store.folder / "dataset.json",
}


@pytest.mark.parametrize("which", DAMAGED)
def test_a_damaged_newest_version_stops_no_build_and_nothing_is_taken_from_it(
    root: Path, which: str
):
    step_by_step(root)
    before = Store(root / "store")
    path = DAMAGED[which](before)
    path.write_bytes(path.read_bytes()[:-9])
    shutil.rmtree(root / "store" / "staging")
    space = open_space(root)
    assert len(changes_of(space).new) == 12
    sizes = [len(files_of(space.catalog(), bucket)) for bucket in range(4)]
    assert build_all(space) == sizes


@pytest.mark.parametrize("which", DAMAGED)
def test_after_a_build_on_a_damaged_version_the_newest_one_is_whole(root: Path, which: str):
    step_by_step(root)
    before = Store(root / "store")
    fingerprint, path = before.fingerprint, DAMAGED[which](before)
    path.write_bytes(path.read_bytes()[:-9])
    assert build(root / "dataset.yaml", root / "store").version == (
        "v0002" if before.folder in path.parents else "v0001"
    )
    assert verify_store(root / "store") == []
    assert Store(root / "store").fingerprint == fingerprint
    assert build(root / "dataset.yaml", root / "store").n_read == 0


@pytest.mark.parametrize("which", sorted(DAMAGED.keys() - {"manifest"}))
def test_a_trial_that_was_taken_out_stays_out_where_the_newest_version_is_damaged(
    root: Path, which: str
):
    step_by_step(root)
    store = Store(root / "store")
    tombstone_trials(store.path, ["g1/t04"], "sensor came loose")
    path = DAMAGED[which](Store(store.path))
    path.write_bytes(path.read_bytes()[:-9])
    shutil.rmtree(root / "store" / "staging")
    step_by_step(root)
    assert "g1/t04" not in ids_of(Store(root / "store"))


def test_a_store_whose_staging_was_removed_goes_on(root: Path):
    step_by_step(root)
    shutil.rmtree(root / "store" / "staging")
    space = open_space(root)
    assert not changes_of(space)
    assert build_all(space) == [0] * 4
    outcome = commit(space)
    assert (outcome.version, outcome.published) == ("v0001", False)
