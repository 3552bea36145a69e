"""A small data set with one of everything that inputs are made of, and raw files of it."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
from trialfolders import csv_text, write_spec

from pipeline.build import build
from shards import Store

MODES, GRIPS, CREWS = ("idle", "run", "étau", ""), ("a", "b", "c"), ("red", "blue")
HOOK = """
def half(frame, attributes):
    return frame["e"].to_numpy() / 2 + float(attributes["wear"])
"""
SECTIONS: dict[str, Any] = {
    "name": "machines",
    "source": {
        "files": "raw/**/*.csv*", "trial_id": r"(?P<machine>m\d)/(?P<id>\w+)\.csv",
        "time": {"column": "t", "unit": "s", "max_gap": "5s"},
    },
    "channels": ["a", "b", "c", "d", "e", "speed", "past", "half"],
    "derive": {
        "speed": "sqrt(a * a + b * b) / max(e)",
        "past": {"lag": "e", "rows": 2},
        "half": {"hook": "hooks.py:half", "columns": ["e", "wear"]},
        "left": "life - t",
    },
    "categorical": {"mode": "one_hot", "grip": "embed"},
    "static": {"wear": "number", "machine": "embed", "crew": "one_hot"},
    "attributes": {
        "wear": {"column": "wear"},
        "crew": {"table": "crews.csv", "trial_id": "{trial}", "column": "crew"},
        "life": {"table": "lives.csv", "trial_id": "{trial}", "column": "life"},
    },
    "clean": {
        "outliers": {"bounds": {"d": [997, 1003]}}, "missing": "interpolate", "limit": 2,
        "time_since_observed": ["a"],
    },
    "normalize": {
        "scope": "train",
        "channels": {
            "a": {"scope": "trial"}, "b": {"scope": "group:machine"}, "c": {"scope": "regime"},
            "d": {"method": "robust", "scope": "window"}, "speed": {"scope": "prefix(5)"},
            "half": {"method": "minmax", "scope": "window"},
        },
        "regimes": {"channels": ["e"], "count": 2},
    },
    "split": {"method": "exact", "fractions": {"train": 0.6, "test": 0.4}, "seed": 3},
    "windows": {
        "length": 8, "stride": 3,
        "target": {"kind": "per_step", "columns": ["left"], "channels": None},
    },
}  # fmt: skip


def machine_columns(seed: int) -> dict[str, Any]:
    """Return the columns of one run as its file has them, floats and texts."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(6, 40))
    columns: dict[str, Any] = {"t": np.cumsum(rng.uniform(0.5, 1.5, n)).round(3)}
    if n > 20:
        columns["t"][n // 2 :] += 9  # a gap
    for place, name in enumerate("abcd"):
        columns[name] = 10.0**place + rng.normal(0, 1, n).cumsum()
        columns[name][rng.random(n) < 0.15] = np.nan
    columns["e"] = np.where(rng.random() < 0.5, 1.0, 50.0) + rng.normal(0, 0.1, n)
    columns["mode"] = [MODES[i] for i in rng.integers(0, 4, n)]
    columns["grip"] = [GRIPS[i] for i in rng.integers(0, 3, n)]
    columns["wear"] = [f"{rng.uniform(0, 3):.3f}"] * n
    return columns


def write_machines(folder: Path, n_trials: int = 14) -> Path:
    """Write raw files, tables, the hook and `dataset.yaml`; every third file is gzipped."""
    spec = write_spec(folder, **SECTIONS)
    (folder / "hooks.py").write_text(HOOK)
    crews, lives = ["trial,crew"], ["trial,life"]
    for i in range(n_trials):
        name = f"r{i:02d}"
        path = folder / "raw" / f"m{i % 3}" / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = csv_text(machine_columns(i)).encode()
        if i % 3 == 2:
            path = path.with_suffix(".csv.gz")
            text = gzip.compress(text)
        path.write_bytes(text)
        crews.append(f"{name},{CREWS[i % 2]}")
        lives.append(f"{name},{100 + i}")
    (folder / "crews.csv").write_text("\n".join(crews) + "\n")
    (folder / "lives.csv").write_text("\n".join(lives) + "\n")
    return spec


def build_machines(folder: Path) -> Store:
    """Write and build them into `folder / store`."""
    build(write_machines(folder), folder / "store")
    return Store(folder / "store")


def raw_files(folder: Path) -> list[Path]:
    """Return the raw files, sorted."""
    return sorted(path for path in (folder / "raw").rglob("*") if path.is_file())
