"""The files that `bench/ingest.py` measures on: two made corpora, links to one, and real ones."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SCRATCH = ROOT / "bench" / "scratch" / "ingest"
DATA = Path(os.environ.get("TRIALSHARDS_DATA", ROOT.parent / "shared" / "data"))
MARKS = {"A": ",", "D": "|", "physionet": "|"}
SUFFIX = {",": "csv", "|": "psv"}


def files_of(folder: Path) -> list[Path]:
    return sorted((folder / "raw").rglob("*.?sv"))


def place(folder: Path, number: int, suffix: str) -> Path:
    path = folder / "raw" / f"f{number // 1000:03d}" / f"t{number:06d}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def make(kind: str, n_files: int) -> None:
    """Write a corpus, the same one every time, unless it is there from an earlier run."""
    folder = SCRATCH / f"{kind}-{n_files}"
    if (folder / "raw").exists():
        return
    shutil.rmtree(part := SCRATCH / f"{kind}-{n_files}.part", ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    {"A": write_dense, "D": write_sparse, "links": write_links}[kind](part, n_files)
    part.rename(folder)


def write_dense(folder: Path, n_files: int) -> None:
    """Write files of 200 to 2,000 rows, 10 channels, four decimals."""
    import polars as pl

    rng = np.random.default_rng(0)
    names = [f"c{i}" for i in range(10)]
    for number in range(n_files):
        values = rng.standard_normal((int(rng.integers(200, 2001)), 10)).cumsum(axis=0)
        pl.DataFrame(values, schema=names).write_csv(
            place(folder, number, "csv"), float_precision=4
        )


def write_sparse(folder: Path, n_files: int) -> None:
    """Write files of 38 rows, 41 channels, 68 % of the values missing: clinical records."""
    import polars as pl

    rng = np.random.default_rng(0)
    names = [f"c{i:02d}" for i in range(41)]
    share = np.repeat([0.25, 0.96, 0.0], [8, 27, 6])
    for number in range(n_files):
        values = np.round(rng.gamma(9.0, 9.0, (38, 41)), rng.integers(0, 3))
        values[rng.random(values.shape) < share] = np.nan
        pl.DataFrame(values, schema=names).write_csv(place(folder, number, "psv"), separator="|")


def write_links(folder: Path, n_files: int) -> None:
    """Hard links to 1,000 sparse files: as many trials as wanted, at little cost."""
    make("D", 1000)
    sources = files_of(SCRATCH / "D-1000")
    for number, source in zip(range(n_files), itertools.cycle(sources), strict=False):
        place(folder, number, "psv").hardlink_to(source)


def unpack_physionet() -> Path | None:
    """Return the folder of the real files, unpacked; None without the archive."""
    folder, archive = SCRATCH / "physionet", DATA / "physionet2019_setA.tar.xz"
    if not (folder / "raw").exists():
        if not archive.exists():
            return None
        with tarfile.open(archive) as packed:
            packed.extractall(folder / "part", filter="data")
        (folder / "part").rename(folder / "raw")
    return folder


def write_spec(folder: Path, mark: str) -> None:
    names = files_of(folder)[0].read_text().split("\n", 1)[0].split(mark)
    target = {"kind": "forecast", "channels": names[:1]}
    spec = {
        "name": "bench",
        "source": {
            "files": f"raw/*/*.{SUFFIX[mark]}", "trial_id": r"[tp]\d+", "delimiter": mark
        },
        "channels": names,
        "normalize": {"method": "zscore", "scope": "trial"},
        "windows": {"length": 8, "stride": 8, "target": target},
    }  # fmt: skip
    (folder / "dataset.yaml").write_text(json.dumps(spec))  # JSON is YAML
