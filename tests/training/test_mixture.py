"""One network learns from several stores, each in its own units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from codedstores import TextTrial, text_spec, text_store
from learnable import tiny_config
from stores import make_store

import training.loop
from loaders.mix import MixedStream
from shards import InvalidSpecError, Store, WindowSpec
from shards.errors import ResumeError
from shards.manifest import TargetSchema
from training import TrainConfig, train
from training.checkpoint import check_same_run, load_checkpoint
from training.streams import check_alike, open_stores, open_training
from training.target import Objective

PER_STEP = TargetSchema("per_step", ("y0",))
MODEL = {"hidden": 6, "layers": 1, "dropout": 0.0, "head": [4]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    windows, scale = WindowSpec(4, 2), (20_000.0, 10_000.0)
    # Their targets are row numbers: those of `long` have another mean and a larger sd.
    for name, lengths in (("short", [5, 7, 3, 6]), ("long", [40, 25, 31])):
        splits = ["train"] * (len(lengths) - 1) + ["val"]
        make_store(folder / name, lengths, n_channels=2, target=PER_STEP, windows=windows,
                   splits=splits, scale=scale)  # fmt: skip
    return folder


def config_of(folder: Path, name: str = "run", **changes: Any) -> TrainConfig:
    fields: dict[str, Any] = {
        "store": folder / "short", "out": folder / name, "epochs": 2, "model": MODEL,
        "mixture": {"stores": [{"store": folder / "long"}]},
        "data": {"batches": "trials", "batch_size": 2}, **changes,
    }  # fmt: skip
    return tiny_config(folder, **fields)


@pytest.mark.parametrize("batches", ["windows", "trials", "lanes"])
def test_each_store_has_an_objective_of_its_own_and_its_batches_use_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, batches: str
) -> None:
    seen: list[tuple[int, int, Objective]] = []
    plain = training.loop.step_loss

    def spy(output: Any, batch: Any, objective: Objective, *rest: Any) -> Any:
        seen.append((batch.source, batch.values.shape[1], objective))
        return plain(output, batch, objective, *rest)

    monkeypatch.setattr(training.loop, "step_loss", spy)
    data = {"batches": batches, "batch_size": 2, "lanes": {"chunk": 4}}
    result = train(config_of(folder, batches, data=data))
    rows = {"short": np.concatenate([np.arange(n) for n in (5, 7, 3)]),
            "long": np.concatenate([np.arange(n) for n in (40, 25)])}  # fmt: skip
    assert {source for source, *_ in seen} == {0, 1}
    for source, _, objective in seen:
        own = rows[("short", "long")[source]]
        assert objective.mean == pytest.approx([own.mean()])
        assert objective.sd[0] == pytest.approx([own.std()])
    if batches == "trials":  # ragged: each batch is as long as its own trials
        assert {length for _, length, _ in seen} >= {40, 7}
    saved = load_checkpoint(result.out / "last.ckpt")
    means = [objective["mean"][0] for objective in saved["run"]["objectives"]]
    assert means == pytest.approx([rows["short"].mean(), rows["long"].mean()])
    assert len(saved["carry"]) == (2 if batches == "lanes" else 0)
    assert result.history[-1]["val_loss"] > 0


def test_validation_is_the_mean_over_the_rows_of_all_stores(folder: Path) -> None:
    still: dict[str, Any] = {"optimizer": {"lr": 1e-12, "schedule": "constant"}, "epochs": 1}
    start = {"checkpoint": folder / "start" / "last.ckpt"}
    train(config_of(folder, "start", mixture=None))
    losses = []
    for name in ("short", "long"):
        config = config_of(folder, f"only {name}", store=folder / name, mixture=None, start=start)
        result = train(config.changed({"optimizer": still["optimizer"], "epochs": 1}))
        losses.append(result.history[0]["val_loss"])  # of one trial each
    both = train(config_of(folder, "both", start=start, **still)).history[0]["val_loss"]
    assert both == pytest.approx(sum(losses) / 2, rel=1e-4)


def test_shares_decide_the_steps(folder: Path) -> None:
    mixture = {"stores": [{"store": folder / "long"}], "by": [3, 1], "stop": "cycle"}
    config = config_of(folder, mixture=mixture, data={"batch_size": 2})
    stream = open_training(open_stores(config), config, (0, 1))
    assert isinstance(stream, MixedStream)
    short, long = stream.quotas(0)
    assert short == pytest.approx(3 * long, abs=3)
    assert [batch.source for batch in stream].count(0) == short


def test_a_condition_is_of_its_own_store(folder: Path) -> None:
    other = {"store": folder / "long", "where": "trials.id = 't0001'"}
    config = config_of(folder, mixture={"stores": [other]})
    stream = open_training(open_stores(config), config, (0, 1))
    trials: dict[int | None, set[int]] = {0: set(), 1: set()}
    for batch in stream:
        trials[batch.source] |= set(batch.trial.tolist()) - {-1}
    assert trials == {0: {0, 1, 2}, 1: {1}}


def test_shares_are_one_for_each_store(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("store: s\nout: o\nmixture:\n  stores: [{store: t}]\n  by: [1, 2, 3]\n")
    with pytest.raises(InvalidSpecError, match=r"run.yaml:3: mixture.*by has 3 shares; wanted 2"):
        TrainConfig.read(file)


def test_stores_of_other_inputs_or_targets_are_refused(tmp_path: Path) -> None:
    common: dict[str, Any] = {"n_channels": 2, "target": PER_STEP, "windows": WindowSpec(4, 2)}
    forecast = {"target": TargetSchema("forecast", ("c0",))}
    made = {
        name: make_store(tmp_path / name, [9, 9], **common | changes)
        for name, changes in {
            "first": {}, "channels": {"n_channels": 3}, "mask": {"missing": True},
            "target": {"target": TargetSchema("per_step", ("y0", "y1"))},
            "one ahead": forecast | {"windows": WindowSpec(4, 2, steps=1)},
            "two ahead": forecast | {"windows": WindowSpec(4, 2, steps=2)},
        }.items()
    }  # fmt: skip
    config = tiny_config(tmp_path)
    check_alike(made["first"], made["first"], config)
    for name, message in (
        ("channels", "channels .*'c2'.*wanted"), ("target", "has target .*'y1'"),
        ("mask", "observed mask True; wanted False"),
    ):  # fmt: skip
        with pytest.raises(InvalidSpecError, match=message):
            check_alike(made["first"], made[name], config)
    with pytest.raises(InvalidSpecError, match=r"steps \(1, 2\); wanted \(1, 1\)"):
        check_alike(made["one ahead"], made["two ahead"], config)
    alike = config.changed({"data.windows.steps": 2})
    check_alike(made["one ahead"], made["two ahead"], alike)


def test_stores_of_other_words_are_refused(tmp_path: Path) -> None:
    """As many words, but code 1 is another one: the embedding would mean both."""

    def words(name: str, *known: str) -> Store:
        trials = [TextTrial(columns=[[word] * 8]) for word in known]
        return text_store(tmp_path / name, trials, text_spec({"gear": "embed"}))

    low, high = words("low", "fast", "low"), words("high", "fast", "high")
    config = tiny_config(tmp_path)
    check_alike(low, words("again", "fast", "low"), config)
    with pytest.raises(InvalidSpecError, match=r"codes and statics .*'high'.* wanted .*'low'"):
        check_alike(low, high, config)


def test_a_moved_store_is_the_same_run_and_other_data_another(folder: Path) -> None:
    config = config_of(folder, "moved", epochs=1)
    train(config)
    (folder / "there").symlink_to(folder / "long")
    there = config.changed({"mixture.stores": [{"store": folder / "there"}]})
    assert train(there).steps > 0
    for changes in ({"store": folder / "short"}, {"store": folder / "long", "where": "1 = 1"}):
        with pytest.raises(ResumeError):
            train(config.changed({"mixture.stores": [changes]}))


def test_other_statistics_of_any_store_are_another_run(folder: Path) -> None:
    config = config_of(folder, "statistics", epochs=1)
    train(config)
    path = config.out / "last.ckpt"
    run = load_checkpoint(path)["run"]
    other = [run["objectives"][0], dict(run["objectives"][1], mean=(5.0,))]
    with pytest.raises(ResumeError, match=r"of store 1: mean was .*, is \(5.0,\)"):
        check_same_run(run, {**run, "objectives": other}, path)
