"""Delimited text: every hazard is refused by name, and what is accepted is exact."""

import gzip
import os
from collections import Counter
from dataclasses import replace

import polars as pl
import pytest
import xxhash
from delimited_reference import bits, bits_of, reference

from pipeline.files import QUOTE_LIMIT, SourceFile
from pipeline.sources import delimited
from pipeline.sources.delimited import DelimitedLayout, read_delimited

PLAIN = DelimitedLayout(",", numeric=("x", "y"), text=("tag",))
GOOD = b"tag,x,y\nleft,1.5,-2e-3\nright,NA,0.1\n"


def write(root, name, content):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return source(root, name)


def source(root, name):
    seen = (root / name).lstat()
    return SourceFile(name, seen.st_size, seen.st_mtime_ns, name)


def read(root, files, layout=PLAIN):
    tables, refusals = read_delimited(root, files, layout)
    accepted = [t.file.path for t in tables]
    refused = [r.source for r in refusals]
    assert sorted(accepted + refused) == sorted(f.path for f in files)
    order = {f.path: i for i, f in enumerate(files)}
    assert accepted == sorted(accepted, key=order.__getitem__)
    assert refused == sorted(refused, key=order.__getitem__)
    return tables, refusals


def read_one(root, content, layout=PLAIN):
    """Read a file between two good neighbours that use the same layout, if it is `PLAIN`."""
    files = [write(root, "bad.csv", content)]
    if layout is PLAIN:
        files = [write(root, "a.csv", GOOD), *files, write(root, "z.csv", GOOD)]
    tables, refusals = read(root, files, layout)
    if layout is PLAIN:
        for table in (tables[0], tables[-1]):
            assert bits(table.frame) == bits_of(reference(GOOD, PLAIN))
    accepted = [t for t in tables if t.file.path == "bad.csv"]
    return (accepted[0], None) if accepted else (None, refusals[0])


HAZARDS = {
    "gzip": (gzip.compress(GOOD)[:-5], "read", "compressed_damaged", None, None),
    "zstd": (b"\x28\xb5\x2f\xfd" + GOOD, "read", "compressed_damaged", None, None),
    "utf-16": (GOOD.decode().encode("utf-16"), "read", "encoding", 1, None),
    "utf-32": (GOOD.decode().encode("utf-32"), "read", "encoding", 1, None),
    "utf-32-be": (b"\0\0\xfe\xff" + GOOD.decode().encode("utf-32-be"), "read", "encoding", 1, None),
    "utf-16 unmarked": (GOOD.decode().encode("utf-16-le"), "read", "nul_bytes", 1, None),
    "nul": (b"tag,x,y\na,1,2\na,1\0,2\n", "read", "nul_bytes", 3, None),
    "latin-1": ("tag,x,y\na,1,2\nété,1,2\n".encode("latin-1"), "read", "encoding", 3, None),
    "lone cr": (b"tag,x,y\r\na,1,2\r\nb,1\r,2\r\n", "read", "lone_cr", 3, None),
    "old mac": (b"tag,x,y\ra,1,2\r", "read", "lone_cr", 1, None),
    "empty": (b"", "read", "empty", None, None),
    "mark alone": (b"\xef\xbb\xbf", "read", "empty", None, None),
    "newlines alone": (b"\r\n\n\n", "read", "empty", None, None),
    "header alone": (b"tag,x,y\n", "parse", "no_rows", None, None),
    "header, blank lines": (b"tag,x,y\n\n\r\n", "parse", "no_rows", None, None),
    "cut in last value": (b"tag,x,y\na,1,2\nb,1,-12.2", "read", "truncated", 3, None),
    "missing": (b"tag,x,z\na,1,2\n", "parse", "missing_column", 1, "y"),
    "other delimiter": (b"tag;x;y\na;1;2\n", "parse", "missing_column", 1, "x"),
    "duplicate": (b"tag,x,y,x\na,1,2,3\n", "parse", "duplicate_column", 1, "x"),
    "open header quote": (b'tag,x,"y\na,1,2\n', "parse", "parse_error", 1, None),
    "short": (b"tag,x,y\na,1,2\nb,-12\nc,1,2\n", "parse", "field_count", 3, None),
    "long": (b"tag,x,y\na,1,2\nb,1,2,3\n", "parse", "field_count", 3, None),
    "short and long": (b"tag,x,y\na,1\nb,1,2,3\n", "parse", "field_count", 2, None),
    "line break moved": (b"tag,x,y\na,1,2,b\n1,2\n", "parse", "field_count", 2, None),
    "blank line": (b"tag,x,y\na,1,2\n\nb,1,2\n", "parse", "field_count", 3, None),
    "blank line crlf": (b"tag,x,y\r\na,1,2\r\n\r\nb,1,2\r\n", "parse", "field_count", 3, None),
    "blanks line": (b"tag,x,y\na,1,2\n \t\nb,1,2\n", "parse", "field_count", 3, None),
    "word": (b"tag,x,y\na,1,2\nb,1,oops\nc,zz,2\n", "parse", "not_a_number", 3, "y"),
    "two words": (b"tag,y,x\na,oops,zz\n", "parse", "not_a_number", 2, "x"),
    "word crlf": (b"tag,x,y\r\na,1,2\r\nb,1,oops\r\n", "parse", "not_a_number", 3, "y"),
    "decimal comma": (b'tag,x,y\na,1,2\nb,"1,5",2\n', "parse", "not_a_number", 3, "x"),
    "thousands": (b"tag,x,y\na,1 000,2\n", "parse", "not_a_number", 2, "x"),
    "underscore": (b"tag,x,y\na,1_0,2\n", "parse", "not_a_number", 2, "x"),
    "no-break space": ("tag,x,y\na,1\u00a0,2\n".encode(), "parse", "not_a_number", 2, "x"),
    "inf": (b"tag,x,y\na,1,2\nb,1,-inf\n", "parse", "infinite", 3, "y"),
    "overflow": (b"tag,x,y\na,1,2\nb,1e400,inf\n", "parse", "infinite", 3, "x"),
    "inf in the first row": (b"tag,x,y\na,inf,2\nb,1,2\n", "parse", "infinite", 2, "x"),
    "quoted inf": (b'tag,x,y\n"a,b",1,2\nb,1,"inf"\n', "parse", "infinite", 3, "y"),
    "quoted short": (b'tag,x,y\n"a\nb",1,2\nb,1\n', "parse", "field_count", 4, None),
    "quoted blank": (b'tag,x,y\n"a,b",1,2\n\nb,1,2\n', "parse", "field_count", 3, None),
    "quoted word": (b'tag,x,y\n"a\nb",1,2\nb,1,oops\n', "parse", "not_a_number", 4, "y"),
    "open quote": (b'tag,x,y\na,1,2\n"b,1,2\nc,1,2\n', "parse", "parse_error", 3, None),
    "stray quote": (b'tag,x,y\n"a"b,1,2\n', "parse", "parse_error", 2, None),
    "tab before quote": (b'tag,x,y\n\t"a,b",1,2\n', "parse", "parse_error", None, None),
}


@pytest.mark.parametrize("hazard", HAZARDS)
def test_hazard_is_refused_and_neighbours_are_exact(tmp_path, hazard):
    content, stage, code, line, column = HAZARDS[hazard]
    assert reference(content, PLAIN) is None or code == "parse_error"
    table, refusal = read_one(tmp_path, content)
    assert table is None
    found = (refusal.stage, refusal.code, refusal.line, refusal.column, refusal.size_bytes)
    assert found == (stage, code, line, column, len(content)), refusal.message
    assert len(refusal.message) < 300


ONE_TEXT = DelimitedLayout(",", text=("x",))
ONE_COLUMN_HAZARDS = {
    "first": (b"x\n\n1\n", "field_count", 2),
    "middle": (b"x\n1\n\n3\n", "field_count", 3),
    "blanks": (b"x\n1\n \t\n3\n", "field_count", 3),
    "between quotes": (b'x\n"a,b"\n\nc\n', "field_count", 3),
    "blanks between quotes": (b'x\n"a,b"\n  \nc\n', "parse_error", None),
    "separator": (b"x\n1\n2,3\n", "field_count", 3),
}


@pytest.mark.parametrize("hazard", ONE_COLUMN_HAZARDS)
def test_one_column_counts_its_lines_too(tmp_path, hazard):
    content, code, line = ONE_COLUMN_HAZARDS[hazard]
    _, refusal = read_one(tmp_path, content, ONE_TEXT)
    assert (refusal.code, refusal.line) == (code, line)


@pytest.mark.parametrize("value", ["inf", "-1e400"])
def test_infinity_is_found_where_nothing_is_missing(tmp_path, value):
    contents = (b"x\n1\n2\n", f"x\n{value}\n1\n".encode(), b"x\n3\n")
    files = [write(tmp_path, str(i), content) for i, content in enumerate(contents)]
    tables, refusals = read(tmp_path, files, DelimitedLayout(",", numeric=("x",)))
    assert [(r.source, r.code, r.line, r.column) for r in refusals] == [("1", "infinite", 2, "x")]
    assert [t.frame["x"].to_list() for t in tables] == [[1.0, 2.0], [3.0]]


def test_all_hazards_in_one_batch(tmp_path):
    files, wanted = [write(tmp_path, "first.csv", GOOD)], Counter()
    for i, (content, _, code, _, _) in enumerate(HAZARDS.values()):
        files += [write(tmp_path, f"bad{i}.csv", content), write(tmp_path, f"good{i}.csv", GOOD)]
        wanted[code] += 1
    tables, refusals = read(tmp_path, files)
    assert Counter(r.code for r in refusals) == wanted
    assert len(tables) == len(HAZARDS) + 1
    for table in tables:
        assert bits(table.frame) == bits_of(reference(GOOD, PLAIN))
        assert table.source_xxh3 == xxhash.xxh3_128_hexdigest(GOOD)


def test_content_is_quoted_briefly(tmp_path):
    secret = "s" * 500
    for row in (f"a,{secret},2", f'"a,b",{secret},2'):
        _, refusal = read_one(tmp_path, f"tag,x,y\n{row}\n".encode())
        assert refusal.code == "not_a_number"
        assert "s" * (QUOTE_LIMIT - 3) in refusal.message
        assert "s" * (QUOTE_LIMIT + 1) not in refusal.message


def test_missing_column_lists_the_first_ten(tmp_path):
    names = ",".join(f"c{i}" for i in range(30))
    _, refusal = read_one(tmp_path, f"{names}\n{names}\n".encode())
    assert all(f"'c{i}'" in refusal.message for i in range(10))
    assert "'c10'" not in refusal.message
    assert "'x'" in refusal.message


def test_files_that_changed_or_cannot_be_read(tmp_path, monkeypatch):
    grown = write(tmp_path, "grown.csv", GOOD)
    (tmp_path / "grown.csv").write_bytes(GOOD + b"a,1,2\n")
    touched = write(tmp_path, "touched.csv", GOOD)
    os.utime(tmp_path / "touched.csv", ns=(0, touched.mtime_ns + 1))
    gone = SourceFile("gone.csv", 5, 5, "gone")
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    bad = [grown, touched, gone, source(tmp_path, "folder.csv"), source(tmp_path, "pipe.csv")]
    tables, refusals = read(tmp_path, [write(tmp_path, "a.csv", GOOD), *bad])
    assert [r.code for r in refusals] == [
        "changed_while_read", "changed_while_read", "unreadable", "not_a_file", "not_a_file"
    ]  # fmt: skip
    assert {r.stage for r in refusals} == {"read"}
    assert len(tables) == 1


def test_a_writer_during_the_read_is_noticed(tmp_path, monkeypatch):
    file = write(tmp_path, "live.csv", GOOD)
    plain_fstat, calls = os.fstat, []

    def fstat(handle):
        calls.append(handle)
        if len(calls) == 2:  # after the bytes were read
            with (tmp_path / "live.csv").open("ab") as live:
                live.write(b"a,1,2\n")
        return plain_fstat(handle)

    monkeypatch.setattr(os, "fstat", fstat)
    _, refusals = read(tmp_path, [file])
    assert [r.code for r in refusals] == ["changed_while_read"]


def test_an_unexpected_exception_is_one_refusal(tmp_path, monkeypatch):
    whole = delimited.pl.read_csv

    def fragile(data, **options):
        if b"13.13" in data:
            raise pl.exceptions.PanicException("boom")
        return whole(data, **options)

    monkeypatch.setattr(delimited.pl, "read_csv", fragile)
    table, refusal = read_one(tmp_path, b"tag,x,y\na,13.13,2\n")
    assert (table, refusal.code) == (None, "parse_error")
    assert "boom" in refusal.message


def test_a_lost_row_is_never_delivered(tmp_path, monkeypatch):
    whole = delimited.pl.read_csv
    monkeypatch.setattr(delimited.pl, "read_csv", lambda data, **kw: whole(data, **kw)[:-1])
    tables, refusals = read(tmp_path, [write(tmp_path, f"{i}.csv", GOOD) for i in range(3)])
    assert not tables
    assert {r.code for r in refusals} == {"parse_error"}


ONE = DelimitedLayout(",", numeric=("x",))
BLANK = DelimitedLayout(None, header=False, names=("u", "x", "y"), numeric=("x", "y"))
PLAIN_NAMED = replace(PLAIN, header=False, names=("tag", "x", "y", "more"))
ACCEPTED = {
    "byte order mark": (b"\xef\xbb\xbf" + GOOD, PLAIN),
    "second byte order mark": (b"tag,x,y\n\xef\xbb\xbfa,1,2\n", PLAIN),
    "zlib magic in a body": (b"tag,x,y\nx\x01,1,2\n", PLAIN),
    "crlf": (GOOD.replace(b"\n", b"\r\n"), PLAIN),
    "mixed line ends": (GOOD.replace(b"\n", b"\r\n", 2), PLAIN),
    "trailing blank lines": (GOOD + b"\n\r\n\n", PLAIN),
    "reordered, extra": (b"y,z,x,tag,z\n1,q,2,a,q\n3,q,4,b,q\n", PLAIN),
    "padded": (b' tag ,\tx, "y"\n  a b\t, 1.5 ,\t -2 \n b , NA ,  \n', PLAIN),
    "idle quotes": (b'"tag","x","y"\n"a","1.5",2\n "b" , 3,"NA"\n', PLAIN),
    "quoted separator": (b'tag,x,y\n"a,b",1,2\n"c ""d""",3,4\n', PLAIN),
    "quoted newlines": (b'tag,x,y\r\n"a\r\nb\n",1,2\r\n', PLAIN),
    "quoted, trailing blank lines": (b'tag,x,y\n"a,b",1,2\n\n\n', PLAIN),
    "idle quotes around blanks": (b'tag,x,y\n"  a ", " 1.5 ",2\n', PLAIN),
    "quotes inside a word": (b'tag,x,y\nz"a",1,2\n', PLAIN),
    "a negative nan alone": (b"tag,x,y\na,-nan,1\n", PLAIN),
    "inch mark": (b'tag,x,y\n5",1,2\n6",3,4\n', PLAIN),
    "unicode line separator": ("tag,x,y\na\u2028b\x0bc,1,2\n".encode(), PLAIN),
    "nan spellings": (b"tag,x,y\na,-nan,NAN\nb,nan,null\nnan,,1\n", PLAIN),
    "signs": (b"tag,x,y\na,-0,+.5\nb,5.,1E+5\n,1e-400,4.9e-324\n", PLAIN),
    "halfway digits": (b"tag,x,y\na,9007199254740993,2.2250738585072011e-308\n", PLAIN),
    "huge sum": (b"tag,x,y\na,1.7e308,1\nb,1.7e308,1\n", PLAIN),
    "one column": (b"x\n1\nNA\n3\n\n", ONE),
    "one column, quoted": (b'x\n1\n""\n"3"\n', ONE),
    "byte order mark, quoted": (b'\xef\xbb\xbf",",1,2,3\n', PLAIN_NAMED),
    "blank separated": (b"1 2 3\n  4\t\t5    6 \n7 8 NaN\n\n", BLANK),
    "blank separated, quoted": (b'"a" 2  "3"\n', BLANK),
    "comments": (b"#a\n#b\nx\n1\n", DelimitedLayout(",", numeric=("x",), comment="#")),
    "empty text": (b"t,x\n,1\n", DelimitedLayout(",", numeric=("x",), text=("t",), nulls=("-",))),
    "text only": (b"t\na\nNA\n", DelimitedLayout(",", text=("t",))),
    "no last newline": (b"x\n1\n2", DelimitedLayout(",", numeric=("x",), final_newline="optional")),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted_files_are_exact(tmp_path, case):
    content, layout = ACCEPTED[case]
    table, refusal = read_one(tmp_path, content, layout)
    assert refusal is None, refusal
    wanted = reference(content, layout)
    assert wanted
    assert bits(table.frame) == bits_of(wanted)
    assert table.frame.columns == list(layout.numeric + layout.text)
    assert table.source_xxh3 == xxhash.xxh3_128_hexdigest(content)
