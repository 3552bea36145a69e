"""The hot index: mapped without a copy, sorted by id bytes, refused when it is not one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores import make_store

from shards import CorruptStoreError, Store
from shards.identity import file_promise
from shards.index import SCHEMA, index_to_bytes, open_index

ids = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), unique=True)


def columns(names, seed=0):
    rng, n = np.random.default_rng(seed), len(names)
    return {
        "id": sorted(names, key=lambda name: name.encode()),
        "shard": rng.integers(0, 2**31, n, np.int32),
        "row_start": rng.integers(0, 2**62, n),
        "n_rows": rng.integers(0, 2**62, n),
        "n_windows": rng.integers(0, 2**62, n),
        "split": rng.integers(0, 2**15, n, np.int16),
        "weight": rng.random(n, np.float32),
        "label": np.where(rng.random(n) < 0.5, np.nan, rng.random(n)).astype(np.float32),
    }


def written(path, table):
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    return path


def opened(path):
    """Open an index that the manifest promises as it is, so that its content is what counts."""
    return open_index(path, file_promise(path.read_bytes() if path.is_file() else b""))


def plain_table(names=("a", "b")):
    data = columns(names)
    return pa.table([pa.array(data[f.name], f.type) for f in SCHEMA], schema=SCHEMA)


@given(ids, st.integers(0, 99))
def test_every_column_comes_back_exactly(tmp_path, names, seed):
    data = columns(names, seed)
    path = tmp_path / "index.arrow"
    path.unlink(missing_ok=True)
    path.write_bytes(index_to_bytes(data))
    index = opened(path)
    assert len(index) == len(names)
    assert [index.id_of(i) for i in range(len(index))] == data["id"]
    for name in SCHEMA.names[1:]:
        got = getattr(index, name)
        assert got.dtype == SCHEMA.field(name).type.to_pandas_dtype()
        assert got.tobytes() == data[name].tobytes()
        assert not got.flags.writeable


@given(ids, st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
def test_find_returns_the_number_of_every_id_and_none_for_any_other(tmp_path, names, other):
    path = tmp_path / "index.arrow"
    path.unlink(missing_ok=True)
    path.write_bytes(index_to_bytes(columns(names)))
    index = opened(path)
    order = sorted(names, key=lambda name: name.encode())
    assert [index.find(name) for name in order] == list(range(len(order)))
    assert index.find(other) == (order.index(other) if other in names else None)


def test_ids_are_compared_as_utf8_not_as_utf16_letters_or_normal_forms(tmp_path):
    names = ["\U00010000", "\uffff", "\ue000", "z", "é", "e\u0301", "Z", "a", "ä", "", "a\0", "ß"]
    by_bytes = sorted(names, key=str.encode)
    assert by_bytes != sorted(names, key=lambda n: n.encode("utf-16-be"))
    assert by_bytes != sorted(names, key=str.casefold)
    path = tmp_path / "index.arrow"
    path.write_bytes(index_to_bytes(columns(names)))
    index = opened(path)
    assert [index.find(name) for name in by_bytes] == list(range(len(names)))
    assert index.find("e") is None
    assert index.find("\U0010ffff") is None


def test_a_store_numbers_its_trials_by_id_bytes(tmp_path):
    store = make_store(tmp_path, [3] * 12, n_shards=3)
    order = sorted((f"t{i:04d}" for i in range(12)), key=str.encode)
    assert [store.index.id_of(i) for i in range(12)] == order
    assert store.cold("id")["id"].to_pylist() == order


def test_opening_maps_the_file_and_copies_nothing(tmp_path):
    path = tmp_path / "index.arrow"
    path.write_bytes(index_to_bytes(columns([f"trial {i}" for i in range(20_000)])))
    before = pa.total_allocated_bytes()
    index = opened(path)
    assert pa.total_allocated_bytes() - before < 1000
    lines = [x for x in Path("/proc/self/maps").read_text().splitlines() if str(path) in x]
    low, high = (int(part, 16) for part in lines[0].split()[0].split("-"))
    for name in SCHEMA.names[1:]:
        assert low <= getattr(index, name).ctypes.data < high, name
    assert all(low <= b.address < high for b in index.ids.buffers() if b is not None)
    assert index.find("trial 19999") is not None


def test_further_columns_and_another_column_order_are_accepted(tmp_path):
    table = plain_table().append_column("lane", pa.array([1, 2]))
    table = table.select(["lane", *SCHEMA.names[::-1]])
    index = opened(written(tmp_path / "index.arrow", table))
    assert [index.id_of(i) for i in range(2)] == ["a", "b"]
    assert index.weight.tolist() == plain_table()["weight"].to_pylist()


def test_the_file_holds_one_record_batch_of_the_documented_types(tmp_path):
    path = tmp_path / "index.arrow"
    path.write_bytes(index_to_bytes(columns([f"{i}" for i in range(70_000)])))
    with pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        assert file.num_record_batches == 1
        assert {f.name: str(f.type) for f in file.schema} == {
            "id": "large_string", "shard": "int32", "row_start": "int64", "n_rows": "int64",
            "n_windows": "int64", "split": "int16", "weight": "float", "label": "float",
        }  # fmt: skip


def test_every_cut_of_the_file_is_refused(tmp_path):
    raw = index_to_bytes(columns(["a", "b", "c"]))
    path = tmp_path / "index.arrow"
    for length in range(len(raw)):
        path.unlink(missing_ok=True)
        path.write_bytes(raw[:length])
        with pytest.raises(CorruptStoreError, match=f"{path} is not a usable hot index"):
            opened(path)
        with pytest.raises(CorruptStoreError, match=f"{path} is not a usable hot index"):
            open_index(path, file_promise(raw))


def garbage_zeros(path):
    path.write_bytes(bytes(4096))


def garbage_text(path):
    path.write_text("id,shard\na,1\n")


def garbage_column_missing(path):
    written(path, plain_table().drop_columns(["weight"]))


def garbage_null(path):
    rows = [*plain_table().to_pylist(), {**plain_table().to_pylist()[0], "n_rows": None}]
    written(path, pa.Table.from_pylist(rows))


def garbage_type(path):
    written(path, plain_table().set_column(1, "shard", pa.array(["x", "y"])))


def garbage_too_wide(path):
    written(path, plain_table().set_column(1, "shard", pa.array([1, 2**40])))


def garbage_folder(path):
    path.mkdir()


def garbage_nothing(path):
    pass


GARBAGE = [f for name, f in list(globals().items()) if name.startswith("garbage_")]


@pytest.mark.parametrize("make", GARBAGE, ids=lambda f: f.__name__)
def test_a_file_that_is_no_hot_index_is_refused_by_name(tmp_path, make):
    path = tmp_path / "index.arrow"
    make(path)
    with pytest.raises(CorruptStoreError, match=f"{path} is not a usable hot index.*Restore it"):
        opened(path)


@pytest.mark.parametrize("key", ["size_bytes", "xxh3_128", None])
def test_an_index_that_is_not_the_promised_one_is_refused_though_arrow_could_read_it(tmp_path, key):
    path = tmp_path / "index.arrow"
    path.write_bytes(index_to_bytes(columns(["a", "b"])))
    good, other = file_promise(path.read_bytes()), file_promise(b"other")
    assert len(open_index(path, good)) == 2
    promise = {**good, key: other[key]} if key else {}
    with pytest.raises(CorruptStoreError, match=f"{path} is not a usable hot index.*promises"):
        open_index(path, promise)


def test_an_index_swapped_for_that_of_another_store_is_refused(tmp_path):
    store, other = make_store(tmp_path / "a", [7, 5, 9]), make_store(tmp_path / "b", [7, 6, 9])
    path = store.folder / "index.arrow"
    path.write_bytes((other.folder / "index.arrow").read_bytes())
    with pytest.raises(CorruptStoreError, match=f"{path} is not a usable hot index"):
        _ = Store(store.path).index


def test_a_flipped_byte_of_the_index_is_an_error_and_never_the_end_of_the_process(tmp_path):
    store = make_store(tmp_path / "s", [7, 5, 9])
    code = """if True:
        import sys
        from shards import Store, CorruptStoreError
        store = Store(sys.argv[1])
        path = store.folder / "index.arrow"
        good = path.read_bytes()
        for position in range(len(good)):
            path.unlink()
            flipped = bytearray(good)
            flipped[position] ^= 1 << position % 8
            path.write_bytes(flipped)
            try:
                Store(sys.argv[1]).index
            except CorruptStoreError:
                continue
            sys.exit(f"byte {position}: no error")
    """
    done = subprocess.run([sys.executable, "-c", code, str(store.path)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
