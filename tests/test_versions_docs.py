"""The commands and the Python of docs/versions.md run as they stand, in their order."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from trialfolders import draw_trial, write_spec, write_trial

from shards import Store
from shards.tags import read_tags
from shards.verify import verify_store
from shards.writer import list_versions

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "versions.md").read_text()
COMMAND = Path(sys.executable).parent / "trialshards"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def commands():
    return [line for block in blocks("sh") for line in block.splitlines()]


def run(line, folder):
    words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', line)]
    assert words[0] == "trialshards"
    done = subprocess.run([COMMAND, *words[1:]], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve trials as the page names them; all commands have run."""
    folder = tmp_path_factory.mktemp("docs")
    rng = np.random.default_rng(0)
    for number in range(12):
        name = f"s{number // 6 + 1:02d}/{number % 6 + 1:04d}"
        write_trial(folder, name, draw_trial(rng, 30 + number, ("x", "y")))
    write_spec(folder)
    first, *others = commands()
    run(first, folder)
    write_trial(folder, "s01/0002", draw_trial(rng, 50, ("x", "y")))  # changed since
    said = {line: run(line, folder) for line in others}
    return folder, said


def test_the_commands_do_what_the_page_says(folder):
    path, said = folder[0] / "store", folder[1]
    assert list_versions(path)[-1] == "v0004"  # built, patched, taken out, compacted
    assert "1 trial changed: s01/0002" in said["trialshards diff store v0001 v0002"]
    assert [stone.id for stone in Store(path).manifest.tombstones] == ["s01/0003"]
    assert read_tags(path)["baseline"].version == "v0001"
    assert "published v0004" in said["trialshards compact store --force"]
    dry, wet = (said[f"trialshards gc store --keep 2{how}"] for how in (" --dry-run", ""))
    assert dry.replace("would remove", "removed") == wet
    assert list_versions(path) == ["v0001", "v0003", "v0004"]
    for version in list_versions(path):
        assert verify_store(path, version) == []


def test_every_command_of_the_page_is_one_of_a_kind():
    shown = {line.split()[1] for line in commands()}
    assert {"tag", "versions", "diff", "gc", "tombstone", "compact"} <= shown


def test_the_python_runs(folder, monkeypatch):
    monkeypatch.chdir(folder[0])
    names = {}
    for block in blocks("python"):
        exec(block, names)
    assert names["old"].version == names["stream"].store.version == "v0001"
    assert len(list(names["stream"])) == len(names["stream"])


def test_what_the_page_says_of_the_defaults_is_so():
    from shards.compact import DEAD_SHARE, MOST_SMALL
    from shards.gc import KEPT_VERSIONS

    assert f"(`--keep`, by default {KEPT_VERSIONS})" in TEXT
    assert f"over {DEAD_SHARE:.0%} of".replace("%", " %") in TEXT
    assert f"over {MOST_SMALL} small shards" in TEXT


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (ROOT / "docs" / target).exists(), target
