"""What a version that stays needs is never removed: not from readers, builders, or a killed gc."""

import dataclasses
import errno
import fcntl
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import coded_values, make_store

from loaders import TrialStream
from pipeline.staging import BucketResult, write_staged
from shards import (
    CorruptStoreError,
    FormatVersionError,
    InvalidSpecError,
    Store,
    StoreNotFoundError,
)
from shards.errors import StoreBusyError
from shards.gc import gc_store
from shards.leases import building, removing
from shards.parts import write_part
from shards.redraft import redraft_version
from shards.tags import set_tag
from shards.verify import verify_store
from shards.version import publish_version
from shards.writer import list_versions, newest_version, write_shard

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["numpy", "pyarrow.parquet", "pytest", "shards.gc", "loaders"])


def length_of_last(version):
    """Return the rows of t0003, the trial that every version changes."""
    return 20 + int(version[1:])


def add_versions(path, pairs=1):
    """Publish versions by twos: cold index in a file of the version, then in parts.

    Each pair shares three shards and a part with the others, and has one of each of its own.
    """
    for _ in range(pairs):
        newest = newest_version(path)
        number = int(newest[1:]) if newest else 0
        lengths = [5, 7, 9, length_of_last(f"v{number + 1}")]
        plain = make_store(path, lengths, n_shards=4, after=newest)
        draft, cold = redraft_version(plain), plain.cold()
        parts = [write_part(path, cold.slice(0, 3)), write_part(path, cold.slice(3))]
        places = {"part": [parts[i // 3].digest for i in range(4)], "part_row": [0, 1, 2, 0]}
        trials = draft.trials
        for name, column in places.items():
            trials = trials.append_column(name, pa.array(column))
        draft = dataclasses.replace(draft, trials=trials, parts=tuple(parts))
        publish_version(path, draft, after=plain.version)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A store of versions v0001 to v0006."""
    path = tmp_path_factory.mktemp("gc") / "template"
    add_versions(path, 3)
    return path


@pytest.fixture
def store(template, tmp_path):
    return Path(shutil.copytree(template, tmp_path / "store"))


def named(path, versions):
    """Return the names of shards and parts that versions refer to."""
    manifests = [Store(path, version).manifest for version in versions]
    return {entry.digest for m in manifests for entry in (*m.shards, *m.parts)}


def there(path):
    """Return the names of shards and parts that lie in a store."""
    return {entry.stem for folder in ("shards", "parts") for entry in (path / folder).iterdir()}


def tree(path):
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


def assert_whole(path, versions):
    assert list_versions(path) == list(versions)
    for version in versions:
        assert verify_store(path, version) == []


# --- what stays -------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(keep=st.integers(1, 7), tagged=st.sets(st.integers(0, 5)), opened=st.sets(st.integers(0, 5)))
def test_the_newest_the_tagged_and_the_open_stay_and_nothing_else(
    template, tmp_path_factory, keep, tagged, opened
):
    path = Path(shutil.copytree(template, tmp_path_factory.mktemp("law") / "store"))
    versions = list_versions(path)
    for number in tagged:
        set_tag(path, f"tag{number}", versions[number])
    readers = [Store(path, versions[number]) for number in opened]
    stay = {*versions[-keep:], *(versions[number] for number in tagged | opened)}
    before = tree(path)
    planned = gc_store(path, keep=keep, dry_run=True)
    assert [name for name in tree(path) if name != ".writers"] == [
        name for name in before if name != ".writers"
    ]
    done = gc_store(path, keep=keep)
    assert done == planned
    assert list(done.versions) == [version for version in versions if version not in stay]
    assert set(done.kept) == stay
    assert_whole(path, sorted(stay))
    assert there(path) == named(path, stay)
    for reader in readers:
        assert (reader.trial_rows(3) == coded_values(3, len(reader.trial_rows(3)), 3)).all()
    again = gc_store(path, keep=keep)
    assert (again.versions, again.n_shards, again.n_parts, again.n_bytes) == ((), 0, 0, 0)
    shutil.rmtree(path)


def test_the_bytes_that_are_said_to_be_freed_are_freed(store):
    def n_bytes():
        return sum(path.stat().st_size for path in store.rglob("*") if path.is_file())

    before = n_bytes()
    done = gc_store(store, keep=1)
    assert done.n_bytes == before - n_bytes() > 0
    assert (done.n_shards, done.n_parts) == (2, 2)  # of two changes to one trial
    assert done.kept == {"v0006": "newest"}


def test_what_others_have_put_into_a_store_is_left_alone(store):
    for name in ("shards/README", "parts/notes.parquet", "versions/old/x", "tags/x.txt", "mine/x"):
        (store / name).parent.mkdir(exist_ok=True)
        (store / name).write_text("mine")
    gc_store(store, keep=1)
    for name in ("shards/README", "parts/notes.parquet", "versions/old/x", "tags/x.txt", "mine/x"):
        assert (store / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["shards", "parts", "versions", "staging", "tags"])
def test_nothing_goes_through_a_link_that_leads_out_of_the_store(store, tmp_path, name):
    away = tmp_path / "elsewhere"
    (store / name).mkdir(exist_ok=True)
    (store / name).rename(away)
    (away / ".tmp-1-abc").mkdir()
    (store / name).symlink_to(away)
    before = tree(away)
    with pytest.raises(CorruptStoreError, match="is a link"):
        gc_store(store, keep=1)
    assert tree(away) == before


def test_a_linked_folder_of_staged_buckets_is_left_alone(store, tmp_path):
    away = tmp_path / "elsewhere"
    (away / ".tmp-1-abc").mkdir(parents=True)
    (away / "0.arrow").write_text('{"digest": "' + "0" * 32 + '"}')
    (store / "staging").mkdir(exist_ok=True)
    (store / "staging" / "plan").symlink_to(away)
    before = tree(away)
    gc_store(store, keep=1)
    assert tree(away) == before


def test_leftovers_of_killed_writers_go(store):
    for folder in ("", "shards", "parts", "versions", "staging", "staging/plan"):
        temporary = store / folder / ".tmp-1-abc"
        temporary.mkdir(parents=True)
        (temporary / "x").write_text("x" * 10)
    done = gc_store(store, keep=6)
    assert (done.n_leftovers, done.n_bytes, done.versions) == (6, 60, ())
    assert not list(store.rglob(".tmp-*"))


@pytest.mark.parametrize("keep", [0, -1])
def test_the_newest_version_always_stays(store, keep):
    with pytest.raises(InvalidSpecError, match=f"keep is {keep}; wanted 1"):
        gc_store(store, keep=keep)


def test_nothing_is_made_where_there_is_no_store(tmp_path):
    with pytest.raises(StoreNotFoundError, match="no committed version"):
        gc_store(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def _break_tag(store):
    set_tag(store, "best", "v0001")
    (store / "tags" / "best.json").write_text("{")
    return CorruptStoreError


def _break_manifest(store):
    path = store / "versions" / "v0006" / "dataset.json"
    path.write_bytes(path.read_bytes().replace(b"coded", b"Coded"))
    return CorruptStoreError


def _newer_format(store):
    path = store / "versions" / "v0006" / "dataset.json"
    document = json.loads(path.read_bytes())
    path.write_text(json.dumps({**document, "format": {**document["format"], "major": 2}}))
    return FormatVersionError


@pytest.mark.parametrize("change", [_break_tag, _break_manifest, _newer_format])
def test_nothing_goes_while_it_is_not_known_what_is_needed(store, change):
    error = change(store)
    before = tree(store)
    with pytest.raises(error):
        gc_store(store, keep=1)
    assert tree(store) == sorted({*before, ".writers"})


# --- readers ----------------------------------------------------------------------------------


def hold(path, version, ready, done):
    store = Store(path, version)
    ready.set()
    done.wait(60)
    assert (store.trial_rows(3)[0] == coded_values(3, 1, 3)).all()


def start(target, *args):
    child = CONTEXT.Process(target=target, args=args, daemon=True)
    child.start()
    return child


def test_a_version_that_another_process_has_open_stays_until_it_ends(store):
    ready, done = CONTEXT.Event(), CONTEXT.Event()
    child = start(hold, store, "v0001", ready, done)
    assert ready.wait(60)
    assert gc_store(store, keep=1).kept == {"v0001": "in use", "v0006": "newest"}
    assert_whole(store, ["v0001", "v0006"])
    done.set()
    child.join(60)
    assert child.exitcode == 0
    assert gc_store(store, keep=1).versions == ("v0001",)


def test_a_killed_reader_holds_nothing(store):
    ready, never = CONTEXT.Event(), CONTEXT.Event()
    child = start(hold, store, "v0001", ready, never)
    assert ready.wait(60)
    os.kill(child.pid, signal.SIGKILL)
    child.join(60)
    assert "v0001" in gc_store(store, keep=1).versions


def test_a_forked_child_goes_on_reading_when_its_parent_has_let_go(store):
    reader = Store(store, "v0001")
    out, into = os.pipe()
    child = os.fork()
    if not child:
        os.close(into)
        os.read(out, 1)  # until the parent closes it
        os._exit(0)
    os.close(out)
    del reader
    assert gc_store(store, keep=1, dry_run=True).kept["v0001"] == "in use"
    os.close(into)
    os.waitpid(child, 0)
    assert gc_store(store, keep=1).kept == {"v0006": "newest"}


def test_a_store_that_nobody_refers_to_holds_nothing(store):
    reader = Store(store, "v0001")
    assert len(reader.index) == 4
    reader.trial_rows(0)
    stream = TrialStream(reader, batch_size=4)
    next(iter(stream))
    del reader
    assert "v0001" in gc_store(store, keep=1, dry_run=True).kept
    del stream
    assert "v0001" not in gc_store(store, keep=1).kept


def test_opening_changes_nothing_in_the_store(store):
    def look():
        return [(p, p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(store.rglob("*"))]

    before = look()
    assert len(Store(store).cold()) == 4
    assert look() == before


def test_a_pickled_store_opens_the_same_version_and_holds_it_itself(store):
    set_tag(store, "best", "v0002")
    reader = Store(store, "best")
    assert reader.trial_rows(0).shape == (5, 3)
    pickled = pickle.dumps(reader)
    assert len(pickled) < 300  # no map, no index
    set_tag(store, "best", "v0005", force=True)
    again = pickle.loads(pickled)
    del reader
    assert again.version == "v0002"
    assert gc_store(store, keep=1).kept["v0002"] == "in use"


def while_being_locked(monkeypatch, what):
    """Do something just before the next shared lock is taken, when the file is already open."""
    lock, todo = fcntl.flock, [what]

    def flock(descriptor, how):
        if how == fcntl.LOCK_SH and todo:
            todo.pop()()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_version_that_is_removed_while_it_is_being_opened_is_not_found(store, monkeypatch):
    while_being_locked(monkeypatch, lambda: gc_store(store, keep=1))
    with pytest.raises(StoreNotFoundError, match=r"no version v0001 .*found: v0006\)"):
        Store(store, "v0001")


def test_the_newest_version_is_looked_for_again_if_it_is_removed_meanwhile(store, monkeypatch):
    def overtake():
        add_versions(store)
        gc_store(store, keep=1)

    while_being_locked(monkeypatch, overtake)
    assert Store(store).version == "v0008"
    assert verify_store(store) == []


def read_for_ever(path, started, done):
    """Read a stream that was opened before versions came and went; count its epochs."""
    stream = TrialStream(path, version="v0002", batch_size=4)
    wanted = {number: coded_values(number, 40, 3) for number in range(4)}
    started.set()
    time.sleep(0.3)  # nothing is mapped yet
    n_epochs = 0
    while not done.is_set() or n_epochs < 2:
        for batch in stream:
            for values, trial, first in zip(batch.values, batch.trial, batch.start, strict=True):
                if trial >= 0:  # not what fills the last step
                    rows = wanted[int(trial)][int(first) : int(first) + len(values)]
                    assert (values.numpy() == rows).all()
        n_epochs += 1


def open_for_ever(path, started, done):
    """Open whatever is newest and check all of it."""
    started.set()
    seen = set()
    while not done.is_set() or len(seen) < 2:
        reader = Store(path)
        seen.add(reader.version)
        last = reader.trial_rows(3)
        assert (last == coded_values(3, len(last), 3)).all()
        assert len(reader.cold()) == 4
        assert verify_store(path, reader.version) == []


def test_readers_go_on_while_versions_come_and_go(store):
    done = CONTEXT.Event()
    children = []
    for target in (read_for_ever, open_for_ever, open_for_ever):
        started = CONTEXT.Event()
        children.append(start(target, store, started, done))
        assert started.wait(60)
    n_removed = 0
    for _ in range(6):
        add_versions(store)
        n_removed += len(gc_store(store, keep=1).versions)
    done.set()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert n_removed > 6
    assert gc_store(store, keep=1).kept == {newest_version(store): "newest"}
    assert_whole(store, [newest_version(store)])


def test_rows_that_are_mapped_stay_readable_without_their_files(store):
    rows = Store(store, "v0006").trial_rows(3)
    shutil.rmtree(store)
    assert (rows == coded_values(3, len(rows), 3)).all()


# --- builders ---------------------------------------------------------------------------------


def test_what_a_running_build_has_written_stays(store):
    rows = np.ones((3, 3), np.float32)
    with building(store):
        entry = write_shard(store, {"values": rows}, 1)
        with building(store), pytest.raises(StoreBusyError, match=r"is being built.*try again"):
            gc_store(store, keep=1)
        assert entry.digest in there(store)
        assert list_versions(store)[0] == "v0001"
    assert gc_store(store, keep=6).n_shards == 1
    assert entry.digest not in there(store)


def test_a_build_waits_until_what_is_removed_is_gone(store):
    order = []

    def build():
        with building(store):
            order.append("built")

    with removing(store):
        thread = threading.Thread(target=build)
        thread.start()
        thread.join(0.2)
        order.append("removed")
    thread.join(60)
    assert order == ["removed", "built"]


def test_two_at_once_do_not_remove(store):
    with removing(store), pytest.raises(StoreBusyError):
        gc_store(store, keep=1)
    assert len(list_versions(store)) == 6


@pytest.mark.parametrize("is_fresh", [True, False])
def test_a_staged_bucket_keeps_its_shards_until_the_next_commit(store, is_fresh):
    """A build in steps, bucket by bucket, holds no lock in between."""
    entry = write_shard(store, {"values": np.ones((3, 3), np.float32)}, 1)
    part = write_part(store, pa.table({"id": ["new"]}))
    rows = pa.table({"id": ["new"], "shard": [entry.digest]})
    staged = store / "staging" / "plan" / "0.arrow"
    write_staged(staged, (), BucketResult(rows, (entry,), (), (), part=part))
    other = store / "staging" / "plan" / "1.arrow"
    write_staged(other, (), BucketResult(None, Store(store).manifest.shards, (), ()))
    if not is_fresh:
        for path in (staged, other):
            os.utime(path, (0, 0))
    done = gc_store(store, keep=6)
    assert (entry.digest in there(store)) == (part.digest in there(store)) == is_fresh
    assert staged.exists() == is_fresh  # without its shard it is of no use
    assert other.exists()  # what it names is in a version
    assert (done.n_shards, done.n_leftovers) == ((0, 0) if is_fresh else (1, 1))


def test_where_there_are_no_locks_all_goes_on_but_nothing_is_removed(store, monkeypatch):
    def flock(descriptor, how):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert Store(store).version == "v0006"
    add_versions(store)
    with building(store):
        pass
    with pytest.raises(StoreBusyError, match=r"without locks .*Mount it with locks"):
        gc_store(store, keep=1)
    assert len(list_versions(store)) == 8


# --- killed -----------------------------------------------------------------------------------


def run_forked(what):
    """Start a function in a fork, which needs no start-up, and return the process number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        what()
        code = 0
    finally:
        os._exit(code)


def gc_killed_at(path, event_number):
    """Die just before the n-th change below path."""
    left = event_number

    def watch(event, args):
        nonlocal left
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            is_here = isinstance(args[0], (str, bytes)) and str(path) in os.fsdecode(args[0])
            left -= is_here
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    gc_store(path, keep=1)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A store of versions v0001 to v0004, with something in it that no version names."""
    path = tmp_path_factory.mktemp("gc") / "small"
    add_versions(path, 2)
    (path / "shards" / ".tmp-1-abc").mkdir()
    entry = write_shard(path, {"values": np.ones((3, 3), np.float32)}, 1)
    write_staged(path / "staging" / "plan" / "0.arrow", (), BucketResult(None, (entry,), (), ()))
    os.utime(path / "staging" / "plan" / "0.arrow", (0, 0))
    return path


def test_gc_killed_before_each_of_its_steps_leaves_whole_versions_and_ends_the_next_time(
    small, tmp_path
):
    wanted = Path(shutil.copytree(small, tmp_path / "wanted"))
    assert gc_store(wanted, keep=1).n_leftovers == 2
    n_partly = 0
    for step in range(400):
        path = Path(shutil.copytree(small, tmp_path / f"{step}"))
        _, status = os.waitpid(run_forked(lambda p=path, n=step: gc_killed_at(p, n)), 0)
        assert_whole(path, list_versions(path))
        n_partly += tree(path) not in (tree(small), tree(wanted))
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        gc_store(path, keep=1)
        assert tree(path) == tree(wanted)
        shutil.rmtree(path)
    else:
        pytest.fail("gc never came to its end")
    assert n_partly > 20


def test_gc_killed_at_random_moments_leaves_whole_versions(small, tmp_path):
    """As above, but in the midst of a call of the system, too."""
    draw = random.Random(5)
    for number in range(20):
        path = Path(shutil.copytree(small, tmp_path / str(number)))
        child = run_forked(lambda p=path: gc_store(p, keep=1))
        time.sleep(draw.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert "v0004" in list_versions(path)
        assert_whole(path, list_versions(path))
        gc_store(path, keep=1)
        assert_whole(path, ["v0004"])
