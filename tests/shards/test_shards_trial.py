"""One trial by its id: the right rows, times and facts, and nothing of any other trial."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from codedstores import TextTrial, text_spec, text_store
from hypothesis import given, settings
from hypothesis import strategies as st
from knownstores import Known, known_store
from stores import coded_values, make_store

import shards.coldrows
from shards import CorruptStoreError, InvalidSpecError, Trial, TrialNotFoundError, open_store
from shards.identity import pairs_digest
from shards.manifest import TargetSchema

CUT = [
    Known("id", trial="id", clock=(0.0, 1.0)),
    Known("id!x", attributes={"subject": "s1"}),
    *(
        Known(f"cut#{k}", n_rows=k, trial="cut", segment=k - 1, clock=(10.0 * k, 0.5))
        for k in range(1, 13)
    ),
    Known("cut"[:2]),
    Known("cut!x"),
    Known("cut#x#2"),
    Known("cut#02"),
    Known("cut$"),
    Known("file#1"),
    Known("file#2"),
]


def place_of(rows: list[Known], name: str) -> int:
    return [row.id for row in rows].index(name)


@pytest.mark.parametrize("n_parts", [0, 1, 3])
def test_a_trial_is_what_was_written_of_it(tmp_path, n_parts):
    rows = [
        Known("s07/0031", n_rows=9, attributes={"subject": "s07", "payload": "1.5"}, weight=0.5),
        Known("s07/0030", n_rows=4, attributes={"subject": "s07"}, split="val"),
        Known("ä b", n_rows=6, attributes={"room": "2"}),
    ]
    store = known_store(tmp_path, rows, n_parts=n_parts, n_shards=2)
    for i, row in enumerate(rows):
        trial = open_store(tmp_path)[row.id]
        assert isinstance(trial, Trial)
        assert (trial.id, trial.n_rows, trial.split) == (row.id, row.n_rows, row.split)
        assert (trial.weight, trial.label, trial.source) == (row.weight, None, f"{row.id}.csv")
        said = {k: v for k, v in trial.attributes.items() if v is not None}
        assert said == dict(row.attributes)
        assert trial.values.tobytes() == coded_values(i, row.n_rows, 2).tobytes()
        assert trial.digest == store.cold("digest")["digest"][trial.number].as_py()
        assert trial.segments == (trial,)
        assert store.trial(trial.number).id == row.id
    assert repr(store["s07/0031"]) == "<Trial 's07/0031', 9 rows x 2 channels, split 'train'>"
    assert list(store) == sorted((row.id for row in rows), key=str.encode)
    assert len(store) == 3
    assert all(name in store for name in store)
    assert "s07" not in store
    assert 3 not in store


def test_values_are_a_view_of_the_map_that_cannot_be_written(tmp_path):
    trial = known_store(tmp_path, CUT, n_shards=3)["id!x"]
    assert not trial.values.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        trial.values[0, 0] = 1


@pytest.mark.parametrize("n_parts", [0, 2])
def test_a_trial_with_gaps_is_found_by_its_own_id_among_ids_like_it(tmp_path, n_parts):
    store = known_store(tmp_path, CUT, n_shards=3, n_parts=n_parts)
    whole = store["cut"]
    assert [segment.id for segment in whole.segments] == [f"cut#{k}" for k in range(1, 13)]
    assert whole.n_rows == sum(range(1, 13)) == len(whole.values)
    parts = [coded_values(place_of(CUT, f"cut#{k}"), k, 2) for k in range(1, 13)]
    assert whole.values.tobytes() == np.concatenate(parts).tobytes()
    wanted = np.concatenate([10.0 * k + np.arange(k) * 0.5 for k in range(1, 13)])
    assert whole.time.tolist() == wanted.tolist()
    assert whole.digest == pairs_digest((s.id, s.digest) for s in whole.segments)
    second = store["cut#2"]
    assert (second.numbers, second.n_rows) == ((whole.numbers[1],), 2)
    assert store["cut#x#2"].segments == (store["cut#x#2"],) or len(store["cut#x#2"].numbers) == 1
    frame = whole.frame()
    assert frame.column_names == ["time", "segment", "u", "v"]
    assert frame["segment"].to_pylist() == [k - 1 for k in range(1, 13) for _ in range(k)]
    assert "12 segments" in repr(whole)
    for name in ("cut#", "cut#13", "cut#x", "c", "", "id#1"):
        with pytest.raises(TrialNotFoundError, match="trialshards inspect"):
            store[name]


def test_files_that_are_called_like_segments_are_no_trial_with_gaps(tmp_path):
    store = known_store(tmp_path, CUT)
    assert store["file#1"].numbers != store["file#2"].numbers
    with pytest.raises(TrialNotFoundError):
        store["file"]


names = st.text("ab#1!$ä", min_size=1, max_size=4)


@given(
    st.lists(names, min_size=1, max_size=12, unique=True),
    st.dictionaries(names, st.integers(2, 11)),
)
@settings(max_examples=30)
def test_every_id_gives_its_own_rows_and_every_other_word_none(tmp_path_factory, whole, torn):
    rows = [Known(name, n_rows=3) for name in whole]
    for name, n in torn.items():
        ids = [f"{name}#{k + 1}" for k in range(n)]
        taken = {row.id for row in rows}
        if name not in taken and not taken & set(ids):
            rows += [Known(i, n_rows=k + 1, trial=name, segment=k) for k, i in enumerate(ids)]
    store = known_store(tmp_path_factory.mktemp("s"), rows, n_parts=2)
    by_trial: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        by_trial.setdefault(row.id, []).append(place)
        if row.trial and row.trial not in {r.id for r in rows}:
            by_trial.setdefault(row.trial, []).append(place)
    for name, places in by_trial.items():
        parts = [coded_values(place, rows[place].n_rows, 2) for place in places]
        assert store[name].values.tobytes() == np.concatenate(parts).tobytes(), name
    for name in {f"{n}#{k}" for n in by_trial for k in (0, 1, 2, 99)} | {"", "#", "zz", "\ud800"}:
        assert (name in store) == (name in by_trial), name


def test_only_the_files_and_the_row_group_of_the_trial_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("shards.tables.GROUP_ROWS", 2)
    rows = [Known(f"t{i}", attributes={"subject": f"s{i}"}) for i in range(10)]
    known_store(tmp_path, rows, n_shards=5)
    store, opened, groups = open_store(tmp_path), [], []
    store.index, store.cold_index.types  # noqa: B018
    real_open, real_group = os.open, shards.coldrows.ColdIndex._read_group
    monkeypatch.setattr(
        os, "open", lambda path, *a, **k: opened.append(Path(path)) or real_open(path, *a, **k)
    )
    cold = store.cold_index
    monkeypatch.setattr(
        cold,
        "_group",
        lambda path, group, columns: groups.append(group) or real_group(cold, path, group, columns),
    )
    trial = store["t7"]
    trial.values.sum(), trial.attributes, trial.source, trial.digest
    mine = store.manifest.shards[int(store.index.shard[7])].digest
    touched = [path for path in opened if "shards" in path.parts]
    assert touched
    assert all(mine in path.parts for path in touched)
    assert groups == [3]  # rows 6 and 7 of 10, once
    assert "_own_affine" not in vars(store)


def test_walking_through_the_trials_decodes_each_row_group_once(tmp_path, monkeypatch):
    monkeypatch.setattr("shards.tables.GROUP_ROWS", 3)
    rows = [Known(f"t{i:02}", attributes={"subject": f"s{i}"}) for i in range(20)]
    store = known_store(tmp_path, rows)
    assert [store[name].attributes["subject"] for name in store] == [f"s{i}" for i in range(20)]
    assert store.cold_index._group.cache_info().misses == 7


AFFINE = [
    Known(f"t{i}", attributes={"room": room}, affine=(float(i), 2.0 + i))
    for i, room in enumerate("abcaz")
]
GROUPED = {
    "method": "zscore", "scope": "group:room", "offset": [1.0, 2.0], "scale": [3.0, 4.0],
    "groups": {"room": {
        "values": ["a", "b", "c"], "n_trials": [1, 1, 1],
        "offset": [[1.0, 5.0], [2.0, 6.0], [3.0, 7.0]],
        "scale": [[2.0, 3.0], [4.0, 5.0], [6.0, 7.0]],
    }},
}  # fmt: skip


@pytest.mark.parametrize(
    "normalize",
    [
        None, GROUPED, {"method": "zscore", "scope": "trial"},
        {"method": "zscore", "scope": "train", "offset": [1.5, 2.5], "scale": [3.0, 7.0]},
    ],
)  # fmt: skip
def test_units_are_those_of_the_store_bit_for_bit(tmp_path, normalize):
    store = known_store(tmp_path, AFFINE, normalize=normalize, n_parts=2)
    for name in store:
        trial = open_store(tmp_path)[name]
        assert trial.delivered().tobytes() == store.deliver_rows(trial.number).tobytes()
        assert trial.physical().tobytes() == store.physical_rows(trial.number).tobytes()
        if normalize is GROUPED:
            assert "delivery" not in vars(trial.store)  # it would read the room of every trial
        frame = trial.frame("delivered")
        assert frame["v"].to_pylist() == trial.delivered()[:, 1].tolist()
    with pytest.raises(InvalidSpecError, match="units is 'meters'"):
        trial.frame("meters")


def test_times_are_regular_or_stored_or_unknown(tmp_path):
    odd = [0.0, 0.5, 0.75, 9.0]
    store = known_store(
        tmp_path, [Known("a", 4, clock=odd), Known("b", 4, clock=(2.0, 0.25)), Known("c", 4)]
    )
    assert store["a"].time.tolist() == odd
    assert store["b"].time.tolist() == [2.0, 2.25, 2.5, 2.75]
    assert store["c"].time is None
    assert store["c"].frame().column_names == ["u", "v"]
    assert make_store(tmp_path / "older", [4])["t0000"].time is None  # without these columns


def test_labels_masks_targets_and_texts(tmp_path):
    classes = TargetSchema("per_trial", ("act",), ("run", "walk"))
    store = make_store(tmp_path / "a", [4, 4], target=classes, labels=[1, 0])
    assert [store.trial(i).label for i in range(2)] == ["walk", "run"]
    assert "label 'walk'" in repr(store.trial(0))
    number = TargetSchema("per_trial", ("kg",))
    assert make_store(tmp_path / "b", [4], target=number, labels=[2.5])["t0000"].label == 2.5
    steps = make_store(
        tmp_path / "c", [9], target=TargetSchema("per_step", ("y0", "c0")), missing=True
    )["t0000"]
    assert (steps.observed == ~np.isnan(steps.values)).all()
    frame = steps.frame()
    assert frame.column_names == ["c0", "c1", "c2", "y0", "target.c0"]
    assert frame["target.c0"].to_pylist() == steps.targets[:, 1].tolist()
    assert frame["c0"].null_count == np.isnan(steps.values[:, 0]).sum() > 0
    words = ["open", None, "shut", "open"]
    coded = text_store(
        tmp_path / "d", [TextTrial([["x"]]), TextTrial([words])], text_spec({"grip": "embed"})
    )["t0001"]
    assert coded.categories == (("open", "shut"),)
    assert coded.texts()["grip"].to_pylist() == words
    assert coded.frame()["grip"].to_pylist() == words
    assert steps.codes is None
    assert steps.texts() == {}


def test_numbers_out_of_range_and_things_that_are_no_id_are_not_found(tmp_path):
    store = make_store(tmp_path, [4])
    for number in (-1, 1):
        with pytest.raises(TrialNotFoundError, match="0 to 0"):
            store.trial(number)
    with pytest.raises(TrialNotFoundError, match="trial 0 is not in"):
        store[0]  # type: ignore[index]
    assert bool(store)


def test_rows_are_not_there_in_layout_windows(tmp_path):
    trial = make_store(tmp_path, [9])["t0000"]
    object.__setattr__(trial.store.manifest, "layout", "windows")
    with pytest.raises(InvalidSpecError, match=r"layout 'windows'.*shards.layout: rows"):
        trial.values  # noqa: B018


def test_the_table_of_trials_has_attributes_as_plain_columns(tmp_path):
    rows = [
        Known("b", attributes={"subject": "s1", "split": "odd"}, split="val"),
        Known("a", n_rows=5, attributes={"subject": "s2", "a.b": "x"}),
    ]
    for n_parts in (0, 2):
        store = known_store(tmp_path / str(n_parts), rows, n_parts=n_parts)
        table = store.trials("id", "split", "attributes.split", "subject", "a.b", "n_rows")
        assert [tuple(row.values()) for row in table.to_pylist()] == [
            ("a", "train", None, "s2", "x", 5), ("b", "val", "odd", "s1", None, 8),
        ]  # fmt: skip
        everything = store.trials()
        assert {"id", "number", "source", "digest", "attributes.split"} <= set(
            everything.column_names
        )
        assert not any(pa.types.is_nested(kind) for kind in everything.schema.types)
        with pytest.raises(InvalidSpecError, match=r"column is 'subjct'.*subject"):
            store.trials("subjct")


def test_facts_that_contradict_the_manifest_are_a_corrupt_store(tmp_path):
    normalize = {"method": "zscore", "scope": "trial"}
    store = known_store(tmp_path / "a", [Known("a")], normalize=normalize)  # no offset, no scale
    with pytest.raises(CorruptStoreError, match=r"trial 'a' has 0 of offset for 2 channels"):
        store["a"].physical()
    odd = known_store(tmp_path / "b", [Known("a", 4, clock=[0.0, 1.0, 5.0, 6.0])])["a"]
    (shard,) = odd.store.manifest.shards
    object.__setattr__(shard, "arrays", {"values": shard.arrays["values"]})
    with pytest.raises(CorruptStoreError, match="irregular times"):
        odd.time  # noqa: B018
    coded = text_store(tmp_path / "c", [TextTrial([["x"]])], text_spec({"grip": "embed"}))["t0000"]
    vars(coded)["categories"] = ((),)
    with pytest.raises(CorruptStoreError, match="codes without words"):
        coded.texts()
