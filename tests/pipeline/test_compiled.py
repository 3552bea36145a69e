"""The compiled parser: every bit as `float()` gives it, and None for what it is not sure of."""

import math
import random
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import loading
from pipeline.files import SourceFile
from pipeline.sources import delimited
from pipeline.sources.compiled import parse_numbers
from pipeline.sources.delimited import DelimitedLayout, read_delimited

NULLS = ("", "NA", "NaN", "nan", "null")
NAN_BITS = 0x7FF8000000000000


def bits_of(values):
    return np.asarray(values, np.float64).view(np.uint64).tolist()


def parse(fields, nulls=NULLS):
    """Parse fields as one column; return their bits, or None."""
    numbers = parse_numbers("".join(f + "\n" for f in fields).encode(), 1, [0], ",", nulls)
    return None if numbers is None else bits_of(numbers[:, 0])


def assert_exact(fields):
    wanted = [float(field) for field in fields]
    got = parse(fields)
    assert got is not None, [f for f in fields if parse([f]) is None][:3]
    pairs = zip(fields, got, bits_of(wanted), strict=True)
    assert [(f, hex(g), hex(w)) for f, g, w in pairs if g != w] == []


def doubles(n, seed):
    """Return finite doubles: of random bits, of everyday size, and subnormal."""
    rng = random.Random(seed)
    raw = [struct.unpack("<d", rng.randbytes(8))[0] for _ in range(n)]
    daily = [rng.gauss(0, 1) * 10.0 ** rng.randint(-9, 9) for _ in range(n)]
    tiny = [5e-324 * rng.getrandbits(rng.randint(1, 54)) for _ in range(n)]
    return [x for x in (*raw, *daily, *tiny) if math.isfinite(x)]


FORMATS = ["{!r}", "{:.17g}", "{:.6f}", "{:e}", "{:.20f}", "{:.15g}", "{:+.18e}", "{:.25E}", "{:g}"]


@pytest.mark.parametrize("form", FORMATS)
def test_thousands_of_doubles_in_every_style(form):
    assert_exact([form.format(x) for x in doubles(5000, seed=1)])


def decimal_texts(x):
    """Return a double, and the points halfway to its neighbours, with all their digits."""
    low, high = math.nextafter(x, 0), math.nextafter(x, math.inf)
    with localcontext() as context:
        context.prec = 1200
        halves = [(Decimal(x) + Decimal(y)) / 2 for y in (low, high) if math.isfinite(y)]
        points = [Decimal(x), *halves]
        nudged = [h * (1 + sign * Decimal(10) ** -60) for h in halves for sign in (1, -1)]
        return [str(point) for point in (*points, *nudged)]


def test_points_halfway_between_neighbours():
    texts = [t for x in doubles(300, seed=2) for t in decimal_texts(abs(x))]
    assert_exact([t for t in texts if math.isfinite(float(t))])


def test_halfway_points_that_19_digits_can_write():
    rng, texts = random.Random(3), []
    for _ in range(5000):  # (2m + 1) * 2**k: one bit too many, all powers of five that fit
        odd, power = rng.getrandbits(53) | 1 << 53 | 1, rng.randint(0, 4)
        texts += [str(odd << power), f"{odd}e{power}", f"{odd}e-{power}"]
        texts += [f"{odd * 5**power >> 3}e-{power}", str(Decimal(odd) / 2**power)]
        texts += [str((odd << power) + 1), str((odd << power) - 1)]
    assert_exact(texts)


HARD = [
    "9007199254740991", "9007199254740992", "9007199254740993", "9007199254740994",
    "9007199254740995", "9007199254740993.0000000000000000000000", "18014398509481985",
    "9007199254740993.00000000000000000000000000000000001", "9223372036854775807",
    "9223372036854775808", "18446744073709551615", "18446744073709551616", "1e22", "1e23",
    "9007199254740993e22", "9007199254740993e-22", "8.5e22", "2.2250738585072011e-308",
    "2.2250738585072014e-308", "2.2250738585072012e-308", "4.9e-324", "5e-324", "2.4e-324",
    "2.5e-324", "2.47032822920623272e-324", "2.4703282292062327208e-324", "1e-323", "1e-400",
    "-1e-400", "1e-999999999999999999999", "0e999999999999999999999", "-0e999", "0.0", "-0",
    "-0.0", "+0", "1.7976931348623157e308", "1.7976931348623158e308", "17976931348623157e292",
    "1.797693134862315807e308", "179769313486231570000e288", "0." + "0" * 330 + "1e330",
    "1" + "0" * 400 + "e-400", "0" * 50 + "12.5", "1" * 60, "0." + "1" * 60, "1.", ".5", "+.5",
    "-.5e-5", "5.e3", "1E5", "1e+5", "1e05", "1e-05", "7.0e00", "6.02214076e23", "1e-22", "1e-23",
    "123456789012345678901234567890", "0.000000000000000000000000000001234567890123456789012",
    "1.00000000000000011102230246251565404236316680908203125",
    "1.00000000000000011102230246251565404236316680908203124",
    "1.00000000000000011102230246251565404236316680908203126",
    "0.500000000000000166533453693773481063544750213623046875",
    "3.518437208883201171875e13", "62.5364939768271845828", "8.10109172351e-10", "1.5e-300",
    "1448997445238699", "6.9294956446009195e15", "3.7455744005952583e15", "1e308", "1e-307",
]  # fmt: skip


@pytest.mark.parametrize("text", HARD)
def test_hard_cases(text):
    assert_exact([text, "-" + text.lstrip("+-")])


finite = st.floats(allow_nan=False, allow_infinity=False)
spelled = st.one_of(
    finite.map(repr),
    finite.map("{:.17e}".format),
    st.floats(-1e15, 1e15).map("{:.12f}".format),
    st.integers(-(10**30), 10**30).map(str),
    st.integers(-(10**6), 10**6).map("{:+012d}".format),
    st.from_regex(
        r"\A[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?\Z"
    ).filter(lambda text: math.isfinite(float(text))),
)


@settings(max_examples=300)
@given(st.lists(spelled, min_size=1, max_size=20))
def test_any_spelling_of_finite_numbers(fields):
    assert_exact(fields)


@settings(max_examples=200)
@given(st.data())
def test_wanted_columns_come_in_any_order_and_missing_ones_are_one_nan(data):
    n_fields, n_rows = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    places = data.draw(st.permutations(range(n_fields)))[: data.draw(st.integers(0, n_fields))]
    mark = data.draw(st.sampled_from([",", ";", "\t", "|", " ", ":"]))
    missing = st.sampled_from(["", "NA", "null", "-nan", "NAN", "+nAn", "-999", "-"])
    rows = [
        [
            data.draw(spelled | missing if at in places else st.sampled_from(["x", "", "1e9", "é"]))
            for at in range(n_fields)
        ]
        for _ in range(n_rows)
    ]
    body = "".join(mark.join(row) + "\n" for row in rows).encode()
    got = parse_numbers(body, n_fields, places, mark, (*NULLS, "-999", "-"))
    assert got is not None
    assert got.shape == (n_rows, len(places))
    assert got.flags.c_contiguous
    assert got.view(np.uint64).tolist() == [[cell_bits(row[at]) for at in places] for row in rows]


def cell_bits(text):
    is_missing = text in (*NULLS, "-999", "-") or text.lower().lstrip("+-") == "nan"
    return NAN_BITS if is_missing else bits_of([float(text)])[0]


UNSURE = [
    "x", "-", "+", ".", "e5", ".e1", "1e", "1e+", "1e-", "--1", "+-1", "1.2.3", "1-", "1_0", "0x10",
    "inf", "-Infinity", "1e309", "-1e400", "1.7976931348623159e308", "1" * 400, "1 ", "nan(1)",
    "nanx", "1f", "1,5", "NULL", "N", "nul", "nulll", "\ufeff1", "\u0661", "1\x00", "1\r", '"1"',
]  # fmt: skip


@pytest.mark.parametrize("text", UNSURE)
def test_what_is_no_plain_number_is_left_to_others(text):
    assert parse(["1", text, "2"]) is None
    assert parse([text]) is None


@pytest.mark.parametrize("body", [b"1,2", b"1\n", b"1,2,3\n", b"1,2\n\n", b"1,2\n3\n4,5,6\n"])
def test_lines_of_other_lengths_are_left_to_others(body):
    assert parse_numbers(body, 2, [0, 1], ",", ()) is None


@pytest.mark.parametrize("mark", "05.eE+-nNaA")
def test_marks_that_numbers_are_made_of_are_left_to_others(mark):
    assert parse_numbers(f"1{mark}2\n".encode(), 2, [0, 1], mark, ()) is None


def test_spellings_of_missing_values():
    nulls = ("1", "-9.0", "1-2", "?", "not available", "é", "a,b", "c\nd", "")
    found = parse(["1", "-9.0", "1-2", "?", "not available", "é", "", "-9", "11"], nulls)
    assert found == [NAN_BITS] * 7 + bits_of([-9.0, 11.0])


def test_threads_share_nothing():
    bodies = ["".join(f"{x!r}\n" for x in doubles(300, seed)).encode() for seed in range(8)]
    alone = [parse_numbers(body, 1, [0], ",", NULLS).tobytes() for body in bodies]
    with ThreadPoolExecutor(8) as pool:
        together = pool.map(lambda b: parse_numbers(b, 1, [0], ",", NULLS).tobytes(), bodies * 5)
        assert list(together) == alone * 5


def test_importing_the_reader_does_not_import_numba():
    code = "import sys, pipeline.build; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_first_calls_may_come_at_once_and_without_a_folder_for_the_cache(tmp_path):
    code = """
from concurrent.futures import ThreadPoolExecutor
from numba.core import caching
from pipeline.sources.compiled import parse_numbers
caching.CacheImpl._locator_classes = []
with ThreadPoolExecutor(4) as pool:
    got = list(pool.map(lambda i: parse_numbers(b"%d\\n" % i, 1, [0], ",", ()).item(), range(8)))
assert got == list(range(8)), got
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def read(root, contents, layout):
    """Read contents as one batch; return the bits or the refusal of each."""
    for i, content in enumerate(contents):
        (root / str(i)).write_bytes(content)
    seen = [(root / str(i)).stat() for i in range(len(contents))]
    files = [SourceFile(str(i), s.st_size, s.st_mtime_ns, str(i)) for i, s in enumerate(seen)]
    tables, refusals = read_delimited(root, files, layout)
    found = {t.file.path: (t.names, t.numbers.shape, bits_of(t.numbers)) for t in tables}
    found |= {r.source: r for r in refusals}
    return [found[file.path] for file in files]


row = st.tuples(*[spelled | st.sampled_from([*NULLS, "inf", "oops", "1e400", "-999", "-nan"])] * 3)
text = st.lists(row, min_size=1, max_size=4).map(
    lambda rows: "".join(f"{','.join(r)}\n" for r in [("z", "x", "y"), *rows]).encode()
)


@settings(max_examples=60)
@given(st.lists(text, min_size=1, max_size=6))
def test_files_are_read_and_refused_as_by_polars(tmp_path_factory, files):
    """One bad file sends its batch to polars, which names the line; the others keep their bits."""
    root = tmp_path_factory.mktemp("files", numbered=True)
    layout = DelimitedLayout(",", numeric=("y", "x", "z"), nulls=(*NULLS, "-999"))
    found = []
    for is_worth in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(delimited, "is_worth_loading", lambda n, is_worth=is_worth: is_worth)
            found.append(read(root, files, layout))
    assert found[0] == found[1]


def test_a_broken_compiler_refuses_no_file(tmp_path, monkeypatch, caplog):
    def broken(*_):
        raise ImportError("no numba here")

    monkeypatch.setattr(delimited, "is_worth_loading", lambda n: True)
    monkeypatch.setattr(delimited, "parse_numbers", broken)
    ((_, _, found),) = read(tmp_path, [b"x\n1.5\n"], DelimitedLayout(",", numeric=("x",)))
    assert found == [bits_of([1.5])]
    assert "polars" in caplog.text


def test_the_compiled_code_is_loaded_once_it_has_paid(monkeypatch):
    monkeypatch.setattr(loading, "_BYTES_SEEN", [0])
    half = loading.LOAD_BYTES // 2
    assert [loading.is_worth_loading(half) for _ in range(4)] == [False, False, True, True]
