"""`trialshards predict`: new files get the predictions that an evaluation gives the same trials."""

from __future__ import annotations

import gzip
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from machinetrials import build_machines, raw_files
from trialfolders import draw_trial, write_spec, write_trial

from pipeline.build import build
from shards import Store
from training import TrainConfig, train
from training.checkpoint import BEST
from training.evaluation import score_on
from trialshards.cli import main

TINY: dict[str, Any] = {
    "epochs": 1, "model": {"hidden": 4, "layers": 1, "head": [4]}, "early_stopping": None,
    "device": {"accelerator": "cpu"}, "data": {"batch_size": 16, "validation_split": None},
}  # fmt: skip
AHEAD = {"kind": "forecast", "channels": ["x"], "horizon": 2, "steps": 3}


def call(*words: object) -> Any:
    return CliRunner().invoke(main, ["predict", *map(str, words)])


def train_tiny(folder: Path, **changes: Any) -> Path:
    """Train on `folder / store`, evaluate, and return the checkpoint."""
    data = {**TINY["data"], **changes.pop("data", {})}
    config = TrainConfig(
        store=folder / "store", out=folder / "run", **{**TINY, **changes, "data": data}
    )
    train(config)
    score_on(config, folder / "run" / BEST, folder / "run" / "evaluation")
    return folder / "run" / BEST


def write_walks(folder: Path, **sections: Any) -> None:
    """Build a store of trials of 3 to 40 rows with a label; its source files lie in `raw`."""
    rng = np.random.default_rng(7)
    rows = ["trial,size"]
    for i in range(12):
        columns = draw_trial(rng, (3, 11, 12, 40, 25, 17)[i % 6], ("x", "y"), missing=0.1)
        write_trial(folder, f"t{i:02d}", columns)
        rows.append(f"t{i:02d},{('small', 'large')[i % 2]}")
    (folder / "sizes.csv").write_text("\n".join(rows) + "\n")
    size = {"table": "sizes.csv", "trial_id": "{trial}", "column": "size"}
    split = {"method": "exact", "fractions": {"train": 0.5, "test": 0.5}}
    build(write_spec(folder, attributes={"size": size}, split=split, **sections), folder / "store")


def files_of_split(folder: Path, split: str = "test") -> list[Path]:
    store = Store(folder / "store")
    numbers = np.flatnonzero(store.index.split == store.split_code(split)).tolist()
    ids = {store.index.id_of(number).partition("#")[0] for number in numbers}
    return [path for path in raw_files(folder) if path.name.split(".")[0] in ids]


def evaluated(folder: Path) -> pl.DataFrame:
    """Return what the evaluation said, by the names and rows that trials have in their files."""
    store, said = (
        Store(folder / "store"),
        pl.read_parquet(folder / "run/evaluation/predictions.parquet"),
    )
    begins = {}
    for name in said["trial"].unique().to_list():
        whole, _, number = name.partition("#")
        sizes = [segment.n_rows for segment in store[whole].segments]
        begins[name] = (whole, sum(sizes[: int(number or 1) - 1]))
    row = pl.Series([begins[name][1] for name in said["trial"]], dtype=pl.Int64)
    trial = pl.Series([begins[name][0] for name in said["trial"]])
    return said.with_columns(trial=trial, row=pl.col("row") + row)


def compare(folder: Path, got: pl.DataFrame) -> pl.DataFrame:
    """Check predictions against the evaluation of the same trials; return the ones it has not."""
    keys, wanted = ["trial", "row", "ahead"], evaluated(folder)
    assert got.select(keys).is_unique().all()
    both = wanted.join(got, on=keys, how="left", suffix="_new")
    names = [name for name in wanted.columns if name.startswith(("predicted_", "probability_"))]
    assert names
    for name in names:
        assert np.allclose(both[name], both[f"{name}_new"], rtol=1e-5, atol=1e-6)
    assert not [name for name in got.columns if name.startswith(("truth_", "naive_"))]
    return got.join(wanted, on=keys, how="anti")


@pytest.fixture(autouse=True)
def _own_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Nothing is left behind, whatever happens."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    yield
    assert not list((tmp_path / "tmp").glob("trialshards-*"))


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("machines")
    build_machines(folder)
    train_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("walks")
    write_walks(folder, normalize={"scope": "train"}, windows={"target": AHEAD, "length": 8})
    train_tiny(folder)
    return folder


def test_values_per_step_are_those_of_the_evaluation(machines, tmp_path):
    files, out = files_of_split(machines), tmp_path / "p.parquet"
    assert any(path.suffix == ".gz" for path in files)
    done = call(machines / "run" / BEST, *files, "--out", out,
                "--dataset", machines / "dataset.yaml")  # fmt: skip
    assert done.exit_code == 0, done.output
    got = pl.read_parquet(out)
    assert f"{len(got):,} predictions of {len(files)} trials are in {out}." in done.output
    assert got.columns == ["trial", "row", "ahead", "time", "predicted_left"]
    ends = compare(machines, got)  # rows behind the last window that the stride lets begin
    assert len(ends) < 3 * 2 * len(files)
    store = Store(machines / "store")
    for trial in got["trial"].unique().to_list():
        mine = got.filter(pl.col("trial") == trial)
        assert mine["row"].to_list() == list(range(store[trial].n_rows))
        assert np.allclose(mine["time"], store[trial].time)


def test_forecasts_are_those_of_the_evaluation_and_one_beyond_each_end(walks, tmp_path):
    files, out = files_of_split(walks), tmp_path / "p.parquet"
    assert call(walks / "run" / BEST, *files, "--out", out).exit_code == 0
    beyond = compare(walks, pl.read_parquet(out))
    store = Store(walks / "store")
    assert beyond["trial"].unique().len() == len(files)
    for trial in beyond["trial"].unique().to_list():
        mine, n = beyond.filter(pl.col("trial") == trial), store[trial].n_rows
        assert mine["row"].to_list() == [n + 1, n + 2, n + 3]
        assert mine["ahead"].to_list() == [2, 3, 4]


def test_the_forecast_beyond_an_end_is_that_of_a_longer_file(walks, tmp_path):
    # Windows of 8 rows start at even rows; one of a shorter file is all of it.
    rng, files, lengths = np.random.default_rng(1), [], (5, 8, 30)
    for n in lengths:
        columns = draw_trial(rng, n + 4, ("x", "y"))
        files.append(write_trial(tmp_path, f"whole{n}", columns))
        cut = {name: column[:n] for name, column in columns.items()}
        files.append(write_trial(tmp_path, f"cut{n}", cut))
    out = tmp_path / "p.parquet"
    assert call(walks / "run" / BEST, *files, "--out", out).exit_code == 0
    said = pl.read_parquet(out).with_columns(n_seen=pl.col("row") - pl.col("ahead") + 1)
    for n in lengths:
        whole, cut = (
            said.filter((pl.col("trial") == f"{name}{n}") & (pl.col("n_seen") == n))
            for name in ("whole", "cut")
        )
        assert whole["row"].to_list() == cut["row"].to_list() == [n + 1, n + 2, n + 3]
        assert np.allclose(whole["predicted_x"], cut["predicted_x"])


@pytest.mark.parametrize("batches", ["trials", "lanes"])
def test_whole_trials_and_lanes_predict_every_step(tmp_path, batches):
    write_walks(tmp_path, normalize={"scope": "trial"}, windows={"target": AHEAD})
    checkpoint = train_tiny(
        tmp_path, data={"batches": batches, "lanes": {"chunk": 5}, "batch_size": 4}
    )
    out = tmp_path / "p.parquet"
    done = call(checkpoint, *files_of_split(tmp_path), "--out", out)
    assert done.exit_code == 0, done.output
    got, store = pl.read_parquet(out), Store(tmp_path / "store")
    sizes = {trial: store[trial].n_rows for trial in got["trial"].unique().to_list()}
    assert min(sizes.values()) == 3  # shorter than the horizon, so that no evaluation has it
    for trial, n in sizes.items():
        origins = got.filter(pl.col("trial") == trial).select(pl.col("row") - pl.col("ahead"))
        assert origins["row"].value_counts().sort("row")["count"].to_list() == [3] * n
    beyond = compare(tmp_path, got).filter(pl.col("trial") != "t06")
    assert (beyond["row"] >= beyond["trial"].replace_strict(sizes)).all()


@pytest.mark.parametrize("batches", ["windows", "trials"])
def test_the_last_row_alone_is_predicted_where_the_run_is_judged_there(tmp_path, batches):
    target = {"kind": "per_step", "columns": ["y"], "channels": None}
    write_walks(tmp_path, channels=["x"], windows={"target": target, "stride": 3})
    checkpoint = train_tiny(
        tmp_path,
        data={"batches": batches},
        evaluate={"at": "last"},
        target={"loss": "quantile", "quantiles": [0.1, 0.5, 0.9]},
    )
    files, out = files_of_split(tmp_path), tmp_path / "p.parquet"
    assert call(checkpoint, *files, "--out", out).exit_code == 0
    got, store = pl.read_parquet(out), Store(tmp_path / "store")
    assert compare(tmp_path, got).is_empty()
    assert [store[trial].n_rows - 1 for trial in got["trial"]] == got["row"].to_list()
    assert (got["predicted_y_q10"] <= got["predicted_y_q90"]).all()


def test_classes_are_said_by_name(tmp_path):
    target = {"kind": "per_trial", "attribute": "size", "channels": None}
    write_walks(tmp_path, windows={"target": target})
    checkpoint, out = train_tiny(tmp_path), tmp_path / "p.parquet"
    bare = []
    for path in files_of_split(tmp_path):  # elsewhere, where no table speaks of them
        bare.append(tmp_path / "new" / path.name)
        bare[-1].parent.mkdir(exist_ok=True)
        shutil.copy(path, bare[-1])
    assert call(checkpoint, *bare, "--out", out).exit_code == 0
    got, classes = pl.read_parquet(out), Store(tmp_path / "store").manifest.target.classes
    codes = got["predicted_size"].replace_strict(dict(zip(classes, [0.0, 1.0], strict=True)))
    assert compare(tmp_path, got.with_columns(predicted_size=codes)).is_empty()
    best = np.argmax(got.select(f"probability_{name}" for name in classes).to_numpy(), axis=1)
    assert [classes[code] for code in best] == got["predicted_size"].to_list()


# --- refusals -------------------------------------------------------------------------------------


def test_bad_files_are_listed_and_the_others_predicted(walks, tmp_path):
    good, *_ = files_of_split(walks)
    text = good.read_text()
    for name, content in (
        ("renamed", text.replace("x,y", "x,z")),
        ("text", text.replace("\n", "\n?,1\n", 1)),
        ("short", "x,y\n"),
    ):
        (tmp_path / f"{name}.csv").write_text(content)
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress(text.encode()))
    out = tmp_path / "p.parquet"
    files = [good, *sorted(tmp_path.glob("*.csv*")), tmp_path / "gone.csv"]
    done = call(walks / "run" / BEST, *files, "--out", out)
    assert done.exit_code == 1
    for said in ("renamed.csv: missing_column: no column 'y' among 2: 'x', 'z'; ",
                 "text.csv: not_a_number", "short.csv: no_rows", "gone.csv: unreadable",
                 "4 refusals, see above"):  # fmt: skip
        assert said in done.output
    got = pl.read_parquet(out)
    assert set(got["trial"]) == {good.stem, "packed"}
    first, second = (got.filter(pl.col("trial") == name) for name in (good.stem, "packed"))
    assert first.drop("trial").equals(second.drop("trial"))


def test_without_a_good_file_an_older_table_stays(walks, tmp_path):
    out = tmp_path / "p.parquet"
    out.write_bytes(b"older")
    done = call(walks / "run" / BEST, tmp_path / "gone.csv", "--out", out)
    assert done.exit_code == 1
    assert "Nothing was written." in done.output
    assert out.read_bytes() == b"older"


def test_a_trial_too_short_for_a_window_is_said(tmp_path):
    write_walks(tmp_path, windows={"target": AHEAD, "length": 8, "short": "drop"})
    checkpoint, out = train_tiny(tmp_path), tmp_path / "p.parquet"
    new = write_trial(tmp_path, "new", {"x": [1.0, 2.0], "y": [3.0, 4.0]})
    done = call(checkpoint, new, tmp_path / "raw/t03.csv", "--out", out)
    assert "new.csv: no_window: trial 'new' has 2 rows, too few for a window of 8" in done.output
    assert set(pl.read_parquet(out)["trial"]) == {"t03"}


def test_a_store_that_was_moved_is_named_and_another_one_refused(walks, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(walks, folder)
    (file, *_), out = files_of_split(walks), tmp_path / "p.parquet"
    (folder / "moved").mkdir()
    shutil.move(folder / "store", folder / "moved" / "store")
    checkpoint = folder / "run" / BEST
    assert call(checkpoint, file, "--store", folder / "moved/store", "--out", out).exit_code == 0
    shutil.copytree(walks / "store", folder / "store")
    write_trial(folder, "t00", {"x": [1.0, 2.0], "y": [1.0, 5.0]})
    write_trial(folder, "t01", {"x": [1.0, 2.0], "y": [1.0, 5.0]})
    build(folder / "dataset.yaml", folder / "other")
    done = call(checkpoint, file, "--store", folder / "other", "--out", out)
    assert "was not trained on" in done.output
    done = call(checkpoint, file, "--store", folder / "nowhere", "--out", out)
    assert "where no store is" in done.output
    assert call(folder / "no.ckpt", file).exit_code == 1
