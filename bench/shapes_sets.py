"""The sets that `bench/shapes.py` measures on: a folder with raw files, and its specification."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

from ingest import in_child
from ingest_corpora import DATA, MARKS, ROOT, SCRATCH, unpack_physionet, write_spec

FEW = {"A": 60, "D": 200}
"""Files of the made sets in a quick run; else 1,000."""

WINDOWS = {"A": (128, 32), "D": (8, 4), "physionet": (8, 4)}
"""Length and stride; cmapss has those of its own specification."""


def made_set(kind: str, n_files: int) -> Path:
    in_child("--make", kind, str(n_files))
    return SCRATCH / f"{kind}-{n_files}"


def unpack_cmapss() -> Path | None:
    """Return the folder of the engines of FD001, unpacked; None without the archive."""
    folder, archive = SCRATCH / "cmapss", DATA / "cmapss.tar.xz"
    if not (folder / "raw").exists():
        if not archive.exists():
            return None
        shutil.rmtree(folder, ignore_errors=True)
        with tarfile.open(archive) as packed:
            wanted = [one for one in packed if "/FD001" in one.name]
            packed.extractall(folder / "part", wanted, filter="data")
        (folder / "part").rename(folder / "raw")
    return folder


def find_sets(quick: bool) -> dict[str, Path | None]:
    """Return the folder of each set; None for one left out: no archive, or a quick run."""
    sets: dict[str, Path | None] = {
        kind: made_set(kind, few if quick else 1000) for kind, few in FEW.items()
    }
    sets["physionet"] = None if quick else unpack_physionet()
    sets["cmapss"] = None if quick else unpack_cmapss()
    return sets


def spec_of(name: str, folder: Path) -> dict[str, Any]:
    """Return the specification of a set, as rows in Zarr."""
    if name == "cmapss":
        import yaml

        text = (ROOT / "data" / "cmapss" / "fd001.yaml").read_text()
    else:
        write_spec(folder, MARKS[name])
        text = (folder / "dataset.yaml").read_text()
    spec: dict[str, Any] = yaml.safe_load(text) if name == "cmapss" else json.loads(text)
    if name in WINDOWS:
        spec["windows"] |= dict(zip(("length", "stride"), WINDOWS[name], strict=True))
    return spec
