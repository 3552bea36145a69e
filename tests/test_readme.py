"""What the README shows is run as it stands, on a small copy of the robot-arm data."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from loaders import TrialStream
from shards import Store

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "deploy"))
from sampleproject import make_project  # noqa: E402

README = (ROOT / "README.md").read_text()
COMMAND = Path(sys.executable).parent / "trialshards"


def block(language: str) -> str:
    (text,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return text


def commands() -> list[str]:
    lines = [line.split("#")[0].strip() for line in README.splitlines()]
    return [line for line in lines if line.startswith("trialshards ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the README's dataset.yaml, raw files for it, and the demo's training config."""
    folder = tmp_path_factory.mktemp("readme")
    generator = ROOT / "data" / "robot_arm" / "generate.py"
    subprocess.run(
        [sys.executable, generator, "--out", folder, "--trials", "240"],
        check=True, capture_output=True,
    )  # fmt: skip
    spec = yaml.safe_load(block("yaml"))
    spec["max_quarantined"] = 0.1  # 12 broken files among 252 instead of 1,212
    (folder / "dataset.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    train = yaml.safe_load((ROOT / "data" / "robot_arm" / "train.yaml").read_text())
    train |= {"out": "run", "epochs": 1, "data": {"batch_size": 64, "steps_per_epoch": 5}}
    (folder / "train.yaml").write_text(yaml.safe_dump(train))
    return folder


def test_the_commands_run_in_their_order(folder):
    assert [line.split()[1] for line in commands()] == ["build", "inspect", "verify", "train"]
    for line in commands():
        done = subprocess.run(
            [COMMAND, *line.split()[1:]], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert "252 files = " in done.stdout
    assert "persistence" in done.stdout


def test_the_python_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    if not Path("store").exists():
        subprocess.run([COMMAND, *commands()[0].split()[1:]], check=True)
    steps = []
    program = block("python").replace("range(10)", "range(1)")  # one epoch says it all
    assert program != block("python")
    exec(program, {"training_step": lambda *args: steps.append(args)})
    assert len(steps) == len(TrialStream("store", batch_size=256))
    assert sum(float(weights.sum()) for _, _, weights in steps) == pytest.approx(len(steps))


def test_the_dagster_commands_run_in_their_order(tmp_path):
    lines = [line.split("#")[0].split() for line in README.splitlines() if line.startswith("dg ")]
    assert [line[1] for line in lines] == ["launch", "scaffold", "check"]
    root = make_project(tmp_path / "project")
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(ROOT / "deploy" / "local" / "dagster.yaml", home)
    settings = {**os.environ, "PYTHONPATH": str(root), "DAGSTER_HOME": str(home)}
    for line in lines:
        done = subprocess.run(
            [COMMAND.with_name("dg"), *line[1:]], cwd=root, env=settings, capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert (root / "runs" / "robot_arm" / "evaluation" / "metrics.json").is_file()
    assert (root / "data" / "my_trials" / "dataset.yaml").is_file()


def test_the_component_of_the_readme_is_the_one_in_the_repository():
    (text,) = re.findall(r"```\n(type: .*?)```", README, re.DOTALL)
    defs = ROOT / "pipeline" / "defs" / "robot_arm" / "defs.yaml"
    assert yaml.safe_load(text) == yaml.safe_load(defs.read_text())


def test_every_make_target_that_is_shown_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE)) <= targets


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_store_of_the_readme_names_its_channels(folder):
    if not (folder / "store").exists():
        subprocess.run([COMMAND, *commands()[0].split()[1:]], cwd=folder, check=True)
    manifest = Store(folder / "store").manifest
    assert [(c.name, c.unit) for c in manifest.channels] == [
        ("q1", ""), ("q2", ""), ("tau1", "N m"),
    ]  # fmt: skip
