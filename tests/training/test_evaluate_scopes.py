"""Predictions go back to physical units, also where each window has its own affine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from learnable import OFFSET, SCALE, learnable_store, tiny_config

from training import train
from training.evaluation import score_on

TRAIN = {"offset": OFFSET.tolist(), "scale": SCALE.tolist()}
CASES: dict[str, dict[str, Any]] = {
    "window": {"method": "zscore", "scope": "window"},
    "robust window": {"method": "robust", "scope": "window"},
    "train beside window": {
        "method": "mixed", "scope": "mixed", **TRAIN,
        "channels": [{"method": "zscore", "scope": s} for s in ("train", "window")],
    },
}  # fmt: skip


@pytest.mark.parametrize("missing", [False, True], ids=["whole", "missing"])
@pytest.mark.parametrize("case", CASES)
def test_truth_and_persistence_are_the_sources_numbers(tmp_path: Path, case: str, missing: bool):
    store = learnable_store(
        tmp_path / "store", "forecast", normalize=CASES[case], missing=missing, n_trials=40
    )
    config = tiny_config(tmp_path, epochs=1)
    train(config)
    result = score_on(config, config.out / "best.ckpt", tmp_path / "scored")
    table = pq.read_table(result.folder / "predictions.parquet").to_pylist()
    assert len(table) > 50
    for row in table:
        rows = store.trial_rows(store.trial_number(row["trial"])).astype(np.float64)
        for place, name in enumerate(("q", "p")):
            truth = rows[row["row"], place]
            np.testing.assert_allclose(row[f"truth_{name}"], truth, rtol=2e-6, atol=2e-6)
            if not missing:
                seen = rows[row["row"] - row["ahead"], place]
                np.testing.assert_allclose(row[f"naive_{name}"], seen, rtol=2e-6, atol=2e-6)
            # Physical units: a wave of this offset and scale, not a normalized one.
            assert abs(row[f"predicted_{name}"] - OFFSET[place]) < 6 * SCALE[place]
