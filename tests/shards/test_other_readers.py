"""Readers that are not ours open what they should, and see the bits that the store means.

Nothing here goes through our reader but the numbers that are wanted in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zarr
from stores import make_store

from pipeline.build import build
from shards import Store, WindowSpec
from shards.export import export_store
from shards.manifest import TargetSchema
from shards.writer import write_shard

LENGTHS = [4097, 30, 5000, 9]
"""Rows of which a shard has several inner chunks, the last one with padding behind."""
PER_STEP = TargetSchema("per_step", ("y0", "y1"))
SPLITS = ["train", "val", "train", "train"]


def with_zarr(group: Path, array: str) -> Any:
    found: Any = zarr.open_group(group, mode="r")[array]
    return found[:]


def with_tensorstore(group: Path, array: str) -> Any:
    tensorstore = pytest.importorskip("tensorstore")
    place = {"driver": "file", "path": str(group / array)}
    return tensorstore.open({"driver": "zarr3", "kvstore": place}).result().read().result()


def with_xarray(group: Path, array: str) -> Any:
    xarray = pytest.importorskip("xarray")
    opened = xarray.open_zarr(group, consolidated=False, chunks=None)
    assert opened[array].dims == ("row", f"{array}_column")
    return opened[array].to_numpy()


zarr_readers = pytest.mark.parametrize("read", [with_zarr, with_tensorstore, with_xarray])
Read = Callable[[Path, str], Any]


def assert_same_bits(got: Any, wanted: np.ndarray[Any, Any]) -> None:
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    assert np.ascontiguousarray(got).tobytes() == np.ascontiguousarray(wanted).tobytes()


def arrays_of(store: Store) -> Iterator[tuple[int, Path, str]]:
    """Yield (shard number, its folder, array) of everything that a store holds."""
    for number, entry in enumerate(store.manifest.shards):
        for array in entry.arrays:
            yield number, store.path / "shards" / entry.digest, array


# --- Zarr -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["rows", "windows"])
def in_zarr(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Store:
    # As windows of 16 rows every 2, both trials of the first shard are several inner chunks, too.
    return make_store(
        tmp_path_factory.mktemp("zarr"), LENGTHS, n_shards=2, target=PER_STEP, missing=True,
        layout=request.param, splits=SPLITS, windows=WindowSpec(length=16, stride=2),
    )  # fmt: skip


@zarr_readers
def test_a_zarr_reader_sees_the_bits_of_every_trial(in_zarr, read: Read):
    n_inner = [a.n_inner for s in in_zarr.manifest.shards for a in s.arrays.values()]
    assert max(n_inner) > 1
    for shard, folder, array in arrays_of(in_zarr):
        whole = read(folder, array)
        for trial in np.flatnonzero(in_zarr.index.shard == shard).tolist():
            start = int(in_zarr.index.row_start[trial])
            rows = whole[start : start + int(in_zarr.n_stored[trial])]
            assert_same_bits(rows, in_zarr.trial_stored(trial, array))


@zarr_readers
@pytest.mark.parametrize("n_rows", [1, 4095, 4096, 4097, 8193, 12_289])
def test_chunks_of_nothing_but_zeros_are_there_and_so_are_the_rows_behind_them(
    tmp_path, read: Read, n_rows
):
    generator = np.random.default_rng(n_rows)
    values = np.zeros((n_rows, 3), np.float32)
    values[-1] = generator.normal(size=3)
    codes = np.zeros((n_rows, 2), np.uint16)
    codes[n_rows // 2] = 65_535
    arrays = {"values": values, "codes": codes, "observed": np.zeros((n_rows, 1), np.uint8)}
    digest = write_shard(tmp_path, arrays, 1).digest
    for name, wanted in arrays.items():
        assert_same_bits(read(tmp_path / "shards" / digest, name), wanted)


def test_a_zarr_reader_slices_without_reading_all(tmp_path):
    store = make_store(tmp_path, LENGTHS)
    tensorstore = pytest.importorskip("tensorstore")
    file = store.chunk_file(0, "values")
    spec = store.manifest.shards[0].arrays["values"]
    raw = bytearray(file.read_bytes())
    chunk_bytes = spec.inner_rows * spec.row_bytes
    raw[chunk_bytes : 2 * chunk_bytes] = b"\xff" * chunk_bytes  # the second chunk is spoilt
    file.write_bytes(raw)
    wanted = store.shard_rows(0)[10:15]
    place = {"driver": "file", "path": str(file.parents[2])}
    array = tensorstore.open({"driver": "zarr3", "kvstore": place}).result()
    assert_same_bits(array[10:15].read().result(), wanted)
    assert array.chunk_layout.read_chunk.shape[0] == spec.inner_rows


# --- Parquet shards ---------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["rows", "windows"])
def in_parquet(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(
        tmp_path_factory.mktemp("parquet"), LENGTHS, n_shards=2, target=PER_STEP, missing=True,
        layout=request.param, container="parquet", windows=WindowSpec(length=16, stride=2),
    )  # fmt: skip


def with_polars(file: Path, array: str) -> Any:
    return pl.read_parquet(file)[array].to_numpy()


def with_duckdb(file: Path, array: str) -> Any:
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect() as connection:
        column = connection.read_parquet(str(file)).to_arrow_table()[array].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def with_datasets(file: Path, array: str) -> Any:
    frames = open_offline(file.parent, data_files=file.name, split="train")
    column = frames.with_format("arrow")[:][array].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def open_offline(folder: Path, **options: Any) -> Any:
    """Open a folder with Hugging Face datasets, which may ask nobody; the cache lies beside it."""
    datasets = pytest.importorskip("datasets")
    assert datasets.config.HF_HUB_OFFLINE
    cache = folder.parent / f"{folder.name}-cache"
    return datasets.load_dataset(str(folder), cache_dir=str(cache), **options)


@pytest.fixture(scope="module", autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set what `datasets` reads when it is first imported."""
    with pytest.MonkeyPatch.context() as patch:
        home = str(tmp_path_factory.mktemp("hf"))
        told = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": home}
        told |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        for name, value in told.items():
            patch.setenv(name, value)
        yield


@pytest.mark.parametrize("read", [with_polars, with_duckdb, with_datasets])
def test_a_table_reader_sees_the_bits_of_a_parquet_shard(in_parquet, read: Read):
    for shard, folder, array in arrays_of(in_parquet):
        got = read(folder / "rows.parquet", array)
        wanted = in_parquet.shard_rows(shard, array)
        assert_same_bits(got.reshape(wanted.shape), wanted)


# --- indexes ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of two versions, so that trials are named by several parts."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "raw").mkdir()
    for number in range(8):
        rows = "".join(f"{t / 4},{t * number},{-t}\n" for t in range(20 + number))
        (folder / "raw" / f"s{number % 2}_{number}.csv").write_text("t,a,b\n" + rows)
    spec = {
        "name": "built",
        "source": {"files": "raw/*.csv", "trial_id": r"(?P<subject>s\d)_\d", "time": "t"},
        "channels": ["a", "b"],
        "windows": {"length": 5, "target": {"kind": "forecast", "channels": ["a"]}},
    }
    (folder / "dataset.yaml").write_text(yaml.safe_dump(spec))
    build(folder / "dataset.yaml", folder / "store")
    (folder / "raw" / "s1_9.csv").write_text("t,a,b\n0,1,2\n1,3,4\n2,5,6\n")
    build(folder / "dataset.yaml", folder / "store")
    return Store(folder / "store")


def test_arrow_readers_open_the_hot_index(built):
    path = built.folder / "index.arrow"
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    assert table["id"].to_pylist() == list(built)
    assert table["n_rows"].to_pylist() == built.index.n_rows.tolist()
    frame = pl.read_ipc(path)
    assert frame["id"].to_list() == list(built)
    assert frame["split"].to_list() == built.index.split.tolist()


def test_table_readers_open_what_is_known_of_trials(built):
    duckdb = pytest.importorskip("duckdb")
    files = sorted((built.path / "parts").glob("*.parquet"))
    files = files or [built.folder / "trials.parquet"]
    wanted = dict(zip(built, built.index.n_rows.tolist(), strict=True))
    known: dict[str, int] = {}
    subjects: dict[str, str] = {}
    for file in files:
        frame = pl.read_parquet(file)
        known |= dict(zip(frame["id"], frame["n_rows"], strict=True))
        with duckdb.connect() as connection:
            found = connection.execute(
                "select id, attributes.subject from read_parquet(?)", [str(file)]
            ).fetchall()
        subjects |= dict(found)
        assert pq.read_table(file)["id"].to_pylist() == [row[0] for row in found]
    assert {name: known[name] for name in wanted} == wanted
    assert {name: subjects[name] for name in wanted} == {name: name[:2] for name in wanted}
    assert len(pl.read_parquet(built.folder / "quarantine.parquet")) == 0


# --- exports ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    folder = tmp_path_factory.mktemp("exported")
    store = make_store(
        folder / "store", LENGTHS, splits=SPLITS, missing=True, scale=(3.0, 7.0), target=PER_STEP
    )
    export_store(store, folder / "steps", "huggingface")
    export_store(store, folder / "trials", "huggingface", per="trial")
    return store, folder


def channel_bits(columns: dict[str, Any]) -> bytes:
    """Return channels as the bytes of `[rows, channels]`, missing values as the quiet NaN."""
    rows = [[np.nan if x is None else x for x in columns[name]] for name in ("c0", "c1", "c2")]
    return np.ascontiguousarray(np.array(rows, np.float32).T).tobytes()


def test_hugging_face_opens_an_export_by_split(exported):
    store, folder = exported
    opened = open_offline(folder / "steps")
    assert {name: len(part) for name, part in opened.items()} == {
        "train": LENGTHS[0] + LENGTHS[2] + LENGTHS[3], "val": LENGTHS[1]
    }  # fmt: skip
    assert channel_bits(opened["val"][:]) == store.deliver_rows(1).tobytes()
    first = opened["train"].filter(lambda trial: trial == "t0003", input_columns="trial")
    assert channel_bits(first[:]) == store.deliver_rows(3).tobytes()


def test_hugging_face_opens_a_row_per_trial(exported):
    store, folder = exported
    opened = open_offline(folder / "trials")
    (row,) = opened["val"]
    assert row["trial"] == "t0001"
    assert channel_bits(row) == store.deliver_rows(1).tobytes()


def test_hugging_face_streams_an_export(exported):
    store, folder = exported
    opened = open_offline(folder / "steps", split="val", streaming=True)
    rows = list(opened)
    columns = {name: [row[name] for row in rows] for name in ("c0", "c1", "c2")}
    assert channel_bits(columns) == store.deliver_rows(1).tobytes()


def test_polars_and_duckdb_open_an_export_at_once(exported):
    duckdb = pytest.importorskip("duckdb")
    store, folder = exported
    frame = pl.read_parquet(folder / "steps" / "data" / "*.parquet")
    means = dict(frame.group_by("trial").agg(pl.col("c1").mean()).iter_rows())
    with duckdb.connect() as connection:
        files = str(folder / "steps" / "data" / "*.parquet")
        asked = 'select trial, avg("c1"), count(*) from read_parquet(?) group by trial'
        found = connection.execute(asked, [files]).fetchall()
    assert {name: n for name, _, n in found} == dict(zip(store, LENGTHS, strict=True))
    for name, mean, _ in found:
        wanted = np.nanmean(store.deliver_rows(store.trial_number(name))[:, 1], dtype=np.float64)
        assert mean == pytest.approx(wanted, rel=1e-9)
        assert means[name] == pytest.approx(wanted, rel=1e-5)
