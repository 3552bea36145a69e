"""Shards: raw rows first, a valid Zarr v3 array around them, named by their content."""

import json
import struct

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.layout import (
    INNER_ROWS,
    ArraySpec,
    array_metadata,
    chunk_tail,
    describe_array,
    is_array_name,
    shard_digest,
)
from shards.maps import FileRange
from shards.writer import write_shard

NO_DIGEST = "0" * 32
dtypes = st.sampled_from(["float32", "uint16", "uint8"])
array_specs = st.builds(
    ArraySpec, dtypes, st.integers(1, 60_000), st.integers(1, 300), st.just(NO_DIGEST)
)


def crc32c_by_the_polynomial(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def random_bits(seed, n_rows, n_columns, dtype):
    """Every bit pattern, so NaN payloads and denormals too."""
    itemsize = np.dtype(dtype).itemsize
    raw = np.random.default_rng(seed).bytes(n_rows * n_columns * itemsize)
    return np.frombuffer(raw, dtype).reshape(n_rows, n_columns).copy()


@given(array_specs)
def test_file_size_is_the_formula_of_the_text(spec):
    n_inner = -(-spec.n_rows // 4096)
    inner_rows = -(-spec.n_rows // n_inner)
    itemsize = {"float32": 4, "uint16": 2, "uint8": 1}[spec.dtype]
    assert (spec.n_inner, spec.inner_rows) == (n_inner, inner_rows)
    assert spec.size_bytes == n_inner * (inner_rows * spec.n_columns * itemsize + 16) + 4
    assert spec.size_bytes == spec.data_bytes + len(chunk_tail(spec))


@given(array_specs)
def test_inner_chunks_hold_all_rows_with_less_than_one_row_of_padding_each(spec):
    assert 1 <= spec.inner_rows <= INNER_ROWS
    padding_rows = spec.n_inner * spec.inner_rows - spec.n_rows
    assert 0 <= padding_rows < spec.n_inner
    assert (spec.n_inner - 1) * spec.inner_rows < spec.n_rows  # no inner chunk is empty


@settings(max_examples=40)
@given(st.builds(ArraySpec, dtypes, st.integers(1, 40_000), st.integers(1, 9), st.just(NO_DIGEST)))
def test_chunk_index_lists_every_inner_chunk_in_row_order_under_a_valid_crc(spec):
    tail = chunk_tail(spec)
    index, crc = tail[-(16 * spec.n_inner + 4) : -4], tail[-4:]
    assert not any(tail[: -(16 * spec.n_inner + 4)])  # the padding is zero bytes
    inner = spec.inner_rows * spec.row_bytes
    assert list(struct.iter_unpack("<QQ", index)) == [
        (i * inner, inner) for i in range(spec.n_inner)
    ]
    assert struct.unpack("<I", crc)[0] == crc32c_by_the_polynomial(index)


def test_the_crc_of_the_tests_is_the_standard_one():
    assert crc32c_by_the_polynomial(b"123456789") == 0xE3069283


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    n_rows=st.integers(1, 20_000),
    n_columns=st.integers(1, 9),
    dtype=dtypes,
    zeroed=st.lists(st.integers(0, 4), max_size=3),
)
def test_rows_come_back_bit_for_bit_by_map_and_by_zarr(
    tmp_path, seed, n_rows, n_columns, dtype, zeroed
):
    rows = random_bits(seed, n_rows, n_columns, dtype)
    spec = describe_array(rows)
    for inner in zeroed:  # whole inner chunks of fill value, which Zarr's own writer leaves out
        rows[inner * spec.inner_rows : (inner + 1) * spec.inner_rows] = 0
    values = np.zeros((n_rows, 1), np.float32)
    entry = write_shard(tmp_path, {"values": values, "extra": rows}, 1)

    chunk = tmp_path / "shards" / entry.digest / "extra" / "c" / "0" / "0"
    spec = entry.arrays["extra"]
    assert chunk.stat().st_size == spec.size_bytes
    mapped = FileRange([(chunk, spec.size_bytes)]).bytes[: spec.data_bytes]
    assert mapped.tobytes() == rows.tobytes()

    group = zarr.open_group(tmp_path / "shards" / entry.digest, mode="r")
    assert sorted(group.array_keys()) == ["extra", "values"]
    assert group["extra"].shape == rows.shape
    assert group["extra"].dtype == rows.dtype
    assert np.asarray(group["extra"][:]).tobytes() == rows.tobytes()
    assert np.asarray(group["values"][:]).tobytes() == values.tobytes()
    middle = slice(n_rows // 3, n_rows // 3 + 5)
    assert np.asarray(group["extra"][middle]).tobytes() == rows[middle].tobytes()


@pytest.mark.parametrize("n_rows", [1, 4095, 4096, 4097, 8192, 8193])
def test_all_zero_arrays_keep_every_inner_chunk_on_disk(tmp_path, n_rows):
    entry = write_shard(tmp_path, {"values": np.zeros((n_rows, 2), np.float32)}, 1)
    chunk = tmp_path / "shards" / entry.digest / "values" / "c" / "0" / "0"
    assert chunk.stat().st_size == entry.arrays["values"].size_bytes > n_rows * 8
    group = zarr.open_group(tmp_path / "shards" / entry.digest, mode="r")
    assert not np.asarray(group["values"][:]).any()


def test_nan_payloads_and_signed_zeros_survive(tmp_path):
    bits = np.array([[0x7FC00000, 0x7F800001], [0xFFC12345, 0x80000000]], np.uint32)
    entry = write_shard(tmp_path, {"values": bits.view(np.float32)}, 1)
    group = zarr.open_group(tmp_path / "shards" / entry.digest, mode="r")
    assert np.asarray(group["values"][:]).view(np.uint32).tolist() == bits.tolist()


def test_zarr_sees_one_shard_of_row_chunks():
    spec = describe_array(np.zeros((10_000, 3), np.float32))
    metadata = json.loads(array_metadata(spec, "values"))
    sharding = metadata["codecs"][0]["configuration"]
    assert metadata["shape"] == [10_000, 3]
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [10_002, 3]
    assert sharding["chunk_shape"] == [3334, 3]
    assert sharding["index_location"] == "end"
    assert len(metadata["codecs"]) == 1


def test_the_same_content_is_written_once(tmp_path):
    rows = random_bits(1, 100, 3, "float32")
    first = write_shard(tmp_path, {"values": rows}, 2)
    folder = tmp_path / "shards" / first.digest
    before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob("*")}
    second = write_shard(tmp_path, {"values": rows.copy()}, 2)
    assert second == first
    assert {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob("*")} == before
    assert [p.name for p in (tmp_path / "shards").iterdir()] == [first.digest]


def test_the_order_in_which_arrays_are_given_does_not_name_the_shard(tmp_path):
    values, targets = random_bits(1, 9, 3, "float32"), random_bits(2, 9, 1, "float32")
    one = write_shard(tmp_path / "a", {"values": values, "targets": targets}, 1)
    two = write_shard(tmp_path / "b", {"targets": targets, "values": values}, 1)
    assert one.digest == two.digest


def test_bytes_shape_dtype_name_and_company_all_name_the_shard():
    raw = np.arange(24, dtype=np.uint8)
    floats = raw.view(np.float32)
    flipped = raw.copy()
    flipped[23] ^= 1
    contents = [
        {"values": floats.reshape(2, 3)},
        {"values": floats.reshape(3, 2)},
        {"values": floats.reshape(6, 1)},
        {"values": raw.reshape(2, 12)},
        {"values": flipped.view(np.float32).reshape(2, 3)},
        {"targets": floats.reshape(2, 3)},
        {"values": floats.reshape(2, 3), "targets": floats.reshape(2, 3)},
        {"values": floats.reshape(2, 3), "observed": floats.reshape(2, 3)},
    ]
    digests = [shard_digest({n: describe_array(a) for n, a in c.items()}) for c in contents]
    assert len(set(digests)) == len(contents)


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((3, 2), np.float64),
        np.zeros((3, 2), np.int32),
        np.zeros((3, 2), ">f8"),
        np.zeros((3, 2), np.bool_),
        np.zeros((0, 2), np.float32),
        np.zeros((3, 0), np.float32),
        np.zeros(3, np.float32),
    ],
    ids=["f8", "i4", "big f8", "bool", "no rows", "no columns", "one axis"],
)
def test_an_array_the_format_cannot_hold_is_refused_and_leaves_nothing(tmp_path, rows):
    with pytest.raises((TypeError, ValueError, IndexError, BufferError)):
        write_shard(tmp_path, {"values": rows}, 1)
    assert list(tmp_path.rglob("*")) == []


def test_arrays_of_unequal_rows_are_refused_and_leave_nothing(tmp_path):
    arrays = {"values": np.zeros((3, 2), np.float32), "observed": np.zeros((4, 1), np.uint8)}
    with pytest.raises(ValueError, match="differ in rows"):
        write_shard(tmp_path, arrays, 1)
    assert list(tmp_path.rglob("*")) == []


ODD_MEMORY = {
    "fortran": np.asfortranarray,
    "columns strided": lambda rows: np.repeat(rows, 2, axis=1)[:, ::2],
    "rows strided": lambda rows: np.repeat(rows, 3, axis=0)[::3],
    "backwards": lambda rows: rows[::-1, ::-1].copy()[::-1, ::-1],
    "big-endian": lambda rows: rows.astype(rows.dtype.newbyteorder(">")),
    "big-endian fortran": lambda rows: np.asfortranarray(rows.astype(rows.dtype.newbyteorder(">"))),
    "read-only": lambda rows: np.frombuffer(rows.tobytes(), rows.dtype).reshape(rows.shape),
}


@pytest.mark.parametrize("memory", ODD_MEMORY)
def test_an_array_is_written_as_its_values_however_it_lies_in_memory(tmp_path, memory):
    """Little-endian rows in C order on the disk, and the same name as from plain memory."""
    plain = {
        "values": np.arange(15_000, dtype=np.float32).reshape(5000, 3),
        "observed": np.arange(10_000, dtype=np.uint32).astype(np.uint8).reshape(5000, 2),
    }
    odd = {name: ODD_MEMORY[memory](rows) for name, rows in plain.items()}
    entry = write_shard(tmp_path / "odd", odd, 1)
    assert entry == write_shard(tmp_path / "plain", plain, 1)
    for name, rows in plain.items():
        chunk = tmp_path / "odd" / "shards" / entry.digest / name / "c" / "0" / "0"
        little = rows.astype(rows.dtype.newbyteorder("<")).tobytes()
        assert chunk.read_bytes()[: len(little)] == little
    group = zarr.open_group(tmp_path / "odd" / "shards" / entry.digest, mode="r")
    for name, rows in plain.items():
        assert np.asarray(group[name][:]).tolist() == rows.tolist()


@pytest.mark.parametrize("name", ["values", "a", "y0_1", "a" * 32])
def test_plain_array_names_are_allowed(name):
    assert is_array_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "..", "../x", "a/b", "A", "0a", "_a", "a.b", "a\n", "a" * 33, "é", "zarr.json", "a\0"],
)
def test_a_name_that_could_be_a_path_is_no_array_name(name):
    assert not is_array_name(name)
