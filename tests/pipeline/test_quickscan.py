"""The quick look: it says what the full scan would say of known files, or leaves it to that."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pyarrow as pa
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from trialfolders import make_spec

from pipeline.catalog import Catalog, scan_files
from pipeline.quickscan import FEW, KnownFiles, Look, quick_look, tables_digest, tables_of
from pipeline.spec import DatasetSpec
from shards.errors import InvalidSpecError

GLOBS = [
    "raw/**/*.csv", "raw/*.csv", "raw/*/*.csv", "raw/**/*", "raw/**", "**/*.csv", "*/*/a.csv",
    "raw/a/**/b*.csv", "raw/*/a.csv", "raw/**/**/*.csv", "raw/*/b/a.csv", "raw/[ab]/*.c?v",
    "raw/a.csv", "raw/**/b/*.csv", "raw/*/**/a.csv", "raw/**/a.csv", "raw/**/b/**/[!a].csv",
    "raw/a/*.csv*", "raw/.h/*.csv", "raw/**/*.csv/*", *["raw/**/*.csv", "raw/*/*.csv*"] * 8,
]  # fmt: skip
PATTERNS = [None, None, r"(?P<id>\w+)\.csv", r"[ab]/", r"(?P<folder>[^/]+)/(?P<id>[^/]+)$"]
FOLDERS = ["a", "b", "a", "b", ".h", "a.csv"]
NAMES = ["a.csv", "b.csv", "c.csv", ".h.csv", "b.csv.gz", "x.txt"]
ODD = ["folder", "pipe", "link", "link to folder", "broken link", "loop", "latin-1"]


class Node(NamedTuple):
    kind: str
    size_bytes: int = 1
    mtime_ns: int = 10


Tree = dict[str, Node]


def node(kinds: list[str]) -> st.SearchStrategy[Node]:
    return st.builds(Node, st.sampled_from(kinds), st.integers(0, 2), st.integers(-2, 2))


@st.composite
def trees(draw: st.DrawFn) -> tuple[Tree, Tree]:
    """A folder at two times; some are plain, some hold what only the full scan can judge."""
    kinds = ["file"] * 20 + draw(st.sampled_from([[], [], [], ODD]))
    folders = st.lists(st.sampled_from(FOLDERS), max_size=2)
    paths = st.builds(lambda f, n: "/".join(["raw", *f, n]), folders, st.sampled_from(NAMES))
    before = draw(st.dictionaries(paths, node(kinds), min_size=3, max_size=12))
    after = dict(before)
    for path in draw(st.lists(paths, max_size=3)):
        if path in after and draw(st.booleans()):
            del after[path]
        else:
            after[path] = draw(node(kinds))
    return before, after


def touch(root: Path, names: Iterable[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x,y\n1,2\n")


def make_tree(root: Path, tree: Tree) -> None:
    """Write a tree; what would lie in a file is left out."""
    touch(root, ["elsewhere/a.csv", "raw/.keep"])
    for name, what in tree.items():
        path = root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError:  # a file is on the way, or a link to nowhere
            continue
        if what.kind == "file" and not (path.is_symlink() or path.is_dir()):
            path.write_bytes(b"." * what.size_bytes)
            os.utime(path, ns=(0, what.mtime_ns))
        elif what.kind != "file" and not os.path.lexists(path):
            make_odd(path, what.kind, root / "elsewhere")


def make_odd(path: Path, kind: str, elsewhere: Path) -> None:
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "link":
            path.symlink_to(elsewhere / "a.csv")
        case "link to folder":
            path.symlink_to(elsewhere)
        case "broken link":
            path.symlink_to("nowhere")
        case "loop":
            path.symlink_to(path.name)
        case "latin-1":
            Path(os.fsdecode(os.fsencode(path.parent) + b"/\xe4.csv")).touch()


def scan_closely(root: Path, spec: DatasetSpec) -> Catalog | None:
    """Scan path by path, as where there are links; None where no file matches."""
    with mock.patch("pipeline.catalog.walk_plain", return_value=None):
        try:
            return scan_files(root, spec)
        except InvalidSpecError:
            return None


def known_of(catalog: Catalog | None) -> KnownFiles:
    files = catalog.files if catalog else ()
    return (
        KnownFiles.of(*zip(*(file[:3] for file in files), strict=True)) if files else KnownFiles({})
    )


def look_of(now: Catalog, known: KnownFiles) -> Look:
    """Say by the full scan what a quick look should say."""
    old, seen = known.files, known_of(now).files
    found = {path: one for path, one in seen.items() if old.get(path) != one}
    return Look(
        new=tuple(sorted(found.keys() - old.keys())),
        changed=tuple(sorted(found.keys() & old.keys())),
        gone=tuple(sorted(old.keys() - seen.keys())),
        found=found,
        n_same=len(seen) - len(found),
        n_hidden=now.ignored.get("hidden", 0),
        n_bytes=sum(size for size, _ in seen.values()),
    )


def is_plain(tree: Tree) -> bool:
    return all(one.kind == "file" for one in tree.values())


@settings(max_examples=120, deadline=None)
@given(trees(), st.sampled_from(GLOBS), st.sampled_from(PATTERNS))
def test_a_quick_look_says_what_the_full_scan_says_or_nothing(both, files, pattern):
    source = {"files": files} | ({"trial_id": pattern} if pattern else {})
    spec, (before, after) = make_spec(source=source), both
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        make_tree(Path(first), before)
        known = known_of(scan_closely(Path(first), spec))
        root = Path(second)
        make_tree(root, after)
        now, look = scan_closely(root, spec), quick_look(root, spec, known)
        event("left to the full scan" if look is None else f"something to do: {bool(look)}")
        if look is not None:
            assert now is not None
            assert not now.refusals
            assert look == look_of(now, known)
        elif is_plain(after):  # then only these are a reason to say nothing
            assert now is None or now.refusals
        if now is not None:
            assert scan_files(root, spec) == now


# --- what a law over small trees seldom meets ---------------------------------------------------


@pytest.mark.parametrize("n_new", [1, FEW, FEW + 1])
def test_an_id_that_a_known_file_has_is_left_to_the_full_scan(tmp_path: Path, n_new: int):
    spec = make_spec(source={"files": "raw/*/*.csv", "trial_id": r"(?P<id>\w+)\.csv"})
    touch(tmp_path, (f"raw/a/{i}.csv" for i in range(50)))
    known = known_of(scan_files(tmp_path, spec))
    touch(tmp_path, (f"raw/b/1{i:02}.csv" for i in range(n_new)))
    look = quick_look(tmp_path, spec, known)
    assert look is not None
    assert len(look.new) == n_new
    touch(tmp_path, ["raw/b/7.csv"])
    assert quick_look(tmp_path, spec, known) is None
    (tmp_path / "raw/a/7.csv").unlink()  # now the id is free
    look = quick_look(tmp_path, spec, known)
    assert look is not None
    assert look.gone == ("raw/a/7.csv",)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list any folder")
def test_a_folder_that_must_not_be_listed_is_left_to_the_full_scan(tmp_path: Path):
    touch(tmp_path, ["raw/a/1.csv", "raw/b/1.csv"])
    spec = make_spec(source={"files": "raw/**/*.csv"})
    known = known_of(scan_files(tmp_path, spec))
    (tmp_path / "raw/b").chmod(0)
    try:
        assert quick_look(tmp_path, spec, known) is None
        assert [file.path for file in scan_files(tmp_path, spec).files] == ["raw/a/1.csv"]
    finally:
        (tmp_path / "raw/b").chmod(0o755)


def test_a_root_that_is_not_there_is_left_to_the_full_scan(tmp_path: Path):
    assert quick_look(tmp_path / "no", make_spec(), KnownFiles({})) is None


def test_a_link_in_the_fixed_folders_is_a_folder_like_others(tmp_path: Path):
    touch(tmp_path, ["disk/s/1.csv"])
    (tmp_path / "raw").symlink_to("disk")
    spec = make_spec(source={"files": "raw/s/*.csv"})
    look = quick_look(tmp_path, spec, KnownFiles({}))
    assert look is not None
    assert look.new == ("raw/s/1.csv",)


def test_beside_an_attribute_table_only_changes_of_known_files_are_told(tmp_path: Path):
    touch(tmp_path, ["raw/1.csv", "raw/2.csv"])
    (tmp_path / "who.csv").write_text("id,who\n1,ann\n2,bob\n3,eve\n")
    table = {"table": "who.csv", "column": "who", "trial_id": "{id}"}
    spec = make_spec(source={"files": "raw/*.csv"}, attributes={"who": table})
    known = known_of(scan_files(tmp_path, spec))
    os.utime(tmp_path / "raw/2.csv", ns=(0, 5))
    look = quick_look(tmp_path, spec, known)
    assert look is not None
    assert look.found == {"raw/2.csv": (8, 5)}
    touch(tmp_path, ["raw/3.csv"])
    assert quick_look(tmp_path, spec, known) is None
    (tmp_path / "raw/3.csv").unlink()
    (tmp_path / "raw/2.csv").unlink()
    assert quick_look(tmp_path, spec, known) is None


def test_the_digest_of_tables_changes_with_their_bytes(tmp_path: Path):
    table = {"table": "who.csv", "column": "who", "trial_id": "{id}"}
    spec = make_spec(attributes={"who": table})
    assert tables_of(spec) == {"who.csv"}
    digests = [tables_digest(tmp_path, ["who.csv"])]
    for text in ("", "id,who\n1,ann\n", "id,who\n1,eve\n"):
        (tmp_path / "who.csv").write_text(text)
        digests.append(tables_digest(tmp_path, ["who.csv"]))
    assert digests[0] == digests[1]  # neither can be read as a table
    assert len(set(digests)) == 3
    assert tables_digest(tmp_path, ["who.csv"]) == digests[-1]


def test_known_files_are_the_rows_of_arrow_columns_however_they_are_cut(tmp_path: Path):
    names = ["raw/ä.csv", "raw/b.csv", "raw/b.csv"]  # a file with many trials comes many times
    columns = (
        pa.chunked_array([names[:1], names[1:]], pa.utf8()),
        pa.chunked_array([[3], [4, 4]], pa.int64()),
        pa.chunked_array([[2**62 + 1], [-1, -1]], pa.int64()),
    )
    known = KnownFiles.of_columns(*columns)
    assert known == KnownFiles({"raw/ä.csv": (3, 2**62 + 1), "raw/b.csv": (4, -1)})
    assert {type(n) for one in known.files.values() for n in one} == {int}


def test_a_look_is_true_where_anything_differs():
    same = Look((), (), (), {}, n_same=1, n_hidden=1, n_bytes=1)
    assert not same
    for field in ("new", "changed", "gone"):
        assert dataclasses.replace(same, **{field: ("a",)})
