"""Remaining useful life on C-MAPSS FD001: test RMSE of several seeds beside the published one.

Protocol of Zheng et al. (ICPHM 2017, Table III): one prediction per test engine at its last cycle,
RMSE against the unclipped truth. The files must lie where `data/cmapss/README.md` says.

    python bench/cmapss.py [--seeds 5]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline.build import build
from training import TrainConfig, evaluate, train
from training.memory import keep_freed_memory

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "data" / "cmapss"
PUBLISHED_RMSE = 16.14


def score(store: Path, seed: int, out: Path) -> dict[str, float]:
    """Train one seed and return its test errors in cycles."""
    began = time.perf_counter()
    config = TrainConfig.read(DATA / "fd001_train.yaml")
    config = config.model_copy(update={"store": store, "seed": seed, "out": out})
    result = train(config, fresh=True)
    metrics = evaluate(config).metrics
    return {
        "seed": seed,
        "rmse": metrics["rmse"],
        "mae": metrics["mae"],
        "naive_rmse": metrics["naive_rmse"],
        "best_epoch": result.best_epoch,
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=5)
    n_seeds = parser.parse_args().seeds
    keep_freed_memory()
    if not (DATA / "raw" / "cmapss_trials" / "FD001").is_dir():
        sys.exit("no C-MAPSS files; data/cmapss/README.md says how to get them")
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "store"
        report = build(DATA / "fd001.yaml", store)
        rows = []
        for seed in range(n_seeds):
            rows.append(score(store, seed, Path(scratch) / f"seed{seed}"))
            print(rows[-1], flush=True)
    rmse = np.array([row["rmse"] for row in rows])
    result = {
        "data": "C-MAPSS FD001",
        "engines": dict(report.counts["trials_by_split"]),
        "rmse_mean": float(rmse.mean()),
        "rmse_sd": float(rmse.std(ddof=1)) if n_seeds > 1 else None,
        "published_rmse": PUBLISHED_RMSE,
        "seeds": rows,
    }
    target = HERE / "results" / "cmapss_fd001.json"
    target.write_text(json.dumps(result, indent=2) + "\n")
    print(f"RMSE {rmse.mean():.2f} over {n_seeds} seeds; published {PUBLISHED_RMSE}")


if __name__ == "__main__":
    main()
