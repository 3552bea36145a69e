"""Delimited text, over generated and damaged files: accepted means equal to the slow reading."""

import math
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from delimited_reference import bits, bits_of, reference
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.files import SourceFile
from pipeline.sources.delimited import DelimitedLayout, read_delimited
from pipeline.sources.lines import trim_blanks

NUMERIC, TEXT = ("x", "y", "z"), ("tag",)
MISSING = ("", "NA", "NaN", "nan", "null")


@pytest.fixture(scope="module")
def root():
    # One folder for all examples: each names its files by number and overwrites the last ones.
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def read_all(root, contents, layout):
    """Read contents as one batch; return the frame or the refusal of each."""
    files = []
    for i, content in enumerate(contents):
        path = root / str(i)
        path.write_bytes(content)
        seen = path.stat()
        files.append(SourceFile(path.name, seen.st_size, seen.st_mtime_ns, path.name))
    tables, refusals = read_delimited(root, files, layout)
    found = {int(t.file.path): t.frame for t in tables} | {int(r.source): r for r in refusals}
    assert len(tables) + len(refusals) == len(found) == len(contents)
    assert [int(t.file.path) for t in tables] == sorted(int(t.file.path) for t in tables)
    return [found[i] for i in range(len(contents))]


finite = st.floats(allow_nan=False, allow_infinity=False)
numbers = st.one_of(
    finite.map(repr),
    finite.map("{:.17e}".format),
    st.floats(-1e300, 1e300).map("{:+.3E}".format),
    st.floats(-1e6, 1e6).map("{:f}".format),
    st.integers(-(10**25), 10**25).map(str),
    st.from_regex(r"[+-]?([0-9]{1,30}\.[0-9]{0,30}|\.[0-9]{1,30})(e-?[0-9]{1,2})?", fullmatch=True),
    st.sampled_from(MISSING),
)
words = st.text(st.sampled_from("abNAé\u20ac\u2028\ufeff\x01\x0b'#0"), max_size=5)


@st.composite
def layouts(draw):
    mark = draw(st.sampled_from([",", ";", "\t", "|", " ", ":", None]))
    return DelimitedLayout(
        mark,
        header=draw(st.booleans()),
        names=("tag", "z", "extra", "y", "x"),
        numeric=NUMERIC,
        text=TEXT,
        comment=draw(st.sampled_from([None, "%%"])),
        nulls=draw(st.sampled_from([MISSING, MISSING[1:]])),
        final_newline=draw(st.sampled_from(["require", "optional"])),
    )


@st.composite
def contents(draw, layout):
    """Return a well-formed file of the layout: any spelling that must be accepted."""
    names, mark = list(layout.names), layout.mark
    if layout.header:
        names = draw(st.permutations(names))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    quote, pad = draw(st.booleans()), draw(st.booleans()) and mark != " "
    blank = layout.delimiter is None

    def field(name):
        text = draw(words if name in (*TEXT, "extra") else numbers)
        text = text or ("-" if name == "extra" else "NA") if blank else text
        if quote and name in TEXT and not blank:
            text += draw(st.sampled_from(["", mark, '"', "\n", "\r\n", 'a" b']))
        if any(c in text for c in ('"', "\n", mark)) or (quote and draw(st.booleans())):
            text = '"' + text.replace('"', '""') + '"'
        return draw(st.sampled_from(["", " ", "   "])) + text if pad else text

    lines = [f"%%{i}" for i in range(draw(st.integers(0, 2)))] if layout.comment else []
    lines += [mark.join(names)] if layout.header else []
    rows = draw(st.integers(1, 6))
    gap = draw(st.sampled_from([" ", "\t", " \t  "])) if blank else mark
    lines += [gap.join(field(name) for name in names) for _ in range(rows)]
    last = end if layout.final_newline == "require" else draw(st.sampled_from([end, ""]))
    mark_first = draw(st.sampled_from(["", "\ufeff"]))
    return (mark_first + end.join(lines) + last).encode()


@st.composite
def batches(draw):
    layout = draw(layouts())
    return layout, draw(st.lists(contents(layout), min_size=1, max_size=5))


@settings(max_examples=150)
@given(batches())
def test_well_formed_files_are_read_bit_for_bit(root, batch):
    layout, files = batch
    for content, frame in zip(files, read_all(root, files, layout), strict=True):
        wanted = reference(content, layout)
        assert wanted is not None, content
        assert not hasattr(frame, "code"), (content, frame)
        assert bits(frame) == bits_of(wanted)


BASES = (
    b"tag,x,y,z\nab,1.5,-2e-3,NA\ncd,7,,0.1\nef,12.25,3,4\n",
    b'tag,x,y,z\r\n"a,b",1.5,-2e-3,NA\r\n"c\r\nd",7,"",0.1\r\n"e""f",12.25,3,4\r\n',
    b'"z","tag","x","y"\n"1","ab","2.5","3"\n"4","cd","-5e1","NA"\n',
    b"tag , x,y ,z\n a b,  1.5 ,2, 3\n c ,4,5\t,6 \n",
)
HOSTILE = [bytes([c]) for c in b'0159.,-+e"\n\r \t\0;xNa#'] + [b"\r\n", b"\xff", b"\xef\xbb\xbf"]


@st.composite
def damaged(draw):
    """Return a file after one to three accidents."""
    raw = draw(st.sampled_from(BASES))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(raw)))
        end = draw(st.integers(at, min(at + 12, len(raw))))
        lines = raw.splitlines(keepends=True)
        line = draw(st.integers(0, max(len(lines) - 1, 0)))
        raw = draw(
            st.sampled_from([
                raw[:at],
                raw[:at] + raw[end:],
                raw[:at] + raw[at:end] * 2 + raw[end:],
                raw[:at] + draw(st.sampled_from(HOSTILE)) + raw[at + 1 :],
                raw[:at] + draw(st.sampled_from(HOSTILE)) + raw[at:],
                b"".join(lines[:line] + lines[line : line + 1] * 2 + lines[line + 1 :]),
                b"".join(lines[:line] + lines[line + 1 :]),
                b"".join(lines[:line] + lines[line + 1 :] + lines[line : line + 1]),
            ])
        )  # fmt: skip
    return raw


def test_a_damaged_file_is_refused_or_read_as_it_stands(root):
    outcomes = Counter()

    @settings(max_examples=250)
    @given(st.lists(damaged(), min_size=1, max_size=3), st.sampled_from(["require", "optional"]))
    def law(files, final_newline):
        layout = DelimitedLayout(",", numeric=NUMERIC, text=TEXT, final_newline=final_newline)
        files = [BASES[0], *files, BASES[1]]
        found = read_all(root, files, layout)
        for content, outcome in zip(files, found, strict=True):
            if hasattr(outcome, "code"):
                outcomes[outcome.code] += 1
                assert content not in BASES
                continue
            outcomes["accepted"] += content not in BASES
            wanted = reference(content, layout)
            assert wanted is not None, content
            assert bits(outcome) == bits_of(wanted), content

    law()
    assert outcomes["accepted"] > 20  # else the damage says nothing of what is accepted
    assert {"field_count", "not_a_number", "truncated", "parse_error"} <= set(outcomes)


@settings(max_examples=300)
@given(
    st.lists(st.text(st.sampled_from(" \t,ab"), max_size=12), min_size=1, max_size=4),
    st.sampled_from([",", "\t", " ", None]),
)
def test_blanks_are_trimmed_as_strip_would(lines, delimiter):
    body = "".join(line + "\n" for line in lines)
    blanks = " \t".replace(delimiter or "-", "")
    wanted = "".join(
        (
            " ".join(line.split())
            if delimiter is None
            else delimiter.join(field.strip(blanks) for field in line.split(delimiter))
        )
        + "\n"
        for line in lines
    )
    assert trim_blanks(body.encode(), delimiter).decode() == wanted


def test_frames_do_not_depend_on_the_batch(root):
    """Grouping, halving around bad files and order change no delivered bit."""
    layout = DelimitedLayout(",", numeric=NUMERIC, text=TEXT)
    bad = b"tag,x,y,z\na,1,2,oops\n"
    files = [bad, *BASES, bad, bad, *BASES, bad]
    together = read_all(root, files, layout)
    for content, outcome in zip(files, together, strict=True):
        (alone,) = read_all(root, [content], layout)
        if content == bad:
            assert (outcome.code, outcome.line, alone.code) == ("not_a_number", 2, "not_a_number")
        else:
            assert bits(outcome) == bits(alone)


def test_columns_come_as_wanted_and_numbers_have_no_nulls(root):
    layout = DelimitedLayout(",", numeric=("z", "x"), text=TEXT)
    (frame,) = read_all(root, [BASES[0]], layout)
    assert frame.columns == ["z", "x", "tag"]
    assert frame["z"].null_count() == 0
    assert math.isnan(frame["z"][0])


@pytest.mark.parametrize(
    ("change", "words_said"),
    [
        ({"delimiter": ",,"}, "delimiter"),
        ({"delimiter": "§"}, "delimiter"),
        ({"delimiter": '"'}, "delimiter"),
        ({"delimiter": "\n"}, "delimiter"),
        ({"numeric": ()}, "no columns"),
        ({"numeric": ("x", "x")}, "twice"),
        ({"text": ("x",)}, "twice"),
        ({"header": False}, "header"),
        ({"header": False, "names": ("x", "x")}, "header"),
        ({"comment": ""}, "comment"),
    ],
)
def test_layouts_that_make_no_sense(change, words_said):
    with pytest.raises(ValueError, match=words_said):
        replace(DelimitedLayout(",", numeric=("x",)), **change)
