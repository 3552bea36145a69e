"""A tombstone takes whole trials out of the next version, and changes nothing else."""

import dataclasses
import os

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import make_store

from loaders import TrialStream
from shards import (
    CommitConflictError,
    InvalidSpecError,
    Store,
    StoreNotFoundError,
    TrialNotFoundError,
)
from shards import tombstone as taking_out
from shards.diff import diff_versions
from shards.manifest import Tombstone
from shards.redraft import redraft_version
from shards.tombstone import tombstone_trials
from shards.verify import verify_store
from shards.version import publish_version
from shards.writer import list_versions

SPLITS = ["train", "val", "train", "test", "train", "train"]
LENGTHS = [20, 30, 25, 40, 9, 15]


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch):
    """No test here cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def six_trials(path, **options):
    return make_store(path, LENGTHS, splits=SPLITS, n_shards=2, scale=(3.0, 7.0), **options)


def with_counts(store, **counts):
    """Publish a version again with what a build counts besides."""
    draft = redraft_version(store)
    facts = {
        "size_bytes": [100 * n for n in LENGTHS], "mtime_ns": list(range(6)),
        "n_rows_in": [n + 3 for n in LENGTHS], "n_dropped": [2] * 6, "n_merged": [1] * 6,
        "n_inserted": [0] * 6, "n_outliers": [1, 0, 0, 0, 0, 5], "n_masked": [0, 0, 4, 0, 0, 0],
    }  # fmt: skip
    trials = draft.trials
    for name, column in facts.items():
        trials = trials.append_column(name, pa.array(column))
    counts = {
        **draft.counts, "segments": 6, "ignored": {"hidden": 1}, "files": 8, "quarantined": 1,
        "rows_in": sum(facts["n_rows_in"]), "rows_dropped": {"missing_values": 12, "merged": 6},
        "rows_inserted": 0, "values_clipped": 6, "has_missing": True, "source_bytes": 14_000,
        "trials_by_split": {"test": 1, "train": 4, "val": 1}, **counts,
    }  # fmt: skip
    draft = dataclasses.replace(draft, trials=trials, counts=counts)
    return Store(store.path, publish_version(store.path, draft, after=store.version))


@settings(max_examples=15)
@given(gone=st.sets(st.sampled_from([1, 2, 3, 4, 5]), min_size=1))
def test_the_others_stay_as_they_are(tmp_path_factory, gone):
    path = tmp_path_factory.mktemp("s")
    old = six_trials(path)
    version = tombstone_trials(path, [f"t{i:04d}" for i in gone], "worn gripper")
    new = Store(path)
    assert new.version == version == "v0002"
    found = diff_versions(path, "v0001", "v0002")
    assert found.removed == tuple(f"t{i:04d}" for i in sorted(gone))
    assert (found.added, found.changed, found.moved, found.settings) == ((), (), (), {})
    assert found.n_same == 6 - len(gone)
    assert new.fit == old.fit
    assert verify_store(path) == []
    assert len(Store(path, "v0001").index) == 6
    for number in range(len(new.index)):
        there = old.trial_number(new.index.id_of(number))
        assert (new.trial_rows(number) == old.trial_rows(there)).all()
        assert (new.deliver_rows(number) == old.deliver_rows(there)).all()


def test_the_manifest_says_which_and_why(tmp_path):
    with_counts(six_trials(tmp_path))
    tombstone_trials(tmp_path, ["t0005", "t0001"], "  worn gripper ")
    tombstone_trials(tmp_path, ["t0003"], "twice")
    assert Store(tmp_path).manifest.tombstones == (
        Tombstone("t0001", "t0001.csv", "worn gripper", 3000, 1),
        Tombstone("t0003", "t0003.csv", "twice", 4000, 3),
        Tombstone("t0005", "t0005.csv", "worn gripper", 1500, 5),
    )


def test_every_file_and_row_is_still_accounted_for(tmp_path):
    with_counts(six_trials(tmp_path))
    tombstone_trials(tmp_path, ["t0002", "t0005"], "worn")
    counts = Store(tmp_path).manifest.counts
    assert counts["files"] == counts["trials"] + counts["quarantined"] + sum(
        counts["ignored"].values()
    )
    assert counts["ignored"] == {"hidden": 1, "tombstone": 2}
    dropped = sum(counts["rows_dropped"].values())
    assert counts["rows"] == counts["rows_in"] - dropped + counts["rows_inserted"] == 99
    assert counts["rows_dropped"] == {"merged": 4, "missing_values": 8}
    assert (counts["values_clipped"], counts["has_missing"]) == (1, False)
    assert counts["trials_by_split"] == {"test": 1, "train": 2, "val": 1}
    assert counts["source_bytes"] == 14_000 - 2500 - 1500
    assert (counts["trials"], counts["segments"]) == (4, 4)
    assert sum(counts["windows"].values()) == int(Store(tmp_path).index.n_windows.sum())


def test_a_trial_goes_with_all_its_segments_and_counts_once(tmp_path):
    draft = redraft_version(six_trials(tmp_path))
    ids = pa.array(["a#1", "a#2", "b", "c", "d#1", "d#2"])
    trials = draft.trials.set_column(0, "id", ids)
    trials = trials.append_column("trial", pa.array(["a", "a", None, "c", "d", "d"]))
    splits = pa.array(["train", "train", "val", "test", "train", "train"])
    place = trials.schema.get_field_index("split")
    trials = trials.set_column(place, "split", splits)
    counts = {**draft.counts, "trials": 4, "segments": 6}
    publish_version(
        tmp_path, dataclasses.replace(draft, trials=trials, counts=counts), after="v0001"
    )
    with pytest.raises(TrialNotFoundError, match=r"'a#2'.* is a segment.*Name the trial: 'a'"):
        tombstone_trials(tmp_path, ["a#2"], "worn")
    tombstone_trials(tmp_path, ["a", "b"], "worn")
    new = Store(tmp_path)
    assert new.index.ids.to_pylist() == ["c", "d#1", "d#2"]
    assert [stone.id for stone in new.manifest.tombstones] == ["a", "b"]
    assert (new.manifest.counts["trials"], new.manifest.counts["segments"]) == (2, 3)


def test_unknown_trials_are_named_and_nothing_is_published(tmp_path):
    six_trials(tmp_path)
    with pytest.raises(TrialNotFoundError, match=r"trials 't9', 't8': not in .* v0001\. Look"):
        tombstone_trials(tmp_path, ["t0001", "t9", "t8"], "worn")
    assert list_versions(tmp_path) == ["v0001"]


def test_taking_out_twice_says_the_same(tmp_path):
    six_trials(tmp_path)
    tombstone_trials(tmp_path, ["t0001"], "worn")
    assert tombstone_trials(tmp_path, ["t0001"], "another reason") == "v0002"
    assert tombstone_trials(tmp_path, ["t0001", "t0003", "t0003"], "twice") == "v0003"
    reasons = {stone.id: stone.reason for stone in Store(tmp_path).manifest.tombstones}
    assert reasons == {"t0001": "worn", "t0003": "twice"}


def test_undo_forgets_the_tombstone_and_leaves_the_rest_to_the_next_build(tmp_path):
    six_trials(tmp_path)
    tombstone_trials(tmp_path, ["t0001", "t0003"], "worn")
    assert tombstone_trials(tmp_path, ["t0001"], undo=True) == "v0003"
    new = Store(tmp_path)
    assert [stone.id for stone in new.manifest.tombstones] == ["t0003"]
    assert len(new.index) == 4
    with pytest.raises(TrialNotFoundError, match=r"trial 't0001': not taken out .*1 .*t0003"):
        tombstone_trials(tmp_path, ["t0001"], undo=True)


def test_a_split_may_become_empty_but_not_train(tmp_path):
    six_trials(tmp_path)
    tombstone_trials(tmp_path, ["t0003"], "the only one of test")
    assert Store(tmp_path).manifest.counts["windows"]["test"] == 0
    assert verify_store(tmp_path) == []
    with pytest.raises(InvalidSpecError, match="'test'"):
        TrialStream(tmp_path, split="test")
    with pytest.raises(InvalidSpecError, match="no train trial is left"):
        tombstone_trials(tmp_path, ["t0000", "t0002", "t0004", "t0005"], "all")
    assert list_versions(tmp_path) == ["v0001", "v0002"]


@pytest.mark.parametrize("reason", ["", " \n"])
def test_a_reason_is_needed(tmp_path, reason):
    six_trials(tmp_path)
    with pytest.raises(InvalidSpecError, match="reason is empty"):
        tombstone_trials(tmp_path, ["t0001"], reason)


def test_a_version_that_came_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    six_trials(tmp_path)
    draft = taking_out.redraft_version

    def overtaken(store):
        monkeypatch.setattr(taking_out, "redraft_version", draft)
        tombstone_trials(tmp_path, ["t0005"], "first")
        return draft(store)

    monkeypatch.setattr(taking_out, "redraft_version", overtaken)
    with pytest.raises(CommitConflictError, match="v0002 was committed"):
        tombstone_trials(tmp_path, ["t0001"], "second")
    assert [stone.id for stone in Store(tmp_path).manifest.tombstones] == ["t0005"]


def test_nothing_is_made_where_there_is_no_store(tmp_path):
    with pytest.raises(StoreNotFoundError):
        tombstone_trials(tmp_path / "none", ["a"], "worn")
    assert not (tmp_path / "none").exists()
