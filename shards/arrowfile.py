"""What an Arrow IPC file says of its own layout, checked before Arrow's reader trusts it.

Arrow takes offsets and lengths from the file, and inflates compressed buffers to whatever size they
claim. So the few flatbuffers that hold them are read here first, each access inside the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

_MAGIC = b"ARROW1"
_RECORD_BATCH = 3
_CONTINUES = 0xFFFFFFFF
_MOST_COLUMNS = 1024
_MOST_HEAD = 2**20


class _Table:
    """A flatbuffer table: fields are found by their number."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._vtable = at - _number(data, at, "<i")
        self._vtable_bytes = _number(data, self._vtable, "<H")

    def place(self, field: int) -> int | None:
        """Return where a field lies, None where it is left out."""
        slot = 4 + 2 * field
        if slot + 2 > self._vtable_bytes:
            return None
        offset = _number(self._data, self._vtable + slot, "<H")
        return self._at + offset if offset else None

    def number(self, field: int, kind: str) -> int:
        """Return an integer field; 0 where it is left out."""
        at = self.place(field)
        return 0 if at is None else _number(self._data, at, kind)

    def table(self, field: int) -> _Table:
        """Return a table that a field points at."""
        at = self.place(field)
        if at is None:
            raise ValueError("a table is missing")
        return _Table(self._data, at + _number(self._data, at, "<I"))

    def structs(self, field: int, kind: str, most: int) -> list[tuple[Any, ...]]:
        """Return the structs of a vector; none where it is left out."""
        at = self.place(field)
        if at is None:
            return []
        at += _number(self._data, at, "<I")
        count, width = _number(self._data, at, "<I"), struct.calcsize(kind)
        if count > most or at + 4 + count * width > len(self._data):
            raise ValueError(f"a list of {count} entries; wanted at most {most}, in the file")
        return list(struct.iter_unpack(kind, self._data[at + 4 : at + 4 + count * width]))


def _number(data: bytes | memoryview, at: int, kind: str) -> int:
    if at < 0 or at + struct.calcsize(kind) > len(data):
        raise ValueError(f"an offset leads to byte {at} of {len(data)}")
    return int(struct.unpack_from(kind, data, at)[0])


def count_rows(raw: Any) -> int:
    """Return the rows of an Arrow IPC file of one plain record batch at most.

    Args:
        raw: The file, a buffer.

    Raises:
        ValueError: If it is no such file: several batches, dictionaries, compressed buffers, or
            buffers that do not lie inside it.
    """
    with memoryview(raw) as data:
        batches = _blocks(data)
        if not batches:
            return 0
        ((offset, meta_bytes, body_bytes),) = batches
        return _rows_of_batch(_copy(data, offset, offset + meta_bytes), body_bytes)


def _copy(data: memoryview, begin: int, end: int) -> bytes:
    """Return part of the file: a view of it would keep a map from being closed."""
    if end - begin > _MOST_HEAD:
        raise ValueError(f"a header has {end - begin} bytes; wanted at most {_MOST_HEAD}")
    return bytes(data[begin:end])


def _blocks(data: memoryview) -> list[tuple[int, int, int]]:
    end = len(data) - len(_MAGIC) - 4
    if end < 8 or data[:6] != _MAGIC or data[end + 4 :] != _MAGIC:
        raise ValueError("it does not begin and end as an Arrow file")
    begin = end - _number(data, end, "<i")
    if not 8 <= begin < end:
        raise ValueError("its footer does not lie inside it")
    foot = _copy(data, begin, end)
    footer = _Table(foot, _number(foot, 0, "<I"))
    if footer.structs(2, "<qi4xq", 0):
        raise ValueError("it has dictionaries")
    blocks = footer.structs(3, "<qi4xq", 1)
    for offset, meta_bytes, body_bytes in blocks:
        inside = min(offset, meta_bytes, body_bytes) >= 0
        if not inside or offset % 8 or offset + meta_bytes + body_bytes > begin:
            raise ValueError("its record batch does not lie inside it")
    return [(offset, meta, body) for offset, meta, body in blocks]


def _rows_of_batch(head: bytes, body_bytes: int) -> int:
    if _number(head, 0, "<I") != _CONTINUES or not 0 < _number(head, 4, "<i") <= len(head) - 8:
        raise ValueError("its record batch has no header")
    inner = head[8:]
    message = _Table(inner, _number(inner, 0, "<I"))
    if message.number(1, "<B") != _RECORD_BATCH or message.number(3, "<q") != body_bytes:
        raise ValueError("its record batch is not what the footer says")
    batch = message.table(2)
    n_rows = batch.number(0, "<q")
    if n_rows < 0 or batch.place(3) is not None:
        raise ValueError("its record batch is compressed, or has less than no rows")
    for place in _misplaced(batch, body_bytes):
        raise ValueError(f"{place} of its record batch does not lie inside it")
    return n_rows


def _misplaced(batch: _Table, body_bytes: int) -> Iterator[str]:
    for number, (length, nulls) in enumerate(batch.structs(1, "<qq", _MOST_COLUMNS)):
        if not 0 <= nulls <= length:
            yield f"column {number}"
    for number, (offset, length) in enumerate(batch.structs(2, "<qq", 4 * _MOST_COLUMNS)):
        if min(offset, length) < 0 or offset % 8 or offset + length > body_bytes:
            yield f"buffer {number}"
