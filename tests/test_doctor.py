"""The doctor's checks of stores: each finding is provoked, and goes away by its remedy."""

import dataclasses
import gc
import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from stores import make_store

from loaders import TrialStream
from loaders.probe import Probe, Waiting
from shards import Store, WindowSpec
from trialshards.cli import main
from trialshards.doctor import Question, diagnose, speed
from trialshards.doctor.check import FINDING, FINE, NOT_CHECKED
from trialshards.doctor.machine import read_machine
from trialshards.doctor.pages import measure_disk, resident_pages
from trialshards.doctor.speed import check_waiting, check_workers, measure_waiting

QUICK = Question(batch_size=16, seconds=0.02)
SHORT = WindowSpec(length=64, stride=16, steps=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of 312 KiB; forgetting is possible for files of a few pages already."""
    return make_store(
        tmp_path_factory.mktemp("doctor"), [4000, 3000, 1000], n_channels=10, windows=SHORT
    )


def look(store=None, question=QUICK, machine=None):
    """Return the checks by name."""
    gc.collect()  # of what a stream that is gone still maps, the system forgets nothing
    checks = diagnose(store, question, machine)
    assert len({check.name for check in checks}) == len(checks)
    assert all(bool(check.remedy) == (check.state == FINDING) for check in checks)
    assert all(check.seen for check in checks)
    return {check.name: check for check in checks}


def forget(paths) -> bool:
    """Let the system drop files from memory; return whether it did."""
    gc.collect()
    paths = list(paths)
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return not any(resident_pages(path).any() for path in paths)


# --- limits of the system ---------------------------------------------------------------------


def test_a_small_dev_shm_is_a_finding(store):
    real = read_machine()
    small = dataclasses.replace(real, shm_bytes=2**20)
    assert "--shm-size" in look(machine=small)["shared memory"].remedy
    # With a store, it is what its batches need: some KiB here, for two workers.
    two = dataclasses.replace(QUICK, n_workers=2)
    assert look(store, two, small)["shared memory"].state == FINE
    tiny = dataclasses.replace(real, shm_bytes=2**12)
    found = look(store, two, tiny)["shared memory"]
    assert found.state == FINDING
    assert "2 workers hold up to" in found.seen


def test_the_fast_path_that_is_switched_off_is_a_finding(monkeypatch):
    monkeypatch.setenv("TRIALSHARDS_FAST", "0")
    assert look()["fast path"].remedy == "unset TRIALSHARDS_FAST"
    monkeypatch.delenv("TRIALSHARDS_FAST")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = look()
    assert "trialshards[fast]" in found["fast path"].remedy
    assert found["threads"].state == NOT_CHECKED


# --- memory and disk --------------------------------------------------------------------------


def test_a_split_larger_than_memory_is_a_finding_unless_it_is_read_by_blocks(store):
    small = dataclasses.replace(read_machine(), memory_bytes=100_000)
    found = look(store, machine=small)["memory"]
    assert found.state == FINDING
    assert "97.7 KiB of memory" in found.seen
    blocks = dataclasses.replace(QUICK, shuffle="blocks")
    assert look(store, blocks, small)["memory"].state == FINE
    assert look(store)["memory"].state == FINE


def test_a_cold_page_cache_is_a_finding_until_the_shards_were_read(store):
    files = [store.chunk_file(0, "values")]
    if not forget(files):
        pytest.skip("this file system keeps its files in memory")
    found = look(store)["page cache"]
    assert found.state == FINDING
    assert found.seen.startswith("0% of 31")
    assert "s at random" in found.seen
    assert forget(files)
    command = found.remedy.removeprefix("before the first epoch: ")
    subprocess.run(command, shell=True, check=True)
    assert look(store)["page cache"].state == FINE


def test_a_disk_slower_than_training_is_a_finding_only_where_it_is_needed(store):
    files = [store.chunk_file(0, "values")]
    if not forget(files):
        pytest.skip("this file system keeps its files in memory")
    greedy = dataclasses.replace(QUICK, rate=1e15)
    found = look(store, greedy)["disk"]
    assert found.state == FINDING
    assert "; training takes" in found.seen
    assert forget(files)
    assert look(store, dataclasses.replace(QUICK, rate=1e-3))["disk"].state == FINE
    files[0].read_bytes()
    warm = look(store, greedy)["disk"]
    assert warm.state == FINE
    assert "all of it from memory" in warm.seen
    # Larger than memory, each epoch comes from the disk, however warm the cache is now.
    small = dataclasses.replace(read_machine(), memory_bytes=100_000)
    files[0].read_bytes()
    assert look(store, greedy, small)["disk"].state == FINDING


def test_measuring_the_disk_leaves_what_was_in_memory_there(store):
    path = store.chunk_file(0, "values")
    if not forget([path]):
        pytest.skip("this file system keeps its files in memory")
    measured = measure_disk(path, 4096)
    assert min(measured) > 0
    path.read_bytes()
    assert resident_pages(path).all()
    measure_disk(path, 4096)
    assert resident_pages(path).all()


def test_nothing_is_said_of_the_disk_where_files_live_in_memory():
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK):
        pytest.skip("there is no /dev/shm to write to")
    path = shm / f"trialshards-test-{os.getpid()}"
    try:
        path.write_bytes(bytes(2**17))
        assert resident_pages(path).all()
        assert measure_disk(path, 4096) is None
    finally:
        path.unlink()


# --- the store --------------------------------------------------------------------------------


def test_many_small_shards_are_a_finding_until_they_are_compacted(tmp_path):
    store = make_store(tmp_path, [20] * 70, n_shards=70)
    found = look(store)["shards"]
    assert found.seen.startswith("70 shards, 70 of them under 32.0 MiB")
    assert found.remedy == f"trialshards compact {tmp_path}"
    done = CliRunner().invoke(main, found.remedy.split()[1:])
    assert done.exit_code == 0, done.output
    assert look(Store(tmp_path))["shards"].state == FINE


def test_compressed_shards_are_a_finding_until_they_are_decoded(tmp_path, monkeypatch):
    store = make_store(tmp_path / "store", [60] * 4, container="parquet", n_shards=2)
    monkeypatch.setenv("TRIALSHARDS_CACHE", str(tmp_path / "cache"))
    cold = look(store)
    assert "0 of 2 shards are decoded" in cold["container"].seen
    assert cold["container"].remedy.startswith("decode them before: trialshards plan")
    assert not (tmp_path / "cache").exists()  # to look does not decode
    assert all(cold[name].state == NOT_CHECKED for name in ("page cache", "disk", "workers"))
    monkeypatch.setenv("TRIALSHARDS_CACHE_BYTES", "100")
    assert "set TRIALSHARDS_CACHE_BYTES to" in look(store)["container"].remedy
    monkeypatch.delenv("TRIALSHARDS_CACHE_BYTES")
    done = CliRunner().invoke(main, ["plan", str(store.path), "--seconds", "0.01"])
    assert done.exit_code == 0, done.output
    warm = look(store)
    assert warm["container"].state == FINE
    if not forget((tmp_path / "cache").glob("*/*.raw")):
        pytest.skip("this file system keeps its files in memory")
    command = look(store)["page cache"].remedy.removeprefix("before the first epoch: ")
    assert command == f"cat {tmp_path}/cache/*/*.raw > /dev/null"
    subprocess.run(command, shell=True, check=True)
    assert look(store)["page cache"].state == FINE


def test_a_version_that_does_not_say_whether_values_are_missing_is_a_finding(store):
    assert "every batch is searched" in look(store)["format"].seen
    newer = Path(__file__).parent / "golden/v1.2/rows_zarr"
    assert look(Store(newer))["format"].state == FINE


# --- speed ------------------------------------------------------------------------------------


def test_workers_that_slow_a_stream_down_are_a_finding_if_they_are_used(tmp_path):
    # An epoch of one batch: workers are started for each.
    store = make_store(tmp_path, [30] * 4)
    asked = look(store, dataclasses.replace(QUICK, n_workers=1))["workers"]
    assert asked.state == FINDING
    assert "with 1 workers" in asked.seen
    assert asked.remedy.startswith("num_workers=0")
    unasked = look(store)["workers"]
    assert unasked.state == FINE
    assert "with 2 workers" in unasked.seen
    slow, fast = (Probe(0, 0.1, 1.0, 10, rows, rows, 100) for rows in (10, 30))
    assert check_workers(slow, fast, is_asked=True).state == FINE


def test_a_device_that_waits_is_a_finding(store):
    assert check_waiting(Waiting(50, 1.0, 0.3), device="it").remedy.startswith("TrialStream(")
    assert check_waiting(Waiting(50, 1.0, 0.01), device="it").state == FINE
    assert check_waiting(None, device="").state == NOT_CHECKED


def test_the_stand_in_for_a_model_trains_on_a_stream(store, monkeypatch):
    monkeypatch.setattr(speed, "HIDDEN", 8)
    waiting = measure_waiting(TrialStream(store, batch_size=2), "cpu", n_steps=1, n_warm_up=0)
    assert waiting.n_steps == 1
    assert 0 < waiting.share < 1
