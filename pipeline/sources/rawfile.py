"""One file's bytes: read while nobody writes, and refused unless they are lines of UTF-8."""

from __future__ import annotations

import codecs
import io
import os
import stat
from pathlib import Path

from pipeline.trials import RefusedError, SourceFile

_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
# The UTF-32 little-endian mark starts with the UTF-16 one, so three marks cover four encodings.
_FOREIGN_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


class ReadRefusedError(RefusedError):
    """A file is refused for its bytes, before anybody looked at what they say."""


def read_stable(root: Path, file: SourceFile) -> bytes:
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


def check_text(raw: bytes) -> bytes:
    r"""Return the text of a file: no byte order mark, lines ended by ``\n`` alone.

    Raises:
        ReadRefusedError: `empty`, `compressed`, `encoding`, `nul_bytes` or `lone_cr`.
    """
    for magic, name in _COMPRESSED.items():
        if raw.startswith(magic):
            message = f"holds {name} data; text was wanted: decompress it, or exclude it"
            raise ReadRefusedError("compressed", message)
    if raw.startswith(_FOREIGN_MARKS):
        message = "starts with a UTF-16 or UTF-32 byte order mark; UTF-8 was wanted: convert it"
        raise ReadRefusedError("encoding", message, line=1)
    text = raw.removeprefix(codecs.BOM_UTF8)
    if not text.lstrip(b"\r\n"):
        message = f"holds {len(raw)} bytes and no text; write the file again, or exclude it"
        raise ReadRefusedError("empty", message)
    if (at := text.find(b"\0")) >= 0:
        message = "holds a NUL byte: binary data, UTF-16 text, or blocks lost in a crash; "
        raise ReadRefusedError(
            "nul_bytes", message + "write it again as UTF-8", line=_line_of(text, at)
        )
    _check_utf8(text)
    return _unix_lines(text) if b"\r" in text else text


def _read(path: str) -> tuple[os.stat_result, bytes, os.stat_result]:
    # Non-blocking, because opening a named pipe would otherwise wait for its writer.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        before = os.fstat(handle)
        if not stat.S_ISREG(before.st_mode):
            message = "is no regular file; a text file was wanted: narrow source.files"
            raise ReadRefusedError("not_a_file", message)
        return before, io.FileIO(handle, closefd=False).readall(), os.fstat(handle)
    finally:
        os.close(handle)


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
        message = f"byte 0x{bad} is not UTF-8; convert the file to UTF-8"
        raise ReadRefusedError("encoding", message, line=_line_of(text, error.start)) from error


def _unix_lines(text: bytes) -> bytes:
    unix = text.replace(b"\r\n", b"\n")
    if (at := unix.find(b"\r")) >= 0:
        message = "holds a carriage return without a line feed; end lines with LF or CRLF"
        raise ReadRefusedError("lone_cr", message, line=_line_of(unix, at))
    return unix


def _line_of(text: bytes, at: int) -> int:
    return text.count(b"\n", 0, at) + 1
