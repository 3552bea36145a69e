"""A file's bytes: unpacked whole or refused; text of any encoding, or a refusal with its line."""

import codecs
import gzip
import io
import zlib

import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from pipeline.files import RefusedError, SourceFile
from pipeline.sources import decompress as module
from pipeline.sources.decompress import decompress
from pipeline.sources.lines import DelimitedLayout, read_lines
from pipeline.sources.rawfile import check_text, decode_text

TEXT = b"t,x\n" + b"".join(b"%d,%d.5\n" % (i, i * i) for i in range(300))


def zstd(data):
    """Return one frame with its content's checksum, as the command line tool writes it."""
    return pa.compress(data, codec="zstd", asbytes=True)


def code_of(call, *arguments):
    with pytest.raises(RefusedError) as caught:
        call(*arguments)
    return caught.value


PACKERS = {"gzip": gzip.compress, "zstd": zstd}


@pytest.mark.parametrize("kind", PACKERS)
def test_compressed_text_is_unpacked_member_by_member(kind):
    pack = PACKERS[kind]
    assert decompress(TEXT) is TEXT
    assert decompress(pack(TEXT)) == TEXT
    assert decompress(pack(TEXT) + pack(b"") + pack(b"1,2\n")) == TEXT + b"1,2\n"
    assert decompress(b"".join(pack(b"%d\n" % i) for i in range(20_000))).count(b"\n") == 20_000


def test_parallel_zstd_starts_with_a_frame_to_skip():
    skipped = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    assert decompress(skipped + zstd(TEXT)) == TEXT


@pytest.mark.parametrize("kind", PACKERS)
def test_a_cut_anywhere_is_refused(kind):
    raw = PACKERS[kind](TEXT)
    for end in range(4, len(raw)):
        refused = code_of(decompress, raw[:end])
        assert refused.code == "compressed_damaged"
        assert kind in str(refused)
        assert "copy the file again" in str(refused)


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("garbage", [b"x", b"\0" * 8, b"t,x\n1,2\n", b"\x1f\x8b"])
def test_bytes_after_the_end_are_refused(kind, garbage):
    refused = code_of(decompress, PACKERS[kind](TEXT) + garbage)
    assert refused.code == "compressed_damaged"


def test_every_flipped_bit_of_gzip_is_noticed_or_says_the_same():
    raw, codes = gzip.compress(TEXT, mtime=0), set()
    for at in range(len(raw)):
        damaged = raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :]
        try:
            found = decompress(damaged)
        except RefusedError as refused:
            codes.add(refused.code)
        else:  # fields of the header; or no gzip any more
            assert found in (TEXT, damaged)
    assert codes == {"compressed_damaged"}


@pytest.mark.parametrize("kind", PACKERS)
def test_a_bomb_is_refused_before_memory_is_gone(kind, monkeypatch):
    monkeypatch.setattr(module, "LIMIT_BYTES", 2**20)
    bomb = PACKERS[kind](bytes(2**27))
    kept = []
    real = module._gunzip if kind == "gzip" else module._unzstd

    def watched(raw):
        for piece in real(raw):
            kept.append(len(piece))
            yield piece

    monkeypatch.setattr(module, real.__name__, watched)
    assert code_of(decompress, bomb).code == "too_large"
    assert sum(kept) < 2**27
    assert decompress(PACKERS[kind](bytes(2**20))) == bytes(2**20)


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=4), st.sampled_from(list(PACKERS)))
def test_members_joined_are_contents_joined(parts, kind):
    assert decompress(b"".join(PACKERS[kind](part) for part in parts)) == b"".join(parts)


def read(root, raw, **changes):
    (root / "a.csv").write_bytes(raw)
    seen = (root / "a.csv").stat()
    layout = DelimitedLayout(",", numeric=("x",), **changes)
    return read_lines(root, SourceFile("a.csv", seen.st_size, seen.st_mtime_ns, "a"), layout)


@pytest.mark.parametrize("kind", PACKERS)
def test_the_digest_is_of_the_bytes_on_disk(tmp_path, kind):
    raw = PACKERS[kind](TEXT)
    lines = read(tmp_path, raw)
    assert lines.xxh3 == xxhash.xxh3_128_hexdigest(raw)
    assert (lines.n_rows, lines.body) == (300, TEXT.removeprefix(b"t,x\n"))
    empty = code_of(read, tmp_path, PACKERS[kind](b""))
    assert empty.code == "empty"


def test_lines_of_compressed_and_foreign_files_keep_their_numbers(tmp_path):
    text = "# é\n# ü\nt,x\n1,2\n\n3,4\n"
    for encoding in ("utf-8", "utf-16", "utf-16-be", "latin-1", "cp1252", "utf-32"):
        raw = gzip.compress(text.replace("\n", "\r\n").encode(encoding))
        refused = code_of(lambda raw=raw, e=encoding: read(tmp_path, raw, encoding=e, comment="#"))
        assert (refused.code, refused.line) == ("field_count", 5)


SPELLINGS = {  # how text is written, and how it may be said to be written
    **{name: (name,) for name in ("utf-8", "latin-1", "cp1252", "cp437", "shift_jis", "gb18030")},
    "utf-16": ("utf-16", "utf-16-le"),
    "utf-16-le": ("utf-16", "utf-16-le"),
    "utf-16-be": ("utf-16", "utf-16-be"),
    "utf-32": ("utf-32", "utf-32-le"),
    "utf-32-be": ("utf-32", "utf-32-be"),
    "utf-8-sig": ("utf-8", "utf-8-sig"),
}


@pytest.mark.parametrize("written", SPELLINGS)
def test_text_is_decoded_and_loses_its_mark(written):
    text = "t,x\r\n1,2\r\n"
    if written not in ("shift_jis", "cp437"):
        text += "é,3\r\n"
    for said in SPELLINGS[written]:
        assert check_text(text.encode(written), said) == text.replace("\r\n", "\n").encode()
        assert decode_text(text.encode(written), said) == text.encode()


def test_a_mark_decides_the_byte_order():
    text = "é,x\n"  # no ASCII first: nothing else tells the order
    for mark, order in ((codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF16_LE, "utf-16-le")):
        assert check_text(mark + text.encode(order), "utf-16") == text.encode()
        assert check_text(mark + text.encode(order), order) == text.encode()


MARKED = {
    "utf-16": ("utf-8", "latin-1", "utf-32"),
    "utf-32": ("utf-8", "latin-1", "utf-16"),
    "utf-8-sig": ("latin-1", "cp1252", "utf-16"),
}


@pytest.mark.parametrize("written", MARKED)
def test_a_mark_that_contradicts_is_refused_with_advice(written):
    for said in MARKED[written]:
        refused = code_of(check_text, "t,x\n1,2\n".encode(written), said)
        assert (refused.code, refused.line) == ("encoding", 1)
        wanted = written.removesuffix("-sig")
        if (written, said) != ("utf-32", "utf-8"):
            assert f"source.encoding: {wanted}" in str(refused)


def test_what_is_not_the_encoding_is_refused_with_its_line():
    raw = "a,b\n1,2\né\n".encode("latin-1")
    refused = code_of(check_text, raw)
    assert (refused.code, refused.line) == ("encoding", 3)
    assert "source.encoding: latin-1" in str(refused)
    refused = code_of(check_text, b"a\r\nb\r\n\x81\r\n", "cp1252")
    assert (refused.code, refused.line) == ("encoding", 3)
    assert "0x81 is not cp1252" in str(refused)
    halved = "a\nb\n\U0001f600\n".encode("utf-16-le")[:-4]
    refused = code_of(check_text, halved + "x\n".encode("utf-16-le"), "utf-16")
    assert (refused.code, refused.line) == ("encoding", 3)
    odd = "a\nb".encode("utf-16-le") + b"c"
    assert code_of(check_text, odd, "utf-16").code == "encoding"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
def test_the_hazards_of_text_are_those_of_utf_8(encoding):
    def code(text):
        refused = code_of(check_text, text.encode(encoding), encoding)
        return refused.code, refused.line

    assert code("\r\n\n") == ("empty", None)
    assert code("a\nb\0\n") == ("nul_bytes", 2)
    assert code("a\r\nb\rc\n") == ("lone_cr", 2)
    assert "utf-16" in str(code_of(check_text, "a,b\n".encode("utf-16-le")))


def test_encodings_that_are_none_of_text():
    for name in ("hex", "zlib", "no such thing", "undefined"):
        with pytest.raises(ValueError, match="encoding"):
            DelimitedLayout(",", numeric=("x",), encoding=name)


def test_quotes_keep_the_line_ends_of_a_decoded_file(tmp_path):
    text = '# a\r\ntag,x\r\n"a\r\nb",1\r\n'
    lines = read(tmp_path, text.encode("utf-16"), encoding="utf-16", comment="#")
    assert (lines.quoted, lines.first_line) == (True, 3)
    assert lines.body == b'"a\r\nb",1\r\n'


def test_comments_above_lines_without_a_header(tmp_path):
    text = b"# Task: bending\n# Columns: t,x\n0,39.25\n250,39.5\n"
    lines = read(tmp_path, text, header=False, names=("t", "x"), comment="#")
    assert (lines.first_line, lines.n_rows, lines.body) == (3, 2, b"0,39.25\n250,39.5\n")
    refused = code_of(
        lambda: read(tmp_path, b"# a\n# b\n", header=False, names=("t", "x"), comment="#")
    )
    assert refused.code == "no_rows"


def test_long_lines_and_many_columns(tmp_path):
    names = ",".join(["x", *(f"c{i}" for i in range(4_999))])
    row = ",".join("1" for _ in range(5_000))
    wide = f"{names}\n{row}\n{row}\n".encode()
    assert read(tmp_path, wide).n_rows == 2
    refused = code_of(read, tmp_path, wide + b"1," + row.encode() + b"\n")
    assert (refused.code, refused.line) == ("field_count", 4)
    assert len(str(refused)) < 300
    long = b"t,x\n" + b"a" * 10_000_000 + b",1\n"
    assert read(tmp_path, long).n_rows == 1


def test_zlib_streams_and_text_are_no_gzip():
    for raw in (zlib.compress(TEXT), b"(t,x)\n", b"P*t\n", b"\x1f\x8a", io.BytesIO().getvalue()):
        assert decompress(raw) is raw
