"""One file's bytes: read while nobody writes, unpacked, and refused unless they are lines."""

from __future__ import annotations

import codecs
import io
import os
import stat
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import ParamSpec, TypeVar

from pipeline.files import Refusal, RefusedError, SourceFile

P = ParamSpec("P")
T = TypeVar("T")

# Longest first: the UTF-32 little-endian mark starts with the UTF-16 one.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
    codecs.BOM_UTF8: "utf-8",
}
_FOREIGN_TO_UTF8 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
_ALL_MARKS = tuple(_MARKS)
_LIBRARY_MESSAGE_LIMIT = 80


class ReadRefusedError(RefusedError):
    """A file is refused for its bytes, before anybody looked at what they say."""


def read_stable(root: Path | str, file: SourceFile) -> bytes:
    """Return the bytes of a file that is, before and after reading, what the catalog saw.

    Args:
        root: Source root.
        file: The catalog's record.

    Raises:
        ReadRefusedError: `unreadable`, `not_a_file` or `changed_while_read`.
    """
    try:
        before, raw, after = _read(f"{root}/{file.path}")
    except (OSError, ValueError) as error:
        advice = "restore the file or its permissions, then build again"
        message = f"cannot be read ({error}); {advice}"
        raise ReadRefusedError("unreadable", message) from error
    for seen in (before, after):
        if (seen.st_size, seen.st_mtime_ns) != (file.size_bytes, file.mtime_ns):
            raise _changed(file, seen.st_size, seen.st_mtime_ns)
    if len(raw) != file.size_bytes:
        raise _changed(file, len(raw), after.st_mtime_ns)
    return raw


def check_text(raw: bytes, encoding: str = "utf-8") -> bytes:
    r"""Return the text of a file: UTF-8, no byte order mark, lines ended by ``\n`` alone.

    Args:
        raw: The file's bytes, decompressed.
        encoding: How they spell text, as Python knows it.

    Raises:
        ReadRefusedError: `empty`, `encoding`, `nul_bytes` or `lone_cr`.
    """
    text = decode_text(raw, encoding)
    if not text.lstrip(b"\r\n"):
        message = f"holds {len(raw)} bytes and no text; write the file again, or exclude it"
        raise ReadRefusedError("empty", message)
    if (at := text.find(b"\0")) >= 0:
        message = (
            "holds a NUL character: binary data, blocks lost in a crash, or UTF-16 without its "
            "mark; write the file again, or say source.encoding: utf-16"
        )
        raise ReadRefusedError("nul_bytes", message, line=_line_of(text, at))
    _check_utf8(text)
    return _unix_lines(text) if b"\r" in text else text


def decode_text(raw: bytes, encoding: str = "utf-8") -> bytes:
    """Return bytes as UTF-8 without a byte order mark, line ends as they are.

    Bytes said to be UTF-8 are not looked at beyond their mark: that is `check_text`'s work.

    Args:
        raw: The file's bytes, decompressed.
        encoding: How they spell text. UTF-16 and UTF-32 need no mark where the first character
            is ASCII, as a header's and a number's are; else the low byte is taken to come first.

    Raises:
        ReadRefusedError: `encoding`.
    """
    if is_utf8(encoding):
        if raw.startswith(_FOREIGN_TO_UTF8):
            raise _wrong_mark(raw, "utf-8")
        return raw.removeprefix(codecs.BOM_UTF8)
    codec = _resolve(raw, codecs.lookup(encoding).name)
    try:
        return raw.decode(codec).removeprefix("\ufeff").encode()
    except UnicodeError as error:
        line, bad = None, "the text"
        if isinstance(error, UnicodeDecodeError):
            line = raw[: error.start].decode(codec, "replace").count("\n") + 1
            bad = f"byte 0x{raw[error.start : error.start + 1].hex()}"
        message = f"{bad} is not {encoding}; correct source.encoding, or convert the file"
        raise ReadRefusedError("encoding", message, line=line) from error


def has_mark(raw: bytes) -> bool:
    """Return whether bytes start with a byte order mark."""
    return raw.startswith(_ALL_MARKS)


def refusal_of(file: SourceFile, refused: RefusedError, trial: str | None = None) -> Refusal:
    """Return why a file, or one trial of it, is refused by its reader."""
    return Refusal(
        source=file.path,
        stage="read" if isinstance(refused, ReadRefusedError) else "parse",
        code=refused.code,
        message=str(refused),
        line=refused.line,
        column=refused.column,
        size_bytes=file.size_bytes,
        trial=trial,
    )


def parse_error(error: BaseException) -> RefusedError:
    """Return the refusal of a file that made a library raise."""
    first = (str(error) or type(error).__name__).splitlines()[0][:_LIBRARY_MESSAGE_LIMIT]
    message = f"cannot be parsed ({first}); look at the file, or report it if it looks right"
    return RefusedError("parse_error", message)


def _read(path: str) -> tuple[os.stat_result, bytes, os.stat_result]:
    # Non-blocking, because opening a named pipe would otherwise wait for its writer.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        before = os.fstat(handle)
        if not stat.S_ISREG(before.st_mode):
            message = "is no regular file, which was wanted; narrow source.files"
            raise ReadRefusedError("not_a_file", message)
        raw = os.read(handle, before.st_size + 1)
        if len(raw) != before.st_size:  # it grew, or this system hands out less at once
            raw += io.FileIO(handle, closefd=False).readall()
        return before, raw, os.fstat(handle)
    finally:
        os.close(handle)


@lru_cache(maxsize=16)
def is_utf8(encoding: str) -> bool:
    """Return whether text of this encoding is UTF-8."""
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


def _resolve(raw: bytes, codec: str) -> str:
    """Return the codec with its byte order, refusing a byte order mark that contradicts it."""
    for mark, marked in _MARKS.items():
        if raw.startswith(mark):
            if marked in (codec, f"{codec}-le", f"{codec}-be"):
                return marked
            raise _wrong_mark(raw, codec)
    if codec in ("utf-16", "utf-32"):
        return f"{codec}-be" if raw[:1] == b"\0" else f"{codec}-le"
    return codec


def _wrong_mark(raw: bytes, wanted: str) -> ReadRefusedError:
    marked = next(name for mark, name in _MARKS.items() if raw.startswith(mark))
    family = marked.removesuffix("-le").removesuffix("-be")
    message = (
        f"starts with the byte order mark of {family.upper()}, {wanted.upper()} was wanted; "
        f"say source.encoding: {family}, or convert the file"
    )
    return ReadRefusedError("encoding", message, line=1)


def _changed(file: SourceFile, size_bytes: int, mtime_ns: int) -> ReadRefusedError:
    return ReadRefusedError(
        "changed_while_read",
        f"the catalog saw {file.size_bytes} bytes modified at {file.mtime_ns} ns, reading saw "
        f"{size_bytes} bytes modified at {mtime_ns} ns; build again when its writer is done",
    )


def _check_utf8(text: bytes) -> None:
    if text.isascii():
        return
    try:
        text.decode()
    except UnicodeDecodeError as error:
        bad = text[error.start : error.start + 1].hex()
        message = (
            f"byte 0x{bad} is not UTF-8; convert the file to UTF-8, or say what it is, such as "
            "source.encoding: latin-1 or cp1252"
        )
        raise ReadRefusedError("encoding", message, line=_line_of(text, error.start)) from error


def _unix_lines(text: bytes) -> bytes:
    unix = text.replace(b"\r\n", b"\n")
    if (at := unix.find(b"\r")) >= 0:
        message = "holds a carriage return without a line feed; end lines with LF or CRLF"
        raise ReadRefusedError("lone_cr", message, line=_line_of(unix, at))
    return unix


def _line_of(text: bytes, at: int) -> int:
    return text.count(b"\n", 0, at) + 1


def guard(read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | RefusedError:
    """Return what reading one file gives, or why the file is refused; it never loses its batch."""
    try:
        return read(*args, **kwargs)
    except RefusedError as refused:
        return refused
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - what one file provokes must not lose its batch
        return parse_error(error)
