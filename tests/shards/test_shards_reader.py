"""Store: rows, statistics and affines against numbers worked out by hand."""

import json

import numpy as np
import pyarrow as pa
import pytest
import zarr
from stores import coded_values, make_store

from shards import CorruptStoreError, Store, WindowSpec
from shards.identity import trial_digest
from shards.manifest import Channel, TargetSchema
from shards.verify import verify_store
from shards.version import QUARANTINE_SCHEMA, VersionDraft, publish_version
from shards.writer import write_shard


def publish_scope_trial(path, offset, scale):
    """A store with scope `trial`: ids given out of order, statistics in the cold index."""
    names, rows, parts, start = ["b", "a", "ä"], [], [], 0
    for number, name in enumerate(names):
        values = coded_values(number, 3 + number, 2)
        rows.append(
            {
                "id": name, "digest": trial_digest(name, {"values": values}, None),
                "n_rows": len(values), "row_start": start, "split": "train", "weight": 1.0,
                "label": None, "offset": offset[number], "scale": scale[number],
            }
        )  # fmt: skip
        parts.append(values)
        start += len(values)
    entry = write_shard(path, {"values": np.concatenate(parts)}, len(names))
    trials = pa.Table.from_pylist([{**row, "shard": entry.digest} for row in rows])
    label = trials.schema.get_field_index("label")
    trials = trials.set_column(label, "label", pa.nulls(len(rows), pa.float64()))
    draft = VersionDraft(
        name="scoped", channels=(Channel("u", "m/s"), Channel("v")),
        target=TargetSchema("forecast", ("u",)), windows=WindowSpec(length=2, steps=1),
        splits=("train",), observed=False,
        normalization={"method": "zscore", "scope": "trial", "lookahead": ["normalize"]},
        counts={"trials": 3, "rows": 12}, spec={}, trials=trials, shards=(entry,),
        quarantine=QUARANTINE_SCHEMA.empty_table(),
        fit={"normalize": {"method": "zscore", "scope": "trial"}},
    )  # fmt: skip
    return Store(path, publish_version(path, draft, after=None))


@pytest.mark.parametrize("n_shards", [1, 2, 4])
def test_every_trial_has_its_own_rows_whatever_the_packing(tmp_path, n_shards):
    lengths = [7, 1, 12, 5]
    store = make_store(tmp_path, lengths, n_shards=n_shards)
    for trial, n_rows in enumerate(lengths):
        rows = store.trial_rows(store.trial_number(f"t{trial:04d}"))
        assert rows.dtype == np.float32
        assert rows.tobytes() == coded_values(trial, n_rows, 3).tobytes()


def test_hand_computed_rows_bits_and_targets(tmp_path):
    target = TargetSchema("per_step", ("y0", "y1"))
    store = make_store(tmp_path, [2, 3], target=target, missing=True)
    values = store.trial_rows(1)
    assert np.nan_to_num(values, nan=-1).tolist() == [
        [10_000.0, 10_000.0625, 10_000.125],
        [-1.0, 10_001.0625, 10_001.125],
        [10_002.0, 10_002.0625, 10_002.125],
    ]
    assert store.trial_rows(1, "observed").tolist() == [[0b111], [0b110], [0b111]]
    assert store.trial_rows(1, "targets").tolist() == [[0.0, 0.25], [1.0, 1.25], [2.0, 2.25]]
    assert store.trial_rows(0, "observed").tolist() == [[0b111], [0b110]]


def test_more_than_eight_channels_take_more_bytes_of_observed(tmp_path):
    store = make_store(tmp_path, [2], n_channels=10, missing=True)
    assert store.trial_rows(0, "observed").tolist() == [[0b11110111, 0b11], [0b01111110, 0b11]]
    seen = np.unpackbits(store.trial_rows(0, "observed"), axis=1, count=10, bitorder="little")
    assert (seen == ~np.isnan(store.trial_rows(0))).all()


def test_rows_are_views_that_cannot_be_written(tmp_path):
    store = make_store(tmp_path, [4, 4])
    with pytest.raises(ValueError, match="read-only"):
        store.trial_rows(1)[0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        store.shard_rows(0)[0, 0] = 1


def test_any_other_zarr_reader_sees_the_same_rows(tmp_path):
    store = make_store(tmp_path, [9000, 3, 200], n_shards=2, missing=True)
    for number, shard in enumerate(store.manifest.shards):
        group = zarr.open_group(tmp_path / "shards" / shard.digest, mode="r")
        for name in shard.arrays:
            assert np.asarray(group[name][:]).tobytes() == store.shard_rows(number, name).tobytes()


def test_map_array_reaches_the_shards_in_the_order_asked_for(tmp_path):
    store = make_store(tmp_path, [4, 5, 6], n_shards=3)
    found = store.map_array("values", [2, 0, 2], tail_bytes=64)
    for shard, offset in zip([2, 0, 2], found.offsets.tolist(), strict=True):
        rows = store.shard_rows(shard)
        assert found.bytes[offset : offset + rows.nbytes].tobytes() == rows.tobytes()


def test_the_cold_index_has_one_row_per_trial_number(tmp_path):
    store = make_store(tmp_path, [7, 5, 9], n_shards=2)
    table = store.cold("id", "n_rows", "source")
    assert table.column_names == ["id", "n_rows", "source"]
    assert table.to_pylist()[1] == {"id": "t0001", "n_rows": 5, "source": "t0001.csv"}
    assert set(store.cold().column_names) == {"id", "digest", "n_rows", "source"}
    digest = trial_digest("t0002", {"values": coded_values(2, 9, 3)}, None)
    assert store.cold("digest")["digest"].to_pylist()[2] == digest


def test_scope_none_delivers_what_is_stored(tmp_path):
    store = make_store(tmp_path, [7, 5])
    assert store.delivery_affine() is None
    offset, scale = store.physical_affine()
    assert (offset.tolist(), scale.tolist()) == ([[0.0] * 3], [[1.0] * 3])
    assert offset.dtype == scale.dtype == np.float32


def test_scope_train_rounds_offset_and_inverse_once_each(tmp_path):
    store = make_store(tmp_path, [7, 5], scale=(0.1, 3.0))
    offset, inv_scale = store.delivery_affine()
    assert offset.dtype == inv_scale.dtype == np.float32
    assert offset.view(np.uint32).tolist() == [0x3DCCCCCD] * 3  # float32(0.1)
    assert inv_scale.view(np.uint32).tolist() == [0x3EAAAAAB] * 3  # float32(1 / 3)
    back_offset, back_scale = store.physical_affine()
    assert back_offset.shape == back_scale.shape == (1, 3)
    assert back_offset.view(np.uint32).tolist() == [[0x3DCCCCCD] * 3]
    assert back_scale.tolist() == [[3.0] * 3]


def test_the_inverse_is_taken_before_it_is_rounded(tmp_path):
    scale = 1.0 + 2**-24  # float32(scale) is 1, and 1 / 1 is not float32(1 / scale)
    store = make_store(tmp_path, [7, 5], scale=(0.0, scale))
    _, inv_scale = store.delivery_affine()
    assert inv_scale.view(np.uint32).tolist() == [0x3F7FFFFF] * 3


def test_physical_undoes_delivery(tmp_path):
    store = make_store(tmp_path, [50], scale=(20.0, 7.0))
    offset, inv_scale = store.delivery_affine()
    delivered = (store.trial_rows(0) - offset) * inv_scale
    back_offset, back_scale = store.physical_affine()
    assert delivered[21, 0] == pytest.approx(1 / 7)
    physical = delivered * back_scale + back_offset
    np.testing.assert_allclose(physical, coded_values(0, 50, 3), rtol=0, atol=1e-5)


def test_scope_trial_has_one_affine_per_trial_number(tmp_path):
    store = publish_scope_trial(
        tmp_path,
        offset=[[1.0, 2.0], [3.0, 4.0], [5.0, 0.1]],
        scale=[[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]],
    )
    assert [store.index.id_of(i) for i in range(3)] == ["a", "b", "ä"]
    assert store.index.n_rows.tolist() == [4, 3, 5]
    assert store.trial_rows(0).tobytes() == coded_values(1, 4, 2).tobytes()
    assert store.trial_rows(2).tobytes() == coded_values(2, 5, 2).tobytes()
    assert store.delivery_affine() is None
    offset, scale = store.physical_affine()
    assert offset.tolist() == [[3.0, 4.0], [1.0, 2.0], [5.0, float(np.float32(0.1))]]
    assert scale.tolist() == [[30.0, 40.0], [10.0, 20.0], [50.0, 60.0]]
    assert offset.dtype == scale.dtype == np.float32
    assert verify_store(tmp_path) == []


def test_statistics_that_do_not_fit_the_channels_are_refused(tmp_path):
    store = publish_scope_trial(tmp_path, [[1.0], [2.0, 3.0], [4.0]], [[1.0, 1.0]] * 3)
    with pytest.raises(CorruptStoreError, match="4 statistics for 3 trials x 2 channels"):
        store.physical_affine()


def test_split_codes_follow_the_manifest(tmp_path):
    store = make_store(tmp_path, [5, 5, 5, 5], splits=["test", "train", "val", "test"])
    assert store.manifest.splits == ("train", "test", "val")
    assert [store.split_code(s) for s in store.manifest.splits] == [0, 1, 2]
    assert store.index.split.tolist() == [1, 0, 2, 1]


def test_windows_weights_and_labels_of_the_index(tmp_path):
    target = TargetSchema("per_trial", ("mass",))
    store = make_store(
        tmp_path, [4, 5, 11], windows=WindowSpec(length=4, stride=3), target=target,
        labels=[0.5, -2.0, 1e30], weights=[1.0, 0.25, 0.0],
    )  # fmt: skip
    assert store.index.n_windows.tolist() == [1, 1, 3]
    assert store.index.weight.tolist() == [1.0, 0.25, 0.0]
    assert store.index.label.tolist() == [0.5, -2.0, float(np.float32(1e30))]
    assert store.manifest.counts["windows"] == {"train": 5}


def test_trials_without_label_have_nan(tmp_path):
    assert np.isnan(make_store(tmp_path, [4, 5]).index.label).all()


def test_windows_are_counted_per_split(tmp_path):
    store = make_store(
        tmp_path, [4, 10, 7], windows=WindowSpec(length=4), splits=["train", "val", "train"]
    )
    assert store.manifest.counts["windows"] == {"train": 1 + 4, "val": 7}


def test_fit_is_the_document_on_disk(tmp_path):
    store = make_store(tmp_path, [4], scale=(1.5, 2.0))
    assert store.fit == json.loads((store.folder / "fit.json").read_text())
    assert store.fit["normalize"]["offset"] == [1.5, 1.5, 1.5]


def test_a_store_opens_by_text_path_and_touches_no_shard(tmp_path):
    store = make_store(tmp_path, [4])
    (tmp_path / "shards").rename(tmp_path / "elsewhere")
    again = Store(str(tmp_path))
    assert again.trial_number("t0000") == 0
    with pytest.raises(CorruptStoreError, match="is missing"):
        again.trial_rows(0)
    assert store.version == again.version


@pytest.mark.parametrize("content", [None, b"", b"{"])
@pytest.mark.parametrize("name", ["fit.json", "trials.parquet"])
def test_broken_cold_files_are_corrupt_store_errors(tmp_path, name, content):
    store = make_store(tmp_path, [4], scale=(1.0, 2.0))
    (store.folder / name).unlink()
    if content is not None:
        (store.folder / name).write_bytes(content)
    with pytest.raises(CorruptStoreError):
        _ = store.fit if name == "fit.json" else store.cold()
