"""Write `tests/golden/v*/`: small stores of each format that every later reader must read.

Run from the repository root, once per format: `.venv/bin/python tests/golden/make.py`. What is
there is never overwritten: a store that cannot be read any more is a broken promise.

`expected.json` does not come from the reader. It comes from the numbers that went in: little-endian
bytes of each row as hexadecimal text (so NaN bits count), and window counts by hand. Of v1 (format
1.0) that is done here; of later ones `golden_cases.py` says what goes in, `golden_built.py` what
a real build is given, `golden_write.py` writes it, and `golden_oracle.py` works out from SPEC.md
what must come out: rows, windows, times, digests and every tensor of an epoch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import xxhash
from golden_built import (
    SHAPES,
    golden_versions,
    physical,  # noqa: F401 - for the tests
    shape_versions,
    write_built,
    write_shape,
)
from golden_cases import V1_1, V1_2, Golden
from golden_oracle import expected, pinned
from golden_write import write_golden
from stores import _trial_arrays, make_store

from shards import Store, WindowSpec
from shards.manifest import TargetSchema

HERE = Path(__file__).resolve().parent
SPLITS = ["train", "val", "train", "test", "train"]

CASES: dict[str, dict[str, Any]] = {
    "forecast": {
        "lengths": [9, 3, 8, 5, 4],
        "n_channels": 9,
        "n_shards": 2,
        "missing": True,
        "scale": (0.1, 3.0),
        "splits": SPLITS,
        "target": TargetSchema("forecast", ("c0", "c3")),
        "windows": WindowSpec(length=4, stride=2, horizon=2, steps=2),
    },
    "per_step": {
        "lengths": [6, 1, 8],
        "target": TargetSchema("per_step", ("y0", "y1")),
        "windows": WindowSpec(length=3, stride=1, short="drop"),
    },
    "per_trial": {
        "lengths": [5, 4, 7, 4, 6],
        "splits": SPLITS,
        "target": TargetSchema("per_trial", ("gesture",), ("poussée", "pull", "turn")),
        "labels": [0.0, 2.0, 1.0, 1.0, 0.0],
        "weights": [1.0, 0.5, 0.25, 2.0, 0.0],
        "windows": WindowSpec(length=4, stride=3),
    },
    "inner_chunks": {"lengths": [4000, 97], "n_channels": 1, "windows": WindowSpec(length=64)},
}
N_WINDOWS = {
    "forecast": [2, 0, 1, 1, 1],  # ahead 3: 7 rows for the first window, or 4 padded
    "per_step": [4, 0, 6],
    "per_trial": [1, 1, 2, 1, 1],
    "inner_chunks": [3937, 34],
}


def build(path: Path, case: str) -> Store:
    """Write the store of one case."""
    options = dict(CASES[case])
    return make_store(path, options.pop("lengths"), **options)


def expected_trials(case: str) -> list[dict[str, Any]]:
    """Return what a reader must find in each trial, from the numbers that go in."""
    options = CASES[case]
    target = options.get("target")
    n_targets = len(target.columns) if target and target.kind == "per_step" else 0
    trials = []
    for number, n_rows in enumerate(options["lengths"]):
        missing, n_channels = options.get("missing", False), options.get("n_channels", 3)
        arrays = _trial_arrays(number, n_rows, n_channels, n_targets, missing)
        trials.append(
            {
                "id": f"t{number:04d}",
                "split": options.get("splits", ["train"] * 9)[number],
                "n_windows": N_WINDOWS[case][number],
                "weight": options.get("weights", [1.0] * 9)[number],
                "label": options["labels"][number] if "labels" in options else None,
                "arrays": {name: pinned(rows) for name, rows in arrays.items()},
            }
        )
    return trials


def identity(store: Store) -> dict[str, Any]:
    """Return the names that this content has: changing one orphans every checkpoint."""
    return {
        "fingerprint": store.manifest.fingerprint,
        "fingerprints": dict(store.manifest.fingerprints),
        "shards": [shard.digest for shard in store.manifest.shards],
        "trials": store.cold("digest")["digest"].to_pylist(),
    }


def file_hashes(path: Path) -> dict[str, str]:
    """Return the XXH3-128 of every file below `path`."""
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return {
        p.relative_to(path).as_posix(): xxhash.xxh3_128_hexdigest(p.read_bytes()) for p in files
    }


def make_v1(root: Path) -> dict[str, Any]:
    """Write the stores of format 1.0; return what to expect of them."""
    found = {}
    for case in CASES:
        store = build(root / case, case)
        found[case] = {
            "identity": identity(store),
            "files": file_hashes(root / case),
            "trials": expected_trials(case),
        }
    return found


def make_golden(root: Path, cases: dict[str, Golden]) -> dict[str, Any]:
    """Write the stores of a later format; return what to expect of them, version by version."""
    found = {}
    for case, golden in cases.items():
        store = write_golden(root / case, golden)
        versions = {"v0001": {"identity": identity(store), **expected(golden)}}
        found[case] = {"files": file_hashes(root / case), "versions": versions}
    return found


def make_v1_2(root: Path) -> dict[str, Any]:
    """Write the stores of format 1.2, and that of a real build."""
    write_built(root / "built")
    versions = {
        version: {"identity": identity(Store(root / "built", version)), **expected(golden)}
        for version, golden in golden_versions().items()
    }
    built = {"built": {"files": file_hashes(root / "built"), "versions": versions}}
    return built | make_golden(root, V1_2)


def make_v1_3(root: Path) -> dict[str, Any]:
    """Write the stores of format 1.3, one of each shape, by real builds."""
    found = {}
    for case, shape in SHAPES.items():
        write_shape(root / case, *shape)
        versions = {
            version: {"identity": identity(Store(root / case, version)), **expected(golden)}
            for version, golden in shape_versions(*shape).items()
        }
        found[case] = {"files": file_hashes(root / case), "versions": versions}
    return found


FORMATS = {
    "v1": make_v1,
    "v1.1": lambda root: make_golden(root, V1_1),
    "v1.2": make_v1_2,
    "v1.3": make_v1_3,
}


def main() -> None:
    """Write the stores of each format that are not there yet, and what to expect of them."""
    there = [HERE / name for name in FORMATS if (HERE / name).exists()]
    for name, make in FORMATS.items():
        root = HERE / name
        if root in there:
            continue
        text = json.dumps(make(root), indent=0, sort_keys=True, ensure_ascii=False)
        (root / "expected.json").write_text(text + "\n", encoding="utf-8")
        size = sum(p.stat().st_size for p in root.rglob("*") if p.is_file())
        sys.stdout.write(f"{root}: {size:,} bytes\n")
    if there:
        sys.exit(
            f"{', '.join(map(str, there))}: there already, and never overwritten. Write the next "
            "format beside them."
        )


if __name__ == "__main__":
    main()
