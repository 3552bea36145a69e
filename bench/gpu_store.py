"""The store of `bench/gpu.py`, made with PyTorch's, NumPy's and PyArrow's own means."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]


def stand_in() -> None:
    """Let our packages be found, and work without xxhash where it is not installed.

    The digests of this store are then others, which nobody compares with those of elsewhere.
    """
    if importlib.util.find_spec("loaders") is None:
        sys.path.insert(0, str(ROOT))
    try:
        importlib.import_module("xxhash")
    except ImportError:
        sys.modules["xxhash"] = _blake()


def _blake() -> ModuleType:
    def digest(n_bytes: int) -> Any:
        return lambda data=b"": hashlib.blake2b(data, digest_size=n_bytes)

    module: Any = ModuleType("xxhash")
    module.xxh3_128, module.xxh3_64 = digest(16), digest(8)
    module.xxh3_128_hexdigest = lambda data: digest(16)(data).hexdigest()
    module.xxh3_64_hexdigest = lambda data: digest(8)(data).hexdigest()
    made: ModuleType = module
    return made


def make(folder: Path, n_trials: int) -> Path:
    """Write the trials of `bench/read.py` into a store, unless they are there."""
    from read_store import make_store
    from read_work import make_work

    return make_store(folder / "store-4", make_work(folder, n_trials), 4)
