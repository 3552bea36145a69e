"""Folders of raw trial files and `dataset.yaml`, and slow readings to hold builds against."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import yaml

from pipeline.build import build
from pipeline.outcome import BuildReport
from pipeline.spec import DatasetSpec
from shards import Store
from shards.leases import WRITERS
from shards.verify import verify_store

Columns = dict[str, npt.NDArray[np.float64]]
MINIMAL: dict[str, Any] = {
    "name": "trials",
    "source": {"files": "raw/**/*.csv"},
    "channels": ["x", "y"],
    "windows": {"length": 4, "stride": 2, "target": {"kind": "forecast", "channels": ["x"]}},
}


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with sections changed field by field; None drops a field."""
    out = dict(base)
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(out.get(key), Mapping):
            out[key] = merged(out[key], value)
        else:
            out[key] = value
    return {key: value for key, value in out.items() if value is not None}


def write_spec(root: Path, **sections: Any) -> Path:
    """Write `dataset.yaml`: the minimal one, with these sections changed."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / "dataset.yaml"
    path.write_text(yaml.safe_dump(merged(MINIMAL, sections), sort_keys=False))
    return path


def make_spec(**sections: Any) -> DatasetSpec:
    """Return the same as a model."""
    return DatasetSpec.model_validate(merged(MINIMAL, sections))


def csv_text(columns: Mapping[str, Sequence[Any]]) -> str:
    """Return CSV in which every float survives exactly and NaN is an empty field."""
    rows = zip(*columns.values(), strict=True)
    lines = [",".join(columns), *(",".join(_field(value) for value in row) for row in rows)]
    return "\n".join(lines) + "\n"


def _field(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if math.isnan(value) else repr(float(value))


def write_trial(root: Path, name: str, columns: Mapping[str, Sequence[Any]]) -> Path:
    """Write `root/raw/name.csv`."""
    path = root / "raw" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(csv_text(columns))
    return path


def draw_trial(
    rng: np.random.Generator, n_rows: int, names: Sequence[str], *, missing: float = 0.0
) -> Columns:
    """Return a random walk per column on its own level, with holes."""
    columns = {}
    for position, name in enumerate(names):
        walk = 10.0**position + rng.normal(0, 1, n_rows).cumsum()
        walk[rng.random(n_rows) < missing] = np.nan
        columns[name] = walk
    return columns


def write_trials(
    root: Path,
    n_trials: int,
    *,
    names: Sequence[str] = ("x", "y"),
    seed: int = 0,
    missing: float = 0.0,
    longest: int = 40,
) -> dict[str, Columns]:
    """Write `raw/gK/tNN.csv`, lengths from 1 to `longest`; return id -> columns."""
    rng = np.random.default_rng(seed)
    trials = {}
    for number in range(n_trials):
        name = f"g{number % 3}/t{number:02d}"
        n_rows = 1 if number == 0 else int(rng.integers(2, longest + 1))
        trials[name] = draw_trial(rng, n_rows, names, missing=missing)
        write_trial(root, name, trials[name])
    return trials


def build_checked(spec: Path, store: Path, **options: Any) -> tuple[BuildReport, Store]:
    """Build, verify every byte, check conservation of files and rows (law 3)."""
    report = build(spec, store, **options)
    assert [str(problem) for problem in verify_store(store)] == []
    opened = Store(store)
    assert opened.version == report.version
    assert opened.manifest.counts == report.counts | {"windows": opened.manifest.counts["windows"]}
    check_conservation(opened)
    return report, opened


def check_conservation(store: Store) -> None:
    """Every file is accepted, quarantined or ignored; every row is stored or dropped by reason."""
    counts, cold = store.manifest.counts, store.cold()
    quarantine = quarantine_of(store)
    assert counts["files"] == (
        counts["trials"] + counts["quarantined"] + sum(counts["ignored"].values())
    )
    assert counts["segments"] == len(store.index) == cold.num_rows
    assert counts["quarantined"] == len(quarantine)
    assert counts["rows_in"] == (
        counts["rows"] + sum(counts["rows_dropped"].values()) - counts["rows_inserted"]
    )
    assert counts["rows_in"] == sum(cold["n_rows_in"].to_pylist())
    assert counts["rows"] == int(store.index.n_rows.sum())
    sources = [*cold["source"].to_pylist(), *quarantine]
    assert len(sources) == len(set(sources))
    assert sum(counts["trials_by_split"].values()) == counts["trials"]


def quarantine_of(store: Store) -> dict[str, str]:
    """Return source -> code of every refused file."""
    rows = pq.read_table(store.folder / "quarantine.parquet").to_pylist()
    return {row["source"]: row["code"] for row in rows}


def ids_of(store: Store) -> list[str]:
    """Return all trial ids in the order of their numbers."""
    return [store.index.id_of(number) for number in range(len(store.index))]


def split_of(store: Store) -> dict[str, str]:
    """Return trial id -> split."""
    names = [store.manifest.splits[code] for code in store.index.split]
    return dict(zip(ids_of(store), names, strict=True))


def delivered(store: Store) -> dict[str, npt.NDArray[np.float32]]:
    """Return id -> rows as a reader delivers them: SPEC section 5, written out once more.

    Channels of scope `window` are left as they are stored.
    """
    out = {}
    for number, name in enumerate(ids_of(store)):
        rows = np.array(store.trial_rows(number))
        constants = constants_of(store, number)
        for row in rows:
            offset, scale = constants(row)
            row[:] = (row - offset.astype(np.float32)) * (1 / scale).astype(np.float32)
        out[name] = np.where(np.isnan(rows), np.float32(0), rows)
    return out


def constants_of(store: Store, number: int) -> Callable[[Any], tuple[Any, Any]]:
    """Return a function from a stored row to float64 offset and scale per channel."""
    normalization, fit = store.manifest.normalization, store.fit["normalize"]
    n_channels = len(store.manifest.channels)
    channels = normalization.get("channels", [normalization] * n_channels)
    cold = store.cold()
    known = cold["attributes"][number].as_py() if "attributes" in cold.column_names else {}

    def constants(row: Any) -> tuple[Any, Any]:
        offset, scale = np.zeros(n_channels), np.ones(n_channels)
        for place, entry in enumerate(channels):
            scope, table, at = entry["scope"], fit, None
            if scope.startswith("group:"):
                groups = fit["groups"][scope[6:]]
                if known[scope[6:]] in groups["values"]:
                    table, at = groups, groups["values"].index(known[scope[6:]])
            elif scope == "regime":
                at = regime_of(store, row)
                table = fit if at is None else fit["regimes"]
            elif scope != "train":
                continue
            for out, key in ((offset, "offset"), (scale, "scale")):
                out[place] = table[key][place] if at is None else table[key][at][place]
        return offset, scale

    return constants


def regime_of(store: Store, row: Any) -> int | None:
    """Return the regime of a stored row, or None: the distances one by one."""
    regimes = store.fit["normalize"]["regimes"]
    names = [channel.name for channel in store.manifest.channels]
    best, found = np.float32(np.inf), None
    for number, centre in enumerate(regimes["centres"]):
        far = np.float32(0)
        for name, level, spread in zip(regimes["channels"], centre, regimes["spread"], strict=True):
            part = (row[names.index(name)] - np.float32(level)) * np.float32(1 / spread)
            far = far + part * part
        if far < best:
            best, found = far, number
    return found


def count_by_walking(n_rows: int, windows: Mapping[str, Any], ahead: int) -> int:
    """Count windows by trying every start (SPEC section 6)."""
    length, stride = windows["length"], windows.get("stride", 1)
    starts = [s for s in range(0, n_rows, stride) if s + length + ahead <= n_rows]
    if starts:
        return len(starts)
    return int(windows.get("short", "pad") == "pad" and n_rows > ahead)


def snapshot(folder: Path) -> dict[str, str]:
    """Return path -> SHA-256 of every file below a folder, but for the builder's own.

    Those are its staging and the empty file that it locks.
    """
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in ("staging", WRITERS)
    }


def copy_folder(source: Path, target: Path, *, mtime_ns: int | None = None) -> Path:
    """Copy spec and raw files (no store), keeping times or setting them all to one."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("store*"))
    if mtime_ns is not None:
        for path in target.rglob("*"):
            os.utime(path, ns=(mtime_ns, mtime_ns))
    return target / "dataset.yaml"
