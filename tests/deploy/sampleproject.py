"""A small copy of this project with data of its own, so that tests leave the real one alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from composefile import ROOT

PACKAGES = ("shards", "loaders", "pipeline", "training", "trialshards")
TRAIN = """\
store: store
out: ../../runs/robot_arm
model: {hidden: 8, layers: 1, dropout: 0.0, head: [8]}
epochs: 1
"""


def make_project(folder: Path, n_trials: int = 60) -> Path:
    """Copy code and settings of every data set, generate robot arm trials, shorten its training."""
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for settings in (ROOT / "data").glob("*/*.y*ml"):
        copy = folder / settings.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(settings, copy)
    arm = folder / "data" / "robot_arm"
    generate = [str(ROOT / "data" / "robot_arm" / "generate.py"), "--trials", str(n_trials)]
    subprocess.run([sys.executable, *generate, "--out", str(arm)], check=True, capture_output=True)
    (arm / "train.yaml").write_text(TRAIN)
    with (arm / "dataset.yaml").open("a") as spec:
        spec.write("max_quarantined: 0.5  # the broken files are a larger share of few trials\n")
    (folder / "runs").mkdir()
    return folder
