"""Compacting changes where rows lie and nothing that is delivered, in every shape of a store."""

import dataclasses
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import SHAPES, make_store

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "loaders"))
from batches import assert_same
from test_shapes import Case, batches_of, cases, store_of

from shards import CommitConflictError, CorruptStoreError, Store, StoreNotFoundError, WindowSpec
from shards import compact as compacting
from shards.compact import compact_store
from shards.diff import diff_versions
from shards.gc import gc_store
from shards.manifest import TargetSchema
from shards.parts import write_part
from shards.redraft import redraft_version
from shards.tombstone import tombstone_trials
from shards.verify import verify_store
from shards.version import publish_version
from shards.writer import list_versions

PER_STEP = TargetSchema("per_step", ("y0", "y1"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIALSHARDS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no test here cuts the power


def in_parts(store, n_parts):
    """Publish a version again with its cold index in parts that hold each second row only."""
    draft, cold, n = redraft_version(store), store.cold(), len(store.index)
    bounds = np.linspace(0, n, n_parts + 1).astype(int)
    parts, part, part_row = [], [], []
    for first, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        rows = [i // 2 + first for i in range(2 * (stop - first))]  # each twice: half are dead
        entry = write_part(store.path, cold.take(pa.array(rows, pa.int64())))
        parts.append(entry)
        part += [entry.digest] * (stop - first)
        part_row += range(0, 2 * (stop - first), 2)
    trials = draft.trials.append_column("part", pa.array(part, pa.utf8()))
    trials = trials.append_column("part_row", pa.array(part_row, pa.int64()))
    draft = dataclasses.replace(draft, trials=trials, parts=tuple(parts))
    return Store(store.path, publish_version(store.path, draft, after=store.version))


def with_target(store, target_bytes):
    """Publish a version again that wants shards of a size."""
    spec = {"shards": {"target_bytes": target_bytes}}
    draft = dataclasses.replace(redraft_version(store), spec=spec)
    return Store(store.path, publish_version(store.path, draft, after=store.version))


def assert_same_batches(old, new):
    for split in old.manifest.splits:
        for shuffle in ("global", "none"):
            wanted = batches_of(old, split, shuffle, 5)
            for got, want in zip(batches_of(new, split, shuffle, 5), wanted, strict=True):
                if isinstance(want, str):
                    assert got.replace(new.version, old.version) == want
                else:
                    assert_same(got, want)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    case=cases(), shape=st.sampled_from(SHAPES), gone=st.sets(st.integers(0, 7)),
    target_bytes=st.sampled_from([1, 300, 2000, 2**27]), n_parts=st.integers(0, 3),
)  # fmt: skip
def test_a_compacted_version_delivers_the_same_bit_for_bit(
    tmp_path_factory, case, shape, gone, target_bytes, n_parts
):
    """Short windows, masks, targets, normalizations, NaN, codes, statics; trials taken out."""
    store = store_of(case, tmp_path_factory.mktemp("s"), *shape)
    path = store.path
    store = with_target(store, target_bytes)
    if 0 < n_parts <= len(store.index):
        store = in_parts(store, n_parts)
    train = [i for i in range(len(store.index)) if store.index.split[i] == 0]
    ids = [store.index.id_of(i) for i in gone if i < len(store.index) and i != train[0]]
    if ids:
        store = Store(path, tombstone_trials(path, ids, "law"))
    done = compact_store(path, force=True)
    new = Store(path)
    assert verify_store(path) == []
    assert new.manifest.fingerprints == store.manifest.fingerprints
    assert (done.old, done.version) == (store.version, new.version)
    assert_same_batches(store, new)
    assert diff_versions(path, store.version, new.version).is_empty
    assert new.cold().equals(store.cold())
    assert len(new.manifest.parts) <= 1
    live = sum(int(n) for n in new.n_stored)
    assert not live or sum(shard.n_rows for shard in new.manifest.shards) <= live
    again = compact_store(path, force=True)
    assert (again.version, again.is_due) == (new.version, False)
    assert not live or again.n_dead_rows == 0  # without windows, a shard has a row all the same
    shutil.rmtree(path)


def test_equal_trials_that_share_their_rows_go_on_sharing_them(tmp_path):
    store = make_store(tmp_path, [20, 30, 20], n_shards=3)
    draft = redraft_version(store)
    rows = draft.trials.to_pylist()
    twin = {**rows[0], "id": "twin", "digest": "0" * 32}
    trials = pa.Table.from_pylist([*rows, twin], schema=draft.trials.schema)
    counts = {**draft.counts, "trials": 4, "rows": 90}
    draft = dataclasses.replace(draft, trials=trials, counts=counts)
    publish_version(tmp_path, draft, after="v0001")
    tombstone_trials(tmp_path, ["t0001"], "law")
    compact_store(tmp_path, force=True)
    new = Store(tmp_path)
    assert new.manifest.shards[0].n_rows == 40
    assert (new.trial_rows(2) == new.trial_rows(0)).all()
    assert new.index.row_start[2] == new.index.row_start[0]


@pytest.mark.parametrize("container", ["zarr", "parquet"])
def test_large_shards_without_dead_rows_stay_and_new_ones_are_filled_up(tmp_path, container):
    """A row has 12 bytes, so that a shard of 100 rows is large for a target of 1,000 bytes."""
    lengths = [100, 5, 70, 6, 7, 40, 41]  # one shard each
    store = make_store(tmp_path, lengths, n_shards=7, container=container)
    store = with_target(store, 1000)
    store = Store(tmp_path, tombstone_trials(tmp_path, ["t0002"], "law"))
    small = [12 * entry.n_rows * 4 < 1000 for entry in store.manifest.shards]
    done = compact_store(tmp_path, force=True)
    new = Store(tmp_path)
    kept = {e.digest for e in store.manifest.shards} & {e.digest for e in new.manifest.shards}
    assert len(kept) == done.n_shards - done.n_rewritten == small.count(False)
    assert done.n_rewritten == small.count(True) > 1
    for entry in new.manifest.shards:
        raw = sum(array.data_bytes for array in entry.arrays.values())
        assert raw <= 1000 or entry.n_trials == 1
    assert verify_store(tmp_path) == []


def test_a_shard_that_is_full_is_followed_by_another(tmp_path):
    store = with_target(make_store(tmp_path, [10] * 30, n_shards=30), 4 * 120)
    tombstone_trials(tmp_path, ["t0003"], "law")
    draft = redraft_version(Store(tmp_path))
    publish_version(tmp_path, dataclasses.replace(draft, spec={}), after="v0003")  # 128 MiB
    compact_store(tmp_path, force=True)
    store = with_target(Store(tmp_path), 480)
    assert [entry.n_rows for entry in store.manifest.shards] == [290]
    tombstone_trials(tmp_path, ["t0004"], "law")
    compact_store(tmp_path, force=True)
    assert [entry.n_rows for entry in Store(tmp_path).manifest.shards] == [40] * 7
    assert verify_store(tmp_path) == []


def test_tiny_trials_between_huge_ones_lie_together(tmp_path):
    store = with_target(make_store(tmp_path, [2, 90, 3, 95, 4, 80, 5], n_shards=2), 1000)
    tombstone_trials(tmp_path, ["t0003", "t0004"], "law")
    compact_store(tmp_path, force=True)
    shards = Store(tmp_path).manifest.shards
    assert sorted(entry.n_rows for entry in shards) == [10, 80, 90]
    assert not compact_store(tmp_path, force=True).is_due
    assert store.version == "v0002"


def test_it_is_due_when_over_a_fifth_of_the_rows_are_dead(tmp_path):
    make_store(tmp_path, [20, 20, 10, 50])
    tombstone_trials(tmp_path, ["t0000"], "law")
    done = compact_store(tmp_path)
    assert (done.version, done.reasons, done.n_dead_rows) == ("v0002", (), 20)
    tombstone_trials(tmp_path, ["t0002"], "law")
    done = compact_store(tmp_path, dry_run=True)
    assert (done.version, done.reasons) == ("v0003", ("30 of 100 rows are dead",))
    assert (done.n_rewritten, done.is_due) == (1, True)
    assert list_versions(tmp_path) == ["v0001", "v0002", "v0003"]
    assert compact_store(tmp_path).version == "v0004"
    assert Store(tmp_path).manifest.shards[0].n_rows == 70


@pytest.mark.parametrize(("n_shards", "is_due"), [(64, False), (65, True)])
def test_it_is_due_when_small_shards_are_many(tmp_path, n_shards, is_due):
    make_store(tmp_path, [5] * n_shards, n_shards=n_shards)
    done = compact_store(tmp_path)
    assert (done.version == "v0002") == is_due
    assert done.reasons == (("65 shards are small",) if is_due else ())
    assert len(Store(tmp_path).manifest.shards) == (1 if is_due else 64)


@pytest.mark.parametrize(("n_parts", "is_due"), [(64, False), (65, True)])
def test_it_is_due_when_parts_are_many(tmp_path, n_parts, is_due):
    store = in_parts(make_store(tmp_path, [5] * 65), n_parts)
    wanted = store.cold()
    done = compact_store(tmp_path)
    assert done.reasons == (("the cold index has 65 parts",) if is_due else ())
    assert len(Store(tmp_path).manifest.parts) == (1 if is_due else 64)
    assert Store(tmp_path).cold().equals(wanted)


def test_space_of_dead_rows_is_free_after_gc(tmp_path):
    make_store(tmp_path, [200, 200, 10])
    tombstone_trials(tmp_path, ["t0001"], "law")
    compact_store(tmp_path, force=True)
    gc_store(tmp_path, keep=1)
    (shard,) = (tmp_path / "shards").iterdir()
    assert (shard / "values" / "c" / "0" / "0").stat().st_size == Store(tmp_path).manifest.shards[
        0
    ].n_bytes
    assert Store(tmp_path).manifest.shards[0].n_rows == 210


def test_rows_that_are_damaged_do_not_get_a_digest_that_fits(tmp_path):
    store = make_store(tmp_path, [20, 30, 40], n_shards=2)
    tombstone_trials(tmp_path, ["t0000"], "law")
    file = tmp_path / "shards" / store.manifest.shards[0].digest / "values" / "c" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[7] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptStoreError, match=r"values is not what .* Nothing was published"):
        compact_store(tmp_path, force=True)
    assert list_versions(tmp_path) == ["v0001", "v0002"]


def test_a_version_that_came_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    make_store(tmp_path, [20, 30, 40], n_shards=2)
    draft = compacting.redraft_version

    def overtaken(store):
        found = draft(store)
        tombstone_trials(tmp_path, ["t0001"], "first")
        return found

    monkeypatch.setattr(compacting, "redraft_version", overtaken)
    with pytest.raises(CommitConflictError, match="v0002 was committed"):
        compact_store(tmp_path, force=True)
    assert [Store(tmp_path).version, len(Store(tmp_path).index)] == ["v0002", 2]
    assert gc_store(tmp_path).n_shards == 1  # what it had written


def test_nothing_is_made_where_there_is_no_store(tmp_path):
    with pytest.raises(StoreNotFoundError):
        compact_store(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_version_without_any_window_stays_as_it_is(tmp_path):
    windows = WindowSpec(length=50, stride=1, steps=1, short="drop")
    make_store(tmp_path, [20, 30], layout="windows", windows=windows)
    done = compact_store(tmp_path, force=True)
    assert (done.version, done.is_due) == ("v0001", False)


def test_the_law_above_meets_every_kind_of_content():
    fields = {field.name for field in dataclasses.fields(Case)}
    assert fields >= {"windows", "target", "scope", "masked", "coded", "n_shards"}
