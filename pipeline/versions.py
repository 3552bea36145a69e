"""The version of every stage that decides what a trial becomes.

Raise a stage's number when it begins to make something else of the same input: all data sets are
then built anew. They stand here, apart from the stages, because a build that finds nothing to do
must know them without loading what it will not use.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import time
from pathlib import Path

import xxhash

_LOADED_NS = time.time_ns()

STAGES = {
    "sources": 1,
    "reshape": 1,
    "timeline": 1,
    "derive": 2,
    "clean": 1,
    "codes": 1,
    "normalize": 2,
    "shape": 1,
    "plain": 1,
    "finish": 2,
    "prepare": 2,
    "members": 1,
    "buckets": 4,
}

_READERS = ("pipeline/sections/*.py", "pipeline/spec.py", "shards/userfile.py", "shards/windows.py")
"""The code that decides what the text of a `dataset.yaml` says, below the folder of packages."""
_LIBRARIES = {"pydantic": "version.py", "yaml": "__init__.py"}
"""What else reads it, and the file that holds the library's version."""


def digest_of_text(path: Path) -> str | None:
    """Return a digest of the bytes of a `dataset.yaml` and of the code that reads them.

    While it stays as it is, so does the specification: nobody needs to read the file to know it,
    nor to load what would, which takes longer than a look at ten thousand files.

    Args:
        path: `dataset.yaml`.

    Returns:
        None where the file cannot be read, or where the code on the disk may be another one than
        this process has loaded.
    """
    code = digest_of_readers(Path(__file__).parents[1])
    try:
        return None if code is None else xxhash.xxh3_128_hexdigest(code + path.read_bytes())
    except OSError:  # whoever reads it says what is wrong
        return None


@functools.cache
def digest_of_readers(root: Path) -> bytes | None:
    """Return a digest of the code that reads a `dataset.yaml`; None as in `digest_of_text`.

    Args:
        root: Folder of the packages.
    """
    digest = xxhash.xxh3_128(sys.version.encode())
    found = [sorted(root.glob(pattern)) for pattern in _READERS]
    if not all(found):  # packed in an archive, say, or without sources
        return None
    files = [file for some in found for file in some]
    try:
        for package, name in _LIBRARIES.items():
            spec = importlib.util.find_spec(package)
            files.append(Path(str(spec and spec.origin)).with_name(name))
        for file in files:
            if file.stat().st_ctime_ns >= _LOADED_NS:
                return None
            content = file.read_bytes()
            digest.update(f"{file.name}\0{len(content)}\0".encode() + content)
    except OSError:
        return None
    return digest.digest()
