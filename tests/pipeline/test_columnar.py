"""Typed columns: values bit for bit, what float64 cannot hold refused, damage never a crash."""

import datetime as dt
import io
import math
import os
import subprocess
import sys
import textwrap
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.files import SourceFile
from pipeline.sources import columnar, decompress
from pipeline.sources.columnar import ColumnarLayout, read_columnar


def encode(kind, table):
    out, n_rows = io.BytesIO(), max(3, len(table) // 3)
    if kind == "parquet":
        pq.write_table(table, out, row_group_size=n_rows, write_page_checksum=True)
        return out.getvalue()
    new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with new(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=n_rows)
    return out.getvalue()


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def npz(**arrays):
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def read(root, raw, layout):
    """Return the one table, or the one refusal, of some bytes."""
    (root / "a.bin").write_bytes(raw)
    seen = (root / "a.bin").stat()
    file = SourceFile("a.bin", seen.st_size, seen.st_mtime_ns, "a")
    tables, refusals = read_columnar(root, [file], layout)
    assert len(tables) + len(refusals) == 1
    if tables:
        assert tables[0].source_xxh3 == xxhash.xxh3_128_hexdigest(raw)
        return tables[0]
    assert len(refusals[0].message) < 400
    return refusals[0]


ARROW_KINDS = ("parquet", "file", "stream")


def read_arrow(root, kind, columns, **wanted):
    family = "parquet" if kind == "parquet" else "arrow"
    return read(root, encode(kind, pa.table(columns)), ColumnarLayout(family, **wanted))


def bits(values):
    return np.array(values, np.float64).tobytes()


NUMBERS = {
    "float64": (pa.array([1.5, -0.0, None, 4.9e-324]), [1.5, -0.0, math.nan, 4.9e-324]),
    "negative nan": (pa.array(np.array([-np.nan, 1.0])), [math.nan, 1.0]),
    "float32": (pa.array([0.1, None], pa.float32()), [float(np.float32(0.1)), math.nan]),
    "float16": (pa.array(np.array([0.5, -2.0], np.float16)), [0.5, -2.0]),
    "int64": (pa.array([2**53, None, -(2**60), 3]), [2.0**53, math.nan, -(2.0**60), 3.0]),
    "uint64": (pa.array([2**63, 1], pa.uint64()), [2.0**63, 1.0]),
    "int8": (pa.array([-128, None], pa.int8()), [-128.0, math.nan]),
    "bool": (pa.array([True, None, False]), [1.0, math.nan, 0.0]),
    "null": (pa.nulls(2), [math.nan, math.nan]),
    "decimal": (pa.array([Decimal("1.10"), None, Decimal("-7.23")]), [1.1, math.nan, -7.23]),
    "text": (pa.array([" 1.5\t", "NA", "", "-2e-3"]), [1.5, math.nan, math.nan, -2e-3]),
    "dictionary": (pa.array([7, None, 7]).dictionary_encode(), [7.0, math.nan, 7.0]),
    "sentinel": (pa.array([1, -999]), [1.0, math.nan]),
    "sentinel float": (pa.array([1.5, -999.0]), [1.5, math.nan]),
    "date": (pa.array([dt.date(1970, 1, 3), None]), [172_800.0, math.nan]),
    "milliseconds": (pa.array([1_577_934_245_678], pa.timestamp("ms", "UTC")), [1577934245.678]),
    "nanoseconds": (pa.array([-1, 10**18 + 1], pa.timestamp("ns")), [-1e-9, 1e9]),
    "zone": (pa.array([3_600], pa.timestamp("s", "Europe/Berlin")), [3_600.0]),
    "time of day": (pa.array([dt.time(0, 1, 0, 500_000)]), [60.5]),
    "duration": (pa.array([dt.timedelta(seconds=2.5), None]), [2.5, math.nan]),
}


@pytest.mark.parametrize("kind", ARROW_KINDS)
@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_of_any_type_are_the_nearest_float64(tmp_path, kind, case):
    column, wanted = NUMBERS[case]
    layout = {"numeric": ("x",), "nulls": ("", "NA", "-999")}
    table = read_arrow(tmp_path, kind, {"z": column, "x": column}, **layout)
    assert table.numbers[:, 0].tobytes() == bits(wanted), table
    assert (table.names, table.text.width) == (("x",), 0)


TEXTS = {
    "text": (pa.array([" left ", "NA", None, "a b"]), ["left", None, None, "a b"]),
    "large": (pa.array(["é", None], pa.large_string()), ["é", None]),
    "dictionary": (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
    "int": (pa.array([7, None]), ["7", None]),
    "float": (pa.array([3.0, 0.1, None]), ["3", "0.1", None]),
    "bool": (pa.array([True, False]), ["true", "false"]),
    "date": (pa.array([dt.date(2020, 1, 2)]), ["2020-01-02"]),
    "naive": (pa.array([3_661_000_001], pa.timestamp("us")), ["1970-01-01T01:01:01.000001"]),
    "zone": (
        pa.array([3_600_000], pa.timestamp("ms", "Europe/Berlin")),
        ["1970-01-01T01:00:00.000Z"],
    ),
}


@pytest.mark.parametrize("kind", ARROW_KINDS)
@pytest.mark.parametrize("case", TEXTS)
def test_text_of_any_type(tmp_path, kind, case):
    column, wanted = TEXTS[case]
    table = read_arrow(tmp_path, kind, {"x": column}, text=("x",))
    assert table.text["x"].to_list() == wanted
    assert table.numbers.shape == (len(wanted), 0)


HAZARDS = {
    "missing": ({"y": pa.array([1.0])}, "missing_column", None),
    "infinite": ({"x": pa.array([1.0, 2.0, 3.0, -math.inf])}, "infinite", 4),
    "word": ({"x": pa.array(["1", "2", "3", None, "oops"])}, "not_a_number", 5),
    "text infinity": ({"x": pa.array(["1", "1e400"])}, "infinite", 2),
    "large integer": ({"x": pa.array([1, 2**53 + 1])}, "inexact_integer", 2),
    "largest": ({"x": pa.array([2**63 - 1])}, "inexact_integer", 1),
    "largest unsigned": ({"x": pa.array([2**64 - 1], pa.uint64())}, "inexact_integer", 1),
    "decimal integer": ({"x": pa.array([Decimal(2**53 + 1)])}, "inexact_integer", 1),
    "list": ({"x": pa.array([[1.0], [2.0]])}, "unsupported_type", None),
    "struct": ({"x": pa.array([{"a": 1.0}])}, "unsupported_type", None),
    "no rows": ({"x": pa.array([], pa.float64())}, "no_rows", None),
}


@pytest.mark.parametrize("kind", ARROW_KINDS)
@pytest.mark.parametrize("hazard", HAZARDS)
def test_hazards_are_refused_by_name_and_row(tmp_path, kind, hazard):
    columns, code, row = HAZARDS[hazard]
    refusal = read_arrow(tmp_path, kind, columns, numeric=("x",))
    column = None if code == "no_rows" else "x"
    assert (refusal.code, refusal.line, refusal.column) == (code, row, column)
    if row:
        assert f"row {row}" in refusal.message


@pytest.mark.parametrize("kind", ARROW_KINDS)
def test_columns_by_name_whatever_their_order(tmp_path, kind):
    table = pa.table({"a.b": [1], "c": [2], "a": [3], "s": ["t"]})
    layout = ColumnarLayout(
        "parquet" if kind == "parquet" else "arrow", numeric=("a", "c", "a.b"), text=("s",)
    )
    found = read(tmp_path, encode(kind, table), layout)
    assert found.numbers.tolist() == [[3, 2, 1]]
    assert found.text["s"].to_list() == ["t"]
    twice = pa.table([pa.array([1]), pa.array([2]), pa.array(["t"])], ["a", "a", "s"])
    layout = ColumnarLayout(layout.family, numeric=("a",))
    assert read(tmp_path, encode(kind, twice), layout).code == "duplicate_column"


def test_a_stream_that_lost_or_gained_something(tmp_path):
    layout = ColumnarLayout("arrow", numeric=("x",))
    raw = encode("stream", pa.table({"x": [1.0, 2.0]}))
    assert read(tmp_path, raw, layout).numbers.tolist() == [[1.0], [2.0]]
    assert read(tmp_path, raw[:-8], layout).code == "truncated"
    assert read(tmp_path, raw + raw, layout).code == "parse_error"


def test_a_damaged_page_is_noticed_by_its_checksum(tmp_path):
    out = io.BytesIO()
    values = np.arange(100) / 7
    table = pa.table({"x": values})
    pq.write_table(table, out, write_page_checksum=True, compression="none", use_dictionary=False)
    at = out.getvalue().index(values[50].tobytes())
    damaged = bytearray(out.getvalue())
    damaged[at] ^= 1
    layout = ColumnarLayout("parquet", numeric=("x",))
    assert read(tmp_path, out.getvalue(), layout).numbers[:, 0].tobytes() == values.tobytes()
    refusal = read(tmp_path, bytes(damaged), layout)
    assert refusal.code == "parse_error"
    assert "CRC" in refusal.message


def test_sizes_are_limited_before_memory_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(columnar, "LIMIT_BYTES", 2**20)
    monkeypatch.setattr(decompress, "LIMIT_BYTES", 2**20)
    constant = {"x": pa.array(np.ones(10**6))}
    for kind in ARROW_KINDS:
        assert read_arrow(tmp_path, kind, constant, numeric=("x",)).code == "too_large"
    texts = {"x": pa.array(["y" * 10**4] * 1_000)}
    assert read_arrow(tmp_path, "parquet", texts, text=("x",)).code == "too_large"
    large = npz(x=np.zeros(10**6))
    assert read(tmp_path, large, ColumnarLayout("npz", numeric=("x",))).code == "too_large"


MATRIX = np.arange(12).reshape(4, 3)
NAMED = ColumnarLayout("npy", names=("a", "b", "c"), numeric=("c", "a"))
ARRAYS = {
    "C order": MATRIX.astype(np.float64),
    "Fortran order": np.asfortranarray(MATRIX.astype(np.float32)),
    "big-endian": MATRIX.astype(">f8"),
    "big-endian integers, Fortran": np.asfortranarray(MATRIX.astype(">i2")),
    "unsigned": MATRIX.astype(np.uint64),
    "half": MATRIX.astype(np.float16),
    "text": MATRIX.astype("U3"),
    "bytes": MATRIX.astype("S3"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_npy_matrices(tmp_path, case):
    table = read(tmp_path, npy(ARRAYS[case]), NAMED)
    assert table.numbers.tolist() == MATRIX[:, [2, 0]].tolist()
    assert table.numbers.flags.c_contiguous


def test_npy_vectors_times_and_compressed_files(tmp_path):
    one = ColumnarLayout("npy", names=("x",), numeric=("x",))
    assert read(tmp_path, npy(np.array([1, 2])), one).numbers.tolist() == [[1], [2]]
    for unit, scale in (("D", 86_400), ("h", 3_600), ("s", 1), ("ms", 1 / 1_000)):
        times = np.array([3, "NaT"], f"M8[{unit}]")
        assert read(tmp_path, npy(times), one).numbers.tobytes() == bits([[3 * scale], [math.nan]])
    as_text = ColumnarLayout("npy", names=("x",), text=("x",))
    days = read(tmp_path, npy(np.array(["2020-01-02"], "M8[h]")), as_text)
    assert days.text["x"].to_list() == ["2020-01-02T00:00:00"]
    packed = pa.compress(npy(np.array([1.5])), codec="zstd", asbytes=True)
    assert read(tmp_path, packed, one).numbers.tolist() == [[1.5]]


def header(shape, descr="<f8", data=b""):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        out, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return out.getvalue() + data


BAD_ARRAYS = {
    "giant": (header((2**40, 3)), "parse_error"),
    "giant and empty": (header((2**60, 0)), "no_rows"),
    "negative": (header((-1, 3), data=bytes(24)), "parse_error"),
    "cut": (npy(MATRIX)[:-1], "parse_error"),
    "more": (npy(MATRIX) + npy(MATRIX), "parse_error"),
    "objects": (npy(np.array([{1: 2}, None], object)), "unsupported_type"),
    "records": (npy(np.zeros(3, [("a", "f8")])), "unsupported_type"),
    "complex": (npy(np.zeros((2, 3), complex)), "unsupported_type"),
    "long double": (npy(np.zeros((2, 3), np.longdouble)), "unsupported_type"),
    "scalar": (npy(np.float64(1)), "bad_shape"),
    "cube": (npy(np.zeros((2, 2, 2))), "bad_shape"),
    "other width": (npy(np.zeros((2, 4))), "field_count"),
    "no rows": (npy(np.zeros((0, 3))), "no_rows"),
    "nested header": (header("(" + "-" * 9_000 + "1,)"), "parse_error"),
    "empty": (b"", "empty"),
    "csv": (b"a,b,c\n1,2,3\n", "parse_error"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_npy_is_refused(tmp_path, case):
    raw, code = BAD_ARRAYS[case]
    refusal = read(tmp_path, raw, NAMED)
    assert refusal.code == code, refusal
    assert case != "objects" or "run code" in refusal.message


def test_npz_columns_are_arrays_or_columns_of_arrays(tmp_path):
    raw = npz(t=np.arange(3), q=MATRIX[:3], w=np.zeros((3, 1)), label=np.array("left"), q_x=1)
    layout = ColumnarLayout("npz", numeric=("t", "q_2", "w", "q_x"), text=("label",))
    table = read(tmp_path, raw, layout)
    assert table.numbers.tolist() == [[0, 2, 0, 1], [1, 5, 0, 1], [2, 8, 0, 1]]
    assert table.text["label"].to_list() == ["left"] * 3
    for name in ("q_3", "q", "nothing", "t_0"):
        refusal = read(tmp_path, raw, ColumnarLayout("npz", numeric=("t", name)))
        assert (refusal.code, refusal.column) == ("missing_column", name)
    unequal = npz(a=np.arange(3), b=np.arange(4))
    refusal = read(tmp_path, unequal, ColumnarLayout("npz", numeric=("a", "b")))
    assert (refusal.code, refusal.column) == ("unequal_lengths", "b")
    only = ColumnarLayout("npz", numeric=("label",))
    assert read(tmp_path, npz(label=np.array(3)), only).code == "no_rows"


def test_npz_with_one_named_matrix(tmp_path):
    layout = ColumnarLayout("npz", names=("a", "b", "c"), numeric=("b",))
    assert read(tmp_path, npz(anything=MATRIX), layout).numbers.tolist() == MATRIX[:, [1]].tolist()
    assert read(tmp_path, npz(x=MATRIX, y=MATRIX), layout).code == "field_count"


floats = st.floats(allow_infinity=False, allow_nan=False)
columns = st.lists(st.one_of(st.none(), floats), min_size=1, max_size=20)


@settings(max_examples=60)
@given(columns, st.sampled_from(ARROW_KINDS))
def test_floats_come_back_bit_for_bit(tmp_path, values, kind):
    table = read_arrow(tmp_path, kind, {"x": pa.array(values, pa.float64())}, numeric=("x",))
    assert table.numbers.tobytes() == bits([math.nan if v is None else v for v in values])


@settings(max_examples=60)
@given(st.lists(st.decimals(places=7, min_value=-(10**20), max_value=10**20), min_size=1))
def test_decimals_are_the_nearest_float64(tmp_path, values):
    column = pa.array(values, pa.decimal128(38, 7))
    table = read_arrow(tmp_path, "file", {"x": column}, numeric=("x",))
    assert table.numbers[:, 0].tolist() == [float(v) for v in values]


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("npy", {"numeric": ("x",)}, "names"),
        ("parquet", {"numeric": ("x",), "names": ("x",)}, "have their own"),
        ("arrow", {}, "no columns"),
        ("npz", {"numeric": ("x", "x")}, "twice"),
    ],
)
def test_layouts_that_make_no_sense(family, changes, said):
    with pytest.raises(ValueError, match=said):
        ColumnarLayout(family, **changes)


DAMAGE = """
    import os, sys
    from pathlib import Path
    from test_columnar import *
    mixed = pa.table({
        "x": [1.5, None, 3.0, 4.0], "i": pa.array([1, 2, None, 4]), "s": ["a", "b", None, "d"],
        "d": pa.array(["p", "q", "p", "q"]).dictionary_encode(),
        "t": pa.array([1, 2, 3, 4], pa.timestamp("us")),
    })
    root, kind = Path(sys.argv[1]), sys.argv[2]
    family = "parquet" if kind == "parquet" else "arrow"
    layout = ColumnarLayout(family, numeric=("x", "i", "t"), text=("s", "d"))
    if kind == "npy":
        raw, layout = npy(MATRIX.astype(float)), NAMED
    elif kind == "npz":
        raw = npz(x=np.arange(3.0), q=MATRIX[:3], s=np.array(["a", "b", "c"]))
        layout = ColumnarLayout("npz", numeric=("x", "q_0"), text=("s",))
    else:
        raw = encode(kind, mixed)
    whole = read(root, raw, layout)
    n_accepted = 0
    # Every third byte and the whole footer; `make soak` takes every byte.
    step = 1 if os.environ.get("SOAK") else 3
    for at in sorted({*range(0, len(raw), step), *range(max(0, len(raw) - 64), len(raw))}):
        flipped = bytes([raw[at] ^ 1 << at % 8])
        for damaged in (raw[:at], raw[:at] + flipped + raw[at + 1 :]):
            found = read(root, damaged, layout)
            if hasattr(found, "numbers"):
                n_accepted += 1
                if kind == "npz":  # everything in it has a checksum
                    assert found.numbers.tobytes() == whole.numbers.tobytes(), at
                    assert found.text.equals(whole.text), at
                assert not np.isinf(found.numbers).any()
    print("survived", len(raw), n_accepted)
"""


@pytest.mark.parametrize("kind", [*ARROW_KINDS, "npy", "npz"])
def test_any_damaged_byte_gives_a_table_or_a_refusal(tmp_path, kind):
    """In a process of its own, because what is feared would end this one."""
    path = [p for p in sys.path if p]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DAMAGE), str(tmp_path), kind],
        capture_output=True, text=True, timeout=300, check=False,
        env={"PYTHONPATH": ":".join(path), "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1",
             "SOAK": os.environ.get("SOAK", "")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2_000:]
    assert "survived" in done.stdout
