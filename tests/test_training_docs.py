"""docs/training.md is right: its configurations and commands run in their order, tables are so."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from pydantic import BaseModel
from trialfolders import write_spec, write_trials

sys.path.insert(0, str(Path(__file__).parent / "training"))
from learnable import learnable_store

import training.evaluation
from training import sections, train
from training.config import STUDIES, TrainConfig
from training.studies import run_study
from training.studyrun import Orders
from training.targetchecks import LOSSES
from trialshards.cli import main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "training.md").read_text()
BLOCKS = re.findall(r"^```(yaml|sh|python)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
YAML = [text for kind, text in BLOCKS if kind == "yaml"]
SMALL = {"model.hidden": 8, "device.accelerator": "cpu", "data.steps_per_epoch": 2, "epochs": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stores that the page names, and the files that its commands name."""
    folder = tmp_path_factory.mktemp("training")
    kinds = {"waves": "forecast", "effort": "per_step", "rising": "binary", "size": "per_trial",
             "tempo": "class", "effort_b": "per_step", "effort_c": "per_step"}  # fmt: skip
    for seed, (name, kind) in enumerate(kinds.items()):
        learnable_store(folder / name, kind, n_trials=20, seed=seed)
    write_trials(folder, 10)
    spec = write_spec(folder, split={"method": "folds", "folds": 2})
    spec.rename(folder / "folded.yaml")
    return folder


@pytest.fixture(scope="module")
def ran(folder: Path) -> Iterator[list[str]]:
    """Everything on the page, run in its order in tiny; what the commands printed."""
    said: list[str] = []
    read = TrainConfig.read.__func__  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(training.evaluation, "_draw", lambda *_, **__: None)
        patch.setattr(TrainConfig, "read", classmethod(lambda c, path: shrunk(read(c, path))))
        for number, (kind, text) in enumerate(BLOCKS):
            if kind == "yaml":
                run_yaml(text, f"block{number}.yaml")
            elif kind == "python":
                exec(compile(text, f"training.md, block {number}", "exec"), {})
            else:
                said += [run_command(line) for line in text.splitlines()]
        yield said


def shrunk(config: TrainConfig) -> TrainConfig:
    """Return what the page shows, but for its size."""
    small = config.changed(SMALL)
    stages = tuple(stage.model_copy(update={"epochs": 1}) for stage in config.stages)
    return small.model_copy(update={"stages": stages})


def run_yaml(text: str, name: str) -> None:
    """Train what a block describes; one that has a name is run by a command, too."""
    named = re.match(r"# (\S+\.yaml)\n", text)
    path = Path(named[1] if named else name)
    path.write_text(text)
    config = TrainConfig.read(path)
    if config.study is not None:
        run_study(config, Orders(score=False))
    else:
        assert train(config).status == "finished"


def run_command(line: str) -> str:
    program, *words = line.split()
    assert program == "trialshards"
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_configurations_and_commands_run(ran, folder):
    assert (len(YAML), len(ran)) == (14, 4)
    assert '"rmse"' in ran[1]
    assert "of the best weights of each stage on every data set" in ran[2]
    assert "folds: [fold-0, fold-1]" in ran[3]
    for name in ("forgetting.csv", "forgetting.json", "forgetting.png", "study.csv", "study.json"):
        assert (folder / "runs" / "sequence" / name).is_file()
    for name in ("best.ckpt", "last.ckpt", "config.yaml", "logs", "evaluation/metrics.json"):
        assert (folder / "runs" / "waves" / name).exists()


def test_the_page_shows_every_study_and_every_kind_of_batch_and_loss():
    read = [yaml.safe_load(text) for text in YAML]
    assert {name for given in read for name in given if name in STUDIES} == set(STUDIES)
    rows = rows_below("Batches and states") + rows_below("Losses") + rows_below("Schedules")
    shown = {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    words = {loss for losses in LOSSES.values() for loss in losses}
    words |= choices(sections.DataConfig, "batches") | choices(sections.OptimizerConfig, "schedule")
    assert words <= shown


def choices(model: type[BaseModel], field: str) -> set[str]:
    annotation: Any = model.model_fields[field].annotation
    return set(annotation.__args__)


def rows_below(title: str) -> list[list[str]]:
    """Return the cells of the tables of a section, without their heads."""
    part = re.split(rf"^##+ {title}$", TEXT, flags=re.MULTILINE)[1]
    part = re.split(r"^##", part, flags=re.MULTILINE)[0]
    lines = [line for line in part.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


FIELDS: dict[str, type[BaseModel]] = {
    "run": TrainConfig, "model": sections.ModelConfig, "target": sections.TargetConfig,
    "data": sections.DataConfig, "optimizer": sections.OptimizerConfig,
    "start": sections.StartConfig, "device": sections.DeviceConfig,
}  # fmt: skip


@pytest.mark.parametrize("title", FIELDS)
def test_every_field_is_listed_with_its_default(title: str):
    fields = dict(FIELDS[title].model_fields)
    if title == "run":  # sections of their own, and two that the text explains
        for name in ("model", "target", "data", "optimizer", "device"):
            del fields[name]
        assert "`evaluate: {split: test, at: all}`" in TEXT
        assert "early_stopping: {patience: 3}" in TEXT
        del fields["evaluate"], fields["early_stopping"]
    listed = {name: row[1] for row in rows_below(title) for name in re.findall(r"`(\w+)`", row[0])}
    assert listed.keys() == fields.keys()
    for name, said in listed.items():
        if fields[name].is_required():
            assert said == "required"
            continue
        default = fields[name].get_default()
        plain = default.model_dump() if isinstance(default, BaseModel) else default
        plain = list(plain) if isinstance(plain, tuple) else plain
        assert yaml.safe_load(said.strip("`")) == plain, name


def test_every_link_leads_somewhere():
    anchors = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")
        for title in re.findall(r"^##+ (.*)$", TEXT, re.MULTILINE)
    }
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", TEXT):
        assert (ROOT / "docs" / target).exists(), target
        assert target or anchor in anchors, anchor
