"""Files that are parsed where they lie: exactly those in which every byte is plain."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from pipeline.sources import plainfiles
from pipeline.sources.layout import DelimitedLayout
from pipeline.sources.plainfiles import parse_plain_files

LAYOUT = DelimitedLayout(",", numeric=("y", "x"), nulls=("", "NA", " 7", "8 "))
GOOD = b"x,note,y\n1,a b,2.5\n-3,,NA\n"
NUMBERS = [[2.5, 1.0], [np.nan, -3.0]]


def parse(*raws: bytes | None, layout: DelimitedLayout = LAYOUT) -> list[object]:
    found = parse_plain_files(raws, layout)
    return [None if numbers is None else numbers.tolist() for numbers in found]


def same(got: object, wanted: object) -> bool:
    return repr(got) == repr(wanted)


LEFT_TO_OTHERS = {
    "quotes": b'x,note,y\n1,"a",2\n',
    "carriage returns": b"x,note,y\r\n1,a,2\r\n",
    "one carriage return": b"x,note,y\n1,a,2\r\n",
    "mark": b"\xef\xbb\xbf" + GOOD,
    "utf-16": GOOD.decode().encode("utf-16"),
    "gzip": gzip.compress(GOOD),
    "nul": b"x,note,y\n1,\0,2\n",
    "no ascii": "x,note,y\n1,\u00e9,2\n".encode(),
    "no ascii after eight bytes": "x,note,y\n1,12345678\u00e9,2\n".encode(),
    "no last newline": b"x,note,y\n1,a,2",
    "no rows": b"x,note,y\n",
    "no newline": b"x,note,y",
    "nothing": b"",
    "blank line": b"x,note,y\n1,a,2\n\n3,a,4\n",
    "blank line at the end": b"x,note,y\n1,a,2\n\n",
    "short line": b"x,note,y\n1,a,2\n3,4\n",
    "long line": b"x,note,y\n1,a,2\n3,a,4,5\n",
    "blank before": b"x,note,y\n1,a, 2\n",
    "blank behind": b"x,note,y\n1,a,2 \n",
    "blank of a spelling": b"x,note,y\n1,a, 7\n",
    "blank behind a spelling": b"x,note,y\n1,a,8 \n",
    "word": b"x,note,y\n1,a,two\n",
    "infinite": b"x,note,y\n1,a,1e999\n",
    "missing column": b"x,note\n1,a\n",
    "column twice": b"x,x,y\n1,2,3\n",
    "open quote in the header": b'x,"note,y\n1,a,2\n',
}


@pytest.mark.parametrize("name", LEFT_TO_OTHERS)
def test_unusual_files_are_left_to_others_and_neighbours_are_not(name: str) -> None:
    found = parse(GOOD, LEFT_TO_OTHERS[name], None, GOOD)
    assert found[1] is None
    assert found[2] is None
    assert same([found[0], found[3]], [NUMBERS, NUMBERS])
    assert parse(LEFT_TO_OTHERS[name]) == [None]


def test_every_header_has_its_own_columns() -> None:
    other = b"y,x\n5,6\n"
    assert same(parse(GOOD, other, GOOD, other), [NUMBERS, [[5.0, 6.0]]] * 2)


def test_beyond_many_headers_files_are_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plainfiles, "_MOST_TOPS", 2)
    raws = [f"x,y,n{i}\n1,2,3\n".encode() for i in range(4)]
    assert parse(*raws, raws[0]) == [[[2.0, 1.0]], [[2.0, 1.0]], None, None, [[2.0, 1.0]]]


def test_comments_above_the_header_must_be_the_same() -> None:
    layout = DelimitedLayout(",", numeric=("x", "y"), comment="#")
    assert parse(b"# a\nx,y\n1,2\n", b"# b\nx,y\n3,4\n", b"x,y\n5,6\n", layout=layout) == [
        [[1.0, 2.0]],
        [[3.0, 4.0]],
        [[5.0, 6.0]],
    ]


def test_without_a_header_the_first_bytes_are_looked_at() -> None:
    layout = DelimitedLayout(",", header=False, names=("note", "x"), numeric=("x",), comment="#")
    frame = b"P*M\x18,1\n"  # a frame that zstd skips
    raws = [b"a,1\n", frame, b"#,1\na,2\n", b"\xef\xbb\xbfa,1\n", b"P,3\n"]
    assert parse(*raws, layout=layout) == [[[1.0]], None, None, None, [[3.0]]]


@pytest.mark.parametrize(
    "layout",
    [
        DelimitedLayout(",", numeric=("x",), text=("note",)),
        DelimitedLayout(None, numeric=("x",)),
        DelimitedLayout(",", numeric=("x",), encoding="utf-16"),
        DelimitedLayout("e", numeric=("x",)),
    ],
)
def test_other_layouts_are_left_to_others(layout: DelimitedLayout) -> None:
    assert parse(b"x,note\n1,2\n", layout=layout) == [None]


def test_digits_that_end_with_the_file() -> None:
    """Eight bytes are read at once only where the file has so many left."""
    layout = DelimitedLayout(",", numeric=("x", "y"))
    for n_digits in range(1, 30):
        for fraction in range(n_digits):
            text = "1" * (n_digits - fraction) + "." + "7" * fraction
            (got,) = parse(f"x,y\n{text},-{text}\n".encode(), layout=layout)
            assert same(got, [[float(text), -float(text)]])
