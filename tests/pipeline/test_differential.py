"""Thousands of generated files, read in batches, equal the slow reading bit for bit."""

from __future__ import annotations

import gzip
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from corpus import MUTATIONS, STYLES, draw_case, whole_file
from corpus_checks import Outcome, check_build, disagreement, read_batch, time_limit
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.files import Refusal
from pipeline.sources.delimited import DelimitedLayout

EXAMPLES = int(os.environ.get("DIFFERENTIAL_EXAMPLES", "25"))
FILES_PER_EXAMPLE = 160
NUMERIC, TEXT, EXTRA = ("x", "y", "z"), ("tag", "note"), ("u", "v")
MARKS = (",", ";", "|", "\t", None)
NULLS = (("", "NA", "NaN", "nan", "null"), ("-999", "?", "n/a"), ("", "-"), ())
PARSERS = (True, False)
"""With the compiled parser, and without it."""
Random = random.Random


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    # One folder for all examples: each names its files by number and overwrites the last ones.
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


# --- files that any tool may write --------------------------------------------------------------


def _digits(rng: Random, most: int) -> str:
    return "".join(rng.choice("0123456789") for _ in range(rng.randint(1, most)))


def _bit_pattern(rng: Random) -> float:
    """Return any finite float64: all exponents, denormals and neighbours of powers of two too."""
    bits = rng.getrandbits(64)
    if rng.random() < 0.3:
        bits = (rng.randint(0, 2046) << 52) + rng.choice([-1, 0, 1]) & (1 << 64) - 1
    if bits >> 52 & 2047 == 2047:
        bits ^= 1 << 62
    return float.fromhex(_hex_of(bits))


def _hex_of(bits: int) -> str:
    exponent, fraction = bits >> 52 & 2047, bits & (1 << 52) - 1
    sign = "-" if bits >> 63 else ""
    lead, power = (1, exponent - 1023) if exponent else (0, -1022)
    return f"{sign}0x{lead}.{fraction:013x}p{power}"


def _halfway(rng: Random) -> str:
    """Return the exact middle between two floats, or a hair beside it."""
    whole = (1 << 53) + 2 * rng.getrandbits(52) + 1
    digits = str(whole << rng.randint(0, 60))
    return digits + rng.choice(["", ".", ".0", ".000000000000000000001", "e0", "e-3"])


SPELLINGS: list[Callable[[Random], str]] = [
    lambda rng: repr(rng.gauss(0, 1)),
    lambda rng: f"{rng.gauss(0, 1e3):.{rng.randint(0, 6)}f}",
    lambda rng: str(rng.randint(-(10**6), 10**6)),
    lambda rng: repr(_bit_pattern(rng)),
    lambda rng: f"{_bit_pattern(rng):.17g}",
    lambda rng: f"{_bit_pattern(rng):+.16E}",
    lambda rng: f"{_bit_pattern(rng) * 1e-300:.25e}",
    _halfway,
    lambda rng: f"{_digits(rng, 40)}.{_digits(rng, 40)}",
    lambda rng: f"0.{'0' * rng.randint(0, 30)}{_digits(rng, 25)}",
    lambda rng: f"{_digits(rng, 19)}e{rng.randint(-330, 285)}",
    lambda rng: rng.choice(["-0.0", "-0", "+0", "0e999", "-.0", "5.", ".5", "+.5e+01", "00012.50"]),
    lambda rng: rng.choice(["4.9e-324", "2.4703282292062327e-324", "2.4703282292062329e-324"]),
    lambda rng: rng.choice(["2.2250738585072011e-308", "1.7976931348623157e308", "1e-400"]),
]
BAD_NUMBERS = (
    *("inf", "-Infinity", "1e400", "-1.8e308", "oops", "1,5", "1.5.2", "--1", "1e", "e5", "0x10"),
    *("1_000", "\u0661", "1\u00a0", "1d3", "1 2", "nan(1)", "NaN0", "+", "-", ".", "1e5.0", "TRUE"),
)
WORDS = ("a", "left hand", "na", "\u00e9t\u00e9", "\u2028", "x\x0by", "#1", "'q'", "0", "-1.5e3")


def _number(rng: Random, layout: DelimitedLayout) -> str:
    if rng.random() < 0.12:
        missing = [null for null in (*layout.nulls, "nan", "-NaN", "+nAn", "") if null]
        return rng.choice(missing if layout.delimiter is None else ["", *missing])
    return rng.choice(SPELLINGS)(rng)


def _word(rng: Random, layout: DelimitedLayout, quoting: bool) -> str:
    words = [*WORDS, *layout.nulls, ""]
    if quoting:
        words += [f"a{layout.mark}b", 'said "no"', "two\nlines", '"', "a\r\nb", f"{layout.mark}"]
    word = rng.choice(words)
    if layout.delimiter is None:
        word = word.replace(" ", "_") or "-"
    return word


def draw_layout(rng: Random) -> DelimitedLayout:
    numeric, text = list(NUMERIC), list(TEXT)
    rng.shuffle(numeric)
    return DelimitedLayout(
        rng.choice(MARKS),
        header=rng.random() < 0.7,
        names=("tag", "z", "u", "y", "note", "x"),
        numeric=tuple(numeric[: rng.randint(1, 3)]),
        text=tuple(text[: rng.choice([0, 0, 0, 1, 2])]),
        comment=rng.choice([None, "#", "%%"]),
        nulls=rng.choice(NULLS),
        final_newline=rng.choice(["require", "require", "optional"]),
        encoding=rng.choice(["utf-8"] * 4 + ["utf-16", "latin-1", "cp1252", "utf-16-le"]),
    )


def draw_file(rng: Random, layout: DelimitedLayout) -> bytes:
    """Return a file of the layout; one in six has a fault somewhere."""
    names = [*NUMERIC, *TEXT, *EXTRA[: rng.randint(0, 2)]] if layout.header else [*layout.names]
    if layout.header and rng.random() < 0.3:
        rng.shuffle(names)
    # Quotes that protect something are read file by file, slowly, so they are rare here.
    quoting = layout.delimiter is not None and rng.random() < 0.12
    padding = rng.random() < 0.15 and not quoting
    lines = [f"# {i}" for i in range(rng.randint(0, 2))] if layout.comment == "#" else []
    lines += ["%%"] if layout.comment == "%%" else []
    lines += [layout.mark.join(names)] if layout.header else []
    lines += [_line(rng, layout, names, quoting, padding) for _ in range(rng.randint(1, 12))]
    if rng.random() < 0.15:
        _spoil(rng, layout, names, lines)
    end = rng.choice(["\n", "\n", "\r\n"])
    text = end.join(lines) + rng.choice([end] * 8 + ["", end * 3])
    if layout.encoding == "utf-8":
        text = rng.choice(["", "", "", "\ufeff"]) + text
    return _packed(rng, text.encode(layout.encoding, "replace"))


def _packed(rng: Random, raw: bytes) -> bytes:
    chance = rng.random()
    if chance < 0.03:
        return gzip.compress(raw)
    return bytes(pa.compress(raw, "zstd", asbytes=True)) if chance < 0.06 else raw


def _line(
    rng: Random, layout: DelimitedLayout, names: list[str], quoting: bool, padding: bool
) -> str:
    fields = []
    for name in names:
        is_number = name in NUMERIC
        field = _number(rng, layout) if is_number else _word(rng, layout, quoting)
        if quoting and (set(field) & {'"', "\n", layout.mark} or rng.random() < 0.4):
            field = '"' + field.replace('"', '""') + '"'
        elif padding:
            pads = ["", " ", "  ", "\t"] if layout.delimiter != "\t" else ["", " ", "   "]
            field = rng.choice(pads) + field + rng.choice(pads)
        fields.append(field)
    gap = layout.mark if layout.delimiter else rng.choice([" ", "  ", "\t", " \t "])
    edge = rng.choice(["", "", " ", "\t "]) if layout.delimiter is None else ""
    return edge + gap.join(fields) + edge


def _spoil(rng: Random, layout: DelimitedLayout, names: list[str], lines: list[str]) -> None:
    """Damage one line: a field more or less, a blank line, no number, a missing column."""
    at = rng.randrange(len(lines))
    line, mark = lines[at], layout.mark
    fields = ["1"] * len(names)
    fields[names.index(rng.choice(layout.numeric))] = rng.choice(BAD_NUMBERS)
    wrong = mark.join(fields)
    lines[at] = rng.choice([
        line + mark, line + mark + "1", line.partition(mark)[0], "", " ", line[: len(line) // 2],
        *[wrong] * 6, line + '"', '"' + line,
    ])  # fmt: skip


# --- laws ---------------------------------------------------------------------------------------


def _smaller(root: Path, content: bytes, layout: DelimitedLayout) -> bytes:
    """Return the file with as few lines as still show the disagreement."""
    lines, at = content.splitlines(keepends=True), 0
    while at < len(lines):
        fewer = lines[:at] + lines[at + 1 :]
        outcomes = [read_batch(root, [b"".join(fewer)], layout, compiled=c)[0] for c in PARSERS]
        if any(disagreement(b"".join(fewer), layout, outcome) for outcome in outcomes):
            lines = fewer
        else:
            at += 1
    return b"".join(lines)


def check_batch(root: Path, contents: list[bytes], layout: DelimitedLayout) -> list[Outcome]:
    for compiled in PARSERS[bool(layout.text) :]:  # text columns are never compiled
        with time_limit(60):
            outcomes = read_batch(root, contents, layout, compiled=compiled)
        for content, outcome in zip(contents, outcomes, strict=True):
            fault = disagreement(content, layout, outcome)
            assert fault is None, (fault, _smaller(root, content, layout), layout, compiled)
    return outcomes


def test_generated_files_are_read_bit_for_bit_or_refused_as_the_rules_say(root: Path):
    seen: Counter[str] = Counter()

    @settings(max_examples=EXAMPLES)
    @given(st.integers(0, 2**63))
    def law(seed: int) -> None:
        rng = random.Random(seed)
        layout = draw_layout(rng)
        contents = [draw_file(rng, layout) for _ in range(FILES_PER_EXAMPLE)]
        for outcome in check_batch(root, contents, layout):
            seen[outcome.code if isinstance(outcome, Refusal) else "accepted"] += 1

    law()
    if EXAMPLES >= 25:
        assert seen["accepted"] > EXAMPLES * FILES_PER_EXAMPLE / 2, seen
        wanted = {"field_count", "not_a_number", "infinite", "truncated", "parse_error"}
        assert wanted <= set(seen), seen


PACKED = ("gzip", "zstd", "cut gzip", "cut zstd", "flip gzip", "two gzip")
PLAIN = tuple(name for name in MUTATIONS if name not in PACKED)


def check_mutations(root: Path, names: tuple[str, ...], n_files: int) -> None:
    """Read damaged files beside whole ones, style by style."""
    cases = [case for case in map(draw_case, range(n_files)) if case.mutation in names]
    for style, (_, layout) in STYLES.items():
        members = [case for case in cases if case.style == style]
        whole = whole_file(style)
        contents = [whole, *(case.content for case in members), whole]
        for compiled in PARSERS:
            with time_limit(60):
                outcomes = read_batch(root, contents, layout, compiled=compiled)
            faults = [disagreement(whole, layout, outcomes[i]) for i in (0, -1)]
            assert faults == [None, None]
            for case, outcome in zip(members, outcomes[1:-1], strict=True):
                assert disagreement(case.content, layout, outcome) is None, str(case)


def test_damaged_files_are_refused_or_read_as_they_stand(root: Path):
    check_mutations(root, PLAIN, 520)


def test_damaged_compressed_files_are_refused_or_read_as_they_stand(root: Path):
    check_mutations(root, PACKED, 520)


@pytest.mark.parametrize("style", STYLES)
def test_a_build_of_damaged_files_accounts_for_each_of_them(style: str, tmp_path: Path):
    cases = [draw_case(seed) for seed in range(1000, 1560)]
    members = [case for case in cases if case.style == style and case.mutation in PLAIN]
    with time_limit(60):
        faults, codes = check_build(tmp_path, members)
    assert faults == []
    assert len(codes) > 5
    assert codes.total() < len(members)


def test_no_byte_of_a_file_can_be_lost_unseen(root: Path):
    """A file cut at any byte is refused or lacks whole lines."""
    for style, (_, layout) in STYLES.items():
        whole = whole_file(style)[:600]
        whole = whole[: whole.rindex(b"\n") + 1]
        cuts = [whole[:n] for n in range(len(whole))]
        outcomes = check_batch(root, cuts, layout)
        accepted = {n for n, outcome in enumerate(outcomes) if not isinstance(outcome, Refusal)}
        assert {whole[n - 1] for n in accepted} == {ord("\n")}


# --- defects ------------------------------------------------------------------------------------

RUNS = DelimitedLayout(None, numeric=("x", "y"))
NOTED = DelimitedLayout(",", numeric=("x",), text=("note",))


def test_empty_quotes_among_runs_of_blanks_are_a_field(root: Path):
    """A line of four fields passes for one of three, whatever the third and fourth are."""
    check_batch(root, [b'x y z\n1 "" 2 3\n', b'x y z\n1 2 3 ""\n'], RUNS)


def test_a_stray_quote_in_the_header_is_no_part_of_another_name(root: Path):
    outcomes = read_batch(root, [b'x",note\n1,a\n', b'x,note""\n1,a\n'], NOTED)
    assert [getattr(outcome, "code", None) for outcome in outcomes] == ["missing_column"] * 2


@pytest.mark.parametrize("content", [b'x,note\n1,"%s,"\n', b"x,note,%s\n1,a,b\n"])
def test_a_text_may_be_long_whether_quoted_or_a_name(root: Path, content: bytes):
    """The csv module takes no field over 131,072 characters unless it is told to."""
    (outcome,) = read_batch(root, [content % (b"w" * 140_000)], NOTED)
    assert not isinstance(outcome, Refusal), outcome.message
