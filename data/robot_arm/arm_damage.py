"""The documented handful: how a few recordings were spoiled on their way to disk.

Each damage takes the bytes of a good file and returns what the data set ships instead. The code
beside it is the reason for which a reader should put the file into quarantine.
"""

from __future__ import annotations

import codecs
import gzip
from collections.abc import Callable

_FLIPPED_BIT = 0x40


def _complete_line(lines: list[bytes], share: float) -> int:
    """Index of the first line at or after a share of the file that has no empty field."""
    first = int(len(lines) * share)
    return next(i for i in range(first, len(lines)) if b",," not in lines[i])


def _edit_line(data: bytes, share: float, edit: Callable[[list[bytes]], list[bytes]]) -> bytes:
    """Replace the fields of one complete line."""
    lines = data.splitlines(keepends=True)
    at = _complete_line(lines, share)
    lines[at] = b",".join(edit(lines[at].split(b",")))
    return b"".join(lines)


def cut_in_number(data: bytes) -> bytes:
    """Disk full: the file ends inside q2, and what is left still reads as a number."""
    lines = data.splitlines(keepends=True)
    at = _complete_line(lines, 0.7)
    t, q1, q2 = lines[at].split(b",")[:3]
    return b"".join(lines[:at]) + b",".join([t, q1, q2[:4]])


def cut_in_last_field(data: bytes) -> bytes:
    """Cut inside the very last field: every line has its 13 fields, only the newline is gone."""
    return data[:-3]


def lose_fields(data: bytes) -> bytes:
    """The serial line dropped bytes in mid-file: one row is three fields short."""
    return _edit_line(data, 0.4, lambda fields: fields[:5] + fields[8:])


def write_decimal_comma(data: bytes) -> bytes:
    """One value with a decimal comma: one row has a field too many."""

    def spoil(fields: list[bytes]) -> list[bytes]:
        whole, _, decimals = fields[7].partition(b".")
        return [*fields[:7], whole, decimals or b"0", *fields[8:]]

    return _edit_line(data, 0.6, spoil)


def flip_bit(data: bytes) -> bytes:
    """A flipped bit turned the last digit of tau1 into a letter."""

    def spoil(fields: list[bytes]) -> list[bytes]:
        tau = fields[7]
        return [*fields[:7], tau[:-1] + bytes([tau[-1] ^ _FLIPPED_BIT]), *fields[8:]]

    return _edit_line(data, 0.5, spoil)


def overflow(data: bytes) -> bytes:
    """A velocity estimate divided by zero."""
    return _edit_line(data, 0.3, lambda fields: [*fields[:5], b"inf", *fields[6:]])


def keep_nothing(data: bytes) -> bytes:
    """The file was opened and never written."""
    return data[:0]


def keep_header(data: bytes) -> bytes:
    """The recording stopped before the first row."""
    return data[: data.index(b"\n") + 1]


def compress(data: bytes) -> bytes:
    """A gzip file under the name of its content, cut on the way: whole ones are read."""
    packed = gzip.compress(data, mtime=0)
    return packed[: len(packed) * 2 // 3]


def drop_tau2(data: bytes) -> bytes:
    """Recorded with an old set-up: the column tau2 does not exist."""
    rows = [line.split(b",") for line in data.splitlines()]
    at = rows[0].index(b"tau2")
    return b"".join(b",".join(row[:at] + row[at + 1 :]) + b"\n" for row in rows)


def encode_utf16(data: bytes) -> bytes:
    """Opened and saved by a desktop program as "Unicode text"."""
    return codecs.BOM_UTF16_LE + data.decode().encode("utf-16-le")


def lose_sensors(data: bytes) -> bytes:
    """The sensor bus died after 10 % of the trial: q, dq and tau are empty from there on."""
    lines = data.splitlines(keepends=True)
    first = max(2, len(lines) // 10)
    rows = [line.split(b",") for line in lines[first:]]
    return b"".join([*lines[:first], *(b",".join([r[0], *[b""] * 9, *r[10:]]) for r in rows)])


# Path below `raw/` -> (quarantine code, what happened).
DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "s01/trial_0017.csv": ("truncated", cut_in_number),
    "s02/trial_0058.csv": ("truncated", cut_in_last_field),
    "s03/trial_0029.csv": ("field_count", lose_fields),
    "s04/trial_0073.csv": ("field_count", write_decimal_comma),
    "s05/trial_0012.csv": ("not_a_number", flip_bit),
    "s06/trial_0088.csv": ("infinite", overflow),
    "s07/trial_0044.csv": ("empty", keep_nothing),
    "s08/trial_0066.csv": ("no_rows", keep_header),
    "s09/trial_0035.csv": ("compressed_damaged", compress),
    "s10/trial_0051.csv": ("missing_column", drop_tau2),
    "s11/trial_0009.csv": ("encoding", encode_utf16),
    "s12/trial_0080.csv": ("too_many_missing", lose_sensors),
}

BROKEN: dict[str, str] = {path: code for path, (code, _) in DAMAGE.items()}
