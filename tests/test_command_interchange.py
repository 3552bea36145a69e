"""`trialshards export` and `trialshards import`: what they print, and sentences for mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner, Result
from stores import make_store

from shards import Store
from shards.manifest import TargetSchema
from trialshards.cli import main


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], env={"COLUMNS": "200"})


@pytest.fixture
def store(tmp_path: Path) -> Path:
    target = TargetSchema("per_step", ("c0",))
    lengths, splits = [9, 3, 8], ["train", "val", "train"]
    make_store(tmp_path / "store", lengths, splits=splits, target=target, scale=(2.0, 4.0))
    return tmp_path / "store"


def test_export_says_what_it_wrote_and_which_names_differ(store, tmp_path):
    done = run("export", store, tmp_path / "out", "--to", "huggingface")
    assert done.exit_code == 0, done.output
    assert "3 trials, 20 rows, 3 files" in done.output
    assert "column 'target.c0' is 'c0' of the store" in done.output
    assert (tmp_path / "out" / "README.md").is_file()


def test_export_takes_one_split_in_physical_units_of_one_version(store, tmp_path):
    make_store(store, [5], scale=(2.0, 4.0), after="v0001")
    options = ("--physical", "--split", "val", "--version", "v0001", "--observed")
    done = run("export", store, tmp_path / "out", *options)
    assert done.exit_code == 0, done.output
    frame = pl.read_parquet(tmp_path / "out" / "*.parquet")
    wanted = Store(store, "v0001").physical_rows(1)[:, 0]
    assert frame["c0"].to_numpy().tobytes() == np.ascontiguousarray(wanted).tobytes()


def test_export_of_arrays_and_of_lists(store, tmp_path):
    assert run("export", store, tmp_path / "npz", "--to", "npz").exit_code == 0
    assert (tmp_path / "npz" / "val" / "t0001.npz").is_file()
    assert run("export", store, tmp_path / "lists", "--per", "trial").exit_code == 0
    assert len(pl.read_parquet(tmp_path / "lists" / "*.parquet")) == 3


def test_a_mistake_is_a_sentence_and_no_traceback(store, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "x").write_text("")
    for args, said in (
        (("export", store, tmp_path / "used"), "overwrites nothing"),
        (("export", tmp_path / "no", tmp_path / "out"), "no committed version"),
        (("export", store, tmp_path / "out", "--split", "tset"), "no split 'tset'"),
    ):
        done = run(*args)
        assert done.exit_code == 1
        assert said in done.output
        assert isinstance(done.exception, SystemExit)


def test_import_builds_and_says_where_the_specification_is_and_what_is_left_out(tmp_path):
    table = tmp_path / "runs.parquet"
    rows = np.arange(400)
    columns = {
        "run": [f"r{i // 20:02d}" for i in rows], "t": (rows % 20) * 0.5, "x": rows * 1.0,
        "y": rows % 7, "note": [f"n{i % 3}" for i in rows],
    }  # fmt: skip
    pl.DataFrame(columns).write_parquet(table)
    options = ("--trial", "run", "--time", "t", "--target", "y", "--window", 5, "--stride", 2)
    done = run("import", table, "--store", tmp_path / "s", *options, "--name", "two")
    assert done.exit_code == 0, done.output
    assert "published v0001" in " ".join(done.output.split())
    assert f"wrote {tmp_path / 'two.yaml'}" in done.output
    assert "left out: 'note'" in done.output
    store = Store(tmp_path / "s")
    assert store.manifest.name == "two"
    assert [channel.name for channel in store.manifest.channels] == ["x", "y"]
    assert store.manifest.target.columns == ("y",)
    assert (store.manifest.windows.length, store.manifest.windows.stride) == (5, 2)
    again = run("build", tmp_path / "two.yaml", "--store", tmp_path / "s")
    assert "unchanged, nothing published" in " ".join(again.output.split())


def test_import_of_a_column_that_is_not_there_is_a_sentence(tmp_path):
    pl.DataFrame({"run": ["a"], "x": [1.0]}).write_parquet(tmp_path / "a.parquet")
    done = run("import", tmp_path / "a.parquet", "--store", tmp_path / "s", "--trial", "rnu")
    assert done.exit_code == 1
    assert "Did you mean 'run'?" in done.output
    assert not (tmp_path / "s").exists()
