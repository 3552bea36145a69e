"""A build that is killed at any moment leaves every committed version whole, and can go on."""

import multiprocessing
import os
import random
import signal
import sys
import time

import numpy as np
import pytest
from stores import coded_values, make_store

from shards import Store
from shards.verify import verify_store
from shards.writer import list_versions

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["numpy", "pyarrow.parquet", "pytest", "shards.verify"])
KILLS = 20


def lengths_of(build):
    return [5, 7, 9, 20 + build]  # with two shards one is shared by all builds and one is new


def build_next(path):
    """Publish the version that follows the newest one; v0001 is build 0."""
    newest = list_versions(path)[-1]
    return make_store(path, lengths_of(int(newest[1:])), n_shards=2, after=newest, missing=True)


def build_until_killed(path, started):
    while True:
        build_next(path)
        started.set()


def build_killed_at(path, event_number):
    """Build once; die just before the n-th open, mkdir, rename or removal below path."""
    left = event_number

    def watch(event, args):
        nonlocal left
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and str(
            path
        ) in os.fsdecode(args[0] if isinstance(args[0], (str, bytes)) else ""):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    build_next(path)


def assert_whole(path, old_version, old_fingerprint):
    """The store opens, the old version is what it was, and both keep their promises."""
    newest = Store(path)
    assert int(newest.version[1:]) >= int(old_version[1:])
    old = Store(path, old_version)
    assert old.fingerprint == old_fingerprint
    rows = old.trial_rows(3)
    present = ~np.isnan(rows)
    assert present.sum() > rows.size // 2
    assert (rows[present] == coded_values(3, 19 + int(old_version[1:]), 3)[present]).all()
    assert verify_store(path, old_version) == []
    if newest.version != old_version:
        assert verify_store(path) == []


def test_a_build_killed_at_random_moments_leaves_a_whole_store_and_can_go_on(tmp_path):
    rng = random.Random(7)
    store = make_store(tmp_path, lengths_of(0), n_shards=2, missing=True)
    for _ in range(KILLS):
        started = CONTEXT.Event()
        child = CONTEXT.Process(target=build_until_killed, args=(tmp_path, started), daemon=True)
        child.start()
        assert started.wait(20)
        time.sleep(rng.uniform(0, 0.05))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert_whole(tmp_path, store.version, store.fingerprint)
        store = build_next(tmp_path)
        assert verify_store(tmp_path) == []
    versions = list_versions(tmp_path)
    assert len(versions) > 2 * KILLS
    assert versions == [f"v{i:04d}" for i in range(1, len(versions) + 1)]


def test_a_build_killed_before_each_of_its_steps_leaves_a_whole_store_and_can_go_on(tmp_path):
    store = make_store(tmp_path, lengths_of(0), n_shards=2, missing=True)
    committed_before_death = 0
    for step in range(200):
        child = CONTEXT.Process(target=build_killed_at, args=(tmp_path, step), daemon=True)
        child.start()
        child.join(20)
        assert_whole(tmp_path, store.version, store.fingerprint)
        committed_before_death += Store(tmp_path).version != store.version
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        store = build_next(tmp_path)
    else:
        pytest.fail("the build never came to its end")
    assert step > 25  # folders, arrays, metadata, indexes, manifest, renames, hint
    assert committed_before_death > 1  # also killed between the commit and the hint
    assert verify_store(tmp_path) == []
