"""Codes and statics in the network: what they add, what code 0 adds, and that it learns them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from codedstores import TextTrial, text_spec, text_store
from learnable import numpy_network, tiny_config
from torch import nn

from loaders import TrialStream
from shards import Store, WindowSpec
from shards.errors import ResumeError
from shards.manifest import TargetSchema
from training import evaluate, train
from training.build import build_model, model_inputs
from training.checkpoint import check_same_run, describe_run, load_checkpoint
from training.config import ModelConfig
from training.extras import NO_EXTRAS, ExtraInputs, Extras, embedding_columns, extra_inputs
from training.model import TrialLSTM
from training.target import choose_objective

SMALL = ModelConfig(hidden=8, layers=2, dropout=0.0, head=(5,))
BOTH = ExtraInputs(codes=(("one_hot", 3), ("embed", 4)), n_statics=2, static_words=(5,))


def test_without_extras_the_network_is_the_one_it_always_was() -> None:
    torch.manual_seed(7)
    first, second = nn.LSTM(6, 8, batch_first=True), nn.LSTM(8, 8, batch_first=True)
    head = nn.Linear(8, 5)
    torch.manual_seed(7)
    model = TrialLSTM(3, 2, SMALL, observed=True, extras=NO_EXTRAS)
    state = model.state_dict()
    assert {name.split(".")[0] for name in state} == {"layers", "head"}
    assert torch.equal(state["layers.0.weight_ih_l0"], first.weight_ih_l0)
    assert torch.equal(state["layers.1.weight_hh_l0"], second.weight_hh_l0)
    assert torch.equal(state["head.0.weight"], head.weight)


def random_inputs(n: int = 3, n_steps: int = 7) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(1)
    codes = torch.stack(
        [torch.randint(0, words + 1, (n, n_steps), generator=rng) for words in (3, 4)], dim=-1
    )
    return (
        torch.randn(n, n_steps, 2, generator=rng), torch.tensor([n_steps] * n), codes,
        torch.randn(n, 2, generator=rng), torch.randint(0, 6, (n, 1), generator=rng),
    )  # fmt: skip


@pytest.mark.parametrize("observed", [False, True])
def test_it_computes_what_the_equations_say(observed: bool) -> None:
    model = TrialLSTM(2, 1, SMALL, observed=observed, steps=0, extras=BOTH)
    values, lengths, codes, statics, static_codes = random_inputs()
    mask = torch.rand(values.shape) > 0.5 if observed else None
    got = model(values, lengths, mask, codes, statics, static_codes)[0].detach()
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("extras")}
    table = model.extras.tables[0].weight.detach().numpy()
    static_table = model.extras.static_tables[0].weight.detach().numpy()
    for row in range(3):
        steps = []
        for step in range(7):
            one, two = codes[row, step].tolist()
            steps.append(
                np.concatenate(
                    [
                        values[row, step].numpy(),
                        mask[row, step].float().numpy() if mask is not None else np.zeros(0),
                        [float(one == word) for word in (1, 2, 3)],
                        table[two],
                        statics[row].numpy(),
                        static_table[int(static_codes[row, 0])],
                    ]
                )
            )
        want = numpy_network(weights, np.array(steps, np.float64))
        np.testing.assert_allclose(got[row], want, atol=1e-5)


def test_code_0_adds_nothing_and_is_never_trained() -> None:
    extras = Extras(BOTH)
    values, _, codes, statics, static_codes = random_inputs()
    parts, _ = extras(values, torch.zeros_like(codes), statics, torch.zeros_like(static_codes))
    assert sum(part.shape[-1] for part in parts) == extras.width
    one_hot, embedded, _, embedded_static = parts
    assert not one_hot.any()
    assert not embedded.any()
    assert not embedded_static.any()
    torch.cat(extras(values, codes, statics, static_codes)[0], -1).square().sum().backward()
    for table in (*extras.tables, *extras.static_tables):
        assert not table.weight.grad[0].any()
        assert table.weight.grad.any()


@pytest.mark.parametrize(
    ("n_words", "columns"), [(0, 1), (1, 2), (2, 2), (10, 6), (100, 21), (1000, 50), (10**6, 50)]
)
def test_the_default_width_is_the_rule_of_thumb(n_words: int, columns: int) -> None:
    assert embedding_columns(n_words) == columns


def test_the_width_may_be_chosen() -> None:
    assert Extras(BOTH, 7).width == 3 + 7 + 2 + 7
    assert Extras(BOTH).width == 3 + embedding_columns(4) + 2 + embedding_columns(5)
    model = TrialLSTM(2, 1, ModelConfig(embedding_dim=7), extras=BOTH)
    assert model.layers[0].input_size == 2 + 19


def test_empty_vocabularies_are_no_error() -> None:
    empty = ExtraInputs(codes=(("one_hot", 0), ("embed", 0)), n_statics=0, static_words=(0,))
    model = TrialLSTM(2, 1, SMALL, extras=empty)
    codes = torch.zeros(3, 7, 2, dtype=torch.int64)
    values, lengths, *_ = random_inputs()
    out, _ = model(values, lengths, None, codes, torch.zeros(3, 0), codes[:, 0, :1])
    assert out.isfinite().all()


# A store whose labels are in its words and attributes alone

SPEC = text_spec(
    {"gripper": "one_hot", "mode": "embed"},
    {"load": "number", "site": "one_hot", "hand": "embed"},
)
MASS = {"open": 0.0, "shut": 40.0, "slow": 0.0, "fast": 20.0, "lab": 0.0, "hall": 10.0}


def word_trial(i: int, seed: int) -> TextTrial:
    """Return noise for values; the label is 5 x load + what the words of the trial weigh."""
    rng = np.random.default_rng([seed, i])
    gripper, mode = rng.choice(["open", "shut"]), rng.choice(["slow", "fast"])
    site, load, n = rng.choice(["lab", "hall"]), rng.uniform(0, 10), int(rng.integers(12, 30))
    split = {0: "val", 1: "test"}.get(i % 5, "train")
    gripper = "never seen" if i == 6 else gripper  # in test, so unknown to train
    return TextTrial(
        [[gripper] * n, [mode] * n],
        {"load": f"{load:.6f}", "site": site, "hand": "left" if i % 2 else "right"},
        split=split,
        values=rng.normal(size=(n, 2)).astype(np.float32),
        label=float(5 * load + sum(MASS.get(str(w), 0) for w in (gripper, mode, site))),
    )


def word_store(path: Path, seed: int = 0) -> Store:
    return text_store(
        path,
        [word_trial(i, seed) for i in range(120)],
        SPEC,
        n_shards=3,
        windows=WindowSpec(length=8, stride=4),
        target=TargetSchema("per_trial", ("mass",)),
    )


@pytest.fixture
def config(tmp_path: Path) -> Any:
    word_store(tmp_path / "store")
    return tiny_config(tmp_path, epochs=12, model={"hidden": 16, "dropout": 0.0, "head": [8]})


def test_the_sizes_are_those_of_the_store(config: Any) -> None:
    store = Store(config.store)
    assert extra_inputs(store) == ExtraInputs(
        codes=(("one_hot", 2), ("embed", 2)), n_statics=3, static_words=(2,)
    )


def test_it_learns_what_words_and_attributes_say(config: Any) -> None:
    train(config)
    evaluation = evaluate(config)
    assert evaluation.n_trials == 24
    assert evaluation.metrics["rmse"] < 0.35 * evaluation.metrics["naive_rmse"]


def test_a_resumed_run_ends_the_same(config: Any, tmp_path: Path) -> None:
    whole = config.model_copy(update={"out": tmp_path / "whole", "epochs": 3})
    config = config.model_copy(update={"epochs": 3})
    train(whole)
    first = train(config, on_metrics=lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert first.status == "interrupted"
    assert train(config).status == "finished"
    a, b = (load_checkpoint(c.out / "last.ckpt")["model"] for c in (config, whole))
    assert any(name.startswith("extras.tables") for name in a)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_word_that_train_does_not_know_is_predicted_without(config: Any) -> None:
    store = Store(config.store)
    stream = TrialStream(store, split="test", batch_size=4, shuffle="none")
    model = build_model(store, config, choose_objective(config, TrialStream(store)))
    model.eval()
    batch = next(b for b in stream if 6 in b.trial)
    row = batch.trial.tolist().index(6)
    assert not batch.codes[row, :, 0].any()
    assert batch.codes[row, :, 1].all()
    assert model(*model_inputs(batch))[0].isfinite().all()


def test_another_vocabulary_is_another_run(config: Any, tmp_path: Path) -> None:
    config = config.model_copy(update={"epochs": 1})
    train(config)
    saved = load_checkpoint(config.out / "last.ckpt")
    other = word_store(tmp_path / "other", seed=1)
    objective = choose_objective(config, TrialStream(other))
    with pytest.raises(ResumeError, match="was trained on other data"):
        check_same_run(saved["run"], describe_run(config, [other], [objective]), config.out)
