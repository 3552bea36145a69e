"""Delimited numbers as most files write them: parsed where they lie, many files in one call.

Nothing is refused here. A file in which anything is unusual is left to `lines` and `delimited`,
which look at each of its bytes and say what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.files import RefusedError
from pipeline.sources.compiled import parse_raw_files
from pipeline.sources.decompress import is_compressed
from pipeline.sources.layout import Columns, DelimitedLayout
from pipeline.sources.lines import find_columns, split_top
from pipeline.sources.rawfile import check_text, has_mark, is_utf8
from pipeline.trials import Float64

_MOST_TOPS = 16
"""Beyond so many headers in a batch, looking for the right one costs more than it saves."""


class _Top(NamedTuple):
    """The first bytes of files, up to the end of the header, and what they say."""

    text: bytes
    columns: Columns
    members: list[int]


def parse_plain_files(
    raws: Sequence[bytes | None], layout: DelimitedLayout
) -> list[Float64 | None]:
    """Return the numbers of each file, or None where it must be looked at by itself.

    Args:
        raws: What the files hold; None where nobody knows.
        layout: How they are written.

    Returns:
        `[rows, columns]` each; files with the same header are neighbours in shared memory.
    """
    found: list[Float64 | None] = [None] * len(raws)
    if layout.text or layout.delimiter is None or not is_utf8(layout.encoding):
        return found
    for top in _find_tops(raws, layout):
        whole = [raw for raw in (raws[i] for i in top.members) if raw is not None]
        parsed = parse_raw_files(whole, len(top.text), top.columns, layout.mark, layout.nulls)
        if parsed is None:
            continue
        edges = parsed.edges.tolist()
        for place, (i, failed) in enumerate(zip(top.members, parsed.failed.tolist(), strict=True)):
            if not failed:
                found[i] = parsed.numbers[edges[place] : edges[place + 1]]
    return found


def _find_tops(raws: Sequence[bytes | None], layout: DelimitedLayout) -> list[_Top]:
    """Group files by their first bytes; a file whose first bytes are odd is in no group."""
    tops: list[_Top] = []
    for i, raw in enumerate(raws):
        # A known header says that these are no compressed bytes; without one the bytes must.
        if raw is None or not (layout.header or _starts_plainly(raw, layout)):
            continue
        for top in tops:
            if raw.startswith(top.text):
                top.members.append(i)
                break
        else:
            fresh = _read_top(raw, layout) if len(tops) < _MOST_TOPS else None
            if fresh is not None:
                fresh.members.append(i)
                tops.append(fresh)
    return tops


def _starts_plainly(raw: bytes, layout: DelimitedLayout) -> bool:
    if layout.comment and raw.startswith(layout.comment.encode()):
        return False
    return not is_compressed(raw) and not has_mark(raw)


def _read_top(raw: bytes, layout: DelimitedLayout) -> _Top | None:
    if is_compressed(raw) or has_mark(raw):
        return None
    try:
        header, body, first_line = split_top(raw, layout)
        text = raw[: len(raw) - len(body)]
        if text and check_text(text, layout.encoding) != text:
            return None
        return _Top(text, find_columns(header, first_line - 1, layout), [])
    except (RefusedError, ValueError):  # whoever looks at the file by itself says so
        return None
