"""Statistics that follow from others: left out and brought back bit for bit, or written out."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pipeline.normalize import batch_affine, batch_moments, fold_sums, merge_moments
from shards import CorruptStoreError, Store
from shards.coldrows import ColdIndex
from shards.implied import AFFINE, MOMENTS, fill_in, leave_out, with_sources
from shards.parts import part_path, read_part, write_part
from shards.schema import PartEntry
from shards.tables import parquet_bytes
from shards.verify import verify_store

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "v1.3" / "rows_zarr"
N = 4
LISTS = pa.list_(pa.field("element", pa.float64()))


def lists(matrix):
    return pa.array(np.asarray(matrix, np.float64).tolist(), LISTS)


def cold_rows(columns, n=None):
    n = len(next(iter(columns.values()))) if n is None else n
    ids = {"id": [f"t{i}" for i in range(n)], "n_rows": np.arange(n)}
    ids |= {"digest": [f"{i:032x}" for i in range(n)], "source_xxh3": ["fedcba9876543210" * 2] * n}
    return pa.table({**ids, **{name: lists(matrix) for name, matrix in columns.items()}})


def measured(values, edges, entry=("zscore", "trial")):
    """What a build knows of trials, `[trials, channels]` each."""
    moments = batch_moments(values, edges)
    affine = batch_affine([entry] * values.shape[1], values, edges, moments)
    return {**fold_sums(moments), "offset": affine.offset, "scale": affine.scale}


def few_values(seed=0, n_trials=40, n_rows=9, n_channels=5):
    """Trials with channels that have no value, one, two, the same one always, and many."""
    rng = np.random.default_rng(seed)
    values = rng.gamma(9, 9, (n_trials * n_rows, n_channels)).round(2)
    values[rng.random(values.shape) < np.array([1, 0.9, 0.8, 0, 0])[:n_channels]] = np.nan
    values[:, 3] = 36.6
    return measured(values, np.arange(n_trials + 1) * n_rows)


def assert_same_bits(got, wanted):
    assert got.column_names == wanted.column_names
    for name in got.column_names:
        one, other = (t[name].combine_chunks() for t in (got, wanted))
        if name in (*MOMENTS, *AFFINE):
            assert one.null_count == one.flatten().null_count == 0
            assert one.value_lengths().equals(other.value_lengths())
            one, other = (a.flatten().to_numpy().tobytes() for a in (one, other))
            assert one == other, name
        else:
            assert one.to_pylist() == other.to_pylist()


def replaced(table, name, column):
    return table.set_column(table.schema.get_field_index(name), name, pa.array(column))


def through_a_file(table):
    return pq.ParquetFile(io.BytesIO(parquet_bytes(table))).read()


NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 0.1, 1.0, -2.5, 1e-300, 5e-324, 1e300, float("nan"), float("inf")]),
    st.floats(allow_nan=True, allow_infinity=True),
)
MATRICES = npst.arrays(np.float64, (6, N, 2), elements=NUMBERS)


@settings(max_examples=20, deadline=None)
@given(MATRICES, npst.arrays(np.float64, (2, N, 1), elements=NUMBERS))
def test_whatever_the_statistics_are_they_come_back_bit_for_bit(moments, affine):
    columns = dict(zip(MOMENTS, moments, strict=True)) | dict(zip(AFFINE, affine, strict=True))
    rows = cold_rows(columns)
    shorter, _ = leave_out(rows)
    assert_same_bits(fill_in(through_a_file(shorter), None), rows)


@settings(max_examples=30, deadline=None)
@given(
    npst.arrays(
        np.float64, (12, 3),
        elements=st.sampled_from([float("nan"), 0.0, -0.0, 0.1, 1 / 3, 7.25, -1e9, 1e9 + 0.1]),
    ),
    st.sampled_from(["zscore", "minmax", "robust"]),
)  # fmt: skip
def test_what_a_build_measures_comes_back_bit_for_bit(values, method):
    rows = cold_rows(measured(values, np.array([0, 1, 3, 6, 12]), (method, "trial")))
    shorter, is_less = leave_out(rows)
    assert is_less
    assert_same_bits(fill_in(through_a_file(shorter), None), rows)
    if method == "zscore":
        assert shorter["offset"].null_count == shorter["scale"].null_count == len(rows)


@settings(max_examples=30, deadline=None)
@given(npst.arrays(np.float64, (12, 3), elements=st.floats(-1e9, 1e9)))
def test_folded_sums_change_no_statistic_of_train(values):
    moments = batch_moments(values, np.array([0, 1, 3, 6, 12]))
    folded = fold_sums(moments)
    assert not folded["sum"].any()
    before, after = merge_moments(moments), merge_moments(folded)
    assert {k: v.tobytes() for k, v in before.items()} == {k: v.tobytes() for k, v in after.items()}


def test_nulls_stand_where_one_number_says_it_all():
    rows = cold_rows(few_values())
    shorter, is_less = leave_out(rows)
    assert is_less
    count = np.array(rows["count"].to_pylist())
    nulls = {
        name: np.array([[x is None for x in row] for row in shorter[name].to_pylist()])
        for name in ("min", "max", "shift", "sum_sq")
    }
    assert (nulls["min"] == (count == 0)).all()
    for name in ("max", "shift", "sum_sq"):
        assert nulls[name][count < 2].all()
    assert nulls["max"][:, 3].all()
    assert not nulls["shift"][:, 4].any()
    assert nulls["shift"][count == 2].mean() > 0.9
    assert shorter["offset"].null_count == len(rows)
    assert len(parquet_bytes(shorter)) < 0.7 * len(parquet_bytes(rows))


def test_segments_keep_the_constants_of_their_trial():
    columns = few_values()
    columns["offset"][7] += 1e-9
    shorter, _ = leave_out(cold_rows(columns))
    written = [k for k, row in enumerate(shorter["offset"].to_pylist()) if row is not None]
    assert written == [7]
    assert [k for k, row in enumerate(shorter["scale"].to_pylist()) if row is not None] == [7]
    assert_same_bits(fill_in(through_a_file(shorter), None), cold_rows(columns))


def test_targets_have_moments_and_no_constants():
    columns = few_values()
    columns |= {name: columns[name][:, :3] for name in AFFINE}
    shorter, _ = leave_out(cold_rows(columns))
    assert shorter["offset"].null_count == len(shorter)
    assert_same_bits(fill_in(through_a_file(shorter), None), cold_rows(columns))


def test_rows_of_many_blocks_come_back_in_order(monkeypatch):
    monkeypatch.setattr("shards.implied._BLOCK_ROWS", 7)
    rows = cold_rows(few_values())
    assert_same_bits(fill_in(through_a_file(leave_out(rows)[0]), None), rows)


@pytest.mark.parametrize(
    "rows",
    [
        cold_rows(few_values(n_trials=2)),
        cold_rows({"count": np.ones((5, 2))}),
        cold_rows({}, n=5),
        replaced(cold_rows(few_values()), "digest", ["A" * 32] * 40),
        replaced(cold_rows(few_values()), "digest", [None, *["a" * 32] * 39]),
        replaced(cold_rows(few_values()), "source_xxh3", ["00 " * 16] * 40),
        cold_rows(few_values()).drop_columns(["digest", "source_xxh3"]),
        cold_rows(few_values()).drop_columns(["scale"]),
        cold_rows({**few_values(), "min": np.ones((40, 2))}),
        cold_rows({**few_values(), "scale": np.ones((40, 2))}),
        cold_rows({**few_values(), **dict.fromkeys(("offset", "scale"), np.ones((40, 9)))}),
        replaced(cold_rows(few_values()), "count", pa.nulls(40, LISTS)),
        replaced(
            cold_rows(few_values()),
            "count",
            pa.array([[1.0] * (1 + k % 2) for k in range(40)], LISTS),
        ),
    ],
    ids=[
        "few trials",
        "other columns",
        "no statistics",
        "capitals",
        "null digest",
        "no digest",
        "no digests",
        "no scale",
        "moments of other columns",
        "scales of other channels",
        "more channels than columns",
        "null lists",
        "ragged lists",
    ],
)
def test_rows_of_another_kind_are_left_alone(rows):
    assert leave_out(rows) == (rows, False)


@pytest.mark.parametrize("name", [*MOMENTS, *AFFINE, "id", "digest"])
def test_one_column_alone_is_read_with_what_it_follows_from_and_comes_back_alone(tmp_path, name):
    rows = cold_rows(few_values())
    entry = write_part(tmp_path, rows)
    assert entry.implied
    assert_same_bits(read_part(tmp_path, entry, [name]), rows.select([name]))
    asked = ["n_rows", name]
    assert_same_bits(read_part(tmp_path, entry, asked), rows.select(asked))
    assert name in with_sources([name])


def test_one_trial_or_one_column_alone_is_what_the_whole_table_says():
    store = Store(GOLDEN)
    names = ("offset", "scale", "max", "digest", "attributes")
    wanted, index = store.cold(*names).to_pylist(), ColdIndex(store)
    assert len(wanted[0]) == len(names)
    for number, row in enumerate(wanted):
        assert index.facts(number, names) == row
    assert index.column("digest").to_pylist() == [row["digest"] for row in wanted]
    assert store.trials("digest")["digest"].to_pylist() == [row["digest"] for row in wanted]
    sides = [row["attributes"]["side"] for row in wanted]
    assert index.attribute("side").to_pylist() == sides


def test_a_reader_that_knows_no_nulls_refuses_a_part_that_has_them(tmp_path):
    """It would take them for numbers: those of earlier minors look at the types of digests."""
    entry = write_part(tmp_path, cold_rows(few_values()))
    earlier = dataclasses.replace(entry, implied=False)
    for columns in (None, ["id"], ["shift"]):
        with pytest.raises(CorruptStoreError, match="digest"):
            read_part(tmp_path, earlier, columns)


def test_a_part_that_leaves_nothing_out_says_no_more_than_before(tmp_path):
    entry = write_part(tmp_path, cold_rows(few_values(n_trials=2)))
    assert list(entry.as_dict()) == ["digest", "size_bytes", "n_rows"]
    assert PartEntry.from_dict(entry.as_dict()) == entry
    less = write_part(tmp_path, cold_rows(few_values()))
    assert less.as_dict()["implied"] is True
    assert PartEntry.from_dict(less.as_dict()) == less


def test_the_minor_version_is_3_only_where_something_is_left_out():
    manifest = Store(GOLDEN).manifest
    assert manifest.format_minor == 3
    plain = tuple(dataclasses.replace(part, implied=False) for part in manifest.parts)
    assert dataclasses.replace(manifest, parts=plain).format_minor == 2


@pytest.mark.parametrize("said", [1, "yes", None])
def test_a_manifest_says_plainly_whether_something_is_left_out(said):
    entry = {"digest": "0" * 32, "size_bytes": 1, "n_rows": 1, "implied": said}
    with pytest.raises((ValueError, TypeError), match="implied"):
        PartEntry.from_dict(entry)


def cut(table, name, n):
    place = table.schema.get_field_index(name)
    values = [row if row is None else row[:n] for row in table[name].to_pylist()]
    return table.set_column(place, table.schema.field(place), pa.array(values, LISTS))


HOSTILE = {
    "no channels": lambda t: t.replace_schema_metadata(None),
    "too many channels": lambda t: t.replace_schema_metadata({"channels": "99999999999"}),
    "words for channels": lambda t: t.replace_schema_metadata({"channels": "many"}),
    "no minimum": lambda t: t.drop_columns(["min"]),
    "shorter": lambda t: cut(t, "max", 2),
    "null lists": lambda t: replaced(t, "count", pa.nulls(len(t), LISTS)),
    "ragged": lambda t: replaced(
        t, "count", pa.array([[1.0] * (4 + k % 2) for k in range(len(t))], LISTS)
    ),
    "digests of text": lambda t: replaced(t, "digest", ["a" * 32] * len(t)),
    "short digests": lambda t: replaced(t, "digest", pa.array([b"a" * 8] * len(t), pa.binary(8))),
    "null digest": lambda t: replaced(
        t, "digest", pa.array([None, *[b"a" * 16] * (len(t) - 1)], pa.binary(16))
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_part_that_does_not_add_up_is_refused_by_name(tmp_path, what):
    content = parquet_bytes(HOSTILE[what](leave_out(cold_rows(few_values()))[0]))
    entry = dataclasses.replace(write_part(tmp_path, cold_rows(few_values())), implied=True)
    path = part_path(tmp_path, entry.digest)
    path.write_bytes(content)
    from shards.identity import file_promise

    promise = file_promise(content)
    path.rename(part_path(tmp_path, promise["xxh3_128"]))
    entry = PartEntry(promise["xxh3_128"], promise["size_bytes"], entry.n_rows, implied=True)
    with pytest.raises(CorruptStoreError, match=entry.digest):
        read_part(tmp_path, entry, None)


# Encodings


@pytest.mark.parametrize("seed", range(3))
def test_every_column_takes_the_encoding_that_its_first_rows_are_smallest_in(seed):
    rng = np.random.default_rng(seed)
    shapes = {
        "noise": rng.standard_normal((300, 4)),
        "few": rng.integers(0, 5, (300, 4)) / 10,
        "alike": np.full((300, 4), 36.6),
    }
    content = parquet_bytes(cold_rows(shapes))
    group = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0)
    found = {
        column.path_in_schema.split(".")[0]: column.encodings
        for column in map(group.column, range(group.num_columns))
    }
    assert "BYTE_STREAM_SPLIT" in found["noise"]
    assert "RLE_DICTIONARY" in found["few"]
    assert all(not group.column(i).is_stats_set for i in range(group.num_columns))
    again = pq.ParquetFile(io.BytesIO(content)).read()
    assert again.to_pylist() == cold_rows(shapes).to_pylist()


def test_metadata_of_a_table_is_kept():
    table = cold_rows(few_values()).replace_schema_metadata({"catalog": json.dumps({"é": 1})})
    metadata = through_a_file(table).schema.metadata
    assert json.loads(metadata[b"catalog"]) == {"é": 1}


def test_stores_with_parts_that_leave_something_out_verify_and_are_packed_into_one(tmp_path):
    import shutil

    from shards.compact import compact_store

    shutil.copytree(GOLDEN, tmp_path / "store")
    before = Store(GOLDEN)
    compact_store(tmp_path / "store", force=True)
    after = Store(tmp_path / "store")
    assert len(after.manifest.parts) == 1
    assert after.manifest.fingerprint == before.manifest.fingerprint
    assert_same_bits(after.cold(*MOMENTS, *AFFINE), before.cold(*MOMENTS, *AFFINE))
    assert verify_store(tmp_path / "store") == []
