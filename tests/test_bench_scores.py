"""`bench/scores.py`: which seeds are run, what is kept of earlier ones, and the README's table."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from shards import Store

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "bench"


@pytest.fixture(scope="module")
def bench():
    """A loader of scripts as modules, which leaves no name of theirs behind."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(BENCH) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def scores(bench):
    return bench("scores")


@pytest.fixture
def made(bench, tmp_path, monkeypatch):
    """A set whose figure is 10 + seed, with a config of its own."""
    monkeypatch.setattr(bench("scores_set"), "ROOT", tmp_path)
    config = tmp_path / "train.yaml"
    config.write_text("epochs: 1\n")
    return bench("scores_set").ScoreSet(
        name="made",
        title="Made",
        metric="error",
        better="lower",
        goal=12.0,
        source="nobody",
        protocol="none",
        configs=(config,),
        prepare=lambda work: (work / "built").write_text("yes"),
        run=lambda work, seed: {"error": 10.0 + seed, "ready": (work / "built").exists()},
        digits=1,
    )


def run_main(scores, monkeypatch, tmp_path, *words: str) -> dict:
    """Run the command, and return what the results then hold."""
    results = tmp_path / "scores.json"
    line = ["scores.py", "--results", str(results), "--work", str(tmp_path / "work"), *words]
    monkeypatch.setattr(sys, "argv", line)
    scores.main()
    return json.loads(results.read_text())


def test_a_set_is_prepared_and_summed_up_over_its_seeds(scores, made, monkeypatch, tmp_path):
    monkeypatch.setattr(scores, "load_sets", lambda: {"made": made})
    said = run_main(scores, monkeypatch, tmp_path, "--seeds", "3")["made"]
    assert [row["seed"] for row in said["seeds"]] == [0, 1, 2]
    assert all(row["ready"] for row in said["seeds"])
    assert (said["mean"], said["sd"]) == (11.0, np.std([10, 11, 12], ddof=1))
    assert said["met"]
    assert said["configs"] == {"train.yaml": "epochs: 1\n"}
    assert not run_main(scores, monkeypatch, tmp_path, "--seeds", "6")["made"]["met"]


def test_results_of_other_sets_stay_as_they_are(scores, made, monkeypatch, tmp_path):
    other = dataclasses.replace(made, name="other")
    monkeypatch.setattr(scores, "load_sets", lambda: {"made": made, "other": other})
    before = run_main(scores, monkeypatch, tmp_path, "--seeds", "2")
    after = run_main(scores, monkeypatch, tmp_path, "--only", "made", "--seeds", "1")
    assert after["other"] == before["other"]
    assert len(after["made"]["seeds"]) == 1
    assert after["made"]["sd"] is None


def test_a_run_that_goes_on_keeps_the_seeds_of_the_same_configs(
    scores, made, monkeypatch, tmp_path
):
    ran = []

    def run(work, seed):
        ran.append(seed)
        return {"error": 1.0}

    counted = dataclasses.replace(made, run=run)
    monkeypatch.setattr(scores, "load_sets", lambda: {"made": counted})
    run_main(scores, monkeypatch, tmp_path, "--seeds", "2")
    said = run_main(scores, monkeypatch, tmp_path, "--seeds", "3", "--resume")["made"]
    assert ran == [0, 1, 2]
    assert len(said["seeds"]) == 3
    made.configs[0].write_text("epochs: 2\n")
    said = run_main(scores, monkeypatch, tmp_path, "--seeds", "1", "--resume")["made"]
    assert ran == [0, 1, 2, 0]
    assert len(said["seeds"]) == 1


def test_a_set_without_files_is_left_out_and_named(bench, made, monkeypatch, tmp_path, capsys):
    scores = bench("scores")
    raw = tmp_path / "data" / "made" / "raw"
    absent = dataclasses.replace(made, raw=raw, wanted=raw / "files", archive="made.tar.xz")
    monkeypatch.setattr(scores, "load_sets", lambda: {"absent": absent, "made": made})
    said = run_main(scores, monkeypatch, tmp_path, "--seeds", "1", "--archives", str(tmp_path))
    assert list(said) == ["made"]
    assert "data/made/raw/files is not there" in capsys.readouterr().err


def test_the_table_tells_what_is_not_met(scores, made):
    rows = [{"seed": 0, "error": 13.0, "seconds": 1.0}, {"seed": 1, "error": 14.0, "seconds": 1.0}]
    line = scores.table({"made": scores.sum_up(made, rows)}).splitlines()[-1]
    assert line == "| Made | error | ≤ 12.0 | 13.5 ± 0.7 (not met) | 2 |"


def test_every_set_reads_configs_that_are_there(scores):
    for one in scores.load_sets().values():
        assert one.better in ("higher", "lower")
        assert all(text for text in one.texts().values())


def make_stays(folder: Path, n_stays: int) -> None:
    """Write stays of six hours in the layout of PhysioNet 2012; every fourth one ends in death."""
    rng = np.random.default_rng(0)
    (folder / "set-a").mkdir(parents=True)
    outcomes = ["RecordID,In-hospital_death"]
    for number in range(n_stays):
        rows = [
            f"00:00,Age,{rng.integers(20, 90)}",
            f"00:00,Gender,{number % 2}",
            "00:00,ICUType,3",
        ]
        rows += [f"0{hour}:10,HR,{80 + 20 * (number % 4 == 0)}" for hour in range(6)]
        text = "\n".join(["Time,Parameter,Value", "00:00,RecordID,1", *rows])
        (folder / "set-a" / f"{100 + number}.txt").write_text(text + "\n")
        outcomes.append(f"{100 + number},{int(number % 4 == 0)}")
    (folder / "Outcomes-a.txt").write_text("\n".join(outcomes) + "\n")


def held_out(path: Path, version: str) -> set[int]:
    store = Store(path, version)
    return set(np.flatnonzero(store.index.split == store.split_code("test")).tolist())


def test_folds_are_versions_of_one_store_and_their_mean_is_the_figure(bench, monkeypatch, tmp_path):
    large = bench("scores_large")
    monkeypatch.setattr(large, "N_FOLDS", 2)
    make_stays(tmp_path / "raw", 40)
    for name in ("dataset.yaml", "train.yaml"):
        text = (ROOT / "data" / "physionet2012" / name).read_text()
        (tmp_path / name).write_text(text.replace("epochs: 30", "epochs: 1"))
    work = tmp_path / "work"
    large.build_folds(tmp_path / "dataset.yaml", work)
    first, second = (held_out(work / "store", f"fold{fold}") for fold in range(2))
    assert first
    assert not first & second
    said = large.run_folds(tmp_path / "train.yaml", work, 0)
    assert said["auroc"] == pytest.approx((said["auroc_fold0"] + said["auroc_fold1"]) / 2)
    assert said["best_epoch"] == 1


def test_the_table_in_the_readme_is_that_of_the_results(scores):
    readme = (ROOT / "README.md").read_text()
    assert scores.in_readme(readme, scores.read_results(scores.RESULTS)) == readme
