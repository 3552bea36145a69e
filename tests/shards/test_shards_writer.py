"""Publishing: exclusive, numbered, atomic; temporary names and hints decide nothing."""

import os
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from stores import make_store

from shards import CommitConflictError, Store, disk
from shards.disk import claim_folder
from shards.verify import verify_store
from shards.writer import commit_version, list_versions, write_shard


def temporaries(path):
    return list(path.rglob(".tmp-*"))


def version_files(store):
    names = ("index.arrow", "trials.parquet", "quarantine.parquet", "fit.json")
    return {name: (store.folder / name).read_bytes() for name in names}


def test_versions_are_numbered_and_older_ones_stay_readable(tmp_path):
    first = make_store(tmp_path, [5, 6])
    second = make_store(tmp_path, [5, 6, 7], after="v0001")
    third = make_store(tmp_path, [5], after="v0002")
    assert [s.version for s in (first, second, third)] == ["v0001", "v0002", "v0003"]
    assert list_versions(tmp_path) == ["v0001", "v0002", "v0003"]
    assert Store(tmp_path).version == "v0003"
    assert len(Store(tmp_path, "v0002").index) == 3
    for version in list_versions(tmp_path):
        assert verify_store(tmp_path, version) == []
    assert temporaries(tmp_path) == []


def test_of_two_commits_after_the_same_version_one_wins_and_nothing_of_the_other_stays(tmp_path):
    make_store(tmp_path, [5, 6])
    winner = make_store(tmp_path, [5, 6, 7], after="v0001")
    before = version_files(winner)
    with pytest.raises(CommitConflictError, match=r"v0002 was committed.*v0001.*again"):
        make_store(tmp_path, [9, 9], after="v0001")
    assert version_files(Store(tmp_path, "v0002")) == before
    assert list_versions(tmp_path) == ["v0001", "v0002"]
    assert temporaries(tmp_path) == []
    assert verify_store(tmp_path) == []


def test_a_first_commit_into_a_store_that_has_one_already_is_refused(tmp_path):
    make_store(tmp_path, [5, 6])
    with pytest.raises(CommitConflictError, match="an empty store"):
        make_store(tmp_path, [7])
    assert temporaries(tmp_path) == []


def test_of_many_commits_at_once_exactly_one_wins(tmp_path):
    base = make_store(tmp_path, [5, 6])
    files, ready = version_files(base), threading.Barrier(8)
    outcomes = []

    def commit():
        ready.wait()
        try:
            outcomes.append(commit_version(tmp_path, base.manifest, files, after="v0001"))
        except CommitConflictError:
            outcomes.append("conflict")

    threads = [threading.Thread(target=commit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["conflict"] * 7 + ["v0002"]
    assert temporaries(tmp_path) == []
    assert verify_store(tmp_path) == []


LOOKS = ("iterdir", "is_file", "is_dir", "open")
CHANGES = ("mkdir", "open", "rename", "replace", "unlink")


def test_a_commit_that_comes_before_any_step_of_another_excludes_it(tmp_path, monkeypatch):
    """Exactly one of two commits after v0001 wins, wherever the second is interrupted."""
    reached = 0
    for step in range(500):
        path, outcomes, left = tmp_path / str(step), [], step
        base = make_store(path, [5, 6])
        files = version_files(base)

        def commit(path=path, base=base, files=files, outcomes=outcomes):
            try:
                outcomes.append(commit_version(path, base.manifest, files, after="v0001"))
            except CommitConflictError:
                outcomes.append("conflict")

        def interrupted(plain, commit=commit):
            def method(self, *args, **options):
                nonlocal left
                left -= 1
                if left == -1:
                    commit()
                return plain(self, *args, **options)

            return method

        with monkeypatch.context() as patch:
            for name in LOOKS:
                patch.setattr(Path, name, interrupted(getattr(Path, name)))
            changes = {name: interrupted(getattr(os, name)) for name in CHANGES}
            patch.setattr(disk, "os", SimpleNamespace(**{**vars(os), **changes}))
            commit()
        if left >= 0:
            break
        reached += 1
        assert sorted(outcomes) == ["conflict", "v0002"], (step, outcomes)
        assert list_versions(path) == ["v0001", "v0002"]
        assert temporaries(path) == []
        assert verify_store(path) == []
    assert 10 < reached < 499


def test_writers_of_the_same_shard_at_once_share_one_folder(tmp_path):
    rows, ready, found = np.ones((5000, 3), np.float32), threading.Barrier(8), []

    def write():
        ready.wait()
        found.append(write_shard(tmp_path, {"values": rows}, 1).digest)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert {p.name for p in (tmp_path / "shards").iterdir()} == set(found)
    assert len(set(found)) == 1


def test_versions_share_the_shards_they_have_in_common(tmp_path):
    first = make_store(tmp_path, [5, 6, 7, 8], n_shards=2)
    kept = {p.name: p.stat().st_ino for p in (tmp_path / "shards").iterdir()}
    second = make_store(tmp_path, [5, 6, 7, 9], n_shards=2, after="v0001")
    now = {p.name: p.stat().st_ino for p in (tmp_path / "shards").iterdir()}
    assert len(now) == 3
    assert kept.items() <= now.items()
    assert first.manifest.shards[0] == second.manifest.shards[0]


def test_publishing_the_same_content_again_publishes_nothing(tmp_path):
    make_store(tmp_path, [5, 6], missing=True)
    before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")}
    again = make_store(tmp_path, [5, 6], missing=True, after="v0001")
    assert again.version == "v0001"
    assert {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    "name",
    [".tmp-1-abc", "v1", "v001", "v0002.bak", "V0002", "v0002 ", "xv0002", "v-0002", "v0002a"],
)
def test_names_that_are_no_version_are_ignored(tmp_path, name):
    store = make_store(tmp_path, [5, 6])
    fake = tmp_path / "versions" / name
    fake.mkdir()
    (fake / "dataset.json").write_text("{}")
    assert list_versions(tmp_path) == ["v0001"]
    assert Store(tmp_path).version == store.version
    assert verify_store(tmp_path) == []


def test_a_version_folder_without_its_manifest_is_no_version(tmp_path):
    make_store(tmp_path, [5, 6])
    (tmp_path / "versions" / "v0002").mkdir()
    (tmp_path / "versions" / "v0003").mkdir()
    (tmp_path / "versions" / "v0003" / "index.arrow").write_bytes(b"")
    (tmp_path / "versions" / "v0004").write_text("a file")
    assert list_versions(tmp_path) == ["v0001"]
    assert Store(tmp_path).version == "v0001"


def empty_folder(path):
    path.mkdir()


def half_a_copy(path):
    path.mkdir()
    (path / "index.arrow").write_bytes(b"half a copy")


def plain_file(path):
    path.write_bytes(b"a file")


@pytest.mark.parametrize("obstacle", [empty_folder, half_a_copy, plain_file])
@pytest.mark.parametrize("name", ["v0002", "v0007"])
def test_what_is_no_version_but_has_its_name_is_left_alone_and_numbered_over(
    tmp_path, obstacle, name
):
    make_store(tmp_path, [5, 6])
    in_the_way = tmp_path / "versions" / name
    obstacle(in_the_way)
    before = [(p, p.is_file() and p.read_bytes()) for p in [in_the_way, *in_the_way.rglob("*")]]
    number = int(name[1:])
    assert make_store(tmp_path, [7], after="v0001").version == f"v{number + 1:04d}"
    assert len(Store(tmp_path).index) == 1
    again = make_store(tmp_path, [7, 8], after=f"v{number + 1:04d}")
    assert again.version == f"v{number + 2:04d}"
    assert list_versions(tmp_path) == ["v0001", f"v{number + 1:04d}", f"v{number + 2:04d}"]
    assert [(p, p.is_file() and p.read_bytes()) for p, _ in before] == before
    assert verify_store(tmp_path) == []


def test_a_commit_behind_a_newer_version_is_refused(tmp_path):
    make_store(tmp_path, [5, 6])
    make_store(tmp_path, [5, 7], after="v0001")
    newest = make_store(tmp_path, [5, 8], after="v0002")
    gone = tmp_path / "versions" / "v0002"
    gone.rename(tmp_path / "versions" / "pruned")
    with pytest.raises(CommitConflictError):
        make_store(tmp_path, [9, 9], after="v0001")
    assert list_versions(tmp_path) == ["v0001", newest.version]


def test_digits_of_other_scripts_number_no_version(tmp_path):
    store = make_store(tmp_path, [5, 6])
    store.folder.rename(tmp_path / "versions" / "v\u0660\u0660\u0660\u0669")
    assert list_versions(tmp_path) == []


@pytest.mark.parametrize("content", [None, "", "{", '{"version": "v0001"}', '{"version": "v9999"}'])
def test_the_hint_decides_nothing(tmp_path, content):
    make_store(tmp_path, [5, 6])
    make_store(tmp_path, [5, 7], after="v0001")
    hint = tmp_path / "latest.json"
    assert hint.read_text() == '{"version": "v0002"}\n'
    hint.unlink()
    if content is not None:
        hint.write_text(content)
    assert Store(tmp_path).version == "v0002"
    assert verify_store(tmp_path) == []
    third = make_store(tmp_path, [5, 8], after="v0002")
    assert third.version == "v0003"
    assert hint.read_text() == '{"version": "v0003"}\n'


def test_the_ten_thousandth_version_comes_after_the_one_before(tmp_path):
    make_store(tmp_path, [5, 6]).folder.rename(tmp_path / "versions" / "v9999")
    later = make_store(tmp_path, [5, 7], after="v9999")
    assert later.version == "v10000"
    assert list_versions(tmp_path) == ["v9999", "v10000"]
    assert Store(tmp_path).version == "v10000"
    assert make_store(tmp_path, [5, 8], after="v10000").version == "v10001"
    assert verify_store(tmp_path, "v10000") == []


def test_claiming_a_folder_that_exists_reports_it_and_leaves_it_as_it_was(tmp_path):
    mine, theirs = tmp_path / ".tmp-a", tmp_path / "final"
    for folder, text in ((mine, "mine"), (theirs, "theirs")):
        folder.mkdir()
        (folder / "file").write_text(text)
    assert claim_folder(mine, theirs) is False
    assert (theirs / "file").read_text() == "theirs"
    assert not mine.exists()


def test_claiming_below_a_folder_that_is_not_there_is_the_systems_error(tmp_path):
    mine = tmp_path / ".tmp-a"
    mine.mkdir()
    with pytest.raises(FileNotFoundError):
        claim_folder(mine, tmp_path / "nowhere" / "final")
    assert mine.is_dir()


def test_a_store_holds_only_the_names_of_the_text(tmp_path):
    store = make_store(tmp_path, [5, 6], missing=True)
    digest = store.manifest.shards[0].digest
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {
        "latest.json",
        *(f"versions/v0001/{name}" for name in (*version_files(store), "dataset.json")),
        f"shards/{digest}/zarr.json",
        *(
            f"shards/{digest}/{a}/{f}"
            for a in ("values", "observed")
            for f in ("zarr.json", "c/0/0")
        ),
    }
