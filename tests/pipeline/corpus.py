"""Files of several styles, whole and damaged, each drawn from a number that a failure names."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from pipeline.sources.delimited import DelimitedLayout

Random = random.Random


# --- styles: what public data sets look like ---------------------------------------------------


def robot_arm(rng: Random) -> bytes:
    """Return time and joints by comma, dropouts as empty fields, a text column."""
    lines = ["t,q1,q2,tau1,payload"]
    payload = rng.choice(["light", "heavy"])
    for row in range(rng.randint(3, 25)):
        values = [f"{rng.gauss(0, 1):.6f}" if rng.random() > 0.1 else "" for _ in range(3)]
        lines.append(",".join([f"{row / 50:.2f}", *values, payload]))
    return ("\n".join(lines) + "\n").encode()


def intensive_care(rng: Random) -> bytes:
    """Return many columns by bar, most of them NaN, as the PhysioNet challenges write them."""
    names = [f"V{i}" for i in range(20)] + ["ICULOS", "Label"]
    lines = ["|".join(names)]
    for hour in range(1, rng.randint(3, 20)):
        values = [f"{rng.uniform(0, 300):.4g}" if rng.random() > 0.7 else "NaN" for _ in range(20)]
        lines.append("|".join([*values, str(hour), str(int(rng.random() > 0.9))]))
    return ("\n".join(lines) + "\n").encode()


def turbofan(rng: Random) -> bytes:
    """Return numbers in runs of blanks without a header, a blank before each newline: C-MAPSS."""
    lines = []
    for cycle in range(1, rng.randint(4, 25)):
        sensors = [f"{rng.gauss(500, 9):.2f}" for _ in range(6)]
        lines.append(" ".join(["7", str(cycle), *sensors]) + "  ")
    return ("\n".join(lines) + "\n").encode()


def spreadsheet(rng: Random) -> bytes:
    """Return semicolons, CRLF, quotes that matter, a byte order mark, exponents."""
    lines = ['"x";"note";"y"']
    for _ in range(rng.randint(2, 12)):
        note = rng.choice(["plain", "a;b", 'said ""no""', "two\r\nlines", "", "\u00e9t\u00e9"])
        lines.append(f'{rng.gauss(0, 1):.17e};"{note}";"{rng.gauss(0, 1e6)!r}"')
    return b"\xef\xbb\xbf" + ("\r\n".join(lines) + "\r\n").encode()


_SENSORS = tuple(f"s{i}" for i in range(6))
STYLES: dict[str, tuple[Callable[[Random], bytes], DelimitedLayout]] = {
    "robot_arm": (
        robot_arm,
        DelimitedLayout(",", numeric=("q1", "q2", "tau1", "t"), text=("payload",)),
    ),
    "intensive_care": (
        intensive_care,
        DelimitedLayout("|", numeric=("V19", "V0", "V7", "ICULOS", "Label")),
    ),
    "turbofan": (
        turbofan,
        DelimitedLayout(
            None, header=False, names=("unit", "cycle", *_SENSORS), numeric=("s5", "cycle", "s0")
        ),
    ),
    "spreadsheet": (spreadsheet, DelimitedLayout(";", numeric=("y", "x"), text=("note",))),
}


# --- accidents ----------------------------------------------------------------------------------


def _cut(raw: bytes, rng: Random) -> bytes:
    return raw[: rng.randrange(len(raw))]


def _cut_in_last_column(raw: bytes, rng: Random) -> bytes:
    return raw.rstrip()[: -rng.randint(1, 3)]


def _flip_bit(raw: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(raw))
    return raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :]


def _swap_bytes(raw: bytes, rng: Random) -> bytes:
    a, b = sorted(rng.randrange(len(raw)) for _ in range(2))
    data = bytearray(raw)
    data[a], data[b] = data[b], data[a]
    return bytes(data)


def _with_lines(change: Callable[[list[bytes], Random], None]) -> Callable[[bytes, Random], bytes]:
    def mutate(raw: bytes, rng: Random) -> bytes:
        lines = raw.splitlines(keepends=True)
        change(lines, rng)
        return b"".join(lines)

    return mutate


def _swap_lines(lines: list[bytes], rng: Random) -> None:
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[a], lines[b] = lines[b], lines[a]


def _duplicate_line(lines: list[bytes], rng: Random) -> None:
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))


def _delete_line(lines: list[bytes], rng: Random) -> None:
    del lines[rng.randrange(len(lines))]


def _inserting(*pieces: bytes) -> Callable[[bytes, Random], bytes]:
    def mutate(raw: bytes, rng: Random) -> bytes:
        at = rng.randrange(len(raw) + 1)
        return raw[:at] + rng.choice(pieces) * rng.choice([1, 1, 1, 2, 7]) + raw[at:]

    return mutate


def _replace_field(raw: bytes, rng: Random) -> bytes:
    """Replace a run of number letters by something a sick device may write."""
    odd = b"1e400 -inf Infinity nan(0) 0x1p3 1_000 1,5 1.2.3 -- + . e5 1e 1d5 \xd9\xa1 ''".split()
    odd += [b"9" * 400, b"1e-400", b"4.9e-324", b"-0", b"123456789012345678901234567890.5"]
    at = rng.randrange(len(raw))
    end = at
    while end < len(raw) and raw[end] in b"0123456789.-":
        end += 1
    return raw[:at] + rng.choice(odd) + raw[end:]


def _zstd(raw: bytes) -> bytes:
    return bytes(pa.compress(raw, "zstd", asbytes=True))


def _recoding(*encodings: str) -> Callable[[bytes, Random], bytes]:
    def mutate(raw: bytes, rng: Random) -> bytes:
        return raw.decode("utf-8-sig").encode(rng.choice(encodings), "replace")

    return mutate


MUTATIONS: dict[str, Callable[[bytes, Random], bytes]] = {
    "none": lambda raw, rng: raw,
    "cut": _cut,
    "cut in last column": _cut_in_last_column,
    "flip bit": _flip_bit,
    "swap bytes": _swap_bytes,
    "swap lines": _with_lines(_swap_lines),
    "duplicate line": _with_lines(_duplicate_line),
    "delete line": _with_lines(_delete_line),
    "insert nul": _inserting(b"\0"),
    "insert quote": _inserting(b'"', b'""'),
    "insert delimiter": _inserting(b",", b"|", b";", b" ", b"\t"),
    "insert newline": _inserting(b"\n", b"\r\n"),
    "insert return": _inserting(b"\r"),
    "insert bytes": _inserting(b"\xff", b"\xc3\xa9", b"\x1a", b"\x0c", b"\xe2\x80\xa8", b"#"),
    "replace field": _replace_field,
    "cut and go on": lambda raw, rng: _cut(raw, rng) + raw[rng.randrange(len(raw)) :],
    "concatenate": lambda raw, rng: raw + rng.choice([raw, _cut(raw, rng)]),
    "gzip": lambda raw, rng: gzip.compress(raw, mtime=0),
    "zstd": lambda raw, rng: _zstd(raw),
    "cut gzip": lambda raw, rng: _cut(gzip.compress(raw, mtime=0), rng),
    "cut zstd": lambda raw, rng: _cut(_zstd(raw), rng),
    "flip gzip": lambda raw, rng: _flip_bit(gzip.compress(raw, mtime=0), rng),
    "two gzip": lambda raw, rng: gzip.compress(raw, mtime=0) + gzip.compress(raw, mtime=0),
    "utf-16": _recoding("utf-16", "utf-16-le", "utf-16-be"),
    "latin-1": _recoding("latin-1", "cp1252"),
    "byte order mark": lambda raw, rng: b"\xef\xbb\xbf" + raw,
}


@dataclass(frozen=True)
class Case:
    """One file of the corpus; `draw_case(seed)` makes it again."""

    seed: int
    style: str
    mutation: str
    content: bytes

    @property
    def layout(self) -> DelimitedLayout:
        return STYLES[self.style][1]

    def __str__(self) -> str:
        return f"seed {self.seed} ({self.style}, {self.mutation})"


def draw_case(seed: int) -> Case:
    """Return the file of this number: each mutation meets each style, some are struck twice."""
    rng = random.Random(seed)
    style = list(STYLES)[seed % len(STYLES)]
    mutation = list(MUTATIONS)[seed // len(STYLES) % len(MUTATIONS)]
    content = MUTATIONS[mutation](STYLES[style][0](rng), rng)
    if mutation != "none" and rng.random() < 0.2 and content:
        content = _flip_bit(content, rng)
    return Case(seed, style, mutation, content)


def whole_file(style: str, seed: int = 0) -> bytes:
    """Return an undamaged file."""
    return STYLES[style][0](random.Random(seed))
