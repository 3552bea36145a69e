"""`trialshards train`, `evaluate` and `folds` of studies: what they print, and tell Dagster."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from PIL import Image
from test_command_training import call, reported, run_asset, write_run
from trialfolders import write_spec, write_trials

import training.studyrun
import trialshards.pipes
from pipeline.orchestration.studymetadata import with_study
from training.checkpoint import BEST
from training.config import TrainConfig
from training.evaluation import FOLDER, score_on
from trialshards.pipes import Reporter

TINY: dict[str, Any] = {"model": {"hidden": 8, "layers": 1, "head": [4]}, "epochs": 1}


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    def scored(config: TrainConfig) -> Any:
        return score_on(config, config.out / BEST, config.out / FOLDER)

    monkeypatch.setattr(training.studyrun, "evaluate", scored)


def test_a_sweep_prints_its_table_and_its_failures(tmp_path: Path) -> None:
    sweep = [{"data.windows.length": 8}, {"name": "wild", "optimizer.lr": 1e30}]
    file = write_run(tmp_path, **TINY | {"optimizer": {"clip_norm": None}}, sweep=sweep)
    done = call("train", file)
    assert done.exit_code == 0, done.output
    assert "run 2/2: wild" in done.output
    assert "wild failed: the loss is not finite" in done.output
    assert "lowest validation loss: length=8" in done.output
    scored = call("evaluate", file, "--json")
    assert json.loads(scored.output)["summary"]["best_by_validation"] == "length=8"


def test_a_sweep_whose_every_run_fails_is_a_failure(tmp_path: Path) -> None:
    file = write_run(tmp_path, **TINY, sweep=[{"version": "v0009"}])
    done = call("train", file)
    assert done.exit_code == 1
    assert "every run failed" in done.output


def test_stages_print_the_matrix(tmp_path: Path) -> None:
    stages = [{"name": name, "store": str(tmp_path / "store")} for name in ("first", "second")]
    done = call("train", write_run(tmp_path, **TINY, stages=stages))
    assert done.exit_code == 0, done.output
    assert "rmse of the best weights of each stage on every data set" in done.output
    assert "forgetting.png" in done.output


def test_an_ensemble_stands_beside_its_members(tmp_path: Path) -> None:
    file = write_run(tmp_path, **TINY, seeds=[0, 1])
    done = call("train", file)
    assert done.exit_code == 0, done.output
    assert "over the runs; ensemble" in done.output
    refused = call("train", file, "--seed", 3)
    assert refused.exit_code == 2
    assert "whose seeds are [0, 1]" in refused.output


def test_folds_are_built_and_named_for_a_configuration(tmp_path: Path) -> None:
    write_trials(tmp_path, 8)
    spec = write_spec(tmp_path, split={"method": "folds", "folds": 2})
    done = call("folds", spec, "--store", tmp_path / "store", "--workers", 1)
    assert done.exit_code == 0, done.output
    assert "fold-1  v0002  test: 1; trials: " in done.output
    assert "folds: [fold-0, fold-1]" in done.output
    other = write_spec(tmp_path, split={"method": "hash"})
    assert "wanted folds" in call("folds", other, "--store", tmp_path / "store").output


class Told:
    """A Dagster that listens."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.reports: list[dict[str, Any]] = []
        self.log = SimpleNamespace(info=self.lines.append)

    def report_asset_materialization(self, **said: Any) -> None:
        self.reports.append(said)


def test_dagster_gets_the_table_of_a_study(tmp_path: Path, monkeypatch) -> None:
    told = Told()

    @contextmanager
    def reporter(n_epochs: int = 0) -> Iterator[Reporter]:
        yield Reporter(told, n_epochs)  # type: ignore[arg-type]

    monkeypatch.setattr(trialshards.pipes, "open_reporter", reporter)
    file = write_run(tmp_path, **TINY, seeds=[0, 1])
    assert call("train", file, "--renew", "--no-evaluate").exit_code == 0
    assert [line for line in told.lines if line.startswith("run ")] == [
        "run 1/2: seed-0", "run 2/2: seed-1",
    ]  # fmt: skip
    assert sum(line.startswith("epoch 1/1: train_loss") for line in told.lines) == 2
    assert call("evaluate", file).exit_code == 0
    trained, scored = told.reports
    assert trained["metadata"]["study"] == "seeds"
    assert "| seed-1 | 1 | finished |" in trained["metadata"]["runs"]["raw_value"]
    assert "ensemble.rmse" not in trained["metadata"]
    assert scored["metadata"]["ensemble.rmse"] > 0
    assert trained["data_version"] != scored["data_version"]
    json.dumps(scored, allow_nan=False)


def test_the_room_shows_the_pictures_of_a_study(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "forgetting.png")
    room: Any = SimpleNamespace(config=SimpleNamespace(out=tmp_path))
    shown = with_study(dg.MaterializeResult(metadata={"study": "stages"}), room)
    assert list(shown.metadata or {}) == ["forgetting", "folder", "study"]


@pytest.mark.skipif(not os.environ.get("SOAK"), reason="a process of Dagster's: make soak")
def test_a_real_dagster_gets_it_too(tmp_path: Path) -> None:
    file = write_run(tmp_path, **TINY, seeds=[0, 1])
    result, lines = run_asset("train", file, "--renew", "--no-evaluate")
    assert result.success
    assert "run 2/2: seed-1" in lines
    metadata, version = reported(result)
    assert "| seed-1 | 1 | finished |" in metadata["runs"]
    assert version == json.loads((tmp_path / "run" / "study.json").read_text())["digest"]
