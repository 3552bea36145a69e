"""Several trials in one file: each block is read as if it were alone, or refused by its number."""

import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.files import SourceFile
from pipeline.sections.source import BlocksSpec
from pipeline.sources.blocks import read_blocks
from pipeline.sources.delimited import read_delimited
from pipeline.sources.lines import DelimitedLayout

ROOT = Path(__file__).parents[2]
PLACES = [Path(os.environ.get("TRIALSHARDS_DATA", "nowhere")), ROOT.parent / "shared" / "data"]
LAYOUT = DelimitedLayout(",", header=False, names=("x", "y", "tag"), numeric=("x", "y"))
TAGGED = DelimitedLayout(",", header=False, names=("x", "tag"), numeric=("x",), text=("tag",))
ENDED = BlocksSpec(separator="-{3,}")
HEADED = BlocksSpec(head=r"trial (?P<label>\w+)( of (?P<who>\w+))?")


def source(root, name):
    seen = (root / name).stat()
    return SourceFile(name, seen.st_size, seen.st_mtime_ns, Path(name).stem)


def read(root, text, blocks, layout=LAYOUT, name="a.txt"):
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_blocks(root, [source(root, name)], layout, blocks)


def refused(refusals):
    return [(r.trial, r.code, r.line) for r in refusals]


def test_blocks_end_with_a_separator_or_with_the_file(tmp_path):
    for end in ("", " --- \t\n", "----\n\n\n"):
        text = "1,2,a\n3,4,b\n \t---\n\n5,6,c\n\n" + end
        tables, refusals = read(tmp_path, text, ENDED)
        assert not refusals
        assert [t.trial_id for t in tables] == ["a/0001", "a/0002"]
        assert [t.numbers.tolist() for t in tables] == [[[1, 2], [3, 4]], [[5, 6]]]
        assert [(t.number, t.names, t.found) for t in tables] == [
            (1, ("x", "y"), {}),
            (2, ("x", "y"), {}),
        ]


def test_heads_give_attributes(tmp_path):
    text = "\n trial good of ann\n\n1,2,a\n\n\ntrial bad\n3,4,b\n5,6,c\n"
    tables, refusals = read(tmp_path, text.replace("\n", "\r\n"), HEADED)
    assert not refusals
    assert [t.found for t in tables] == [{"label": "good", "who": "ann"}, {"label": "bad"}]
    assert [len(t.numbers) for t in tables] == [1, 2]


def test_a_bad_block_costs_no_other_and_keeps_its_number(tmp_path):
    bodies = "1,2,a", "1,oops,a", None, "1,2", "\n1,2,a\n\n3,4,b", "7,8,a\n9,inf,b", "5,6,a"
    text = "---\n".join("" if body is None else f"{body}\n" for body in bodies)
    tables, refusals = read(tmp_path, text, ENDED)
    assert [t.trial_id for t in tables] == ["a/0001", "a/0007"]
    assert [t.number for t in tables] == [1, 7]
    assert refused(refusals) == [
        ("a/0002", "not_a_number", 3),
        ("a/0003", "empty_block", 5),
        ("a/0004", "field_count", 6),
        ("a/0005", "field_count", 10),
        ("a/0006", "infinite", 14),
    ]
    assert [t.numbers.tolist() for t in tables] == [[[1, 2]], [[5, 6]]]


def test_rows_are_counted(tmp_path):
    text = "trial a\n1,2,a\n3,4,a\ntrial b\n1,2,a\ntrial c\ntrial d\n1,2,a\n1,2,b\n"
    spec = BlocksSpec(head=r"trial \w", rows=2)
    tables, refusals = read(tmp_path, text, spec)
    assert [t.number for t in tables] == [1, 4]
    assert refused(refusals) == [("a/0002", "block_rows", 5), ("a/0003", "empty_block", 6)]
    assert "has 1 row, source.blocks.rows wants 2" in refusals[0].message


def test_quotes_stay_within_their_block(tmp_path):
    text = '1,"a,b"\n---\n2,"open\n---\n3,c"\n---\n4,"c\nd"\n5,e\n---\n6,f\n'
    for rows in (None, 2):
        spec = BlocksSpec(separator="---", rows=rows)
        tables, refusals = read(tmp_path, text, spec, TAGGED)
        kept = {t.number: (t.numbers[:, 0].tolist(), t.text["tag"].to_list()) for t in tables}
        wanted = {1: ([1], ["a,b"]), 4: ([4, 5], ["c\nd", "e"]), 5: ([6], ["f"])}
        wanted[3] = ([3], ['c"'])  # no quote opens the field, so this one is an inch mark
        bad = {2: "parse_error"}
        if rows:
            wanted, bad = {4: wanted[4]}, bad | dict.fromkeys((1, 3, 5), "block_rows")
        assert kept == wanted
        assert {int(r.trial[-4:]): r.code for r in refusals} == bad


WHOLE = {
    "cut in the last value": ("1,2,a\n---\n3,4,b", "truncated", 3),
    "not UTF-8": (b"1,2,a\n---\n3,4,\xff\n", "encoding", 3),
    "NUL": (b"1,2,a\n---\n3,4,\0\n", "nul_bytes", 3),
    "empty": ("\n\n", "empty", None),
    "blanks": (" \n\t\n", "no_rows", None),
    "damaged gzip": (b"\x1f\x8b\x08\0\0", "compressed_damaged", None),
}


@pytest.mark.parametrize("damage", WHOLE)
def test_damage_of_a_file_refuses_the_file(tmp_path, damage):
    text, code, line = WHOLE[damage]
    tables, refusals = read(tmp_path, text, ENDED)
    assert not tables
    assert refused(refusals) == [(None, code, line)]


def test_text_before_the_first_head_refuses_the_file(tmp_path):
    for text, line in (("\n1,2,a\ntrial a\n1,2,a\n", 2), ("1,2,a\n", 1)):
        tables, refusals = read(tmp_path, text, HEADED)
        assert not tables
        assert refused(refusals) == [(None, "text_before_head", line)]


def test_files_of_separators_alone_hold_empty_blocks(tmp_path):
    tables, refusals = read(tmp_path, "---\n---\n", ENDED)
    assert not tables
    assert refused(refusals) == [("a/0001", "empty_block", 1), ("a/0002", "empty_block", 2)]


def test_comments_and_encodings(tmp_path):
    layout = DelimitedLayout(
        ",", header=False, names=("x", "tag"), numeric=("x",), text=("tag",), comment="#",
        encoding="utf-16",
    )  # fmt: skip
    text = "# one\n# two\n1,é\n---\n2,x,y\n---\n3,ü\n"
    tables, refusals = read(tmp_path, text.encode("utf-16"), ENDED, layout)
    assert [t.text["tag"].to_list() for t in tables] == [["é"], ["ü"]]
    assert refused(refusals) == [("a/0002", "field_count", 5)]


def test_several_files_in_order(tmp_path):
    texts = {"b.txt": "1,2,a\n---\n3,x,b\n", "a.txt": b"\0", "c.txt": "5,6,a\n---\n7,8,a\n"}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    files = [source(tmp_path, name) for name in texts]
    tables, refusals = read_blocks(tmp_path, files, LAYOUT, ENDED)
    assert [t.trial_id for t in tables] == ["b/0001", "c/0001", "c/0002"]
    assert [(r.source, r.trial) for r in refusals] == [("b.txt", "b/0002"), ("a.txt", None)]


def test_a_header_makes_no_sense(tmp_path):
    with pytest.raises(ValueError, match="header"):
        read(tmp_path, "x\n1\n", ENDED, DelimitedLayout(",", numeric=("x",)))


fields = st.sampled_from(["1", "-2.5e3", "", "NaN", "oops", "inf", '"4"', '"a,b"', "7,8"])
rows = st.tuples(fields, st.sampled_from(["t", '"q"', '"q,r"', "", '"open'])).map(",".join)
bodies = st.lists(st.one_of(rows, st.just("1,t"), st.just("")), max_size=4)


@settings(max_examples=150)
@given(st.lists(bodies, min_size=1, max_size=5), st.booleans())
def test_blocks_are_read_as_each_would_be_alone(tmp_path, blocks, headed):
    """The values, the codes and the line numbers of blocks are those of files of their own."""
    spec = BlocksSpec(head="#+") if headed else BlocksSpec(separator="#+")
    text, starts, line = "", [], 1
    for body in blocks:
        text += ("##\n" if headed else "") + "".join(row + "\n" for row in body)
        starts.append(line + headed)
        line += len(body) + 1
        text += "" if headed else "##\n"
    tables, refusals = read(tmp_path, text, spec, TAGGED)
    assert sorted([t.number for t in tables] + [int(r.trial[-4:]) for r in refusals]) == list(
        range(1, len(blocks) + 1)
    )
    found = {t.number: t for t in tables} | {int(r.trial[-4:]): r for r in refusals}
    for number, (body, start) in enumerate(zip(blocks, starts, strict=True), 1):
        lead = next((i for i, row in enumerate(body) if row), len(body))
        alone = "".join(row + "\n" for row in body[lead:])
        if not alone.strip():
            assert found[number].code == "empty_block"
            continue
        (tmp_path / "alone.txt").write_text(alone)
        kept, gone = read_delimited(tmp_path, [source(tmp_path, "alone.txt")], TAGGED)
        if gone:
            assert found[number].code == gone[0].code
            wanted = None if gone[0].line is None else gone[0].line + start + lead - 1
            assert (found[number].line, found[number].column) == (wanted, gone[0].column)
        else:
            assert found[number].numbers.tobytes() == kept[0].numbers.tobytes()
            assert found[number].text.equals(kept[0].text)


def unpacked(archive, folder):
    found = next((place / archive for place in PLACES if (place / archive).is_file()), None)
    if found is None:
        pytest.skip(f"{archive} is not here; set TRIALSHARDS_DATA to the folder that holds it")
    with tarfile.open(found) as tar:
        tar.extractall(folder, filter="data")
    return folder


def slow_blocks(text, is_edge):
    """Return runs of rows of numbers between edges, by split and float alone."""
    runs = [[]]
    for line in text.splitlines():
        if is_edge(line):
            runs.append([])
        elif line.strip():
            runs[-1].append([float(field) for field in line.split()])
    return [run for run in runs if run]


@pytest.mark.parametrize(("name", "n_blocks"), [("ae.train", 270), ("ae.test", 370)])
def test_japanese_vowels(tmp_path, name, n_blocks):
    root = unpacked("japanese_vowels.tar.xz", tmp_path) / "japanese_vowels"
    names = tuple(f"c{i}" for i in range(1, 13))
    layout = DelimitedLayout(None, header=False, names=names, numeric=names)
    spec = BlocksSpec(separator=r"1\.0+( 1\.0+){11}")
    tables, refusals = read_blocks(root, [source(root, name)], layout, spec)
    wanted = slow_blocks(
        (root / name).read_text(), lambda line: set(map(float, line.split())) == {1.0}
    )
    assert (len(tables), refusals, len(wanted)) == (n_blocks, [], n_blocks)
    for table, rows in zip(tables, wanted, strict=True):
        assert table.numbers.tobytes() == np.array(rows).tobytes()
        assert 7 <= len(table.numbers) <= 29


@pytest.mark.parametrize(
    ("name", "n_blocks"), [("lp1", 88), ("lp2", 47), ("lp3", 47), ("lp4", 117), ("lp5", 164)]
)
def test_robot_failures(tmp_path, name, n_blocks):
    root = unpacked("robot_failures.tar.xz", tmp_path) / "robot_failures"
    names = ("fx", "fy", "fz", "tx", "ty", "tz")
    layout = DelimitedLayout(None, header=False, names=names, numeric=names)
    spec = BlocksSpec(head="(?P<failure>[a-z_]+)", rows=15)
    tables, refusals = read_blocks(root, [source(root, f"{name}.data")], layout, spec)
    text = (root / f"{name}.data").read_text()
    wanted = slow_blocks(text, lambda line: re.match("[a-z]", line))
    assert (len(tables), refusals, len(wanted)) == (n_blocks, [], n_blocks)
    assert [t.found["failure"] for t in tables] == re.findall("(?m)^[a-z_]+", text)
    for table, rows in zip(tables, wanted, strict=True):
        assert table.numbers.tobytes() == np.array(rows).tobytes()
