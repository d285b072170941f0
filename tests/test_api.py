import pytest
import torch
import torch.nn.functional as F

import husai
from husai.analysis.nulls import CODED_NULLS, PURSUED_NULLS
from husai.errors import HusaiError
from husai.sae.dictionary import Dictionary


def dictionary(atoms, **meta):
    return Dictionary(atoms, lambda x: (x @ atoms.T).relu(), lambda codes: codes @ atoms, meta)


def random_atoms(n, d, seed):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.fixture(scope="module")
def model():
    return husai.load_model("add-p59-0")


def test_basis_is_orthonormal():
    basis = husai.get_fourier_basis(modulus=113)
    assert basis.shape == (113, 113)
    assert float((basis @ basis.T - torch.eye(113)).abs().max()) < 1e-12


def test_overlap_of_atoms_in_the_true_planes_is_1_and_comes_with_nulls(model):
    truth = husai.find_truth(husai.extract(model.model, model.task, "resid_post"))
    inside = random_atoms(40, truth.union.shape[1], 0) @ truth.union.float().T
    score = husai.compute_fourier_overlap(dictionary(inside), model, "resid_post")
    assert float(score) == pytest.approx(1, abs=1e-5)
    assert set(score.nulls) == {"ambient", "data", "data_points"}
    assert score.nulls["ambient"] < 0.15
    outside = random_atoms(40, 128, 1)
    assert float(husai.compute_fourier_overlap(dictionary(outside), model)) < 0.4


def test_pwmcc_of_a_dictionary_with_itself_is_1_and_of_two_random_ones_is_its_null(model):
    first, second = (random_atoms(64, 128, seed) for seed in (2, 3))
    assert float(husai.compute_pwmcc(dictionary(first), dictionary(first))) == pytest.approx(1, abs=1e-5)
    score = husai.compute_pwmcc(dictionary(first), dictionary(second))
    assert float(score) == pytest.approx(score.nulls["ambient"], abs=0.02)
    assert score.band == "low"
    with_model = husai.compute_pwmcc(dictionary(first), dictionary(second), model)
    assert set(with_model.nulls) == {"ambient", "data", "data_points"}
    assert with_model.nulls["data_points"] > with_model.nulls["ambient"]


def test_score_has_every_figure_of_one_dictionary_beside_its_nulls(model):
    truth = husai.find_truth(husai.extract(model.model, model.task, "resid_post"))
    inside = random_atoms(40, truth.union.shape[1], 0) @ truth.union.float().T
    found = husai.score(dictionary(inside, hook_name="blocks.0.hook_resid_post"), model)
    assert {"explained_variance", "l0", "dead", "n_live", "purity", "fourier_overlap", "decoder_overlap"} <= set(found)
    assert not {"pwmcc", "aligned"} & set(found), "these take several seeds"
    overlap = found["fourier_overlap"]
    assert float(overlap) == pytest.approx(1, abs=1e-5)
    assert set(overlap.nulls) == {"ambient", "data", "data_points"}
    assert overlap.adjusted["ambient"] == pytest.approx(1, abs=1e-5)
    assert found["explained_variance"].nulls == {}
    assert {"rotation", "ablation", "spliced_accuracy", "true_atoms", "rotation_true"} <= set(found)
    assert float(found["rotation_true"]) == pytest.approx(1, abs=1e-3)
    assert set(found["rotation"].nulls) == {*CODED_NULLS, *PURSUED_NULLS}
    assert set(found["ablation"].nulls) == set(PURSUED_NULLS)


def test_a_hook_without_truth_has_no_score(model):
    at_the_equals_sign = dictionary(random_atoms(8, 128, 0), hook_name="hook_embed")
    with pytest.raises(HusaiError, match="hook_embed"):
        husai.score(at_the_equals_sign, model)


def test_adjusting_by_hand_and_not_by_a_null_that_leaves_no_room():
    assert husai.Score(0.75, {"ambient": 0.5, "data": 0.95}).adjusted == {"ambient": 0.5, "data": None}


def test_scores_whose_best_is_not_one_are_not_adjusted(model):
    scores = husai.score(dictionary(random_atoms(16, 128, 6)), model, "mlp_out")
    assert scores["fourier_overlap"].adjusted
    for name in ("ablation_others", "spliced_ce", "ce_recovered", "purity"):
        assert scores[name].nulls
        assert scores[name].adjusted == {}


def test_an_sae_of_another_width_is_refused(model):
    narrow = dictionary(random_atoms(16, 64, 6))
    for ask in (husai.score, husai.compute_fourier_overlap):
        with pytest.raises(husai.HusaiError, match="has 128 dimensions, but the SAE has 64"):
            ask(narrow, model, "mlp_out")


@pytest.mark.parametrize(("value", "band"), [(0.71, "high"), (0.5, "moderate"), (0.35, "low-moderate"), (0.2, "low")])
def test_bands(value, band):
    assert husai.Score(value, {}).band == band
    assert f"{husai.Score(value, {'ambient': 0.1}):.2f}" == f"{value:.2f}"
    assert "ambient 0.100" in str(husai.Score(value, {"ambient": 0.1}))


def test_saes_are_compared_at_the_hook_they_were_trained_on(model):
    here, there = (random_atoms(64, 128, seed) for seed in (4, 5))
    at_mlp_out = {"hook_name": "blocks.0.hook_mlp_out"}
    first, second = dictionary(here, **at_mlp_out), dictionary(there, **at_mlp_out)
    chosen = husai.compute_pwmcc(first, second, model)
    assert chosen == husai.compute_pwmcc(first, second, model, "mlp_out")
    with pytest.raises(husai.HusaiError, match=r"were trained on blocks\.0\.hook_mlp_out"):
        husai.compute_pwmcc(first, second, model, "resid_post")
    with pytest.raises(husai.HusaiError, match="compare them there"):
        husai.compute_pwmcc(first, dictionary(there, hook_name="blocks.0.hook_resid_post"), model)


def test_a_model_that_fails_the_gate_is_used_with_a_warning(model):
    from dataclasses import replace

    broken = replace(model.model, params={**model.model.params})
    broken.params["unembed.W_U"] = broken.params["unembed.W_U"].roll(1, 1)
    with pytest.warns(UserWarning, match="is not verified: accuracy"):
        husai.compute_fourier_overlap(dictionary(random_atoms(16, 128, 6)), broken)
