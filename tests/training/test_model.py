"""The network: shapes, causality, and the step it reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learnable import numpy_network

from training.config import ModelConfig
from training.model import TrialLSTM, last_seen, take_last

SMALL = ModelConfig(hidden=8, layers=2, dropout=0.0, head=(5,))


@pytest.mark.parametrize(
    ("steps", "shape"), [(4, (3, 4, 2)), (0, (3, 7, 2)), (None, (3, 2))], ids=str
)
@pytest.mark.parametrize("observed", [False, True])
def test_output_shapes(steps: int | None, shape: tuple[int, ...], observed: bool) -> None:
    model = TrialLSTM(3, 2, SMALL, observed=observed, steps=steps)
    mask = torch.rand(3, 7, 3) > 0.5 if observed else None
    assert model(torch.randn(3, 7, 3), torch.tensor([7, 2, 0]), mask)[0].shape == shape


@pytest.mark.parametrize("steps", [4, None])
def test_what_follows_the_last_valid_step_does_not_matter(steps: int | None) -> None:
    model = TrialLSTM(3, 2, SMALL, steps=steps)
    lengths = torch.tensor([7, 2, 4])
    x = torch.randn(3, 7, 3)
    junk = torch.where((torch.arange(7) < lengths[:, None])[:, :, None], x, 1e6)
    assert torch.equal(model(x, lengths, None)[0], model(junk, lengths, None)[0])


def test_steps_see_only_their_past() -> None:
    model = TrialLSTM(3, 2, SMALL, steps=0)
    x = torch.randn(1, 7, 3)
    later = x.clone()
    later[:, 4:] += 1
    a, b = (model(part, torch.tensor([7]), None)[0] for part in (x, later))
    assert torch.equal(a[:, :4], b[:, :4])
    assert not torch.equal(a[:, 4:], b[:, 4:])


def test_it_computes_what_the_equations_say() -> None:
    model = TrialLSTM(3, 2, SMALL, observed=True, steps=0)
    x, mask = torch.randn(1, 7, 3), torch.rand(1, 7, 3) > 0.5
    want = numpy_network(model.state_dict(), torch.cat([x, mask.float()], -1)[0].numpy())
    got = model(x, torch.tensor([7]), mask)[0][0].detach()
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_dropout_acts_between_layers_in_training_only() -> None:
    model = TrialLSTM(3, 2, ModelConfig(hidden=8, layers=2, dropout=0.5), steps=None)
    x, n = torch.randn(2, 5, 3), torch.tensor([5, 5])
    assert not torch.equal(model(x, n, None)[0], model(x, n, None)[0])
    model.eval()
    assert torch.equal(model(x, n, None)[0], model(x, n, None)[0])
    one = TrialLSTM(3, 2, ModelConfig(hidden=8, layers=1, dropout=0.5), steps=None)
    assert torch.equal(one(x, n, None)[0], one(x, n, None)[0])


def test_head_dropout_hides_what_the_head_sees_in_training_only() -> None:
    config = ModelConfig(hidden=8, layers=1, dropout=0.0, head_dropout=0.5, head=())
    model = TrialLSTM(3, 2, config)
    x, n = torch.randn(2, 5, 3), torch.tensor([5, 5])
    assert not torch.equal(model(x, n)[0], model(x, n)[0])
    model.eval()
    assert torch.equal(model(x, n)[0], model(x, n)[0])


def test_noise_is_on_the_values_in_training_only() -> None:
    model = TrialLSTM(3, 2, ModelConfig(hidden=8, layers=1, noise=0.3), steps=0)
    x, n = torch.zeros(1, 20_000, 3), torch.tensor([20_000])
    noise = model._noisy(x)
    assert float(noise.std()) == pytest.approx(0.3, rel=0.02)
    assert abs(float(noise.mean())) < 0.01
    assert not torch.equal(model(x[:, :5], n)[0], model(x[:, :5], n)[0])
    model.eval()
    assert model._noisy(x) is x


def test_forget_gates_start_open() -> None:
    model = TrialLSTM(3, 2, SMALL)
    assert torch.equal(model.layers[1].bias_ih_l0[8:16], torch.ones(8))


def test_take_last_and_last_seen() -> None:
    x = torch.arange(24.0).reshape(2, 4, 3)
    lengths = torch.tensor([3, 0])
    assert take_last(x, lengths).tolist() == [[6, 7, 8], [12, 13, 14]]
    assert last_seen(x, lengths, None, (2, 0)).tolist() == [[8, 6], [14, 12]]
    seen = torch.zeros(2, 4, 3, dtype=torch.bool)
    seen[0, 1, 2] = seen[0, 3, 2] = True  # step 3 is padding
    assert last_seen(x, lengths, seen, (2, 0)).tolist() == [[5, 6], [14, 12]]
