"""The file a person writes: defaults, paths, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
from learnable import learnable_store, tiny_config
from pydantic import ValidationError

from shards import InvalidSpecError, WindowSpec
from training import TrainConfig, train
from training.config import choose_windows


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    file = tmp_path / "jobs" / "arm.yaml"
    file.write_text("store: ../store\nout: runs/arm\noptimizer: {lr: 3e-3}\n")
    config = TrainConfig.read(file)
    assert config.store == tmp_path / "store"
    assert config.out == tmp_path / "jobs" / "runs" / "arm"
    assert config.optimizer.lr == 0.003
    assert config.epochs == 20


def test_a_typo_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "arm.yaml"
    file.write_text("store: s\nout: o\nmodel:\n  hiden: 3\n")
    with pytest.raises(InvalidSpecError, match=r"arm.yaml:4: model.hiden.*Did you mean 'hidden'"):
        TrainConfig.read(file)


def test_a_config_does_not_change() -> None:
    config = TrainConfig(store=Path("s"), out=Path("o"))
    with pytest.raises(ValidationError, match="frozen"):
        config.epochs = 3  # type: ignore[misc]


def test_clip_must_be_ordered(tmp_path: Path) -> None:
    file = tmp_path / "arm.yaml"
    file.write_text("store: s\nout: o\ntarget:\n  clip: [130, 1]\n")
    with pytest.raises(InvalidSpecError, match=r"arm.yaml:3: target.*clip is \[130.0, 1.0\]"):
        TrainConfig.read(file)


def test_own_windows_go_on_top_of_the_stored_ones(tmp_path: Path) -> None:
    stored = WindowSpec(16, 4, 2, 1)
    config = tiny_config(tmp_path, data={"windows": {"length": 8}})
    assert choose_windows(config, stored) == WindowSpec(8, 4, 2, 1)
    assert choose_windows(tiny_config(tmp_path), stored) == stored


@pytest.mark.parametrize(
    ("kind", "target", "message"),
    [
        ("forecast", {"clip": (None, 3)}, "target.clip is .* kind forecast"),
        ("forecast", {"loss_on": "last"}, "target.loss_on is 'last'"),
        ("class", {"loss": "mse"}, "kind class; wanted cross_entropy"),
        ("per_step", {"loss": "cross_entropy"}, "cross_entropy needs target.classes"),
    ],
)
def test_what_the_target_cannot_do_is_refused(
    tmp_path: Path, kind: str, target: dict[str, object], message: str
) -> None:
    learnable_store(tmp_path / "store", kind, n_trials=10)
    with pytest.raises(InvalidSpecError, match=message):
        train(tiny_config(tmp_path, target=target))
    assert not (tmp_path / "run").exists()


def test_all_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "jobs" / "arm.yaml"
    file.parent.mkdir()
    file.write_text(
        "store: ../a\nout: o\nstart: {checkpoint: first/best.ckpt}\n"
        "mixture:\n  stores: [{store: ../b}, {store: c, version: v0002}]\n"
    )
    config = TrainConfig.read(file)
    assert config.start is not None
    assert config.start.checkpoint == tmp_path / "jobs" / "first" / "best.ckpt"
    assert config.mixture is not None
    assert [part.store for part in config.mixture.stores] == [
        tmp_path / "b", tmp_path / "jobs" / "c"
    ]  # fmt: skip
    file.write_text("store: ../a\nout: o\nstages: [{name: one, store: ../b}]\n")
    assert TrainConfig.read(file).stages[0].store == tmp_path / "b"
    file.write_text("store: ../a\nout: o\nmembers: [{name: one, store: d}]\n")
    assert TrainConfig.read(file).members[0].store == tmp_path / "jobs" / "d"


def test_dotted_fields_are_changed_and_nothing_else(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, mixture={"stores": [{"store": tmp_path / "b"}]})
    changed = config.changed({"data.windows.length": 30, "seed": 7, "start.checkpoint": "x.ckpt"})
    assert changed.data.windows is not None
    assert changed.data.windows.length == 30
    assert changed.start is not None
    assert changed.start.checkpoint == Path("x.ckpt")
    back = changed.changed({"data.windows": None, "seed": config.seed, "start": None})
    assert back == config
    assert config.data.windows is None  # what it was made of stays as it is


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"data.windows.lenght": 30}, r"data.windows.lenght\n"),
        ({"nothing": 1}, r"nothing\n"),
        ({"epochs.more": 1}, r"epochs\n"),
        ({"model.hidden": 0}, r"model.hidden\n"),
        ({"target.loss.kind": "mse"}, r"target.loss\n"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(
    tmp_path: Path, changes: dict[str, object], place: str
) -> None:
    with pytest.raises(ValidationError, match=place):
        tiny_config(tmp_path).changed(changes)


STUDIES = {
    "stages": [{"name": "one", "store": "b"}], "sweep": [{"seed": 1}], "seeds": [0, 1],
    "folds": ["v0001"], "members": [{"name": "one", "store": "b"}],
}  # fmt: skip


@pytest.mark.parametrize("study", STUDIES)
def test_one_file_asks_for_one_study(tmp_path: Path, study: str) -> None:
    assert tiny_config(tmp_path).study is None
    config = tiny_config(tmp_path, **{study: STUDIES[study]})
    assert config.study == study
    assert config.changed({study: ()}) == tiny_config(tmp_path)
    for other in STUDIES.keys() - {study}:
        with pytest.raises(ValidationError, match=rf"{study}.*in one file|in one file.*{study}"):
            tiny_config(tmp_path, **{study: STUDIES[study], other: STUDIES[other]})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"replay": 0.2}, "replay without stages"),
        ({"stages": STUDIES["stages"], "mixture": {"stores": [{"store": "b"}]}}, "with a mixture"),
        ({"mixture": {"stores": []}}, "mixture.stores"),
        ({"target": {"quantiles": [0.5, 0.1]}}, "wanted them rising"),
        ({"target": {"quantiles": [0.5, 1.0]}}, "less than 1"),
        ({"optimizer": {"warmup": 0.1}}, "warmup with one_cycle"),
        ({"start": {"checkpoint": "x", "layer_decay": 0.0}}, "greater than 0"),
    ],
)
def test_what_contradicts_itself_is_refused(
    tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        tiny_config(tmp_path, **fields)
