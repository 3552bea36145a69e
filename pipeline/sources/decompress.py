"""A compressed file's bytes, unpacked in pieces, whole or not at all."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import pyarrow as pa

from pipeline.sources.rawfile import ReadRefusedError

LIMIT_BYTES = 2 * 2**30
"""What one file may decompress to: beyond it a few kilobytes could fill the memory."""
_PIECE_BYTES = 64 * 2**10  # deflate makes at most 1,032 bytes of one, so a step holds 66 MiB
_GZIP = b"\x1f\x8b"
_ZSTD = (
    b"\x28\xb5\x2f\xfd",
    # Frames to skip, which some parallel compressors write first.
    *(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60)),
)
_MAGIC = (_GZIP, *_ZSTD)


def is_compressed(raw: bytes) -> bool:
    """Return whether bytes start as gzip or zstd files do."""
    return raw.startswith(_MAGIC)


def decompress(raw: bytes) -> bytes:
    """Return what a gzip or zstd file holds, and any other file as it is.

    The first bytes decide, not the suffix. All members and frames are joined; checksums and
    lengths are checked where the format has them, as gzip always does.

    Args:
        raw: The file's bytes.

    Raises:
        ReadRefusedError: `compressed_damaged` or `too_large`.
    """
    if not is_compressed(raw):
        return raw
    name, pieces = ("gzip", _gunzip(raw)) if raw.startswith(_GZIP) else ("zstd", _unzstd(raw))
    kept: list[bytes] = []
    size_bytes = 0
    try:
        for piece in pieces:
            size_bytes += len(piece)
            if size_bytes > LIMIT_BYTES:
                raise _too_large(len(raw))
            kept.append(piece)
    except (zlib.error, EOFError, OSError, pa.ArrowException) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        message = (
            f"is damaged {name} data ({first} after {size_bytes} bytes of content); "
            "copy the file again, or exclude it"
        )
        raise ReadRefusedError("compressed_damaged", message) from error
    return b"".join(kept)


def _gunzip(raw: bytes) -> Iterator[bytes]:
    """Yield the content of all members; zlib checks each one's checksum and length."""
    member = zlib.decompressobj(wbits=31)
    for start in range(0, len(raw), _PIECE_BYTES):
        piece = raw[start : start + _PIECE_BYTES]
        while piece:
            if member.eof:
                member = zlib.decompressobj(wbits=31)
            yield member.decompress(piece)
            piece = member.unused_data
    if not member.eof:
        raise EOFError("it ends too early")


def _unzstd(raw: bytes) -> Iterator[bytes]:
    with pa.CompressedInputStream(pa.BufferReader(raw), "zstd") as stream:
        while piece := stream.read(16 * _PIECE_BYTES):
            yield piece


def _too_large(size_bytes: int) -> ReadRefusedError:
    message = (
        f"holds {size_bytes} bytes that decompress to more than {LIMIT_BYTES} bytes, the limit; "
        "split the file, or exclude it"
    )
    return ReadRefusedError("too_large", message)
