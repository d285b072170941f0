from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from husai.activations import extract
from husai.analysis.ideal import signed_axes
from husai.analysis.nulls import sampler
from husai.analysis.planted import atom_recovery
from husai.analysis.stats import Interval
from husai.config import CompiledConfig, ControlConfig, PlantedConfig, TaskConfig, TransformerConfig
from husai.controls import kinds
from husai.controls.judgement import judged
from husai.controls.kinds import Control, drawn_controls, row_controls, trained_controls
from husai.controls.tokens import token_recovery
from husai.measure import Hook
from husai.report.results import CellView
from husai.sae.dictionary import Dictionary
from husai.seeding import generator
from husai.tasks import Task
from husai.transformer.compiled import compile_model
from husai.transformer.model import Transformer, init_params
from husai.truth.controls import stand_in, token_dictionary
from husai.truth.synthetic import plant

TASK = Task("add", 23)


@pytest.fixture(scope="module")
def hook():
    return Hook.of_planted(plant(PlantedConfig(d_model=12, n_atoms=16, k=2, samples=1500)))


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(kinds, "ATOMS", 12)
    monkeypatch.setattr(kinds, "DRAWS", 99)


def top(atoms, k):
    """A TopK SAE that encodes by its own atoms."""

    def encode(x):
        overlap = ((x - x.mean(0)) @ atoms.T).relu()
        return torch.where(overlap >= overlap.topk(k).values[:, -1:], overlap, 0.0)

    return Dictionary(atoms, encode, lambda codes: codes @ atoms)


def standing_in(hook, kind):
    return replace(hook, x=stand_in(hook.x, ControlConfig(kind=kind)))


# --- drawn dictionaries ---


def test_drawn_dictionaries_sit_at_their_own_null(hook):
    found = drawn_controls(hook, "planted", experiments=60)
    assert {(c.score, c.null) for c in found} == {
        (score, null) for score in ("pwmcc", "max_cosine", "gt_mcc") for null in ("ambient", "data", "data_points")
    }
    assert all(verdict.holds for verdict in judged(found))
    assert all(abs(c.value.mean - c.level.mean) < 0.02 for c in found)


def test_scores_of_planes_join_where_there_are_planes():
    x = torch.stack([(6 * TASK.labels / 23).cos(), (6 * TASK.labels / 23).sin(), torch.zeros(529)], 1)
    names = set(kinds.drawn_scores(Hook(x)))
    assert names == {"pwmcc", "max_cosine"}


def test_dictionaries_that_are_not_independent_are_caught(hook, monkeypatch):
    honest, turn = kinds._experiment, iter(range(1000))

    def twins(*given):
        """The 60 experiments on trial of each null hold one dictionary twice; the 60 of the null are honest."""
        drawn = honest(*given)
        return [drawn[0], *drawn[:-1]] if next(turn) % 120 < 60 else drawn

    monkeypatch.setattr(kinds, "_experiment", twins)
    found = judged(drawn_controls(hook, "planted", experiments=60))
    assert {v.control.score for v in found if not v.holds} == {"pwmcc", "max_cosine"}


# --- codes and rows ---


@pytest.mark.parametrize("kind", ["surrogate", "permuted"])
def test_codes_on_a_stand_in_know_nothing_of_the_rows(hook, kind):
    (found,) = row_controls("negative", "why", "planted", top(hook.planted.atoms, 2), standing_in(hook, kind))
    assert found.score == "firing_f1"
    assert found.p > 0.05
    assert found.value.mean == pytest.approx(found.level.mean, abs=0.02)


def test_the_data_themselves_passed_off_as_a_surrogate_are_caught(hook, monkeypatch):
    monkeypatch.setattr("husai.truth.controls.surrogate", lambda x, **_: x)
    leaky = row_controls("negative", "why", "planted", top(hook.planted.atoms, 2), standing_in(hook, "surrogate"))
    (verdict,) = judged(leaky)
    assert verdict.control.p == pytest.approx(1 / 100), "the smallest there is among 99 orders"
    assert verdict.words == "**NOT at its null**"


def test_purity_is_read_against_the_rows_of_a_grid():
    angle = 2 * torch.pi * TASK.labels / 23
    x = torch.stack([angle.cos(), angle.sin()], 1)
    hook = Hook.without_truth(extract(model(), TASK, "resid_post"))
    own = top(torch.tensor([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]]), 1)
    (found,) = row_controls("positive", "why", "circle", own, replace(hook, x=x))
    assert (found.score, found.p) == ("purity", pytest.approx(0.01))
    (lost,) = row_controls("negative", "why", "circle", own, standing_in(replace(hook, x=x), "permuted"))
    assert lost.p > 0.05


def test_samples_of_a_stand_in_recover_planted_atoms_no_better_than_data_of_that_covariance():
    """With one atom a sample, 64 samples are the atoms; of a stand-in they are Gaussian draws, or as good as."""
    alone = plant(PlantedConfig(d_model=12, n_atoms=16, k=1, samples=1500))

    def recovered(x):
        return atom_recovery(F.normalize(x - x.mean(0), dim=1)[:64], alone.atoms).gt_mcc

    draw = sampler("data", alone.x)
    null = np.mean([atom_recovery(draw(64, generator("test", r)), alone.atoms).gt_mcc for r in range(12)])
    assert recovered(alone.x) > 0.98
    for kind in ("surrogate", "permuted"):
        samples = [stand_in(alone.x, ControlConfig(kind=kind, seed=seed)) for seed in range(12)]
        assert np.mean([recovered(x) for x in samples]) == pytest.approx(null, abs=0.02)


# --- SAEs against SAEs ---


def cell(pairs, seeds, model="m"):
    """Three seeds: pwmcc of their pairs, and gt_mcc of each."""
    rows = [("pwmcc", a, b, v) for (a, b), v in zip([(0, 1), (0, 2), (1, 2)], pairs, strict=True)]
    rows += [("pwmcc", None, None, float(np.mean(pairs))), ("gt_mcc", None, None, float(np.mean(seeds)))]
    rows += [(name, s, None, v) for name in ("gt_mcc", "explained_variance") for s, v in enumerate(seeds)]
    table = pd.DataFrame(rows, columns=["metric", "init_seed", "init_seed_b", "value"])
    table = table.assign(data_seed=table["init_seed"], data_seed_b=table["init_seed_b"], step=9, null="", run_id="r")
    table = table.assign(ci_low=0.0, ci_high=0.0)
    return CellView("r", "trained", model, "hook", "topk", 8, "k", 2, True, False, table)


def test_equal_cells_are_not_told_apart_and_different_ones_are():
    first = cell([0.80, 0.81, 0.82], [0.5, 0.52, 0.54])
    near = cell([0.81, 0.80, 0.82], [0.52, 0.5, 0.54])
    far = cell([0.40, 0.41, 0.42], [0.2, 0.21, 0.26])
    assert [c.score for c in trained_controls("negative", "why", first, near, "trained")] == ["pwmcc", "gt_mcc"]
    assert all(c.p > 0.2 for c in trained_controls("negative", "why", first, near, "trained"))
    assert all(c.p < 0.01 for c in trained_controls("positive", "why", first, far, "trained"))


def test_the_p_of_two_cells_is_that_of_the_paired_t_test():
    first, far = cell([0.8] * 3, [0.5, 0.52, 0.54]), cell([0.4] * 3, [0.2, 0.21, 0.26])
    (found,) = trained_controls("positive", "why", first, far, "trained", ("gt_mcc",))
    difference = np.array([0.3, 0.31, 0.28])
    t = difference.mean() / (difference.std(ddof=1) / 3**0.5)
    assert found.p == pytest.approx(2 * float(controls_t_sf(t)), rel=1e-6)


def controls_t_sf(t):
    """Upper tail of Student's t with two degrees of freedom."""
    return 0.5 - t / (2 * (2 + t * t) ** 0.5)


# --- verdicts ---


def control(p, kind="negative", value=0.5, level=0.1, test="trained"):
    flat = [Interval(v, v, v) for v in (value, level)]
    return Control(kind, test, "why", "source", "score", flat[0], "null", flat[1], p)


def test_verdicts_by_hand():
    found = judged([control(0.02), control(0.03), control(0.01, "positive"), control(0.04, "positive", level=0.9)])
    assert [v.p_holm for v in found] == pytest.approx([0.04, 0.04, 0.02, 0.04])
    assert [v.words for v in found] == ["**NOT at its null**"] * 2 + ["found", "**MISSED**"]


def test_one_small_p_among_many_is_chance():
    assert all(v.holds for v in judged([control(0.01), *[control(0.5)] * 9]))
    assert not judged([control(0.01)])[0].holds


def test_kinds_of_test_are_families_of_their_own():
    many = [control(0.5, test="drawn")] * 30
    assert not judged([control(0.01), *many])[0].holds
    assert judged([control(0.01, test="drawn"), *many])[0].holds


def test_counting_draws_must_be_able_to_reject(monkeypatch):
    monkeypatch.setattr(kinds, "DRAWS", 199)
    counted = [control(1 / 201, test="counted"), *[control(0.5, test="counted")] * 9]
    assert not judged(counted)[0].holds
    with pytest.raises(ValueError, match="11 controls need more than 199 draws"):
        judged([*counted, control(0.5, test="counted")])


def test_a_positive_control_that_is_not_rejected_is_missed():
    assert judged([control(0.2, "positive")])[0].words == "**MISSED**"


# --- tokens ---


def model(d_model=32):
    shape = TransformerConfig(d_model=d_model)
    return Transformer(init_params(shape, 23, generator=generator("test-random")), "abe", 23)


def test_a_random_transformers_attention_is_a_sum_of_tokens():
    x = extract(model(), TASK, "attn_out").x
    tokens = token_dictionary(x, TASK)
    residual = (tokens.x - tokens.codes @ tokens.atoms).square().sum() / tokens.x.square().sum()
    assert float(residual) < 0.01
    row = 3 * 23 + 7
    assert tokens.codes[row].nonzero().flatten().tolist() == [3, 7]
    assert tokens.codes[24].nonzero().flatten().tolist() == [1], "both operands are 1"


def test_token_atoms_by_hand():
    """Tokens of their own dimension: centred, x is the sum of two centred unit vectors."""
    x = F.one_hot(TASK.a, 23).float() + F.one_hot(TASK.b, 23)
    tokens = token_dictionary(x, TASK)
    torch.testing.assert_close(tokens.atoms, F.normalize(torch.eye(23) - 1 / 23, dim=1))
    torch.testing.assert_close(tokens.codes @ tokens.atoms, x - x.mean(0), atol=1e-5, rtol=0)


def test_saes_that_are_tokens_are_seen_and_random_ones_are_not():
    hook = Hook.without_truth(extract(model(128), TASK, "attn_out"))
    tokens = token_dictionary(hook.x, TASK)
    shuffled = [tokens.atoms[torch.randperm(23, generator=generator("test", s))] for s in range(3)]
    found = token_recovery([top(atoms, 2) for atoms in shuffled], hook)
    assert found.explained > 0.99
    assert found.gt_mcc.mean == pytest.approx(1, abs=1e-5)
    assert found.firing_f1.mean > 0.9
    random = [F.normalize(torch.randn(23, 128, generator=generator("test-atoms", s)), dim=1) for s in range(3)]
    lost = token_recovery([top(atoms, 2) for atoms in random], hook)
    assert lost.gt_mcc.mean < lost.nulls["data_points"].mean
    assert lost.gt_mcc.mean == pytest.approx(lost.nulls["ambient"].mean, abs=0.05)


# --- a model and dictionaries of something else ---


def test_a_model_follows_its_planes_and_no_dictionary_of_a_stand_in():
    config = CompiledConfig(kind="clock", task=TaskConfig(op="add", p=29), keys=(1, 8, 12))
    model = compile_model(config).to(torch.float32)
    clock = Hook.of(extract(model, Task("add", 29), "mlp_out"), model)
    planes, mean = [subspace.basis for subspace in clock.truth.subspaces], clock.x.mean(0)
    axes = [signed_axes(planes, mean, [turn] * 3) for turn in (0.0, 0.7)]
    good = kinds.model_controls("positive", "q", "s", axes, clock)
    assert {control.score for control in good} == set(kinds.FOLLOWED)
    assert all(control.p == 1 / 100 for control in good)
    assert all(control.value.mean > 0.99 for control in good)
    stand = clock.with_samples(stand_in(clock.x, ControlConfig(kind="permuted")))
    points = sampler("data_points", stand.x)
    drawn = [top(points(12, generator("test-controls", seed)), 3) for seed in (0, 1)]
    assert all(control.p > 0.05 for control in kinds.model_controls("negative", "q", "s", drawn, stand))
