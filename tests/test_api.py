from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import husai
from husai.analysis.fit import evaluate_fit
from husai.analysis.nulls import CODED_NULLS, PURSUED_NULLS
from husai.api import require_trained_on
from husai.errors import HusaiError
from husai.sae.callables import of_callables
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


@pytest.fixture(scope="module")
def trained(model):
    """Two seeds of a small SAE of the reference model."""
    from husai.config import SAEConfig
    from husai.sae.train import train_saes

    quick = {"steps": 60, "batch_size": 512, "lr": 3e-3, "warmup_steps": 5}
    sae = {"architecture": "topk", "d_sae": 48, "k": 4, "k_aux": 4, "dead_steps": 10}
    config = SAEConfig.parse({"sae": sae, "training": quick, "init_seeds": [0, 1], "data_seeds": [0, 1]})
    x = husai.extract(model.model, model.task, "resid_post").x
    return train_saes(x, config).ensemble.dictionaries


@pytest.fixture(scope="module")
def expected(model, trained):
    return husai.score(trained[0], model, "resid_post")


@pytest.mark.parametrize("kind", ["torch", "numpy", "mixed"])
def test_functions_score_as_the_sae_that_they_are(model, trained, expected, kind):
    sae = trained[0]

    def encode(x):
        assert isinstance(x, np.ndarray) == (kind == "numpy")
        codes = sae.encode(torch.as_tensor(x))
        return codes.tolist() if kind == "mixed" else codes.numpy() if kind == "numpy" else codes

    def decode(codes):
        x = sae.decode(torch.as_tensor(codes))
        return x.numpy().astype(np.float64) if kind == "numpy" else x

    W_dec = sae.W_dec.numpy() if kind == "numpy" else sae.W_dec
    if kind == "torch":
        W_dec = W_dec.clone().requires_grad_()
    found = husai.score(encode=encode, decode=decode, W_dec=W_dec, model=model, hook="resid_post")
    assert set(found) == set(expected)
    for name, score in found.items():
        assert score.value == pytest.approx(expected[name].value, nan_ok=True, rel=1e-4, abs=1e-6), name
        assert score.nulls == pytest.approx(expected[name].nulls, nan_ok=True, rel=1e-4, abs=1e-6), name


def test_several_saes_get_their_agreement_beside_nulls_and_means_of_the_rest(model, trained):
    both = husai.score(trained, model, "resid_post")
    parts = {"encode": [s.encode for s in trained], "decode": [s.decode for s in trained]}
    called = husai.score(**parts, W_dec=[s.W_dec for s in trained], model="add-p59-0", hook="resid_post")
    x = husai.extract(model.model, model.task, "resid_post").x
    mean = sum(evaluate_fit(sae, x).explained_variance for sae in trained) / 2
    for scores in (both, called):
        assert float(scores["pwmcc"]) == pytest.approx(
            float(husai.compute_pwmcc(*trained, model, "resid_post")), abs=1e-6
        )
        assert set(scores["pwmcc"].nulls) == {"ambient", "data", "data_points", "plane_rotated"}
        assert set(scores["pwmcc"].adjusted) == set(scores["pwmcc"].nulls)
        assert float(scores["explained_variance"]) == pytest.approx(mean, abs=1e-6)
    assert float(both["pwmcc"]) < 0.9


def functions(sae):
    return {"encode": sae.encode, "decode": sae.decode, "W_dec": sae.W_dec}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"encode": "f"}, "SAE: encode must be a function, got str"),
        ({"decode": None}, "score: decode is missing; encode, decode and W_dec belong together"),
        ({"W_dec": torch.ones(4)}, r"W_dec must have shape \(d_sae, d_in\), one atom a row; got \(4,\)"),
        ({"W_dec": "matrix"}, "W_dec must be a NumPy array or torch tensor of numbers, got str"),
        ({"W_dec": torch.full((48, 128), torch.nan)}, "W_dec holds NaN or infinity"),
        ({"W_dec": torch.ones(48, 64)}, "hook resid_post: has 128 dimensions, but the SAE has 64"),
        (
            {"encode": lambda x: x[:, :5]},
            r"encode returns shape \(3481, 5\) for 3481 samples; it must be \(3481, 48\), 48 b",
        ),
        ({"encode": lambda x: x[:, :48] / 0}, "what encode returns holds NaN or infinity"),
        ({"encode": lambda x: None}, "what encode returns must be a NumPy array or torch tensor"),
        ({"decode": lambda codes: codes}, r"decode returns shape \(3481, 48\) .* 128 being d_in, the columns of W_dec"),
        ({"encode": lambda x: x[:, :48] * 0}, "a dictionary without live atoms cannot be scored"),
        (
            {"encode": [abs, abs]},
            "must be lists of equal length, one entry a seed; got encode 2, decode one alone, W_dec one",
        ),
        ({"sae": []}, "takes SAEs .*, or encode, decode and W_dec, and not both"),
    ],
)
def test_functions_that_do_not_fit_are_a_sentence(model, trained, parts, message):
    with pytest.raises(HusaiError, match=message):
        husai.score(**{**functions(trained[0]), **parts}, model=model, hook="resid_post")


def test_a_dictionary_and_its_twin_of_other_signs_are_one_where_codes_have_signs(model):
    atoms = random_atoms(48, 128, 4)

    def made(sign, floor):
        def encode(x):
            return (sign * x @ atoms.T).clamp(min=floor)

        return encode, lambda codes: sign * codes @ atoms, sign * atoms

    def agreement(floor, **told):
        encode, decode, W_dec = zip(made(1, floor), made(-1, floor), strict=True)
        parts = {"encode": list(encode), "decode": list(decode), "W_dec": list(W_dec)}
        return float(husai.score(**parts, model=model, hook="resid_post", **told)["pwmcc"])

    assert agreement(-1e9) == pytest.approx(1, abs=1e-5), "codes are negative"
    assert agreement(0.0) < 0.5
    assert agreement(0.0, signed_codes=True) == pytest.approx(1, abs=1e-5), "codes may be negative elsewhere"
    pair = [of_callables(*made(sign, -1e9)) for sign in (1, -1)]
    assert float(husai.compute_pwmcc(*pair, model)) == pytest.approx(1, abs=1e-5)
    assert float(husai.compute_pwmcc(*pair)) < 0.5, "without samples nothing is known of codes"
    told = [of_callables(*made(sign, 0.0), signed_codes=True) for sign in (1, -1)]
    assert float(husai.compute_pwmcc(*told)) == pytest.approx(1, abs=1e-5)
    with pytest.raises(HusaiError, match="signed_codes is said of encode, decode and W_dec"):
        husai.score(told[0], model, signed_codes=True)


def test_score_says_what_is_missing(model, trained):
    with pytest.raises(HusaiError, match="score: needs a model"):
        husai.score(trained[0])
    with pytest.raises(HusaiError, match="score: takes SAEs"):
        husai.score(model=model)
    with pytest.raises(HusaiError, match="the list of SAEs is empty"):
        husai.score([], model)


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


def test_a_model_that_the_sae_was_not_trained_on_is_told(model, trained):
    stranger = replace(trained[0], meta={**trained[0].meta, "model_name": "mul-p113-0/surrogate-0"})
    said = "was trained on model mul-p113-0/surrogate-0, but the activations are of model add-p59-0"
    for score in (husai.compute_fourier_overlap, husai.score):
        with pytest.raises(HusaiError, match=said):
            score(stranger, model, "resid_post")


@pytest.mark.parametrize(
    ("stated", "wanted", "verdict"),
    [
        ("add-p113-0", "mul-p113-0", "refused"),
        ("add-p113-0/permuted-1", "mul-p113-0", "refused"),
        ("clock/surrogate-0", "add-p113-0/surrogate-0", "warned"),
        ("m1", "model", "warned"),
        ("add-p113-0", "mine", "warned"),
        ("transformer_best", "add-p113-0", "warned"),
        ("EleutherAI/pythia-70m", "gpt2", "refused"),
        ("gpt2-small", "add-p113-0", "refused"),
        ("add-p113-0", "runs/gpt2", "refused"),
        ("gpt2-small", "gpt2", "silent"),
        ("gpt2-small", "mine", "warned"),
        ("unnamed", "add-p113-0", "silent"),
        ("add-p113-0", "unnamed", "silent"),
        ("add-p113-0/surrogate-0", "add-p113-0", "silent"),
        ("other/ADD-p113-0", "add-p113-0", "silent"),
        ("clock/surrogate-0", "runs/clock/permuted-3", "silent"),
    ],
)
def test_models_are_refused_only_where_names_tell_them_apart(stated, wanted, verdict):
    sae = dictionary(random_atoms(4, 8, 0), model_name=stated)
    said = rf"it: was trained on model {stated}, but the activations are of model {wanted}"
    if verdict == "refused":
        with pytest.raises(HusaiError, match=f"{said}$"):
            require_trained_on(sae, "it", "model_name", wanted)
    elif verdict == "warned":
        with pytest.warns(UserWarning, match=f"{said}; their names alone") as caught:
            require_trained_on(sae, "it", "model_name", wanted)
        assert len(caught) == 1
    else:
        require_trained_on(sae, "it", "model_name", wanted)


def test_a_hook_has_no_controls():
    sae = dictionary(random_atoms(4, 8, 0), hook_name="blocks.0.hook_mlp_out")
    require_trained_on(sae, "it", "hook_name", "blocks.0.hook_mlp_out")
    with pytest.raises(HusaiError, match="it: was trained on hook"):
        require_trained_on(sae, "it", "hook_name", "unnamed")
