"""A staged bucket is used again exactly when building it again would give the same."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trialfolders import write_spec, write_trial, write_trials

from pipeline import buckets as buckets_module
from pipeline import staging as staging_module
from pipeline.delta import Delta
from pipeline.files import Refusal, SourceFile
from pipeline.filetable import files_to_table
from pipeline.staging import (
    KEPT_SECONDS,
    BucketResult,
    Staged,
    read_staged,
    refresh_files,
    remove_old_staging,
    write_staged,
    write_tables,
)
from pipeline.workspace import Workspace

NAMES = ["a", "b/c", "ü", "d,e=f"]


@st.composite
def file_lists(draw: st.DrawFn) -> list[SourceFile]:
    names = draw(st.sets(st.sampled_from(NAMES)))
    return [
        SourceFile(
            f"{name}.csv", draw(st.integers(0, 9)), draw(st.integers(0, 9)), name,
            draw(st.sampled_from([{}, {"s": "1"}, {"s": "2"}])),
        )
        for name in sorted(names)
    ]  # fmt: skip


def staged(read, *codes: str, asked=None) -> Staged:
    refusals = tuple(Refusal(f"{code}.csv", "read", code, "why") for code in codes)
    result = BucketResult(None, (), refusals, tuple(read))
    return Staged(result, tuple(read if asked is None else asked))


@st.composite
def mended_lists(draw: st.DrawFn) -> tuple[list[SourceFile], list[SourceFile]]:
    """Files as the catalog knew them, and as they were read: some were mended in between."""
    asked = draw(file_lists())
    sizes, times = st.integers(0, 9), st.integers(-9, 9)
    read = [
        file._replace(size_bytes=draw(sizes), mtime_ns=draw(times)) if draw(st.booleans()) else file
        for file in asked
    ]
    return asked, read


@settings(max_examples=50)
@given(file_lists(), file_lists())
def test_exactly_means_the_same_files_with_the_same_size_and_time(held, wanted):
    same = [(f.path, f.size_bytes, f.mtime_ns, f.attributes) for f in held] == [
        (f.path, f.size_bytes, f.mtime_ns, f.attributes) for f in wanted
    ]
    assert staged(held).is_exactly(wanted) == same


@settings(max_examples=40)
@given(mended_lists())
def test_exactly_looks_at_what_was_read_not_at_what_was_asked(lists):
    asked, read = lists
    held = staged(read, asked=asked)
    assert held.is_exactly(read)
    assert held.is_exactly(asked) == (asked == read)


@given(mended_lists(), st.data())
def test_select_gives_what_came_of_files_that_were_asked_for_or_read_as_they_are(lists, data):
    """Any third state of a file, before or after, of another size or time, is not in it."""
    asked, read = lists
    held, right, wanted = staged(read, asked=asked), True, []
    for known, now in zip(asked, read, strict=True):
        size, time_ns = data.draw(st.sampled_from([(0, 0), (0, 0), (0, 99), (99, 0), (0, -99)]))
        base = data.draw(st.sampled_from([known, now]))
        third = base._replace(size_bytes=base.size_bytes + size, mtime_ns=base.mtime_ns + time_ns)
        wanted.append(third)
        right &= size == time_ns == 0
    change = data.draw(st.sampled_from(["none", "none", "more", "fewer", "renamed", "told"]))
    if change == "more":
        wanted.append(SourceFile("new.csv", 1, 0, "new"))
    elif change != "none" and wanted:
        last = wanted.pop()
        if change == "fewer":  # what is no more wanted may be as it likes
            right = all(f in (a, r) for f, a, r in zip(wanted, asked, read, strict=False))
        if change != "fewer":
            other = {"path": "renamed.csv"} if change == "renamed" else {"attributes": {"s": "9"}}
            wanted.append(last._replace(**other))
    elif change != "none":
        change = "none"
    # Of what was read, a part may be wanted: somebody else has published the rest.
    selected = held.select(wanted)
    assert (selected is not None) == (right and change in ("none", "fewer"))
    if selected is not None:
        assert [file.path for file in selected.files] == [file.path for file in wanted]


def test_a_file_dated_before_1970_cannot_stand_for_another_one():
    held, other = SourceFile("a.csv", 1, 5, "a"), SourceFile("b.csv", 1, -10, "b")
    assert staged([held]).select([other]) is None


@pytest.mark.parametrize("code", ["unreadable", "changed_while_read"])
def test_a_refusal_that_may_pass_is_never_reused_but_may_be_committed(code: str):
    files = [SourceFile("a.csv", 1, 1, "a")]
    assert not staged(files, "short_row", code).is_exactly(files)
    assert staged(files, code).select(files) is not None
    assert staged(files, "short_row").is_exactly(files)


# --- on disk --------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(file_lists(), st.lists(st.sampled_from(["unreadable", "short_row", "bad é"]), max_size=2))
def test_a_bucket_without_trials_survives_the_disk(tmp_path: Path, files, codes):
    result = staged(files, *codes).result
    write_staged(tmp_path / "s", files, result)
    again = read_staged(tmp_path / "s", tmp_path)
    assert again is not None
    assert again.result == dataclasses.replace(result, reused=True)
    assert again.asked == staged(files).asked


def space_of(root: Path, **sections: object) -> Workspace:
    return Workspace.open(write_spec(root, **sections), root / "store")


def built(root: Path, **sections: object) -> tuple[Workspace, Path]:
    """Build one bucket, and return where it was staged."""
    space = space_of(root, **sections)
    catalog = space.scan()
    assert catalog.n_buckets == 1
    space.build_bucket(everything(space), 0)
    return space, space.staging(1) / "0.arrow"


def everything(space: Workspace) -> Delta:
    """All files of the last scan, to be read as in a first build."""
    return space.delta(space.catalog(), None)


def test_a_bucket_with_trials_survives_the_disk(tmp_path: Path):
    write_trials(tmp_path, 5, missing=0.2)
    (tmp_path / "raw" / "bad.csv").write_text("x,y\n1,two\n")
    space, path = built(tmp_path)
    again = space.build_bucket(everything(space), 0)
    assert again.reused
    path.unlink()
    fresh = space.build_bucket(everything(space), 0)
    assert not fresh.reused
    assert (fresh.shards, fresh.refusals) == (again.shards, again.refusals)
    assert str(fresh.rows.to_pylist()) == str(again.rows.to_pylist())  # as text NaN equals NaN
    assert fresh.rows.schema == again.rows.schema
    assert (fresh.n_trials, len(fresh.refusals)) == (5, 1)
    assert fresh.n_rows == sum(fresh.rows["n_rows"].to_pylist())


DAMAGES = {
    "empty": lambda raw: b"",
    "cut": lambda raw: raw[: len(raw) // 2],
    "junk": lambda raw: b"junk" * 50,
    "flipped head": lambda raw: raw[:4] + bytes([raw[4] ^ 255]) + raw[5:],
    "flipped foot": lambda raw: raw[:-9] + bytes([raw[-9] ^ 255]) + raw[-8:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_staged_bucket_is_built_again(tmp_path: Path, damage):
    write_trials(tmp_path, 3)
    space, path = built(tmp_path)
    good = path.read_bytes()
    path.write_bytes(damage(good))
    again = space.build_bucket(everything(space), 0)
    assert again.n_trials == 3
    assert path.read_bytes() == good
    assert not again.reused


WHOLE = {"shards": [], "refusals": [], "part": None}
WRONG = {"shards": [{}], "refusals": [{"x": 1}], "part": {"digest": "0"}}
ABOUTS: dict[str, bytes | None] = {
    "none": None,
    "null": b"null",
    "list": b"[]",
    "no JSON": b"{",
    **{
        f"without {name}": json.dumps({k: v for k, v in WHOLE.items() if k != name}).encode()
        for name in WHOLE
    },
    **{f"wrong {k}": json.dumps({**WHOLE, k: v}).encode() for k, v in WRONG.items()},
    "shard text": json.dumps({**WHOLE, "shards": "ab"}).encode(),
}


NO_FILES = files_to_table([])
NO_ROWS = pa.table({"id": pa.array([], pa.utf8())})


def read_with(path: Path, about: bytes | None, *tables: pa.Table) -> Staged | None:
    first, *rest = tables or (NO_FILES, NO_ROWS)
    first = first.replace_schema_metadata(about and {"trialshards": about})
    with path.open("wb") as file:
        write_tables(file, [first, *rest])
    return read_staged(path, path.parent)


@pytest.mark.parametrize("about", ABOUTS.values(), ids=ABOUTS)
def test_a_staged_bucket_of_another_form_is_as_if_absent(tmp_path: Path, about: bytes | None):
    assert read_with(tmp_path / "s", json.dumps(WHOLE).encode()) is not None
    assert read_with(tmp_path / "s", about) is None


@pytest.mark.parametrize(
    "tables",
    [
        pytest.param([NO_FILES], id="no rows"),
        pytest.param([NO_ROWS, NO_ROWS], id="other files"),
        pytest.param([NO_FILES, NO_ROWS, NO_ROWS], id="others asked for"),
    ],
)
def test_a_staged_bucket_of_other_tables_is_as_if_absent(tmp_path: Path, tables: list[pa.Table]):
    assert read_with(tmp_path / "s", json.dumps(WHOLE).encode(), *tables) is None


@settings(max_examples=40)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_staged_bucket_with_a_flipped_bit_is_as_if_absent(tmp_path: Path, place: int, bit: int):
    files = [SourceFile(f"{i}.csv", i, i, str(i), {"k": "v"}) for i in range(20)]
    write_staged(tmp_path / "s", files, BucketResult(None, (), (), tuple(files)))
    raw = bytearray((tmp_path / "s").read_bytes())
    raw[place % len(raw)] ^= 1 << bit
    (tmp_path / "s").write_bytes(raw)
    assert read_staged(tmp_path / "s", tmp_path) is None


@settings(max_examples=20)
@given(mended_lists())
def test_files_survive_the_disk_as_they_were_asked_for_and_as_they_were_read(tmp_path: Path, lists):
    asked, read = lists
    write_staged(tmp_path / "s", asked, BucketResult(None, (), (), tuple(read)))
    again = read_staged(tmp_path / "s", tmp_path)
    assert again is not None
    assert (again.asked, again.result.files) == (tuple(asked), tuple(read))


def test_whatever_arrow_says_of_a_damaged_bucket_it_is_as_if_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It is neither an OSError nor a ValueError."""

    def open_stream(source: pa.NativeFile) -> None:
        raise pa.ArrowNotImplementedError("Integers not in cstdint are not implemented")

    write_staged(tmp_path / "s", [], BucketResult(None, (), ()))
    monkeypatch.setattr(pa.ipc, "open_stream", open_stream)
    assert read_staged(tmp_path / "s", tmp_path) is None


def test_a_staged_bucket_without_its_shard_is_built_again(tmp_path: Path):
    write_trials(tmp_path, 3)
    space, path = built(tmp_path)
    (shard,) = (tmp_path / "store" / "shards").iterdir()
    shard.rename(tmp_path / "elsewhere")
    assert read_staged(path, space.store) is None
    assert not space.build_bucket(everything(space), 0).reused
    assert shard.is_dir()


def test_an_unreadable_file_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The refusal goes away although size and time of the file stay the same."""
    write_trials(tmp_path, 3)
    space = space_of(tmp_path)
    space.scan()
    prepare = buckets_module.prepare_files

    def failing(root, files, recipe):
        done = prepare(root, files[1:], recipe)
        refused = Refusal(files[0].path, "read", "unreadable", "busy")
        return dataclasses.replace(done, refusals=(*done.refusals, refused))

    monkeypatch.setattr(buckets_module, "prepare_files", failing)
    assert space.build_bucket(everything(space), 0).n_trials == 2
    monkeypatch.undo()
    again = space.build_bucket(everything(space), 0)
    assert (again.n_trials, again.refusals, again.reused) == (3, (), False)
    assert space.build_bucket(everything(space), 0).reused


def test_files_are_read_as_they_are_now_and_looked_at_again_only_if_one_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_trials(tmp_path, 6)
    space, again = space_of(tmp_path), []
    catalog = space.scan()
    refresh = buckets_module.refresh_files

    def counting(root: Path, files: list[SourceFile]) -> list[SourceFile]:
        again.append(len(files))
        return refresh(root, files)

    monkeypatch.setattr(buckets_module, "refresh_files", counting)
    plain = space.build_bucket(everything(space), 0)
    assert (plain.files, again) == (catalog.files, [])
    (tmp_path / catalog.files[2].path).write_text("x,y\n1,2\n3,4\n5,6\n7,8\n")
    (tmp_path / catalog.files[4].path).unlink()
    space.staged_path(1, 0).unlink()
    mended = space.build_bucket(everything(space), 0, n_workers=1)
    assert again == [6]
    assert mended.files == tuple(refresh(tmp_path, catalog.files))
    assert [(r.source, r.code) for r in mended.refusals] == [(catalog.files[4].path, "unreadable")]
    sizes = dict(
        zip(*(mended.rows[name].to_pylist() for name in ("source", "n_rows")), strict=True)
    )
    assert sizes[catalog.files[2].path] == 4
    assert list(sizes) == [f.path for f in catalog.files if f != catalog.files[4]]


def test_refreshing_reads_size_and_time_anew_and_keeps_what_is_gone(tmp_path: Path):
    write_trial(tmp_path, "a", {"x": [1.0], "y": [2.0]})
    files = [
        SourceFile("raw/a.csv", 0, 0, "a", {"s": "1"}, 3),
        SourceFile("raw/gone.csv", 7, 8, "gone"),
    ]
    fresh = refresh_files(tmp_path, files)
    info = (tmp_path / "raw" / "a.csv").stat()
    wanted = files[0]._replace(size_bytes=info.st_size, mtime_ns=info.st_mtime_ns)
    assert fresh == [wanted, files[1]]


# --- other plans ----------------------------------------------------------------------------------


def make_plan(staging: Path, name: str, age_s: float, n_files: int = 1) -> Path:
    folder = staging / name
    folder.mkdir(parents=True)
    for i in range(n_files):
        (folder / f"{i}.parquet").write_bytes(b"x")
    when = time.time() - age_s
    for path in (*folder.iterdir(), folder):
        os.utime(path, (when, when))
    return folder


@pytest.mark.parametrize("age_s", [0, KEPT_SECONDS - 60, KEPT_SECONDS + 60])
@pytest.mark.parametrize("n_files", [0, 2])
def test_other_plans_go_after_a_day_and_the_own_one_never(
    tmp_path: Path, age_s: float, n_files: int
):
    own = make_plan(tmp_path, "own", 10 * KEPT_SECONDS)
    other = make_plan(tmp_path, "other", age_s, n_files)
    remove_old_staging(tmp_path, "own")
    assert own.is_dir()
    assert other.is_dir() == (age_s < KEPT_SECONDS)


def test_catalogs_of_other_sources_go_after_a_day_and_the_kept_ones_never(tmp_path: Path):
    ages = {"mine": 10 * KEPT_SECONDS, "new": KEPT_SECONDS - 60, "old": KEPT_SECONDS + 60}
    for name, age_s in ages.items():
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    remove_old_staging(tmp_path, "own", tmp_path / "mine", tmp_path / "never written")
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "new"}


def test_one_fresh_bucket_keeps_its_plan(tmp_path: Path):
    other = make_plan(tmp_path, "other", 2 * KEPT_SECONDS, 3)
    os.utime(other / "1.parquet")
    remove_old_staging(tmp_path, "own")
    assert len(list(other.iterdir())) == 3


def test_a_file_that_vanishes_meanwhile_does_no_harm(tmp_path: Path):
    """Another build renames its temporary file between the listing and the look at it."""
    other = make_plan(tmp_path, "other", 0)
    (other / ".tmp-1-abc").symlink_to(other / "renamed-already")
    remove_old_staging(tmp_path, "own")


def test_kept_for_a_day():
    assert staging_module.KEPT_SECONDS == 86_400
