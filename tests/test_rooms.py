"""Each room works with what its extra installs, and nothing more."""

import subprocess
import sys

import pytest
from stores import make_store

BUILD = """
from pathlib import Path
Path("raw").mkdir()
for i in range(4):
    rows = "".join(f"{t},{t * i}\\n" for t in range(20))
    Path(f"raw/{i}.csv").write_text("a,b\\n" + rows)
Path("dataset.yaml").write_text('''
name: small
source: {files: raw/*.csv}
channels: [a, b]
windows: {length: 5, target: {kind: forecast, channels: [a]}}
''')
from trialshards.cli import main
main(["build", "dataset.yaml", "--store", "store"], standalone_mode=False)
main(["inspect", "store"], standalone_mode=False)
main(["verify", "store"], standalone_mode=False)
"""
STREAM = """
from loaders import TrialStream
assert sum(len(batch) for batch in TrialStream("store", batch_size=2)) > 0
"""


def run_without(modules: list[str], program: str, folder) -> None:
    """Run a program in which importing `modules` fails, as if they were not installed."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({modules!r}))\n"
    done = subprocess.run(
        [sys.executable, "-c", blocked + program], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_pipeline_builds_without_torch(tmp_path):
    run_without(["torch", "lightning_fabric", "matplotlib", "tensorboard"], BUILD, tmp_path)


def test_the_loaders_stream_without_the_pipeline(tmp_path):
    make_store(tmp_path / "store", [30, 20])
    run_without(["polars", "dagster", "pipeline", "matplotlib"], STREAM, tmp_path)


@pytest.mark.parametrize("room", ["shards", "pipeline.build", "loaders", "training"])
def test_importing_a_room_does_no_work(room, tmp_path):
    program = f"import {room}, os; assert os.listdir('.') == []"
    run_without([], program, tmp_path)
