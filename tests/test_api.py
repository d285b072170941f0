import pytest
import torch
import torch.nn.functional as F

import husai
from husai.sae.base import Dictionary


def dictionary(atoms):
    return Dictionary(atoms, lambda x: (x @ atoms.T).relu(), lambda codes: codes @ atoms)


@pytest.fixture(scope="module")
def model():
    return husai.load_model("add-p59-0")


def test_basis_is_orthonormal():
    basis = husai.get_fourier_basis(modulus=113)
    assert basis.shape == (113, 113)
    assert float((basis @ basis.T - torch.eye(113)).abs().max()) < 1e-12


def test_overlap_of_atoms_in_the_true_planes_is_1_and_comes_with_nulls(model):
    truth = husai.find_truth(husai.extract(model.transformer, model.task, "resid_post"))
    inside = F.normalize(torch.randn(40, truth.union.shape[1]) @ truth.union.float().T, dim=1)
    score = husai.compute_fourier_overlap(dictionary(inside), model, "resid_post")
    assert float(score) == pytest.approx(1, abs=1e-5)
    assert set(score.nulls) == {"ambient", "data", "data_points"}
    assert score.nulls["ambient"] < 0.15
    outside = F.normalize(torch.randn(40, 128), dim=1)
    assert float(husai.compute_fourier_overlap(dictionary(outside), model)) < 0.4


def test_pwmcc_of_a_dictionary_with_itself_is_1_and_of_two_random_ones_is_its_null(model):
    first, second = (F.normalize(torch.randn(64, 128), dim=1) for _ in range(2))
    assert float(husai.compute_pwmcc(dictionary(first), dictionary(first))) == pytest.approx(1, abs=1e-5)
    score = husai.compute_pwmcc(dictionary(first), dictionary(second))
    assert float(score) == pytest.approx(score.nulls["ambient"], abs=0.02)
    assert score.band == "low"
    with_model = husai.compute_pwmcc(dictionary(first), dictionary(second), model)
    assert set(with_model.nulls) == {"ambient", "data", "data_points"}
    assert with_model.nulls["data_points"] > with_model.nulls["ambient"]


@pytest.mark.parametrize(("value", "band"), [(0.71, "high"), (0.5, "moderate"), (0.35, "low-moderate"), (0.2, "low")])
def test_bands(value, band):
    assert husai.Score(value, {}).band == band
    assert f"{husai.Score(value, {'ambient': 0.1}):.2f}" == f"{value:.2f}"
    assert "ambient 0.100" in str(husai.Score(value, {"ambient": 0.1}))
