"""The stores that docs/loading.md speaks of: robot-arm runs, built as in the demo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from pipeline.build import build

ROOT = Path(__file__).parents[1]


def build_arm_stores(folder: Path, n_trials: int) -> None:
    """Build `arm`, as the demo does, and `payloads`, whose target is the class of the payload.

    Args:
        folder: Gets both stores, and the raw files.
        n_trials: Good trials; 12 broken files come on top.
    """
    generate = [sys.executable, str(ROOT / "data/robot_arm/generate.py"), "--out", str(folder)]
    subprocess.run([*generate, "--trials", str(n_trials)], check=True, capture_output=True)
    spec = yaml.safe_load((ROOT / "data/robot_arm/dataset.yaml").read_text())
    spec["max_quarantined"] = 0.5  # 12 broken files among few instead of 1,212
    spec["shards"] = {"buckets": 3}
    payload = {"kind": "per_trial", "attribute": "payload"}
    classes = spec | {"windows": spec["windows"] | {"target": payload}}
    for name, about in {"arm": spec, "payloads": classes}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(about | {"name": name}))
        build(folder / f"{name}.yaml", folder / name)
