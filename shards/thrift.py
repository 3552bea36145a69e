"""As much of Thrift's compact protocol as the headers of Parquet need: read, never trusted."""

from __future__ import annotations

from typing import Any

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_WHOLE, _TEXTS, _LISTS = frozenset((_I32, _I64)), {_BYTE: 1, _DOUBLE: 8, _BINARY: 0}, (_LIST, _SET)
_MOST_DEPTH = 16


class CompactReader:
    """Reads values from bytes; each access is checked against the end.

    Args:
        data: The bytes.
        at: Where to begin.
        end: Where the value must have ended.
    """

    def __init__(self, data: Any, at: int, end: int) -> None:
        self._data, self.at, self._end = data, at, min(end, len(data))

    def struct(self, depth: int = 0, *, until: int = 1 << 16) -> dict[int, Any]:
        """Return the fields of a struct by number.

        Args:
            depth: Of the structs around it.
            until: The last field that is wanted; what follows is not looked at.

        Raises:
            ValueError: If it does not end in time, or is no struct.
        """
        if depth > _MOST_DEPTH:
            raise ValueError("a header is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            if number > until:
                break
            fields[number] = self._value(head & 15, depth)
            if number == until:
                break
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in _WHOLE:  # the most common first: a build reads thousands of them
            return self._zigzag()
        if kind in _TEXTS:
            return self._bytes(_TEXTS[kind] or self._varint())
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in _LISTS:
            return self._list(depth)
        if kind in (_TRUE, _FALSE):
            return kind == _TRUE
        if kind == _I16:  # no field that is looked at; a decoder skips one of another kind
            return (self._zigzag(),)
        raise ValueError(f"a header has a value of kind {kind}")

    def _list(self, depth: int) -> list[Any]:
        head = self._byte()
        count, kind = head >> 4, head & 15
        if count == 15:
            count = self._varint()
        if count > self._end - self.at:  # each takes a byte at least
            raise ValueError(f"a header has a list of {count} values")
        if kind in (_TRUE, _FALSE):
            return [self._byte() == _TRUE for _ in range(count)]
        return [self._value(kind, depth + 1) for _ in range(count)]

    def _byte(self) -> int:
        at = self.at
        if at >= self._end:
            raise ValueError("a header does not end")
        self.at = at + 1
        byte: int = self._data[at]
        return byte

    def _bytes(self, count: int) -> bytes:
        if count > self._end - self.at:
            raise ValueError(f"a header has a text of {count} bytes")
        self.at += count
        return bytes(self._data[self.at - count : self.at])

    def _varint(self) -> int:
        value = self._byte()
        if value < 128:  # as most are
            return value
        value, shift = value & 127, 7
        while shift < 70:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise ValueError("a header has a number of more than 64 bits")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
