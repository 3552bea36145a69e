"""A store may come from anybody: nothing outside of it is read, and no memory is lost to it."""

import contextlib
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stores import SHAPES, make_store
from vandal import change_manifest, index_columns, into_parts, replace, replace_part, sign_loosely

from shards import CorruptStoreError, Store, TrialShardsError
from shards.arrowfile import count_rows
from shards.identity import file_promise
from shards.index import index_to_bytes
from shards.safety import OncePerProcess, check_file, parse_json, whole
from shards.tables import parquet_bytes
from shards.verify import verify_store

NORMAL = {"method": "zscore", "scope": "trial"}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TRIALSHARDS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "s", [6, 5, 4], missing=True)


def read_all(path):
    """Read everything a reader can: every trial, the fit, the cold index."""
    store = Store(path)
    for number in range(len(store.index)):
        store.trial_stored(number)
        store.index.id_of(number)
    _ = store.fit, store.delivery, store.cold()


def refused(path, match=None):
    with pytest.raises(CorruptStoreError, match=match):
        read_all(path)
    with contextlib.suppress(TrialShardsError):
        assert verify_store(path)


# Paths and links


@pytest.mark.parametrize("name", ["../x", "/etc", "..", "a/b", "", "0" * 31, "0" * 32 + "\n", 5])
@pytest.mark.parametrize("what", ["shards", "parts"])
def test_a_name_that_is_no_digest_is_refused(tmp_path, what, name):
    store = into_parts(make_store(tmp_path, [6, 5]))
    change_manifest(store.folder, lambda d: d[what][0].update(digest=name))
    refused(tmp_path)


@pytest.mark.parametrize("name", ["..", "../values", "/values", "Values", "c/0", "values\0"])
def test_an_array_name_that_is_no_name_is_refused(store, name):
    def rename(document):
        arrays = document["shards"][0]["arrays"]
        arrays[name] = arrays["observed"]

    change_manifest(store.folder, rename)
    refused(store.path)


LINKS = [
    "versions", "versions/v0001", "versions/v0001/dataset.json", "versions/v0001/index.arrow",
    "versions/v0001/fit.json", "versions/v0001/trials.parquet", "shards", "shards/{shard}",
    "shards/{shard}/values", "shards/{shard}/values/c", "shards/{shard}/values/c/0",
    "shards/{shard}/values/c/0/0",
]  # fmt: skip


@pytest.mark.parametrize("name", LINKS)
def test_a_link_in_a_store_is_refused_though_it_leads_to_the_right_bytes(store, tmp_path, name):
    path = store.path / name.format(shard=store.manifest.shards[0].digest)
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    refused(store.path, match="is a link to")


@pytest.mark.parametrize("name", ["parts", "parts/{part}.parquet"])
def test_a_link_among_the_parts_is_refused(tmp_path, name):
    store = into_parts(make_store(tmp_path / "s", [6, 5]))
    path = store.path / name.format(part=store.manifest.parts[0].digest)
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    refused(store.path, match="is a link to")


def test_a_link_in_a_parquet_shard_is_refused(tmp_path):
    store = make_store(tmp_path / "s", [6, 5], container="parquet")
    path = store.path / "shards" / store.manifest.shards[0].digest / "rows.parquet"
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    refused(store.path, match="is a link to")


def test_a_store_may_itself_be_reached_through_a_link(store, tmp_path):
    (tmp_path / "link").symlink_to(store.path)
    read_all(tmp_path / "link")
    assert verify_store(tmp_path / "link") == []


@pytest.mark.parametrize("name", ["index.arrow", "fit.json", "trials.parquet"])
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(store, name):
    (store.folder / name).unlink()
    os.mkfifo(store.folder / name)
    refused(store.path, match="no regular file")


def test_no_path_with_dots_is_taken_for_one_below(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "x").write_text("")
    with pytest.raises(CorruptStoreError, match="does not lie in"):
        check_file(tmp_path / "s", tmp_path / "s" / ".." / "x")


# Numbers and documents

HUGE = [2**62, 2**63, 2**64, 10**30, -1, 0, True, 1.0, 1.5, "6", None, [6], float("nan"),
        float("inf"), 1e308]  # fmt: skip


@pytest.mark.parametrize("value", HUGE, ids=repr)
@pytest.mark.parametrize(
    "place",
    [
        ("shards", 0, "n_rows"), ("shards", 0, "arrays", "values", "shape", 0),
        ("shards", 0, "arrays", "values", "shape", 1), ("windows", "length"), ("windows", "stride"),
        ("shards", 0, "arrays", "values", "size_bytes"), ("files", "index.arrow", "size_bytes"),
        ("counts", "trials"), ("parts", 0, "size_bytes"),
        ("parts", 0, "n_rows"), ("shards", 0, "arrays", "values", "inner_rows"),
    ],
    ids=str,
)  # fmt: skip
def test_a_number_that_is_none_or_a_giant_is_refused(tmp_path, place, value):
    store = into_parts(make_store(tmp_path, [6, 5, 4]))

    def change(document):
        node = document
        for step in place[:-1]:
            node = node[step]
        node[place[-1]] = value

    change_manifest(store.folder, change)
    with pytest.raises(TrialShardsError):
        read_all(tmp_path)


def test_a_shard_that_contradicts_nothing_but_its_file_is_refused(store):
    """All sizes of the manifest agree on 2^40 rows: only the file is smaller."""
    from shards.layout import ArraySpec

    def grow(document):
        entry = document["shards"][0]
        entry["n_rows"] = 2**40
        for name, array in entry["arrays"].items():
            spec = ArraySpec(array["dtype"], 2**40, array["shape"][1], array["xxh3_128"])
            entry["arrays"][name] = spec.as_dict()

    change_manifest(store.folder, grow)
    refused(store.path, match="the manifest says")


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a": 1, "a": 2}', b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e999}', b"[1]", b"1",
        b'{"a": "\\ud800"}', b"\xff", b"", b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a": ' + b'{"a": ' * 100_000 + b"1" + b"}" * 100_001, b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": [' + b"1," * (5 * 2**20) + b"1]}",
    ],
    ids=lambda raw: raw[:12].decode("latin-1"),
)  # fmt: skip
def test_a_document_that_is_no_plain_one_is_refused(store, raw):
    with pytest.raises(ValueError):
        parse_json(raw)
    replace(store.folder, "fit.json", raw)
    refused(store.path, match="fit.json")


@pytest.mark.parametrize("name", ["dataset.json", "fit.json"])
def test_a_giant_document_is_refused_by_its_size_alone(store, name):
    with (store.folder / name).open("r+b") as file:
        file.truncate(10 * 2**30)  # sparse
    refused(store.path, match=r"10737418240 bytes.*at most 67108864")


def test_a_million_shards_are_refused(store):
    path = store.folder / "dataset.json"
    document = json.loads(path.read_bytes())
    document["shards"] *= 200_000
    path.write_bytes(sign_loosely(document))
    with pytest.raises(CorruptStoreError, match="at most"):
        Store(store.path)


@pytest.mark.parametrize("value", [5, True, 5.0, "5", None, -1, 2**60])
def test_whole_takes_integers_alone(value):
    if value == 5 and type(value) is int:
        assert whole(value, "x") == 5
        return
    with pytest.raises(ValueError, match=r"x is .*; wanted an integer"):
        whole(value, "x")


class Trap:
    """Leaves a mark where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("trapped",)


@pytest.mark.parametrize("name", ["fit.json", "index.arrow", "trials.parquet", "dataset.json"])
def test_nothing_is_ever_unpickled(store, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    trap = pickle.dumps(Trap())
    if name == "dataset.json":
        (store.folder / name).write_bytes(trap)
    else:
        replace(store.folder, name, trap)
    refused(store.path)
    np.save(tmp_path / "array.npy", np.array([Trap()]), allow_pickle=True)
    if name == "index.arrow":
        replace(store.folder, name, (tmp_path / "array.npy").read_bytes())
        refused(store.path)
    assert not (tmp_path / "trapped").exists()


# The hot index


def rebuilt_index(store, **changed):
    replace(store.folder, "index.arrow", index_to_bytes(index_columns(store) | changed))


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_a_compressed_index_is_refused_before_its_buffers_are_inflated(store, codec):
    table = pa.ipc.open_file(
        pa.BufferReader((store.folder / "index.arrow").read_bytes())
    ).read_all()
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=codec)
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    replace(store.folder, "index.arrow", sink.getvalue().to_pybytes())
    refused(store.path, match="is compressed")


def test_an_index_in_several_batches_or_with_dictionaries_is_refused(store):
    table = pa.ipc.open_file(
        pa.BufferReader((store.folder / "index.arrow").read_bytes())
    ).read_all()
    for changed, chunk in (
        (table, 1),
        (table.append_column("x", pa.array(["a"] * 3).dictionary_encode()), 9),
    ):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, changed.schema) as writer:
            writer.write_table(changed, chunk)
        replace(store.folder, "index.arrow", sink.getvalue().to_pybytes())
        refused(store.path, match="not a usable hot index")


@pytest.mark.parametrize("value", [-1, 1, 2**31, 2**62, -(2**62), 2**63 - 1])
def test_every_length_and_offset_of_an_index_is_looked_at(store, value):
    """Each eight bytes of the headers in turn say something else, and are promised."""
    good = (store.folder / "index.arrow").read_bytes()
    wanted = [store.index.id_of(i) for i in range(3)]
    body = good.index(b"t0000")
    for at in [*range(0, body, 8), *range(body + 64, len(good) - 8, 8)]:
        bad = good[:at] + struct.pack("<q", value) + good[at + 8 :]
        try:
            count_rows(bad)
        except (ValueError, struct.error):
            continue
        replace(store.folder, "index.arrow", bad)
        try:
            index = Store(store.path).index
        except CorruptStoreError:
            continue
        assert [index.id_of(i) for i in range(3)] == wanted or verify_store(store.path)


@pytest.mark.parametrize(
    "changed",
    [
        {"shard": np.full(3, -1, np.int32)}, {"row_start": np.array([0, 2**62, 3])},
        {"n_rows": np.array([2**62] * 3)}, {"row_start": np.array([-1, 6, 11])},
        {"n_rows": np.array([-(2**63)] * 3)}, {"split": np.full(3, 9, np.int16)},
        {"weight": np.full(3, np.nan, np.float32)}, {"n_windows": np.array([2**40] * 3)},
    ],
    ids=str,
)  # fmt: skip
def test_an_index_whose_rows_point_elsewhere_is_refused_when_it_is_opened(store, changed):
    rebuilt_index(store, **changed)
    with pytest.raises(CorruptStoreError):
        _ = Store(store.path).index
    assert verify_store(store.path)


# Bombs: little files that claim much


def flat_bomb():
    """A text of 1 MiB, a million times."""
    n = 1_000_000
    text = pa.array(["x" * 2**20])
    names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), text)
    return pa.table({"id": names, "digest": names})


def list_bomb():
    """Three rows of 30,000,000 zeros each."""
    zeros = pa.array(np.zeros(90_000_000))
    edges = pa.array(np.arange(4, dtype=np.int32) * 30_000_000)
    return pa.table({"id": ["a", "b", "c"], "offset": pa.ListArray.from_arrays(edges, zeros)})


def written(table):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", use_dictionary=True)
    return sink.getvalue().to_pybytes()


def deep_bomb(depth):
    """A schema nested deep, which decoders walk by recursion."""
    node = b"\x35\x00\x18\x01a\x15\x02\x00"  # repetition, name, one child
    leaf = b"\x15\x02\x25\x00\x18\x01a\x00"
    count = depth + 1
    size = b""
    while count > 127:
        size, count = size + bytes([count & 127 | 128]), count >> 7
    nodes = b"\xfc" + size + bytes([count]) + node * depth + leaf
    footer = b"\x15\x02\x19" + nodes + b"\x16\x06\x19\x0c\x00"
    return b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1"


LIMITED = """if True:
    import resource, sys, time
    sys.path[:0] = sys.argv[2:]
    from shards import Store, TrialShardsError
    from shards.verify import verify_store
    Store(sys.argv[1]).index
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 192 * 2**20,) * 2)
    for work in (lambda: Store(sys.argv[1]).cold(), lambda: Store(sys.argv[1]).shard_rows(0)):
        try:
            work()
        except TrialShardsError as error:
            print("refused", error)
    assert verify_store(sys.argv[1])
"""


def read_with_little_memory(path):
    """Read a store in a process that may take 192 MiB; return what was refused."""
    command = [sys.executable, "-c", LIMITED, str(path), str(Path.cwd())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return [line for line in done.stdout.splitlines() if line.startswith("refused")]


@pytest.mark.parametrize("make", [flat_bomb, list_bomb], ids=lambda make: make.__name__)
@pytest.mark.parametrize("in_parts", [False, True])
def test_a_table_that_claims_gigabytes_is_refused_before_it_is_inflated(tmp_path, make, in_parts):
    store = make_store(tmp_path, [6, 5, 4])
    bomb = written(make())
    assert len(bomb) < 2_000_000
    if in_parts:
        store = into_parts(store)
        replace_part(tmp_path, store.folder, bomb)
    else:
        replace(store.folder, "trials.parquet", bomb)
    assert len(read_with_little_memory(tmp_path)) == 1


@pytest.mark.parametrize(
    ("depth", "says"), [(100, "nested"), (15_000, "nested"), (99_999, "too long")]
)
def test_a_schema_deeper_than_a_stack_is_refused(tmp_path, depth, says):
    store = make_store(tmp_path, [6, 5, 4])
    replace(store.folder, "trials.parquet", deep_bomb(depth))
    with pytest.raises(CorruptStoreError, match=says):
        Store(tmp_path).cold()


def test_a_page_that_claims_more_than_its_column_is_refused(tmp_path):
    """Each number in the header of a page is another one in turn; the decoder never sees it."""
    from shards.pages import _pages, walk_file

    table = pa.table({"id": ["a", "b", "c"], "n_rows": [6, 5, 4]})
    path = tmp_path / "x.parquet"
    path.write_bytes(parquet_bytes(table))
    good, chunk = path.read_bytes(), pq.read_metadata(path).row_group(0).column(0)
    pages = list(_pages(good, chunk))
    assert [page.kind for page in pages] == [2, 0]

    def most_of(column, chunk, n_rows):
        return n_rows, 4096

    walk_file(path, most_of)
    refusals, begin = 0, 4
    for page in pages:
        for at in range(begin, page.start):
            path.write_bytes(good[:at] + bytes([good[at] ^ 0x40]) + good[at + 1 :])
            try:
                walk_file(path, most_of)
            except ValueError:
                refusals += 1
        begin = page.start + page.n_bytes
    assert refusals > 10


def test_a_packed_shard_that_claims_more_than_its_rows_is_refused(tmp_path):
    store = make_store(tmp_path, [6, 5, 4], container="parquet")
    shard = store.manifest.shards[0]
    path = store.path / "shards" / shard.digest / "rows.parquet"
    zeros = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(90_000_000, np.float32)), 3)
    bomb = written(pa.table({"values": zeros}))
    path.unlink()
    path.write_bytes(bomb)
    change_manifest(store.folder, lambda d: d["shards"][0].update(file=file_promise(bomb)))
    assert len(bomb) < 5_000_000
    assert len(read_with_little_memory(tmp_path)) == 1


# The check at first open


@pytest.mark.parametrize(("layout", "container"), SHAPES)
def test_a_store_opened_with_a_check_refuses_a_changed_row_and_names_the_shard(
    tmp_path, layout, container
):
    store = make_store(tmp_path, [6, 5, 4], layout=layout, container=container)
    shard = store.manifest.shards[0]
    rows = store.shard_rows(0).copy()
    assert np.array_equal(Store(tmp_path, check="shards").shard_rows(0), rows)
    other = tmp_path / "copy"
    shutil.copytree(tmp_path, other, ignore=lambda *_: ["copy"])
    (path,) = set((other / "shards" / shard.digest).rglob("*")) & {
        other / "shards" / shard.digest / name for name in ("values/c/0/0", "rows.parquet")
    }
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2 if container == "parquet" else 1] ^= 1
    path.unlink()
    path.write_bytes(changed)
    if container == "parquet":
        shutil.rmtree(os.environ["TRIALSHARDS_CACHE"])
    with pytest.raises(CorruptStoreError, match=shard.digest):
        Store(other, check="shards").shard_rows(0)


def test_a_check_that_nobody_knows_is_an_error(store):
    with pytest.raises(TrialShardsError, match="check is 'all'; wanted one of"):
        Store(store.path, check="all")


def test_a_file_is_looked_at_once_and_again_when_another_takes_its_place(tmp_path):
    once, calls, path = OncePerProcess(), [], tmp_path / "x"
    for content in (b"a", b"a", b"bc"):
        path.write_bytes(content)
        os.utime(path, ns=(5, 5))
        once.check(path.stat(), "promise", lambda: calls.append(1))
    once.check(path.stat(), "another promise", lambda: calls.append(1))
    assert len(calls) == 3


def test_a_limit_on_memory_can_be_set_here():
    assert resource.getrlimit(resource.RLIMIT_AS)


FOOTERS = """if True:
    import sys
    from pathlib import Path
    import pyarrow as pa
    import pyarrow.parquet as pq
    from shards.pages import walk_file
    path = Path(sys.argv[1])
    good = path.read_bytes()
    begin = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    for at in range(begin, len(good)):
        for bit in (1, 2, 16):
            path.write_bytes(good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :])
            try:
                walk_file(path, lambda column, chunk, n_rows: (n_rows, 4096))
                with pq.ParquetFile(path) as file:
                    file.read()
            except (ValueError, OSError, pa.ArrowException):
                pass
"""


def test_no_flipped_bit_of_a_footer_ends_the_process(tmp_path):
    """Arrow aborts over a histogram of other levels than the schema has."""
    path = tmp_path / "x.parquet"
    path.write_bytes(parquet_bytes(pa.table({"id": ["a", "b", "c"], "n_rows": [6, 5, 4]})))
    done = subprocess.run(
        [sys.executable, "-c", FOOTERS, str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-1000:]
