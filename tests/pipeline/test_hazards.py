"""One bad file among good ones: each known hazard ends where it belongs, in a whole build."""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from trialfolders import build_checked, write_spec

from pipeline.files import Refusal
from shards import Store

GOOD_ROWS = [[1.5, -2.0], [3.0, 0.25], [4.0, 5.0]]
GOOD = "x,y\n1.5,-2\n3,0.25\n4,5\n"
NAN = math.nan
TOP = b"x,y\n1,2\n"


@dataclass(frozen=True)
class Refused:
    """A file that must go to quarantine, where it is at fault, and words of the advice."""

    content: bytes
    code: str
    line: int | None = None
    column: str | None = None
    says: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)
    name: str = "bad.csv"


@dataclass(frozen=True)
class Accepted:
    """A file that must be accepted with these rows."""

    content: bytes
    rows: list[list[float]]
    source: Mapping[str, Any] = field(default_factory=dict)
    name: str = "bad.csv"
    good: bytes = GOOD.encode()


def build_among_good(
    root: Path, case: Refused | Accepted, **sections: Any
) -> tuple[Store, tuple[Refusal, ...]]:
    """Build three good files and the case's; the good ones are all there, to the bit."""
    good = getattr(case, "good", GOOD.encode())
    (root / "raw").mkdir()
    for name in ("a.csv", "m.csv", "z.csv"):
        (root / "raw" / name).write_bytes(good)
    (root / "raw" / case.name).write_bytes(case.content)
    spec = write_spec(
        root,
        source={"files": "raw/*", **case.source},
        normalize={"method": "none"},
        max_quarantined=0.5,
        **sections,
    )
    report, store = build_checked(spec, root / "store")
    for name in ("a.csv", "m.csv", "z.csv"):
        assert rows_of(store, f"raw/{name}").tolist() == GOOD_ROWS
    return store, report.refusals


def rows_of(store: Store, source: str) -> Any:
    """Return the stored rows of a file; None if it is not in the store."""
    sources = store.cold("source")["source"].to_pylist()
    return store.trial_rows(sources.index(source)) if source in sources else None


def zstd(raw: bytes) -> bytes:
    return bytes(pa.compress(raw, "zstd", asbytes=True))


# --- refused ------------------------------------------------------------------------------------

SHORT_NAMES = b"x," + b",".join(b"column%d" % i for i in range(40))
REFUSED = {
    "cut in a number": Refused(TOP + b"-12.25,3\n-1", "truncated", 4, None, "copy it again"),
    "cut after a mark": Refused(TOP + b"3,", "truncated", 3, None, "copy it again"),
    "cut in the last column": Refused(TOP + b"3,-12.2", "truncated", 3, None, "final_newline"),
    "cut, and written on": Refused(TOP + b"-1\n3,4\n", "field_count", 3, None, "repair the line"),
    "cut, and joined to the next": Refused(TOP + b"-13,4\n5,6,7\n", "field_count", 4, None, "3 f"),
    "cut in the header": Refused(b"x,", "truncated", 1, None, "copy it again"),
    "a field too few": Refused(TOP + b"3\n5,6\n", "field_count", 3, None, "1 fields, 2 were want"),
    "a field too many": Refused(TOP + b"3,4,5\n", "field_count", 3, None, "quote the field"),
    "a mark at the end": Refused(TOP + b"3,4,\n", "field_count", 3, None, "3 fields, 2 were"),
    "another column": Refused(b"x,z\n1,2\n", "missing_column", 1, "y", "correct the name"),
    "another case": Refused(b"X,y\n1,2\n", "missing_column", 1, "x", "'X', 'y'"),
    "another delimiter": Refused(b"x;y\n1;2\n", "missing_column", 1, "x", "or the delimiter"),
    "no header": Refused(b"1,2\n3,4\n", "missing_column", 1, "x", "correct the name"),
    "many other names": Refused(SHORT_NAMES + b"\n", "missing_column", 1, "y", ", ...; correct"),
    "a column twice": Refused(b"x,y,x\n1,2,3\n", "duplicate_column", 1, "x", "drop all but one"),
    "two files in one": Refused(TOP + TOP, "not_a_number", 3, "x", "correct it"),
    "text": Refused(TOP + b"3,oops\n", "not_a_number", 3, "y", "add it to source.nulls"),
    "another null": Refused(TOP + b"3,n/a\n", "not_a_number", 3, "y", "source.nulls"),
    "a decimal comma": Refused(TOP + b'3,"4,5"\n', "not_a_number", 3, "y", "'4,5'"),
    "thousands": Refused(TOP + b"3,4 000\n", "not_a_number", 3, "y", "is no number"),
    "an underscore": Refused(TOP + b"3,4_0\n", "not_a_number", 3, "y", "is no number"),
    "two points": Refused(TOP + b"3,4.0.1\n", "not_a_number", 3, "y", "is no number"),
    "a hexadecimal": Refused(TOP + b"3,0x10\n", "not_a_number", 3, "y", "is no number"),
    "digits of another script": Refused(
        TOP + "3,\u0664\n".encode(), "not_a_number", 3, "y", "is no number"
    ),
    "a newline in a number": Refused(TOP + b'3,"4\n5"\n', "not_a_number", 3, "y", "correct it"),
    "infinite": Refused(TOP + b"3,-inf\n", "infinite", 3, "y", "write it as missing"),
    "overflow": Refused(TOP + b"1e400,4\n", "infinite", 3, "x", "'1e400' is infinite"),
    "beyond float32": Refused(TOP + b"1e39,4\n", "beyond_float32", None, "x", "scale the column"),
    "a blank line": Refused(TOP + b"\n3,4\n", "field_count", 3, None, "a blank line"),
    "a line of blanks": Refused(TOP + b" \t\n3,4\n", "field_count", 3, None, "a blank line"),
    "UTF-16": Refused(GOOD.encode("utf-16"), "encoding", 1, None, "convert|source.encoding"),
    "UTF-16 unmarked": Refused(GOOD.encode("utf-16-le"), "nul_bytes", 1, None, "ing: utf-16"),
    "Latin-1": Refused(b"x,y,note\n1,2,\xe9\n", "encoding", 2, None, "convert|source.encoding"),
    "a NUL": Refused(TOP + b"3,\0" + b"4\n", "nul_bytes", 3, None, "write the file again"),
    "a block of NULs": Refused(TOP + b"\0" * 4096, "nul_bytes", 3, None, "lost in a crash"),
    "a lone return": Refused(TOP + b"3,4\r5,6\n", "lone_cr", 3, None, "end lines with LF or CRLF"),
    "returns alone": Refused(GOOD.encode().replace(b"\n", b"\r"), "lone_cr", 1, None, "end lines"),
    "empty": Refused(b"", "empty", None, None, "exclude it"),
    "newlines alone": Refused(b"\n\n\n", "empty", None, None, "exclude it"),
    "header alone": Refused(b"x,y\n", "no_rows", None, None, "record it again, or exclude it"),
    "comments alone": Refused(
        b"#1\n#2\n", "no_rows", None, None, "exclude it", {"comment": "#"}
    ),
    "an open quote": Refused(b'x,y,n\n1,2,"a\n3,4,b\n', "parse_error", 2, None, "double quotes"),
    "a stray quote": Refused(b'x,y,n\n1,2,"a"b\n', "parse_error", 2, None, "double quotes"),
    "binary": Refused(bytes(range(256)) * 9, "nul_bytes", 1, None, "write the file again"),
    "10 MB in one number": Refused(TOP + b"3," + b"7" * 10**7 + b"\n", "infinite", 3, "y", "7\\."),
    "10 MB of marks": Refused(TOP + b"," * 10**7 + b"\n", "field_count", 3, None, "10000001 fiel"),
    "10 MB without a newline": Refused(TOP + b"1" * 10**7, "truncated", 3, None, "copy it again"),
}  # fmt: skip


def check_refused(root: Path, case: Refused) -> None:
    store, refusals = build_among_good(root, case)
    assert [refusal.source for refusal in refusals] == [f"raw/{case.name}"]
    (refusal,) = refusals
    found = (refusal.code, refusal.line, refusal.column)
    assert found == (case.code, case.line, case.column), refusal.message
    assert re.search(case.says, refusal.message), refusal.message
    assert refusal.size_bytes == len(case.content)
    assert len(refusal.message) < 400
    assert rows_of(store, refusal.source) is None


@pytest.mark.parametrize("hazard", REFUSED)
def test_a_file_that_cannot_be_trusted_is_refused(hazard: str, tmp_path: Path):
    check_refused(tmp_path, REFUSED[hazard])


TWO_BYTES = {"encoding": "utf-16"}
NOTED = b"x,y,note\n"
ACCEPTED = {
    "cut at the end of a line": Accepted(TOP, [[1, 2]]),
    "no final newline, as allowed": Accepted(
        TOP + b"3,4", [[1, 2], [3, 4]], {"final_newline": "optional"}
    ),
    "columns in another order": Accepted(b"y,x\n2,1\n4,3\n", [[1, 2], [3, 4]]),
    "columns nobody asked for": Accepted(b"a,x,b,y,c\nq,1,,2,NA\n", [[1, 2]]),
    "an unwanted column twice": Accepted(b"a,x,a,y\nq,1,,2\n", [[1, 2]]),
    "nulls": Accepted(
        b"x,y\n,NA\nNaN,nan\nnull,-nan\n1,NAN\n", [[NAN, NAN]] * 3 + [[1, NAN]]
    ),
    "nulls of one's own": Accepted(
        b"x,y\n-999,?\n,nan\n-999.0,2\n", [[NAN, NAN]] * 2 + [[-999, 2]], {"nulls": ["-999", "?"]}
    ),
    "blank lines at the end": Accepted(TOP + b"\n\r\n  \n", [[1, 2]]),
    "a byte order mark": Accepted(b"\xef\xbb\xbf" + TOP, [[1, 2]]),
    "CRLF": Accepted(b"x,y\r\n1,2\r\n3,4\r\n", [[1, 2], [3, 4]]),
    "CRLF and LF": Accepted(b"x,y\n1,2\r\n3,4\n", [[1, 2], [3, 4]]),
    "padding": Accepted(b" x\t, y\n  1 ,\t2 \n", [[1, 2]]),
    "a quoted newline": Accepted(NOTED + b'1,2,"a\nb"\n3,4,c\n', [[1, 2], [3, 4]]),
    "a quoted mark": Accepted(NOTED + b'"1",2,"a,b"\n3,"4",c\n', [[1, 2], [3, 4]]),
    "comments on top": Accepted(b"#1\n#2\n" + TOP, [[1, 2]], {"comment": "#"}),
    "one row": Accepted(TOP, [[1, 2]]),
    "nothing observed": Accepted(b"x,y\n,\nNA,nan\n", [[NAN, NAN]] * 2),
    "a channel without values": Accepted(b"x,y\n,2\n,4\n", [[NAN, 2], [NAN, 4]]),
    "a constant": Accepted(b"x,y\n7,2\n7,4\n", [[7, 2], [7, 4]]),
    "a denormal": Accepted(b"x,y\n4.9e-324,-0\n", [[0, 0]]),
    "5,000 columns": Accepted(
        b"%s\n%s\n" % (
            b",".join([b"c%d" % i for i in range(4998)] + [b"y", b"x"]),
            b",".join(b"%d" % i for i in range(5000)),
        ),
        [[4999, 4998]],
    ),
    "10 MB of text": Accepted(NOTED + b"1,2," + b"w" * 10**7 + b"\n", [[1, 2]]),
    "10 MB of zeros": Accepted(TOP + b"3,0." + b"0" * 10**7 + b"1\n", [[1, 2], [3, 0]]),
    "Latin-1, as said": Accepted(
        "x,y,\u00e9\n1,2,\u00fc\n".encode("latin-1"), [[1, 2]], {"encoding": "latin-1"}
    ),
    "UTF-16, as said": Accepted(
        "x,y\n1,2\n".encode("utf-16"), [[1, 2]], TWO_BYTES, good=GOOD.encode("utf-16")
    ),
    "UTF-16 of the other end, as said": Accepted(
        b"\xfe\xff" + "x,y\n1,2\n".encode("utf-16-be"), [[1, 2]], TWO_BYTES,
        good=GOOD.encode("utf-16"),
    ),
    "UTF-16 with quoted newlines, as said": Accepted(
        'x,y,n\n1,2,"a\n,b"\n'.encode("utf-16"), [[1, 2]], TWO_BYTES, good=GOOD.encode("utf-16")
    ),
    "gzip": Accepted(gzip.compress(TOP), [[1, 2]], name="bad.csv.gz"),
    "gzip without its suffix": Accepted(gzip.compress(TOP), [[1, 2]]),
    "gzip with quoted newlines": Accepted(
        gzip.compress(NOTED + b'1,2,"a\n,b"\n'), [[1, 2]], name="bad.csv.gz"
    ),
    "gzip of UTF-8 with a mark": Accepted(gzip.compress(b"\xef\xbb\xbf" + TOP), [[1, 2]]),
    "zstd": Accepted(zstd(TOP), [[1, 2]], name="bad.csv.zst"),
    "zstd without its suffix": Accepted(zstd(TOP), [[1, 2]]),
    "text called gzip": Accepted(TOP, [[1, 2]], name="bad.csv.gz"),
}  # fmt: skip


@pytest.mark.parametrize("hazard", ACCEPTED)
def test_a_file_that_says_what_it_means_is_accepted(hazard: str, tmp_path: Path):
    case = ACCEPTED[hazard]
    store, refusals = build_among_good(tmp_path, case)
    assert refusals == ()
    rows = rows_of(store, f"raw/{case.name}")
    np.testing.assert_array_equal(rows, np.array(case.rows, np.float32))


PACKED = {
    "a gzip that is cut": Refused(gzip.compress(GOOD.encode() * 9)[:-9], ""),
    "a gzip with a flipped byte": Refused(gzip.compress(TOP)[:-8] + b"\0" * 8, ""),
    "a zstd that is cut": Refused(zstd(GOOD.encode() * 9)[:-4], ""),
    "a gzip of nothing": Refused(gzip.compress(b""), ""),
    "a gzip of a cut text": Refused(gzip.compress(TOP + b"3,4"), ""),
}


@pytest.mark.parametrize("hazard", PACKED)
def test_a_damaged_compressed_file_is_refused(hazard: str, tmp_path: Path):
    _, refusals = build_among_good(tmp_path, PACKED[hazard])
    assert [refusal.source for refusal in refusals] == ["raw/bad.csv"]
    assert re.search("again|exclude|decompress|copy|final_newline", refusals[0].message)


@pytest.mark.parametrize("method", ["zscore", "minmax", "robust"])
@pytest.mark.parametrize("scope", ["trial", "train"])
@pytest.mark.parametrize("hazard", ["one row", "nothing observed", "a constant", "5,000 columns"])
def test_trials_without_spread_are_delivered_finite(
    hazard: str, method: str, scope: str, tmp_path: Path
):
    (tmp_path / "raw").mkdir()
    for name in ("a", "b", "m", "z"):
        (tmp_path / "raw" / f"{name}.csv").write_text(GOOD)
    (tmp_path / "raw" / "bad.csv").write_bytes(ACCEPTED[hazard].content)
    normalize = {"method": method, "scope": scope}
    spec = write_spec(tmp_path, source={"files": "raw/*"}, normalize=normalize)
    _, store = build_checked(spec, tmp_path / "store")
    offset, scale = store.physical_affine()
    assert np.isfinite(offset).all()
    assert (scale > 0).all()
    assert len(rows_of(store, "raw/bad.csv")) == len(ACCEPTED[hazard].rows)
    assert int(store.index.n_windows.min()) >= 0
