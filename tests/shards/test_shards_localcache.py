"""The local cache: what is decoded is what was promised, and no more is kept than allowed."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
from stores import make_store

from shards import CorruptStoreError, InvalidSpecError, Store
from shards.layout import shard_digest
from shards.localcache import BOUND, FREE_SHARE, MOST_BYTES, PLACE, cache_bound, cache_place


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv(PLACE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def packed(path: Path, lengths: list[int], n_shards: int = 1) -> Store:
    return make_store(path, lengths, n_shards=n_shards, container="parquet")


def entry_folders(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir())


def folder_of(store: Store, place: Path, shard: int) -> Path:
    return place / shard_digest(store.manifest.shards[shard].arrays)


def raw_bytes(store: Store, shard: int) -> int:
    return sum(spec.data_bytes for spec in store.manifest.shards[shard].arrays.values())


def test_a_shard_is_decoded_once(tmp_path, place, monkeypatch):
    store = packed(tmp_path / "s", [20, 9])
    want = make_store(tmp_path / "plain", [20, 9]).shard_rows(0).tobytes()
    assert store.shard_rows(0).tobytes() == want
    monkeypatch.setattr("shards.localcache.decode_shard", None)  # calling it again would fail
    assert Store(store.path).shard_rows(0).tobytes() == want
    assert store.trial_rows(1).tobytes() == want[20 * 12 :]


def test_equal_shards_of_two_stores_share_what_is_decoded(tmp_path, place):
    for name in ("a", "b"):
        packed(tmp_path / name, [20, 9]).shard_rows(0)
    assert len(entry_folders(place)) == 1


def test_a_cached_file_of_the_wrong_size_is_decoded_again(tmp_path, place):
    store = packed(tmp_path / "s", [20, 9])
    want = store.shard_rows(0).tobytes()
    file = folder_of(store, place, 0) / "values.raw"
    for spoil in (lambda: file.write_bytes(want[:-4]), file.unlink):
        spoil()
        assert store.shard_rows(0).tobytes() == want
        assert file.stat().st_size == len(want)


def test_rows_that_are_not_as_promised_are_never_cached(tmp_path, place):
    store = packed(tmp_path / "s", [20, 9])
    file = store.path / "shards" / store.manifest.shards[0].digest / "rows.parquet"
    raw = bytearray(file.read_bytes())
    for change in (raw[:-1], raw + b"x", raw[:200] + bytes([raw[200] ^ 1]) + raw[201:]):
        file.write_bytes(change)
        with pytest.raises(CorruptStoreError, match=r"rows\.parquet .*trialshards verify"):
            store.shard_rows(0)
        assert entry_folders(place) == []
    file.unlink()
    with pytest.raises(CorruptStoreError, match="is missing"):
        store.shard_rows(0)


def test_the_least_recently_used_shard_makes_room(tmp_path, place, monkeypatch):
    store = packed(tmp_path / "s", [30, 30, 30], n_shards=3)
    size = raw_bytes(store, 0)
    monkeypatch.setenv(BOUND, str(2 * size))
    for shard, age in ((0, 50), (1, 90)):
        store.shard_rows(shard)
        then = time.time() - age
        os.utime(folder_of(store, place, shard), (then, then))
    mapped = store.shard_rows(0)  # used again: now 1 is the oldest
    store.shard_rows(2)
    assert entry_folders(place) == sorted(folder_of(store, place, i) for i in (0, 2))
    kept = mapped.tobytes()
    store.map_array("values", [1, 2])
    assert not folder_of(store, place, 0).exists()
    assert mapped.tobytes() == kept  # removed, but who maps it still reads it


def test_a_request_beyond_the_bound_names_both_sizes_and_the_remedy(tmp_path, place, monkeypatch):
    store = packed(tmp_path / "s", [30, 30], n_shards=2)
    asked = raw_bytes(store, 0) + raw_bytes(store, 1)
    monkeypatch.setenv(BOUND, str(asked - 1))
    store.shard_rows(0)
    said = rf"2 shards .* {asked} bytes .* {asked - 1}\. Set {BOUND} .*{PLACE}.*format: zarr"
    with pytest.raises(InvalidSpecError, match=said):
        store.map_array("values", [0, 1])
    assert entry_folders(place) == [folder_of(store, place, 0)]  # nothing was thrown out for it
    monkeypatch.setenv(BOUND, str(asked))
    assert len(store.map_array("values", [0, 1]).offsets) == 2


def test_what_a_killed_process_left_goes_when_it_is_old(tmp_path, place):
    store = packed(tmp_path / "s", [20])
    old, fresh = place / ".tmp-1-old", place / ".tmp-2-fresh"
    for folder in (old, fresh):
        folder.mkdir(parents=True)
        (folder / "values.raw").write_bytes(b"half")
    then = time.time() - 7200
    os.utime(old, (then, then))
    store.shard_rows(0)
    assert not old.exists()
    assert fresh.exists()


def test_place_and_bound_follow_the_environment(tmp_path, monkeypatch):
    for name in (PLACE, BOUND, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_place() == tmp_path / ".cache" / "trialshards"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_place() == tmp_path / "xdg" / "trialshards"
    monkeypatch.setenv(PLACE, str(tmp_path / "mine"))
    assert cache_place() == tmp_path / "mine"
    free = type("Usage", (), {"free": 4000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: free)
    assert cache_bound(tmp_path, 400) == 4400 // FREE_SHARE
    free.free = 2**60
    assert cache_bound(tmp_path, 0) == MOST_BYTES
    monkeypatch.setenv(BOUND, "123")
    assert cache_bound(tmp_path, 0) == 123
    for wrong in ("", "-1", "20 GiB", "1e9"):
        monkeypatch.setenv(BOUND, wrong)
        with pytest.raises(InvalidSpecError, match=BOUND):
            cache_bound(tmp_path, 0)


def _read(path: str, barrier: object, sums: object, bound: int) -> None:
    os.environ[BOUND] = str(bound)
    store = Store(path)
    barrier.wait()  # type: ignore[attr-defined]
    total = 0.0
    for turn in range(12):
        shard = (turn * 5 + os.getpid()) % len(store.manifest.shards)
        rows = store.shard_rows(shard)
        total += float(np.abs(rows - store_rows(shard)).max())
    sums.put(total)  # type: ignore[attr-defined]


def store_rows(shard: int) -> np.ndarray:
    rows = np.arange(40)[:, None] + np.arange(3)[None, :] / 16
    return (shard * 10_000 + rows).astype(np.float32)


@pytest.mark.parametrize("n_fit", [4, 1])
def test_processes_that_race_for_shards_and_room_read_the_right_rows(tmp_path, place, n_fit):
    """With room for one shard alone, each decodes what the others have just thrown out."""
    store = packed(tmp_path / "s", [40] * 4, n_shards=4)
    context = multiprocessing.get_context("spawn")
    barrier, sums = context.Barrier(3), context.Queue()
    bound = n_fit * raw_bytes(store, 0)
    workers = [
        context.Process(target=_read, args=(str(store.path), barrier, sums, bound))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    assert [sums.get(timeout=120) for _ in workers] == [0.0] * 3
    for worker in workers:
        worker.join()
    assert len(entry_folders(place)) == n_fit
