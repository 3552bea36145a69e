"""What a study's file becomes: plain runs with names, and refusals before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learnable import tiny_config

from shards import InvalidSpecError
from training.config import TrainConfig
from training.study import plan_runs
from training.studytables import csv_text, json_text, mean_and_sd

HERE = Path("/somewhere")


def plan(**study: Any) -> dict[str, TrainConfig]:
    return {run.name: run.config for run in plan_runs(tiny_config(HERE, **study))}


def refusal(**study: Any) -> str:
    with pytest.raises(InvalidSpecError) as caught:
        plan(**study)
    return str(caught.value)


def test_a_plain_config_is_a_study_of_one():
    config = tiny_config(HERE)
    (run,) = plan_runs(config)
    assert run.config == config


def test_a_sweep_sets_dotted_fields_and_names_folders_by_them():
    runs = plan(
        sweep=[
            {"data.windows.length": 30},
            {"data.windows.length": 50, "optimizer.lr": 0.01},
            {"name": "plain rate".replace(" ", "-"), "optimizer.schedule": "constant"},
        ]
    )
    assert list(runs) == ["length=30", "length=50,lr=0.01", "plain-rate"]
    assert [c.data.windows.length if c.data.windows else None for c in runs.values()] == [
        30, 50, None,
    ]  # fmt: skip
    assert runs["length=50,lr=0.01"].optimizer.lr == 0.01
    assert runs["plain-rate"].optimizer.schedule == "constant"
    assert all(config.out == HERE / "run" / name for name, config in runs.items())
    assert all(config.study is None for config in runs.values())


def test_paths_in_a_sweep_are_those_of_the_file(tmp_path):
    config = tiny_config(HERE, sweep=[{"name": "far", "store": "../far"}]).resolve(tmp_path / "a")
    (run,) = plan_runs(config)
    assert run.config.store == tmp_path / "far"


def test_fields_of_one_last_name_are_told_apart_by_the_whole():
    runs = plan(sweep=[{"seed": 1}, {"data.seed": 1}])
    assert list(runs) == ["seed=1", "data.seed=1"]


def test_stages_take_the_run_and_change_what_they_say():
    stages = [
        {"name": "one", "store": "/one"},
        {
            "name": "two", "store": "/two", "version": "v0002", "epochs": 7,
            "optimizer": {"schedule": "exponential", "warmup": 0.1},
            "data": {"windows": {"length": 9}, "weights": {"by": "class"}},
        },
    ]  # fmt: skip
    one, two = plan(stages=stages, data={"batch_size": 32, "weights": "trial"}).values()
    assert (one.store, one.epochs, one.data.weights) == (Path("/one"), 3, "trial")
    assert (two.store, two.version, two.epochs) == (Path("/two"), "v0002", 7)
    assert (two.optimizer.schedule, two.optimizer.warmup, two.optimizer.lr) == (
        "exponential", 0.1, 1e-2,
    )  # fmt: skip
    assert two.data.windows is not None
    assert (two.data.windows.length, two.data.batch_size) == (9, 32)
    assert two.data.weights.by == "class"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("study", "said"),
    [
        ({"sweep": [{"data.windows.lenght": 3}]}, "data.windows.lenght"),
        ({"sweep": [{"optimizer.lr": -1}]}, "greater than 0"),
        ({"sweep": [{"optimizer.lr.fast": 1}]}, "optimizer.lr"),
        ({"sweep": [{"out": "x"}]}, "sets out; wanted fields of one run"),
        ({"sweep": [{"seeds": [1]}]}, "sets seeds"),
        ({"sweep": [{"name": "nothing"}]}, "sets no field"),
        ({"sweep": [{"seed": 1}, {"seed": 1}]}, "'seed=1' occurs twice"),
        ({"sweep": [{"name": "../up", "seed": 1}]}, "cannot be the name of a run's folder"),
        ({"seeds": [1, 1]}, "'seed-1' occurs twice"),
        ({"folds": ["pooled"]}, "and not ensemble or pooled"),
        ({"stages": [{"name": "a", "store": "s", "optimizer": {"rate": 1}}]}, "stage 'a' sets"),
        ({"members": [{"name": "A", "store": "s"}, {"name": "a", "store": "s"}]}, "'a' occurs"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused_before_anything_is(study: Any, said: str):
    assert said in refusal(**study)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=6))
@settings(max_examples=30)
def test_mean_and_sd_are_those_of_the_sample(values: list[float]):
    found = mean_and_sd([{"rmse": value} for value in values])["rmse"]
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    assert found["mean"] == pytest.approx(mean, abs=1e-6)
    assert found["sd"] == pytest.approx(variance**0.5, rel=1e-6, abs=1e-6)


def test_a_metric_that_one_run_lacks_has_no_mean_and_one_run_no_sd():
    assert mean_and_sd([{"rmse": 1.0, "mae": 2.0}, {"rmse": 3.0, "mae": None}]).keys() == {"rmse"}  # type: ignore[dict-item]
    assert mean_and_sd([{"rmse": 1.0}]) == {"rmse": {"mean": 1.0, "sd": None}}


def test_tables_hold_all_columns_and_json_no_nan():
    text = csv_text([{"run": "a", "rmse": None}, {"run": "b, c", "error": "no\nnumber"}])
    assert text == 'run,rmse,error\na,,\n"b, c",,"no\nnumber"\n'
    assert '"x": null' in json_text({"x": float("nan"), "y": (1.5, float("inf"))})
