"""`bench/scores_small.py` on made trials: who is trained on, who is scored, and what comes out."""

import importlib
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.build import build
from shards import Store
from training import TrainConfig

ROOT = Path(__file__).parents[1]
ARCHIVES = ROOT.parent / "shared" / "data"
N_TRIALS, ROWS = 44, 15


@pytest.fixture(scope="module")
def small():
    """The script as a module, which leaves no name behind."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "bench")
        yield importlib.import_module("scores_small")
    for name in set(sys.modules) - before:
        if str(ROOT / "bench") in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def made(small, tmp_path_factory):
    """The robot's folder with made files: a collision is twenty times as strong as noise."""
    data = tmp_path_factory.mktemp("data")
    folder = data / "robot_failures"
    raw = folder / "raw" / "robot_failures"
    raw.mkdir(parents=True)
    for name in ("features.yaml", "train.yaml"):
        shutil.copy(ROOT / "data" / "robot_failures" / name, folder)
    rng = np.random.default_rng(0)
    for number, n_trials in ((1, N_TRIALS), (2, N_TRIALS // 2)):
        lines = []
        for trial in range(n_trials):
            rows = rng.normal(loc=20.0 * (trial % 2), size=(ROWS, 6))
            texts = ["\t" + "\t".join(f"{value:.3f}" for value in row) for row in rows]
            lines += ["collision" if trial % 2 else "normal", *texts, ""]
        (raw / f"lp{number}.data").write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small, "DATA", data)
        yield data


def ids_by_split(path: Path) -> dict[str, set[str]]:
    store = Store(path)
    ids = np.array(store.cold("id")["id"].to_pylist())
    splits = ("train", "val", "test")
    there = [name for name in splits if name in store.manifest.splits]
    return {name: set(ids[store.index.split == store.split_code(name)]) for name in there}


def build_split(small, work: Path, seed: int, held_out: float, name="robot_failures_lp1"):
    problem = small.PROBLEMS[name]
    fields = problem.split_fields(seed, held_out)
    small.build_changed(problem.configs[0], work, fields, work / "store")
    return ids_by_split(work / "store")


def test_choosing_holds_out_train_trials_and_leaves_the_test_trials_alone(small, made, tmp_path):
    final = build_split(small, tmp_path / "final", 7, 0.0)
    choosing = build_split(small, tmp_path / "choosing", 7, small.HELD_OUT)
    problem = small.PROBLEMS["robot_failures_lp1"]
    share = problem.n_train / (problem.n_train + problem.n_test)
    assert len(final["train"]) == round(share * N_TRIALS)
    assert choosing["test"] == final["test"]
    assert choosing["train"] | choosing["val"] == final["train"]
    assert not choosing["train"] & choosing["val"]
    assert choosing["val"]


def test_each_seed_draws_another_split_and_each_problem_reads_its_file(small, made, tmp_path):
    first = build_split(small, tmp_path / "first", 0, 0.0)
    second = build_split(small, tmp_path / "second", 1, 0.0)
    assert first["test"] != second["test"]
    other = build_split(small, tmp_path / "other", 0, 0.0, "robot_failures_lp2")
    assert sum(map(len, other.values())) == N_TRIALS // 2


def test_a_run_scores_the_test_trials_and_learns(small, made, tmp_path):
    problem = small.PROBLEMS["robot_failures_lp1"]
    got = small.run(problem, tmp_path, 0, changes={"epochs": 5, "optimizer.lr": 0.02})
    assert got["n"] == len(ids_by_split(tmp_path / "split0" / "store")["test"])
    assert got["accuracy"] > 0.9 > got["naive_accuracy"]


def test_every_set_has_its_files_and_a_goal_beside_its_problem(small):
    assert [one.name for one in small.SETS] == list(small.PROBLEMS)
    for one in small.SETS:
        config = TrainConfig.read(one.configs[1])
        assert config.early_stopping is None  # else the last epoch would not count
        assert 0 < one.goal < 1
        assert one.texts()


def test_arem_features_are_of_the_recording_or_of_the_row(tmp_path):
    archive = ARCHIVES / "arem.tar.xz"
    if not archive.is_file():
        pytest.skip(f"{archive.name} is not here")
    with tarfile.open(archive) as tar:
        wanted = [one for one in tar.getmembers() if one.name.endswith(("dataset1.csv", "t2.csv"))]
        tar.extractall(tmp_path / "raw", members=wanted, filter="data")
    spec = tmp_path / "features.yaml"
    shutil.copy(ROOT / "data" / "arem" / "features.yaml", spec)
    build(spec, tmp_path / "store")
    store = Store(tmp_path / "store")
    rows = store.trial_rows(store.trial_number("walking/dataset1"))
    names = [channel.name for channel in store.manifest.channels]
    assert rows.shape == (60, 24)
    whole = [number for number, name in enumerate(names) if name.startswith(("mean_", "sd_"))]
    assert np.ptp(rows[:, whole], axis=0).max() == 0
    level, change = (rows[:, names.index(name)] for name in ("avg_rss12", "d_avg12"))
    np.testing.assert_allclose(change[1:], np.diff(level), atol=1e-4)
    assert change[0] == 0
