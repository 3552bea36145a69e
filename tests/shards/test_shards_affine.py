"""Normalization as data: what a manifest and a fit may say, and what a reader makes of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from stores import coded_values, make_store

from shards import CorruptStoreError, InvalidSpecError, Store
from shards.affine import (
    Delivery,
    describe_entries,
    group_attribute,
    is_first_minor,
    parse_entries,
    scope_kind,
)

SCOPES = ["trial", "prefix(12)", "train", "group:a:b(c)", "regime", "window"]
ENTRIES = (*(("zscore", scope) for scope in SCOPES), ("none", "none"))


def test_scopes_are_told_apart():
    kinds = [scope_kind(scope) for scope in SCOPES]
    assert kinds == ["trial", "prefix", "train", "group", "regime", "window"]
    assert group_attribute("group:a:b(c)") == "a:b(c)"


def test_entries_survive_the_manifest():
    said = json.loads(json.dumps(describe_entries(ENTRIES)))
    assert parse_entries(said, len(ENTRIES)) == ENTRIES
    assert not is_first_minor(said)
    for method, scope in ENTRIES:
        said = describe_entries([(method, scope)] * 3)
        assert said == {"method": method, "scope": scope}
        assert parse_entries(said, 3) == ((method, scope),) * 3
        assert is_first_minor(said) == (scope in ("trial", "train", "none"))


@pytest.mark.parametrize(
    "said",
    [
        {"method": "zscore", "scope": "batch"},
        {"method": "mixed", "scope": "train"},
        {"method": "zscore", "scope": "mixed"},
        {"method": "mixed", "scope": "mixed", "channels": []},
        {"method": "mixed", "scope": "mixed", "channels": [{"method": "zscore"}] * 2},
        {"method": "mixed", "scope": "mixed", "channels": [{"method": "z", "scope": "train"}] * 2},
    ],
)
def test_what_a_reader_does_not_know_it_refuses(said):
    with pytest.raises((ValueError, KeyError)):
        parse_entries(said, 2)


@pytest.mark.parametrize(
    ("normalize", "minor"),
    [
        (None, 0),
        ({"method": "zscore", "scope": "trial"}, 0),
        ({"method": "zscore", "scope": "window"}, 1),
        ({"method": "mixed", "scope": "mixed", "channels": [
            {"method": "none", "scope": "none"}, {"method": "zscore", "scope": "window"}]}, 1),
    ],
)  # fmt: skip
def test_stores_that_old_readers_know_are_written_for_them(tmp_path, normalize, minor):
    store = make_store(tmp_path, [7, 5], n_channels=2, normalize=normalize)
    document = json.loads((store.folder / "dataset.json").read_bytes())
    assert document["format"]["minor"] == minor


def test_a_forecast_by_regime_is_refused(tmp_path):
    with pytest.raises(CorruptStoreError, match=r"forecast columns .* scope 'regime'"):
        make_store(tmp_path, [7, 5], normalize={"method": "zscore", "scope": "regime"})


@pytest.mark.parametrize("fit", [{}, {"offset": [1.0]}, {"offset": "x", "scale": [1.0] * 3}])
def test_a_fit_that_lacks_what_the_scopes_need_is_refused_by_path(tmp_path, fit):
    store = make_store(tmp_path, [7], normalize={"method": "zscore", "scope": "train", **fit})
    with pytest.raises(CorruptStoreError, match=r"fit\.json"):
        _ = store.delivery


def test_one_affine_for_all_rows_is_only_given_where_there_is_one(tmp_path):
    store = make_store(tmp_path, [7], normalize={"method": "zscore", "scope": "window"})
    with pytest.raises(InvalidSpecError, match=r"Store\.delivery"):
        store.delivery_affine()
    offset, scale = store.physical_affine()
    assert (offset.tolist(), scale.tolist()) == ([[0.0] * 3], [[1.0] * 3])
    assert store.deliver_rows(0).tobytes() == coded_values(0, 7, 3).tobytes()
    assert store.physical_rows(0, slice(2, 4)).tobytes() == coded_values(0, 7, 3)[2:4].tobytes()


FIT = {
    "offset": [9.0, 8.0, 7.0], "scale": [3.0, 4.0, 5.0],
    "groups": {
        "m": {"values": ["p", "q"], "offset": [[0, 1, 0], [0, 2, 0]],
              "scale": [[1, 10, 1], [1, 20, 1]]},
        "o": {"values": [], "offset": [], "scale": []},
    },
}  # fmt: skip


def test_groups_of_several_attributes_are_combined_and_fall_back_on_train():
    entries = (("zscore", "train"), ("zscore", "group:m"), ("robust", "group:o"))
    groups = {"m": ["q", None, "p", "x", "q"], "o": ["1", "2", None, "1", "2"]}
    delivery = Delivery.parse(entries, FIT, "abc", groups.__getitem__)
    assert delivery.row is not None
    table = delivery.table.take(delivery.row)
    assert len(delivery.table.offset) == 3
    assert table.offset.tolist() == [[9, m, 7] for m in (2, 8, 1, 8, 2)]
    assert table.scale.tolist() == [[3, m, 5] for m in (20, 4, 10, 4, 20)]
    values = np.full((2, 3), 30, np.float32)
    want = (values - table.offset[2]) * table.inv_scale[2]
    assert delivery.apply(values, 2).tobytes() == want.tobytes()
    assert not delivery.is_identity
    assert not delivery.is_constant


def test_scopes_at_rest_change_no_bit():
    entries = (("zscore", "trial"), ("robust", "prefix(3)"), ("none", "none"))
    delivery = Delivery.parse(entries, {}, "abc", list)
    values = np.array([[-0.0, np.nan, 3e38], [1e-45, 0.0, -1.5]], np.float32)
    assert delivery.apply(values, 0).tobytes() == values.tobytes()
    assert delivery.is_identity
    assert delivery.own.tolist() == [0, 1]


def test_golden_stores_say_what_they_always_said(tmp_path):
    store = make_store(tmp_path, [5], scale=(0.1, 3.0))
    assert Store(tmp_path).delivery.entries == (("zscore", "train"),) * 3
    values = store.trial_rows(0)
    want = (values - np.float32(0.1)) * np.float32(1 / 3)
    assert store.deliver_rows(0).tobytes() == want.tobytes()
