"""Layout windows and container parquet: what is written, read, and found when it is broken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from stores import SHAPES, coded_values, make_store

from shards import CorruptStoreError, InvalidSpecError, Store, WindowSpec
from shards.identity import canonical_json, file_promise
from shards.layout import shard_digest
from shards.manifest import TargetSchema, sign
from shards.parquetshard import decode_shard, group_rows
from shards.verify import verify_store
from shards.writer import write_shard

PER_STEP = TargetSchema("per_step", ("y0", "y1"))
NAMES = {"values": ["a", "b"]}


def values(n_rows: int, n_columns: int = 2, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(n_rows, n_columns)).astype(np.float32)


def pack(path: Path, arrays: dict[str, Any], **options: Any) -> Any:
    return write_shard(path, arrays, 1, container="parquet", **{"columns": NAMES, **options})


def file_of(path: Path, digest: str) -> Path:
    return path / "shards" / digest / "rows.parquet"


def edit_manifest(store: Store, change: Any) -> None:
    """Change `dataset.json` and sign it again, as a hostile writer would."""
    path = store.folder / "dataset.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.write_bytes(canonical_json(sign(document)) + b"\n")


# --- written --------------------------------------------------------------------------------------


def test_equal_content_is_written_once_and_containers_have_their_own_names(tmp_path):
    arrays = {"values": values(9)}
    first = pack(tmp_path, arrays)
    before = file_of(tmp_path, first.digest).stat()
    assert pack(tmp_path, {"values": [arrays["values"][:4], arrays["values"][4:]]}) == first
    assert file_of(tmp_path, first.digest).stat().st_mtime_ns == before.st_mtime_ns
    plain = write_shard(tmp_path, arrays, 1)
    renamed = pack(tmp_path, arrays, columns={"values": ["a", "c"]})
    assert len({first.digest, plain.digest, renamed.digest}) == 3
    assert plain.digest == shard_digest(plain.arrays)
    assert first.digest == shard_digest(first.arrays, NAMES)
    assert dict(first.arrays) == dict(plain.arrays)
    assert len(list((tmp_path / "shards").iterdir())) == 3


def test_a_file_that_is_there_already_is_promised_as_it_is(tmp_path):
    """Another release of the library may pack the same rows into other bytes."""
    arrays = {"values": values(9)}
    entry = pack(tmp_path, arrays)
    file = file_of(tmp_path, entry.digest)
    table = pq.read_table(file)
    pq.write_table(table, file, compression="snappy")
    again = pack(tmp_path, arrays)
    assert again.digest == entry.digest
    assert again.file == file_promise(file.read_bytes()) != entry.file


def test_every_bit_of_a_float_survives(tmp_path):
    bits = np.array([0x7FC00000, 0x7F800001, 0xFFC12345, 0x80000000, 1, 0xFF800000], np.uint32)
    arrays = {
        "values": bits.view(np.float32).reshape(3, 2),
        "observed": np.array([[255], [0], [7]], np.uint8),
        "codes": np.array([[65535], [0], [1]], np.uint16),
        "time": np.array([[1e300], [-0.0], [np.nan]]),
    }
    entry = pack(tmp_path, arrays)
    (group,) = decode_shard(tmp_path, entry)
    for name, rows in arrays.items():
        assert group[name].dtype == rows.dtype
        assert group[name].tobytes() == rows.tobytes()


@pytest.mark.parametrize("n_rows", [1, 4, 5, 23])
def test_row_groups_are_bounded_by_rows_and_by_bytes(tmp_path, monkeypatch, n_rows):
    monkeypatch.setattr("shards.parquetshard.GROUP_BYTES", 5 * 9 - 1)
    arrays = {"values": values(n_rows), "observed": np.zeros((n_rows, 1), np.uint8)}
    pieces = {name: np.array_split(rows, 3) for name, rows in arrays.items()}
    entry = pack(tmp_path, pieces)
    assert group_rows(entry.arrays) == 4
    meta = pq.ParquetFile(file_of(tmp_path, entry.digest)).metadata
    sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
    assert sizes == [4] * (n_rows // 4) + [n_rows % 4] * (n_rows % 4 > 0)
    groups = list(decode_shard(tmp_path, entry))
    for name, rows in arrays.items():
        assert np.concatenate([group[name] for group in groups]).tobytes() == rows.tobytes()


def test_only_times_may_be_float64(tmp_path):
    with pytest.raises(ValueError, match="float64, which only times may be"):
        write_shard(tmp_path, {"values": np.zeros((2, 1))}, 1)
    entry = write_shard(tmp_path, {"values": values(2), "time": np.zeros((2, 1))}, 1)
    group = zarr.open_group(tmp_path / "shards" / entry.digest, mode="r")
    assert group["time"].dtype == np.float64


# --- read by others -------------------------------------------------------------------------------


def test_a_packed_shard_is_plain_parquet(tmp_path):
    rows = values(70_000).round(2)
    entry = pack(tmp_path, {"values": rows, "codes": np.ones((70_000, 3), np.uint16)})
    file = file_of(tmp_path, entry.digest)
    schema = pq.read_schema(file)
    kind = pa.list_(pa.field("element", pa.float32(), nullable=False), 2)
    assert schema.field("values").equals(pa.field("values", kind, nullable=False))
    assert json.loads(schema.metadata[b"trialshards"]) == NAMES
    assert pq.ParquetFile(file).metadata.row_group(0).column(0).compression == "ZSTD"
    assert file.stat().st_size < rows.nbytes
    frame = pl.read_parquet(file)
    assert frame.schema["values"] == pl.Array(pl.Float32, 2)
    assert frame["values"].to_numpy().tobytes() == rows.tobytes()
    said = duckdb.sql(f"SELECT values[2] AS b FROM '{file}' WHERE codes[3] = 1").fetchnumpy()
    assert np.asarray(said["b"], np.float32).tobytes() == rows[:, 1].tobytes()


# --- windows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["zarr", "parquet"])
def test_stored_windows_are_the_rows_and_what_follows_them(tmp_path, container):
    windows = WindowSpec(length=4, stride=3, horizon=2, steps=2)
    store = make_store(
        tmp_path / "s", [10, 3, 5], windows=windows, layout="windows", container=container
    )
    assert store.index.n_rows.tolist() == [10, 3, 5]
    assert store.index.n_windows.tolist() == [2, 0, 1]  # 3 rows have none ahead; 5 are short
    assert store.index.row_start.tolist() == [0, 0, 2]
    assert store.manifest.shards[0].n_rows == 3
    rows = coded_values(0, 10, 3)
    got = store.trial_stored(0).reshape(2, 4, 3)
    assert got.tobytes() == np.stack([rows[0:4], rows[3:7]]).tobytes()
    ahead = store.trial_stored(0, "targets")
    assert ahead.tolist() == [rows[5:7, 0].tolist(), rows[8:10, 0].tolist()]
    short = store.trial_stored(2).reshape(4, 3)
    assert short[:2].tobytes() == coded_values(2, 5, 3)[:2].tobytes()
    assert not short[2:].any()


def test_rows_come_back_from_windows_but_for_those_in_none(tmp_path):
    windows = WindowSpec(length=3, stride=4)
    store = make_store(
        tmp_path / "s", [9, 2], windows=windows, target=PER_STEP, missing=True, layout="windows"
    )
    plain = make_store(tmp_path / "p", [9, 2], windows=windows, target=PER_STEP, missing=True)
    inside = np.array([0, 1, 2, 4, 5, 6])
    for name, fill in (("values", np.nan), ("targets", np.nan), ("observed", 0)):
        rows, want = store.trial_rows(0, name), np.array(plain.trial_rows(0, name))
        assert rows.dtype == want.dtype
        assert rows[inside].tobytes() == want[inside].tobytes()
        assert np.array_equal(rows[[3, 7, 8]], np.full_like(want[:3], fill), equal_nan=True)
        assert store.trial_rows(1, name).tobytes() == plain.trial_rows(1, name).tobytes()


def test_forecast_targets_are_not_rows(tmp_path):
    store = make_store(tmp_path / "s", [9], layout="windows")
    with pytest.raises(InvalidSpecError, match="forecast targets"):
        store.trial_rows(0, "targets")


# --- the manifest ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "container"), SHAPES)
def test_a_manifest_says_its_shape_and_comes_back(tmp_path, layout, container):
    store = make_store(tmp_path / "s", [9, 4], layout=layout, container=container)
    document = json.loads((store.folder / "dataset.json").read_bytes())
    assert (document["layout"], document["container"]) == (layout, container)
    assert document["format"]["minor"] == (0 if (layout, container) == SHAPES[0] else 2)
    (entry,) = document["shards"]
    keys = {"dtype", "shape", "xxh3_128"}
    if container == "zarr":
        keys |= {"inner_rows", "size_bytes"}
    else:
        content = file_of(store.path, entry["digest"]).read_bytes()
        assert entry["file"] == file_promise(content)
        assert store.manifest.shards[0].n_bytes == len(content)
    assert set(entry["arrays"]["values"]) == keys
    assert ("file" in entry) == (container == "parquet")


@pytest.mark.parametrize(("layout", "container"), SHAPES)
def test_a_manifest_of_another_shape_than_its_shards_is_refused(tmp_path, layout, container):
    store = make_store(tmp_path / "s", [9, 4], layout=layout, container=container)
    for key, value in (
        ("layout", "rows" if layout == "windows" else "windows"),
        ("container", "zarr" if container == "parquet" else "parquet"),
        ("layout", "columns"),
    ):
        raw = (store.folder / "dataset.json").read_bytes()
        edit_manifest(store, lambda document, k=key, v=value: document.update({k: v}))
        with pytest.raises(CorruptStoreError, match="is not a manifest of this format"):
            Store(store.path)
        (store.folder / "dataset.json").write_bytes(raw)


@pytest.mark.parametrize(
    "file",
    [
        {}, {"size_bytes": 0, "xxh3_128": "0" * 32}, {"size_bytes": "9", "xxh3_128": "0" * 32},
        {"size_bytes": 9, "xxh3_128": "../x"}, {"size_bytes": True, "xxh3_128": "0" * 32}, [], None,
    ],
)  # fmt: skip
def test_a_promise_that_is_none_is_refused(tmp_path, file):
    store = make_store(tmp_path / "s", [9], container="parquet")
    edit_manifest(store, lambda document: document["shards"][0].update(file=file))
    with pytest.raises(CorruptStoreError, match="is not a manifest of this format"):
        Store(store.path)


# --- verify ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "container"), SHAPES)
@pytest.mark.parametrize("target", [PER_STEP, TargetSchema("forecast", ("c1", "c0"))])
def test_a_whole_store_has_no_problems(tmp_path, layout, container, target):
    store = make_store(
        tmp_path / "s", [9, 4, 1, 30], n_shards=2, target=target, missing=True, layout=layout,
        container=container,
    )  # fmt: skip
    assert verify_store(store.path) == []


@pytest.mark.parametrize("layout", ["rows", "windows"])
def test_every_flipped_byte_of_a_packed_shard_is_reported_with_its_trials(tmp_path, layout):
    store = make_store(tmp_path / "s", [3, 2], n_channels=1, layout=layout, container="parquet")
    folder = store.path / "shards" / store.manifest.shards[0].digest
    raw = (folder / "rows.parquet").read_bytes()
    for place in range(0, len(raw), 5):
        changed = raw[:place] + bytes([raw[place] ^ (1 << place % 8)]) + raw[place + 1 :]
        (folder / "rows.parquet").write_bytes(changed)
        (problem,) = verify_store(store.path)
        assert problem.where.startswith(str(folder))
        assert problem.trials == ("t0000", "t0001")
    (folder / "rows.parquet").write_bytes(raw)
    (folder / "notes.txt").write_bytes(b"x")
    (problem,) = verify_store(store.path)
    assert (problem.where, problem.message) == (str(folder / "notes.txt"), "a foreign file")


@pytest.mark.parametrize("container", ["zarr", "parquet"])
def test_windows_of_other_trials_are_found_by_the_digest_of_each(tmp_path, container):
    """As if somebody had sorted a shard and promised it anew, digests and all."""
    store = make_store(tmp_path / "s", [8, 8, 8], layout="windows", container=container)
    entry = store.manifest.shards[0]
    arrays = {name: np.array(store.shard_rows(0, name)) for name in entry.arrays}
    order = [*range(2, 4), *range(2), *range(4, entry.n_rows)]
    swapped = {name: rows[order] for name, rows in arrays.items()}
    columns = {"values": ["c0", "c1", "c2"], "targets": ["c0"]}
    other = write_shard(store.path, swapped, 3, container=container, columns=columns)
    promise = replace(other, n_trials=3).as_dict()
    edit_manifest(store, lambda document: document.update(shards=[promise]))
    (problem,) = verify_store(store.path)
    assert problem.message == "2 trials have not the windows they promise"
    assert problem.trials == ("t0000", "t0001")


# --- hostile files --------------------------------------------------------------------------------


def promised_anew(path: Path, entry: Any, write: Any) -> Any:
    """Return the entry for a file whose own bytes are promised, whatever is in it."""
    file = file_of(path, entry.digest)
    write(file)
    return replace(entry, file=file_promise(file.read_bytes()))


def table_of(*columns: tuple[str, pa.Array], nullable: bool = False) -> pa.Table:
    fields = [pa.field(name, rows.type, nullable=nullable) for name, rows in columns]
    return pa.table([rows for _, rows in columns], schema=pa.schema(fields))


def lists(rows: Any, *, nullable: bool = False) -> pa.Array:
    kind = pa.from_numpy_dtype(rows.dtype)
    element = pa.field("element", kind, nullable=nullable)
    flat = pa.array(rows.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(element, rows.shape[1]))


ROWS = values(10)
HOSTILE = {
    "other rows": table_of(("values", lists(ROWS + 1))),
    "fewer rows": table_of(("values", lists(ROWS[:9]))),
    "more rows": table_of(("values", lists(np.zeros((10**6, 2), np.float32)))),
    "other columns": table_of(("values", lists(ROWS)), ("more", lists(ROWS))),
    "another type": table_of(("values", lists(ROWS.astype(np.float64)))),
    "wider rows": table_of(("values", lists(np.zeros((10, 10**5), np.float32)))),
    "nulls": table_of(("values", lists(ROWS, nullable=True)), nullable=True),
    "plain numbers": table_of(("values", pa.array(ROWS[:, 0]))),
    "ragged lists": table_of(("values", pa.array([[1.0]] * 10, pa.list_(pa.float32())))),
    "objects": table_of(("values", pa.array([b"cos\nsystem"] * 10))),
}


@pytest.mark.parametrize("table", HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_is_not_what_the_manifest_says_is_refused(tmp_path, table):
    entry = pack(tmp_path, {"values": ROWS})
    wrong = promised_anew(tmp_path, entry, lambda file: pq.write_table(table, file))
    with pytest.raises(CorruptStoreError, match=r"rows\.parquet"):
        list(decode_shard(tmp_path, wrong))


def test_a_few_kilobytes_that_claim_megabytes_are_refused_unread(tmp_path, monkeypatch):
    entry = pack(tmp_path, {"values": ROWS})
    bomb = np.zeros((10**6, 2), np.float32)
    wrong = promised_anew(
        tmp_path,
        entry,
        lambda file: pq.write_table(
            table_of(("values", lists(bomb))), file, compression="zstd", row_group_size=10**6
        ),
    )
    monkeypatch.setattr("pyarrow.parquet.ParquetFile.read_row_group", None)
    with pytest.raises(CorruptStoreError, match=r"rows\.parquet"):
        list(decode_shard(tmp_path, wrong))


@pytest.mark.parametrize("content", [b"PAR1", b"PAR1" * 100, b"\x80\x04K\x01.", bytes(4000)])
def test_what_is_no_parquet_is_refused(tmp_path, content):
    entry = pack(tmp_path, {"values": ROWS})
    wrong = promised_anew(tmp_path, entry, lambda file: file.write_bytes(content))
    with pytest.raises(CorruptStoreError, match=r"rows\.parquet cannot be decoded"):
        list(decode_shard(tmp_path, wrong))
