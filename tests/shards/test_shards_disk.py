"""The one room that changes files of a store: nobody else does, and nobody sees half a change."""

import ast
import os
import time
from pathlib import Path

import pytest

from shards import disk
from shards.errors import StoreWriteError

ROOT = Path(__file__).parents[2]
CHANGES = {
    "mkdir", "makedirs", "unlink", "rmdir", "rmtree", "touch", "write_bytes", "write_text",
    "symlink_to", "hardlink_to", "symlink", "link", "truncate", "copytree", "copyfile", "move",
}  # fmt: skip
ELSEWHERE = {
    "shards/disk.py": "the room itself",
    "shards/export.py": "writes beside stores",
    "shards/localcache.py": "its cache is no store",
    "pipeline/orchestration/scaffold.py": "writes dataset.yaml",
}
"""Who may change files by itself, and why."""


def changes_in(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in CHANGES:
            yield f"{path.relative_to(ROOT)}:{node.lineno} {node.attr}"


def test_nobody_else_changes_files_of_a_store():
    found = [
        change
        for room in ("shards", "pipeline")
        for path in sorted((ROOT / room).rglob("*.py"))
        if path.relative_to(ROOT).as_posix() not in ELSEWHERE
        for change in changes_in(path)
    ]
    assert found == []


def test_whoever_is_excepted_exists_and_changes_something():
    for name in ELSEWHERE:
        path = ROOT / name
        assert name == "shards/disk.py" or list(changes_in(path)), name


def test_files_are_written_below_folders_that_are_made(tmp_path):
    disk.write_files(tmp_path, {"a/c/0": [b"one", memoryview(b"two")], "b": [], "a/c/1": [b"3"]})
    files = {p.relative_to(tmp_path).as_posix(): p for p in tmp_path.rglob("*") if p.is_file()}
    assert {name: path.read_bytes() for name, path in files.items()} == {
        "a/c/0": b"onetwo",
        "b": b"",
        "a/c/1": b"3",
    }


def test_nothing_is_written_over(tmp_path):
    disk.write_synced(tmp_path / "file", b"first")
    with pytest.raises(FileExistsError):
        disk.write_synced(tmp_path / "file", b"second")
    assert (tmp_path / "file").read_bytes() == b"first"


def test_a_write_that_the_system_takes_in_pieces_is_whole(tmp_path, monkeypatch):
    class Slow:
        def __getattr__(self, name):
            return getattr(os, name)

        def write(self, descriptor, part):
            return os.write(descriptor, bytes(part[:7]))

    monkeypatch.setattr(disk, "os", Slow())
    content = bytes(range(256)) * 3
    disk.write_synced(tmp_path / "synced", content)
    disk.replace_file(tmp_path / "replaced", content)
    assert (tmp_path / "synced").read_bytes() == content
    assert (tmp_path / "replaced").read_bytes() == content


def test_a_replacement_that_is_broken_off_changes_nothing(tmp_path):
    path = tmp_path / "new" / "file"
    disk.replace_file(path, b"old")

    def break_off():
        with disk.replacing(path) as file:
            file.write(b"half")
            raise ValueError("broken off")

    with pytest.raises(ValueError, match="broken"):
        break_off()
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_removed_folders_lose_their_names_before_their_content(tmp_path, monkeypatch):
    folder, file = tmp_path / "shard", tmp_path / "part"
    folder.mkdir()
    (folder / "inside").write_bytes(b"1")
    file.write_bytes(b"2")
    there = []
    real = os.unlink

    def unlink(path):
        there.append((Path(path).name, folder.exists()))
        real(path)

    monkeypatch.setattr(os, "unlink", unlink)
    disk.remove_all([folder, file, tmp_path / "never there"])
    assert list(tmp_path.iterdir()) == []
    assert ("inside", False) in there


def test_leftovers_of_the_dead_are_removed_wherever_they_are_and_nothing_else(tmp_path):
    places = ("", "shards", "parts", "versions", "tags", "staging", "staging/plan")
    old, young, others = [], [], []
    for place in places:
        folder = tmp_path / place
        folder.mkdir(exist_ok=True)
        for kind, names in (("old", old), ("young", young)):
            names += [folder / f".tmp-{kind}-file", folder / f".tmp-{kind}-folder"]
            names[-2].write_bytes(b"x")
            (names[-1] / "inner").mkdir(parents=True)
            (names[-1] / "inner" / "file").write_bytes(b"x")
        others.append(folder / "kept")
        others[-1].write_bytes(b"x")
    long_ago = time.time() - 1000
    for path in (*old, *others):
        os.utime(path, (long_ago, long_ago))
    disk.remove_leftovers(tmp_path, 500)
    assert [path for path in old if path.exists()] == []
    assert all(path.exists() for path in (*young, *others))


def test_a_lock_is_made_only_where_it_may_be(tmp_path):
    with pytest.raises(FileNotFoundError):
        disk.open_lock(tmp_path / "absent", may_make=False)
    os.close(disk.open_lock(tmp_path / "new" / "lock", may_make=True))
    assert (tmp_path / "new" / "lock").read_bytes() == b""


def test_an_error_names_the_place_and_not_a_temporary_name(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreWriteError, match="disk is full") as raised:
        disk.replace_file(tmp_path / "file", b"content")
    assert str(raised.value).startswith(f"{tmp_path}: ")
    assert raised.value.errno == 28
    assert list(tmp_path.iterdir()) == []
