"""Pictures are drawn of anything that an evaluation may find, also of nearly nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure

from training import plots
from training.target import Objective

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures instead of files: what is in them can be asked, and no pixel is drawn."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    return figures


def write(folder: Path, **columns: Any) -> Path:
    path = folder / "predictions.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def curves(folder: Path, n: int = 6, **more: Any) -> tuple[Path, pa.Table]:
    """Return predictions of two trials, and their errors."""
    names = ["a"] * n + ["b"] * n
    rows = np.tile(np.arange(n), 2)
    path = write(
        folder, trial=names, row=rows, ahead=np.zeros(2 * n, np.int32),
        **{f"{kind}_y": rows + 0.5 for kind in ("truth", "predicted", "naive")}, **more,
    )  # fmt: skip
    return path, pa.table({"trial": ["a", "b"], "n": [n, n], "rmse": [0.5, 1.0]})


def test_curves_show_a_band_between_the_outer_quantiles(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    said = {f"predicted_y_q{q}": np.tile(np.arange(6.0), 2) + q for q in (10, 50, 90)}
    parquet, trials = curves(tmp_path, **said)
    for levels in ((0.1, 0.5, 0.9), ()):
        objective = Objective("per_step", ("y",), "mse", quantiles=levels)
        plots.samples(parquet, trials, objective, tmp_path / "x.png")
    with_band, without = drawn
    assert [len(axes.lines) for axes in (*with_band.axes, *without.axes)] == [3] * 4
    assert [len(axes.collections) for axes in (*with_band.axes, *without.axes)] == [1, 1, 0, 0]
    y = with_band.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert (y.min(), y.max()) == (10, 95)


def test_a_point_per_trial_has_a_line_between_its_quantiles(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    said = {"truth_y": [1.0, np.nan], "predicted_y": [1.5, 2.0], "predicted_y_q10": [1.0, 1.5],
            "predicted_y_q90": [2.0, 2.5]}  # fmt: skip
    parquet = write(tmp_path, trial=["a", "b"], **said)
    trials = pa.table({"trial": ["a"], "n": [1], "rmse": [0.5]})
    objective = Objective("per_trial", ("y",), "quantile", quantiles=(0.1, 0.9))
    plots.samples(parquet, trials, objective, tmp_path / "x.png")
    assert len(drawn[0].axes[0].collections[0].get_segments()) == 2


def test_calibration_is_the_share_of_ones_by_probability(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    said = np.repeat([0.1, 0.8], 50)
    truth = np.concatenate([np.arange(50) < 5, np.arange(50) < 40]).astype(float)
    plots.calibration(write(tmp_path, truth_y=truth, predicted_y=said), "y", tmp_path / "x.png")
    roc, calibration = drawn[0].axes
    x, y = calibration.lines[1].get_data()
    assert (x.round(9) == np.repeat([0.1, 0.8], plots.N_BINS // 2)).all()
    assert np.mean(y[: len(y) // 2]) == pytest.approx(0.1)
    x, y = roc.lines[1].get_data()
    area = np.trapezoid(y, x)
    pairs = [(p > n) + 0.5 * (p == n) for p in said[truth == 1] for n in said[truth == 0]]
    assert area == pytest.approx(np.mean(pairs), abs=0.01)


@pytest.mark.parametrize("truth", [[], [np.nan], [1.0, 1.0], [0.0]])
def test_calibration_of_nearly_nothing_is_drawn(
    tmp_path: Path, drawn: list[Figure], truth: list[float]
) -> None:
    columns = {"truth_y": np.array(truth, float), "predicted_y": np.full(len(truth), 0.5)}
    plots.calibration(write(tmp_path, **columns), "y", tmp_path / "x.png")
    assert len(drawn[0].axes[0].lines) == 1  # no ROC curve without both


@pytest.mark.parametrize(("n", "shown"), [(2, 4), (plots.SHOWN_CLASSES + 1, 0)])
def test_counts_stand_in_the_confusion_matrix_while_they_fit(
    tmp_path: Path, drawn: list[Figure], n: int, shown: int
) -> None:
    metrics = {"confusion": np.eye(n, dtype=int).tolist(), "classes": [str(k) for k in range(n)]}
    plots.confusion(metrics, tmp_path / "x.png", what="Steps")
    assert len(drawn[0].axes[0].texts) == shown
    assert drawn[0].axes[0].get_title() == "Steps by class"


def test_a_picture_is_written(tmp_path: Path) -> None:
    parquet, trials = curves(tmp_path, n=80)
    plots.samples(parquet, trials, Objective("per_step", ("y",), "mse"), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes()[1:4] == b"PNG"
