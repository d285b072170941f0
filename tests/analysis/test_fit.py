import pytest
import torch

from husai.analysis.fit import evaluate_fit, relative_error
from husai.sae.dictionary import Dictionary

# Mean (1, 11), Σ‖x − x̄‖² = 4·2 = 8.
X = torch.tensor([[0.0, 10.0], [2.0, 10.0], [0.0, 12.0], [2.0, 12.0]])
CODES = torch.tensor([[1.0, 0.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0], [3.0, 1.0, 0.0]])


def dictionary(reconstruction: torch.Tensor) -> Dictionary:
    W_dec = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    return Dictionary(W_dec, encode=lambda x: CODES, decode=lambda codes: reconstruction)


def test_explained_variance_by_hand():
    # one row is off by (1, 1): error 2 of 8
    fit = evaluate_fit(dictionary(X + torch.tensor([[0.0, 0], [1, 1], [0, 0], [0, 0]])), X)
    assert fit.fvu == pytest.approx(0.25)
    assert fit.explained_variance == pytest.approx(0.75)


def test_predicting_the_mean_explains_nothing():
    fit = evaluate_fit(dictionary(X.mean(0).expand(4, 2)), X)
    assert fit.explained_variance == pytest.approx(0)


def test_the_relative_error_by_hand():
    # lengths 5, 10 and 0; errors 1, 4 and 7: the mean of 1/5 and 4/10, as nothing is relative to a sample of length 0
    x = torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.0, 0.0]])
    missed = torch.tensor([[1.0, 0.0], [0.0, 4.0], [0.0, 7.0]])
    assert relative_error(missed, x) == pytest.approx(0.3)
    fit = evaluate_fit(dictionary(x + missed), x, CODES[:3])
    assert fit.relative_error == pytest.approx(0.3)


def test_the_relative_error_counts_samples_alike_and_the_offset_too():
    """Unlike explained variance: a tenth of every sample is missed, whatever its length."""
    fit = evaluate_fit(dictionary(0.9 * X), X)
    assert fit.relative_error == pytest.approx(0.1)
    assert fit.fvu == pytest.approx(0.01 * float(X.square().sum()) / 8)


def test_variance_is_pooled_over_dimensions():
    # a wrong small dimension hardly counts: errors (0, .2)² ·4 = .16 of Σ = 4·(100 + .01)
    x = torch.tensor([[10.0, 0.1], [-10.0, 0.1], [10.0, -0.1], [-10.0, -0.1]])
    fit = evaluate_fit(dictionary(x + torch.tensor([0.0, 0.2])), x)
    assert fit.fvu == pytest.approx(0.16 / 400.04)


def test_sparsity_by_hand():
    fit = evaluate_fit(dictionary(X), X)
    assert fit.l0 == pytest.approx((1 + 2 + 0 + 2) / 4)
    assert fit.dead == pytest.approx(1 / 3)
    assert fit.firing_rate.tolist() == [0.75, 0.5, 0.0]
    assert fit.energy.tolist() == pytest.approx([25 * (1 + 1 + 9), 4 * (4 + 1), 0])  # rows of norm 5 and 2
    assert fit.live.tolist() == [True, True, False]


def test_a_latent_that_fires_once_is_alive():
    codes = torch.zeros(1000, 3)
    codes[617, 1] = 1e-6
    fit = evaluate_fit(dictionary(torch.ones(1000, 2)), torch.arange(2000.0).reshape(1000, 2), codes)
    assert fit.live.tolist() == [False, True, False]
    assert fit.dead == pytest.approx(2 / 3)


def test_given_codes_save_encoding():
    def refuse(_):
        raise AssertionError("encoded again")

    lazy = Dictionary(torch.eye(3, 2), encode=refuse, decode=lambda codes: X)
    assert evaluate_fit(lazy, X, CODES).l0 == pytest.approx(1.25)


def test_energy_does_not_depend_on_how_an_atom_and_its_code_share_their_scale():
    scaled = Dictionary(torch.tensor([[2.0, 0.0]]), lambda x: x, lambda codes: codes)
    unit = Dictionary(torch.tensor([[1.0, 0.0]]), lambda x: x, lambda codes: codes)
    codes = torch.tensor([[1.0], [3.0], [0.0], [2.0]])
    assert float(evaluate_fit(scaled, codes, codes / 2).energy) == pytest.approx(14)
    assert float(evaluate_fit(unit, codes, codes).energy) == pytest.approx(14)


def test_a_latent_without_an_atom_is_dead_however_often_it_fires():
    W_dec = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    fit = evaluate_fit(Dictionary(W_dec, encode=lambda x: CODES, decode=lambda codes: X), X)
    assert fit.live.tolist() == [True, False, False]
    assert fit.dead == pytest.approx(2 / 3)


def test_negative_codes_are_active():
    fit = evaluate_fit(Dictionary(torch.eye(3)[:, :2] + 1, encode=lambda x: -CODES, decode=lambda codes: X), X)
    assert fit.l0 == pytest.approx(5 / 4)
    assert fit.live.tolist() == [True, True, False]
