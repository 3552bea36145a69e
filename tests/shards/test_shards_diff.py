"""A diff names every trial that came, went, changed or moved, and what else was said otherwise."""

import dataclasses
import json
import os
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import make_store

from shards import StoreNotFoundError, WindowSpec
from shards.diff import Moved, diff_versions
from shards.layout import ArraySpec
from shards.manifest import Channel, ShardEntry, TargetSchema
from shards.redraft import redraft_version
from shards.version import QUARANTINE_SCHEMA, VersionDraft, publish_version


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch):
    """No test here cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def rows_of(trials):
    """Return the index of trials: id -> (digest, split)."""
    return pa.table(
        {
            "id": list(trials), "digest": [digest for digest, _ in trials.values()],
            "n_rows": np.full(len(trials), 5), "row_start": np.zeros(len(trials), np.int64),
            "shard": ["0" * 32] * len(trials), "split": [split for _, split in trials.values()],
            "weight": np.ones(len(trials)), "label": pa.nulls(len(trials), pa.float64()),
        }
    )  # fmt: skip


def publish(path, table, after=None, splits=("train", "val"), **changes):
    """Publish a version of an index alone: a diff looks at no shard."""
    spec = ArraySpec("float32", 5, 1, "0" * 32)
    draft = VersionDraft(
        name="index", channels=(Channel("c0"),), target=TargetSchema("forecast", ("c0",)),
        windows=WindowSpec(length=2, stride=1), splits=splits, observed=False,
        normalization={"method": "none", "scope": "none", "lookahead": []},
        counts={"files": table.num_rows, "trials": table.num_rows, "rows": 5 * table.num_rows},
        spec={"windows": {"length": 2}, "seed": 1}, trials=table,
        shards=(ShardEntry("0" * 32, 5, 1, {"values": spec}),),
        quarantine=QUARANTINE_SCHEMA.empty_table(),
        fit={"normalize": {"method": "none", "scope": "none"}},
    )  # fmt: skip
    return publish_version(path, dataclasses.replace(draft, **changes), after=after)


ids = st.text("aä~é\U0001f600b#1", min_size=1, max_size=3)
trials = st.dictionaries(
    ids, st.tuples(st.sampled_from(["d1", "d2"]), st.sampled_from(["train", "val"])), min_size=1
)


@settings(max_examples=50, deadline=None)
@given(old=trials, new=trials)
def test_a_diff_is_what_comparing_trial_by_trial_gives(tmp_path_factory, old, new):
    path = tmp_path_factory.mktemp("diff")
    one = publish(path, rows_of(old))
    other = publish(path, rows_of(new), after=one)
    found = diff_versions(path, one, other)
    both = {name for name in old if name in new}
    by_bytes = {"key": str.encode}
    assert list(found.added) == sorted(set(new) - both, **by_bytes)
    assert list(found.removed) == sorted(set(old) - both, **by_bytes)
    changed = {name for name in both if old[name][0] != new[name][0]}
    moved = {name for name in both if old[name][1] != new[name][1]}
    assert list(found.changed) == sorted(changed, **by_bytes)
    wanted = [Moved(name, old[name][1], new[name][1]) for name in sorted(moved, **by_bytes)]
    assert list(found.moved) == wanted
    assert found.n_same == len(both - changed - moved)
    assert found.is_empty == (old == new)
    back = diff_versions(path, other, one)
    assert (back.added, back.removed) == (found.removed, found.added)
    assert (back.changed, back.n_same) == (found.changed, found.n_same)


def test_segments_count_as_their_trial(tmp_path):
    def index(segments):
        table = rows_of({name: (digest, "train") for name, (digest, _) in segments.items()})
        return table.append_column("trial", pa.array([trial for _, trial in segments.values()]))

    old = {"a#1": ("d1", "a"), "a#2": ("d2", "a"), "b": ("d1", None), "c#1": ("d1", "c"),
           "c#2": ("d1", "c"), "e": ("d1", "e")}  # fmt: skip
    new = {"a#1": ("d1", "a"), "a#2": ("d9", "a"), "b": ("d1", None), "c": ("d7", "c"),
           "d#1": ("d1", "d"), "d#2": ("d1", "d"), "e": ("d1", "e")}  # fmt: skip
    counts = {"files": 4, "rows": 5}
    one = publish(tmp_path, index(old), counts={**counts, "trials": 4, "segments": 6})
    other = publish(tmp_path, index(new), after=one, counts={**counts, "trials": 5, "segments": 7})
    found = diff_versions(tmp_path, one, other)
    assert (found.added, found.removed, found.changed) == (("d",), (), ("a", "c"))
    assert found.n_same == 2
    assert found.counts["segments"] == (6, 7)


def test_other_settings_are_named_by_their_path_and_fits_by_their_part(tmp_path):
    one = make_store(tmp_path, [20, 30], scale=(1.0, 2.0))
    draft = redraft_version(one)
    spec = {"windows": {"length": 8}, "clean": {"missing": "drop"}}
    fit = {"normalize": {**draft.fit["normalize"], "scale": [3.0, 2.0, 2.0]}}
    changed = dataclasses.replace(
        draft, windows=WindowSpec(length=8, stride=2, steps=1), spec=spec, fit=fit,
        channels=tuple(Channel(f"c{j}", "m") for j in range(3)),
    )  # fmt: skip
    other = publish_version(tmp_path, changed, after=one.version)
    found = diff_versions(tmp_path, one.version, other)
    assert found.settings["windows.length"] == (4, 8)
    assert found.settings["spec.clean.missing"] == (None, "drop")
    assert found.settings["fit.normalize.scale"] == (None, None)
    assert "fit.normalize.offset" not in found.settings
    assert found.settings["channels"][0][0] == {"name": "c0", "unit": ""}
    assert (found.added, found.removed, found.changed, found.n_same) == ((), (), (), 2)
    assert not found.is_empty
    assert json.loads(json.dumps(found.as_dict()))["settings"]["windows.length"] == [4, 8]


def test_a_version_does_not_differ_from_itself_nor_from_what_its_draft_says(tmp_path):
    store = make_store(tmp_path, [20, 30, 5], n_shards=2, splits=["train", "val", "train"])
    assert diff_versions(tmp_path, "v0001", "v0001").is_empty
    assert publish_version(tmp_path, redraft_version(store), after="v0001") == "v0001"


def test_a_diff_with_a_version_that_is_not_there_names_those_there_are(tmp_path):
    make_store(tmp_path, [20])
    with pytest.raises(StoreNotFoundError, match=r"no version v0009 .* v0001"):
        diff_versions(tmp_path, "v0001", "v0009")


def test_unchanged_trials_cost_no_python_objects(tmp_path):
    many = {f"subject/{i:06d}": (f"{i:032x}", "train" if i % 9 else "val") for i in range(3_000)}
    some = {**many, "subject/000005": ("f" * 32, "train"), "z": ("0" * 32, "val")}
    del some["subject/000007"]
    one = publish(tmp_path, rows_of(many))
    other = publish(tmp_path, rows_of(some), after=one)
    diff_versions(tmp_path, one, other)  # what is made once only
    before, most = sys.getallocatedblocks(), 0

    def look(*_):
        nonlocal most
        most = max(most, sys.getallocatedblocks())

    sys.setprofile(look)  # at each call and return, also of C functions
    try:
        found = diff_versions(tmp_path, one, other)
    finally:
        sys.setprofile(None)
    assert found.added == ("z",)
    assert found.removed == ("subject/000007",)
    assert found.changed == ("subject/000005",)
    assert most - before < 5_000  # 3,500 for any number; an object for each would be 6,500
