import math

import pytest
import torch

from husai.config import SAE_CONFIGS
from husai.sae.architectures import architecture_of
from husai.sae.terms import decorrelation, decorrelation_term, steer


def test_decorrelation_by_hand():
    # Seed 0: cosines .6 (rows 0, 1), .8 (1, 2), 0 (0, 2); each pair counts twice. Seed 1: all rows alike, six pairs of 1.
    W_dec = torch.tensor([[[2.0, 0.0], [0.6, 0.8], [0.0, 5.0]], [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]])
    torch.testing.assert_close(decorrelation(W_dec), torch.tensor([2 * (0.36 + 0.64), 6.0]))


def test_decorrelation_is_the_sum_over_pairs(make_params):
    W_dec = make_params(2, 5, 9).W_dec
    unit = W_dec / W_dec.norm(dim=-1, keepdim=True)
    pairs = (unit @ unit.mT).pow(2).sum((1, 2)) - 9
    torch.testing.assert_close(decorrelation(W_dec), pairs)
    assert float(decorrelation(torch.eye(4)[None])) == pytest.approx(0, abs=1e-6)


def test_the_decorrelation_term_has_the_right_gradient(make_params):
    W_dec = make_params(2, 3, 4).W_dec
    term = decorrelation_term(W_dec, 0.5)
    torch.testing.assert_close(term.value, 0.5 * decorrelation(W_dec))
    for place in ((0, 1, 2), (1, 3, 0)):
        step = torch.zeros_like(W_dec)
        step[place] = 1e-6
        slope = 0.5 * (decorrelation(W_dec + step) - decorrelation(W_dec - step))[place[0]] / 2e-6
        assert float(term.W_dec[place]) == pytest.approx(float(slope), rel=1e-5)


def test_steering_by_hand():
    # twice, once and half the target: the coefficient grows by 2^rate, stays, shrinks
    steered = steer(torch.ones(3), torch.tensor([64.0, 32.0, 16.0]), target=32, rate=0.5)
    torch.testing.assert_close(steered, torch.tensor([math.sqrt(2), 1.0, math.sqrt(0.5)]))


def test_steering_stays_finite_and_in_range():
    bounds = torch.tensor([1e4, 1e-4, 1.0])
    steered = steer(bounds, torch.tensor([100.0, 0.0, 0.0]), target=10, rate=1.0)
    torch.testing.assert_close(steered, torch.tensor([1e4, 1e-4, 0.01]))


PENALISED = [kind for kind in SAE_CONFIGS.values() if kind().fixed_l0 is None and not kind.fitted]


@pytest.mark.parametrize("kind", PENALISED, ids=lambda kind: kind.model_fields["architecture"].default)
def test_every_penalised_architecture_applies_the_controllers_strength(kind, make_params):
    """Each seed's penalty is its own strength times what it was."""
    config = kind(d_sae=12)
    architecture = architecture_of(config)
    params = architecture.init(make_params(2, 4, 12).map(lambda value: value.float()))
    x, dead = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 12, dtype=torch.bool)
    plain = architecture.losses(params, x, step=10**6, dead=dead).penalty
    architecture.strength = torch.tensor([1.0, 3.0])
    steered = architecture.losses(params, x, step=10**6, dead=dead).penalty
    assert float(plain[0]) > 0
    torch.testing.assert_close(steered[0], plain[0])
    assert float(steered[1]) > 1.2 * float(plain[1])
