"""`dg check defs` and `dg scaffold defs` on a small project of its own, as a user calls them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
import yaml
from dagster.components import ScaffoldRequest
from dagster.components.scaffold.scaffold import NoParams
from trialfolders import draw_trial, write_trial

from pipeline.build import build
from pipeline.component import TrialDataset
from pipeline.orchestration.room import Room
from pipeline.orchestration.scaffold import TrialDatasetScaffolder
from shards import InvalidSpecError

ROOT = Path(__file__).parents[2]
DG = Path(sys.executable).with_name("dg")
PACKAGES = ("shards", "loaders", "training", "trialshards")


def run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a project; its own `pipeline/` comes before the installed one."""
    settings = {**os.environ, "PYTHONPATH": str(root), "NO_COLOR": "1", "COLUMNS": "200"}
    return subprocess.run(
        [str(part) for part in command], cwd=root, env=settings, capture_output=True, text=True
    )


def said_by(done: subprocess.CompletedProcess[str]) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)


def make_root(root: Path) -> Path:
    """A project without data sets."""
    shutil.copy(ROOT / "pyproject.toml", root)
    left_out = shutil.ignore_patterns("__pycache__", "defs")
    shutil.copytree(ROOT / "pipeline", root / "pipeline", ignore=left_out)
    (root / "pipeline" / "defs").mkdir()
    for package in PACKAGES:
        (root / package).symlink_to(ROOT / package)
    return root


SEVERAL = """
import json, sys
from click.testing import CliRunner
from dagster_dg_cli.cli import create_dg_cli
for command in json.loads(sys.argv[1]):
    done = CliRunner().invoke(create_dg_cli(), command)
    print(json.dumps([done.exit_code, done.output]))
"""
KIND = "pipeline.component.TrialDataset"


@dataclasses.dataclass(frozen=True)
class Scaffolded:
    """A project with one data set, as scaffolding leaves it, and what `dg` said."""

    root: Path
    bad_name: tuple[int, str]
    check: tuple[int, str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Scaffolded:
    """Three commands in one process, since each of its own costs seconds."""
    root = make_root(tmp_path_factory.mktemp("project"))
    names = ("my_trials", "My-Trials")
    commands = [*(["scaffold", "defs", KIND, name] for name in names), ["check", "defs"]]
    done = run(root, sys.executable, "-c", SEVERAL, json.dumps(commands))
    assert done.returncode == 0, said_by(done)
    good, bad, check = (tuple(json.loads(line)) for line in done.stdout.splitlines()[-3:])
    assert good[0] == 0, good[1]
    return Scaffolded(root, bad, check)


@pytest.fixture(scope="module")
def scaffolded(made: Scaffolded) -> Path:
    """The project's root: nobody may change it."""
    return made.root


@pytest.fixture
def project(scaffolded: Path, tmp_path: Path) -> Path:
    """A copy to write into."""
    return shutil.copytree(scaffolded, tmp_path / "project", symlinks=True)


# --- scaffolding ----------------------------------------------------------------------------------


def test_scaffolding_writes_three_files(scaffolded: Path):
    written = [*scaffolded.glob("data/**/*"), *scaffolded.glob("pipeline/defs/**/*")]
    assert {p.relative_to(scaffolded).as_posix() for p in written if p.is_file()} == {
        "data/my_trials/dataset.yaml",
        "data/my_trials/train.yaml",
        "pipeline/defs/my_trials/defs.yaml",
    }
    defs = yaml.safe_load((scaffolded / "pipeline/defs/my_trials/defs.yaml").read_text())
    assert defs == {
        "type": KIND,
        "attributes": {
            "dataset": "data/my_trials/dataset.yaml",
            "training": "data/my_trials/train.yaml",
        },
    }


def test_what_was_scaffolded_loads(made: Scaffolded):
    code, said = made.check
    assert code == 0, said
    assert "All definitions loaded successfully" in said


def room_of(project: Path) -> Room:
    folder = project / "data" / "my_trials"
    return Room.open(folder / "dataset.yaml", folder / "train.yaml", owner="team:data")


def test_its_catalog_says_how_to_get_the_files(project: Path):
    with pytest.raises(InvalidSpecError) as caught:
        room_of(project).space.scan()
    advice = "How to get them: Put one CSV file per trial below data/my_trials/raw."
    assert advice in str(caught.value)


def test_it_builds_as_it_is_once_the_files_are_there(project: Path):
    rng = np.random.default_rng(0)
    folder = project / "data" / "my_trials"
    for n in range(12):
        write_trial(folder, f"t{n}", draw_trial(rng, 90, ["x", "y"]))
    room = room_of(project)
    report = build(folder / "dataset.yaml", room.config.store)
    assert report.counts["trials"] == 12
    assert room.config.out == project / "runs" / "my_trials"
    assert room.n_buckets == 8


def scaffold(root: Path, name: str) -> None:
    """Do what `dg scaffold defs` does, in this process."""
    target = root / "pipeline" / "defs" / name
    target.mkdir(parents=True)
    request = ScaffoldRequest(KIND, target, "yaml", root, NoParams())  # type: ignore[arg-type]
    TrialDatasetScaffolder().scaffold(request)


def test_files_that_are_there_are_kept(project: Path):
    folder = project / "data" / "my_trials"
    dataset = "name: mine\n"
    (folder / "dataset.yaml").write_text(dataset)
    train = (folder / "train.yaml").read_text()
    (folder / "train.yaml").unlink()
    shutil.rmtree(project / "pipeline" / "defs" / "my_trials")
    scaffold(project, "my_trials")
    assert (folder / "dataset.yaml").read_text() == dataset
    assert (folder / "train.yaml").read_text() == train


def test_a_bad_name_is_refused_in_a_line_with_advice_and_leaves_nothing(made: Scaffolded):
    code, said = made.bad_name
    assert code == 2  # as for any other usage that is wrong
    assert "Error: 'My-Trials' cannot name a data set; wanted lower-case letters" in said
    assert "Traceback" not in said
    assert not (made.root / "pipeline" / "defs" / "My-Trials").exists()
    assert not (made.root / "data" / "My-Trials").exists()


@pytest.mark.parametrize("name", ["1st", "a-b", "A", "ä"])
def test_bad_names_are_errors_of_the_command_line(tmp_path: Path, name: str):
    with pytest.raises(click.UsageError, match=f"'{name}' cannot name a data set"):
        scaffold(tmp_path, name)
    assert [path.name for path in tmp_path.rglob("*")] == ["pipeline", "defs"]


# --- mistakes -------------------------------------------------------------------------------------


def line_of(path: Path, text: str) -> int:
    (line,) = [n for n, row in enumerate(path.read_text().splitlines(), 1) if text in row]
    return line


def test_mistakes_in_a_data_set_are_told_with_their_lines(project: Path):
    path = project / "data" / "my_trials" / "dataset.yaml"
    text = path.read_text().replace("stride: 16", "stride: often")
    path.write_text(text + "bogus: 1\n")
    done = run(project, DG, "check", "defs")
    assert done.returncode != 0
    said = said_by(done)
    assert f"data/my_trials/dataset.yaml:{line_of(path, 'stride')}: windows.stride" in said
    assert f"data/my_trials/dataset.yaml:{line_of(path, 'bogus')}: bogus: no such field" in said


def test_mistakes_in_defs_are_told_with_their_lines(project: Path):
    path = project / "pipeline" / "defs" / "my_trials" / "defs.yaml"
    path.write_text(path.read_text() + "  colour: red\n")
    done = run(project, DG, "check", "defs")
    assert done.returncode != 0
    assert f"defs.yaml:{line_of(path, 'colour')}" in said_by(done)


DATASET, TRAIN = "data/my_trials/dataset.yaml", "data/my_trials/train.yaml"
DEFS = "pipeline/defs/my_trials/defs.yaml"
MISTAKES = {
    "none": (DATASET, "", "", ""),
    "no channel": (DATASET, "channels: [x], h", "channels: [z], h", "target.channels: 'z' is no"),
    "no YAML": (DATASET, "name: my_trials", "name: [", "dataset.yaml is not YAML"),
    "a name": (DATASET, "name: my_trials", "name: My Trials", "dataset.yaml:2: name"),
    "train field": (TRAIN, "epochs: 20", "epoch: 20", "train.yaml:5: epoch: no such field"),
    "train type": (TRAIN, "hidden: 64", "hidden: many", "train.yaml:4: model.hidden"),
    "no data set": (DATASET, "", None, "cannot read"),
    "no training": (TRAIN, "", None, "cannot read"),
    "another file": (DEFS, DATASET, "data/none.yaml", "data/none.yaml"),
    "an owner": (DEFS, "attributes:", "attributes:\n  owner: nobody", "nobody"),
    "a cron": (DEFS, "attributes:", "attributes:\n  schedule: daily!", "daily!"),
    "a time zone": (DEFS, "attributes:", "attributes:\n  timezone: Mars", "Mars"),
    "seconds as text": (DEFS, "attributes:", "attributes:\n  watch_every_seconds: soon", "soon"),
    "a reserved name": (DATASET, "name: my_trials", "name: input", '"input" is not a valid'),
    "a keyword": (DATASET, "name: my_trials", "name: class", '"class" is not a valid'),
    "seconds": (DEFS, "attributes:", "attributes:\n  quiet_seconds: 0", "quiet_seconds"),
}


@pytest.fixture(scope="module")
def mistaken(scaffolded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that mistakes are made in; each is mended again."""
    root = tmp_path_factory.mktemp("mistaken")
    for path in (DATASET, TRAIN, DEFS):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(scaffolded / path, root / path)
    return root


def said_by_loading(root: Path) -> str:
    """Load the component in this process, as `dg check defs` does in one of its own."""
    try:
        attributes = yaml.safe_load((root / DEFS).read_text())["attributes"]
        defs = TrialDataset(**attributes).build_defs(SimpleNamespace(project_root=root))
        defs.get_repository_def().get_all_jobs()
    except Exception as error:  # noqa: BLE001
        parts, cause = [], error
        while cause is not None:
            parts.append(f"{type(cause).__name__}: {cause}")
            cause = cause.__cause__
        return "\n".join(parts)
    return ""


@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named_where_it_is(mistaken: Path, case: str):
    path, old, new, wanted = MISTAKES[case]
    file = mistaken / path
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new)) if new is not None else file.unlink()
    try:
        said = said_by_loading(mistaken)
    finally:
        file.write_text(text)
    assert wanted in said
    assert bool(said) == bool(wanted)
