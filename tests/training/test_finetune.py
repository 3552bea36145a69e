"""Starting from another run's weights: what is taken, what stays, how fast the rest moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from learnable import learnable_store, tiny_config

from shards import InvalidSpecError
from shards.errors import ResumeError
from training import train
from training.checkpoint import CheckpointNotFoundError, load_checkpoint
from training.finetune import load_start, parameter_groups
from training.model import TrialLSTM
from training.sections import ModelConfig, OptimizerConfig, StartConfig

MODEL = {"hidden": 6, "layers": 2, "dropout": 0.0, "head": [4]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    learnable_store(folder / "store", "per_step", n_trials=15)
    learnable_store(folder / "other", "per_step", n_trials=15, seed=1)
    learnable_store(folder / "size", "per_trial", n_trials=15)
    run(folder, "first")
    return folder


def run(folder: Path, name: str, start: dict[str, Any] | None = None, **changes: Any) -> Any:
    fields: dict[str, Any] = {"model": MODEL, "epochs": 1, "out": folder / name, **changes}
    if start is not None:
        fields["start"] = {"checkpoint": first(folder), **start}
    return train(tiny_config(folder, **fields))


def first(folder: Path) -> Path:
    return folder / "first" / "last.ckpt"


def weights(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_checkpoint(path)["model"]
    return found


def test_what_is_frozen_stays_bit_for_bit_and_the_rest_moves(folder: Path) -> None:
    result = run(
        folder, "frozen", {"freeze": ["layers.0", "head.0.bias"]}, store=folder / "other",
        optimizer={"lr": 1e-2, "weight_decay": 0.1},
    )  # fmt: skip
    before, after = weights(first(folder)), weights(result.out / "last.ckpt")
    for name, tensor in before.items():
        frozen = name.startswith("layers.0.") or name == "head.0.bias"
        assert torch.equal(tensor, after[name]) == frozen, name
    assert sum(name.startswith("layers.0.") for name in before) == 4


def test_it_starts_where_the_other_run_ended(folder: Path) -> None:
    still = {"lr": 1e-12, "schedule": "constant"}
    result = run(folder, "still", {}, optimizer=still)
    before = load_checkpoint(first(folder))
    for name, tensor in weights(result.out / "last.ckpt").items():
        torch.testing.assert_close(tensor, before["model"][name], rtol=0, atol=1e-8)
    wanted = before["state"]["history"][-1]["val_loss"]
    assert result.history[0]["val_loss"] == pytest.approx(wanted, rel=1e-5)


def test_a_new_head_is_for_another_target(folder: Path) -> None:
    size = {"store": folder / "size", "model": {**MODEL, "head": [7], "pool": "attention"}}
    with pytest.raises(InvalidSpecError, match=r"head.0.weight is \[4, 6\], wanted \[7, 6\]"):
        run(folder, "old head", {}, **size)
    still = {"lr": 1e-12, "schedule": "constant"}
    result = run(folder, "new head", {"new_head": True}, **size, optimizer=still)
    before, after = weights(first(folder)), weights(result.out / "last.ckpt")
    for name in after:
        if not name.startswith(("head.", "pool.")):
            torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-8)
    assert after["head.0.weight"].shape == (7, 6)


def test_a_new_head_is_random_even_where_the_old_one_would_fit(folder: Path) -> None:
    torch.manual_seed(5)
    network = TrialLSTM(2, 1, ModelConfig(**MODEL), steps=0)
    head = {name: part.clone() for name, part in network.head.named_parameters()}
    load_start(network, StartConfig(checkpoint=first(folder), new_head=True))
    assert all(torch.equal(part, head[name]) for name, part in network.head.named_parameters())
    taken = weights(first(folder))["layers.1.weight_hh_l0"]
    assert torch.equal(network.state_dict()["layers.1.weight_hh_l0"], taken)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"hidden": 8}, r"layers.0.weight_hh_l0 is \[24, 6\], wanted \[32, 8\]"),
        ({"layers": 3}, r"layers.2.bias_hh_l0 is not there, wanted \[24\]"),
        ({"layers": 1}, r"layers.1.bias_hh_l0 is \[24\], wanted not there"),
    ],
)
def test_weights_of_another_shape_are_refused_by_name(
    folder: Path, model: dict[str, int], message: str
) -> None:
    with pytest.raises(InvalidSpecError, match=message):
        run(folder, "refused", {}, model=MODEL | model)
    assert not (folder / "refused").exists()


def test_what_cannot_be_frozen_or_found_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidSpecError, match=r"names 'layer', .*'layers.0'"):
        run(folder, "refused", {"freeze": ["layer"]})
    with pytest.raises(InvalidSpecError, match="nothing to train"):
        run(folder, "refused", {"freeze": ["layers", "head"]})
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint"):
        run(folder, "refused", {"checkpoint": folder / "none.ckpt"})


def network_of_all_parts() -> TrialLSTM:
    config = ModelConfig(
        hidden=4, layers=3, bidirectional=True, layer_norm=True, pool="attention", head=(4,)
    )
    return TrialLSTM(2, 1, config)


def test_each_layer_moves_slower_than_the_one_above() -> None:
    network = network_of_all_parts()
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    start = StartConfig(checkpoint=Path("x"), layer_decay=0.5)
    groups = parameter_groups(network, OptimizerConfig(lr=0.8), start)
    found = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert found.keys() == set(names.values())
    for name, rate in found.items():
        part, number, *_ = name.split(".")
        wanted = 0.8
        if part in ("layers", "backwards", "norms"):
            wanted = {"2": 0.4, "1": 0.2, "0": 0.1}[number]
        assert rate == pytest.approx(wanted), name


def test_without_a_decay_all_share_one_group_and_frozen_ones_have_none() -> None:
    network = network_of_all_parts()
    start = StartConfig(checkpoint=Path("x"))
    assert len(parameter_groups(network, OptimizerConfig(), start)) == 1
    for parameter in network.layers[0].parameters():
        parameter.requires_grad_(False)
    decayed = StartConfig(checkpoint=Path("x"), layer_decay=0.5)
    for asked in (None, start, decayed):
        groups = parameter_groups(network, OptimizerConfig(), asked)
        trained = [p for group in groups for p in group["params"]]
        assert len(trained) == len([p for p in network.parameters() if p.requires_grad])


def test_a_resumed_run_is_refused_another_start(folder: Path) -> None:
    run(folder, "resumed", {"freeze": ["layers.0"]})
    with pytest.raises(ResumeError, match=r"start.freeze was \['layers.0'\], is \[\]"):
        run(folder, "resumed", {})
