"""What the README shows is run as it stands, on a small copy of the robot-arm data."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from loaders import TrialStream
from shards import Store
from shards.index import PARTS_SCHEMA

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "deploy"))
from sampleproject import make_project  # noqa: E402

README = (ROOT / "README.md").read_text()
COMMAND = Path(sys.executable).parent / "trialshards"


SHOWN = ("trialshards ", "sed ")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def block(language: str) -> str:
    return blocks(language)[0]


def commands() -> list[str]:
    lines = [line.split("#")[0].strip() for line in README.splitlines()]
    return [line for line in lines if line.startswith(SHOWN)]


def run(line: str, folder: Path) -> str:
    program, *words = shlex.split(line)
    command = COMMAND if program == "trialshards" else program
    done = subprocess.run([command, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


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
    runs = {"run": [f"r{n // 80}" for n in range(800)], "x": [n / 7 for n in range(800)]}
    pq.write_table(pa.table(runs), folder / "runs.parquet")
    return folder


@pytest.fixture(scope="module")
def said(folder):
    """What each command says, in the order of the README: the same line may come twice."""
    return [(line, run(line, folder)) for line in commands()]


def test_the_commands_run_in_their_order(said):
    first, again = said[:4], said[4:11]
    assert [line.split()[1] for line, _ in first] == ["build", "inspect", "verify", "train"]
    assert "252 files = " in first[3][1]
    assert "persistence" in first[3][1]
    assert [line.split()[:2] for line, _ in again] == [
        ["trialshards", "build"], ["trialshards", "tag"], ["sed", "-i"], ["trialshards", "build"],
        ["trialshards", "diff"], ["trialshards", "tombstone"], ["trialshards", "versions"],
    ]  # fmt: skip
    assert [line.split()[1] for line, _ in said[11:]] == ["predict", "export", "import"]


def test_a_second_build_does_what_the_readme_says(said, folder):
    nothing, tag, _, one, diff, tombstone, versions = [text for _, text in said[4:11]]
    assert "unchanged, nothing published: v0001" in nothing
    assert "(0 of 252 files read)" in nothing
    assert "baseline is v0001" in tag
    assert "published v0002" in one
    assert "(1 of 252 files read)" in one
    assert "1 trial changed: s04/trial_0004" in diff
    assert "242 trials the same" in diff
    assert "published v0003 without s04/trial_0016" in tombstone
    assert "v0003" in versions
    old, new = (Store(folder / "store", version) for version in ("v0001", "v0002"))
    shared = {shard.digest for shard in old.manifest.shards}
    (own,) = [shard for shard in new.manifest.shards if shard.digest not in shared]
    assert (own.n_trials, own.n_rows) == (1, new["s04/trial_0004"].n_rows)


def test_one_trial_and_some_are_as_the_readme_says(said, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    names = {}
    exec(blocks("python")[1], names)
    trial, table, some = (names[name] for name in ("trial", "table", "some"))
    assert names["store"].version == "v0001"
    assert trial.values.base is not None
    assert str(trial.values.shape) in capsys.readouterr().out
    assert table.column_names == ["time", "q1", "q2", "tau1"]
    assert {trial.attributes["subject"]} == {"s04"}
    numbers = {number for batch in some for number in batch.trial.tolist()} - {-1}  # padding
    found = [names["store"].trial(number) for number in sorted(numbers)]
    assert found
    assert {one.attributes["subject"] for one in found} == {"s04"}
    assert min(one.n_rows for one in found) > 300


def test_a_model_says_something_of_a_file(said, folder):
    said_of = pq.read_table(folder / "predictions.parquet")
    assert set(said_of["trial"].to_pylist()) == {"s04/trial_0004"}
    assert "predicted_tau1" in said_of.column_names


def test_other_tools_get_what_the_readme_says(said, folder):
    assert (folder / "for_hf" / "README.md").is_file()
    assert Store(folder / "runs").manifest.counts["trials"] == 10


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


def test_an_index_row_is_as_large_as_the_readme_says():
    at_the_ids = 8  # where each one begins
    n_bytes = at_the_ids + sum(field.type.bit_width // 8 for field in list(PARTS_SCHEMA)[1:])
    assert f"costs {n_bytes} bytes and the id per *trial*" in README


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
