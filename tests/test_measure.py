import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from husai.activations import Activations, extract
from husai.analysis.fit import evaluate_fit
from husai.analysis.gram import gram
from husai.analysis.ideal import by_projection, signed_axes
from husai.analysis.matching import cosines, match, max_cosine, pwmcc
from husai.analysis.nulls import CODED_NULLS, DRAWN_NULLS, PURSUED_NULLS, NullScore, null_matrices, pairwise, sampler
from husai.analysis.recovery import fourier_overlap
from husai.analysis.stats import pair_interval
from husai.analysis.symmetry import aligned, shifted, spaced
from husai.analysis.tails import tail_p
from husai.config import (
    AnalysisConfig,
    CirclesConfig,
    CompiledConfig,
    PlantedConfig,
    ReLUConfig,
    SAEConfig,
    SAETrainingConfig,
    TaskConfig,
    TopKConfig,
)
from husai.errors import HusaiError
from husai.measure import Hook, Members, atom_table, measure, verdict
from husai.measure.causes import CAUSES
from husai.measure.null_cache import NullCache
from husai.measure.reading import FIGURES
from husai.measure.rows import Measurement, null_rows
from husai.sae.dictionary import Dictionary, SAEEnsemble
from husai.sae.known import Known
from husai.sae.params import Params
from husai.sae.train import train_saes
from husai.seeding import generator
from husai.tasks import Task
from husai.transformer.compiled import compile_model
from husai.truth.controls import permuted
from husai.truth.synthetic import draw_circles, plant

P, D, D_SAE, SEEDS = 23, 16, 24, 3
FIT = {"explained_variance", "fvu", "relative_error", "l0", "dead", "n_live"}
GRAM = {"gram_mean", "gram_max"}
READING = set(FIGURES)
RECOVERY = {"fourier_overlap", "decoder_overlap"}
STABILITY = {"pwmcc", "max_cosine", "shared_fraction", "reappearance"}
CODES = {"activation_matching", "subspace_stability"}  # and functional, where there is a model
SAID = {"activation_matching"}  # where there are no true planes
VARIANTS = {"pwmcc_energy_weighted", "pwmcc_frequent"}  # without nulls of their own
SYMMETRY = {"shifted", "self_shift", "aligned", "shift_support"}
NULLS = {*DRAWN_NULLS, "untrained"}
ANALYSIS = AnalysisConfig(null_draws=20, curve_null_draws=3, aligned_null_draws=4)


@pytest.fixture(scope="module")
def activations() -> Activations:
    """Two planted circles of c = a + b, and a little noise."""
    task = Task("add", P)
    angle = 2 * math.pi * task.labels.double() / P
    waves = torch.stack([(2 * angle).cos(), (2 * angle).sin(), (5 * angle).cos(), (5 * angle).sin()], 1)
    g = generator("test-measure")
    planes = torch.linalg.qr(torch.randn(D, 4, generator=g, dtype=torch.float64)).Q
    x = waves @ planes.T + 0.02 * torch.randn(P * P, D, generator=g)
    return Activations(x.float(), task, "blocks.0.hook_resid_post", "planted", True)


@pytest.fixture(scope="module")
def ensembles(activations) -> dict[int, SAEEnsemble]:
    """Three seeds at step 0 and at the end. Latent 0 of the last seed is silenced in both."""
    config = SAEConfig(
        sae=TopKConfig(d_sae=D_SAE, k=2, dead_steps=20),
        training=SAETrainingConfig(steps=150, batch_size=256, lr=1e-2, warmup_steps=10),
        init_seeds=(0, 1, 2),
        data_seeds=(5, 6, 7),
    )
    found = {}
    trained = train_saes(activations.x, config, stop=lambda s, e: bool(found.update({s: e})), stop_at=(0,))
    for step, ensemble in ((0, found[0]), (150, trained.ensemble)):
        b_enc = ensemble.params.b_enc.clone()
        b_enc[2, 0] = -1e6
        found[step] = replace(ensemble, params=ensemble.params.replace(b_enc=b_enc))
    return found


@pytest.fixture(scope="module")
def hook(activations) -> Hook:
    return Hook.of(activations)


@pytest.fixture(scope="module")
def members(ensembles, hook) -> dict[int, Members]:
    return {step: Members.of(ensemble.dictionaries, hook) for step, ensemble in ensembles.items()}


@pytest.fixture(scope="module")
def untrained(members, hook):
    return measure(members[0], hook, ANALYSIS, final=False)


@pytest.fixture(scope="module")
def final(members, hook, untrained):
    return measure(members[150], hook, ANALYSIS, final=True, untrained=untrained)


def overall(measurement) -> dict[tuple[str, str], object]:
    return {(row.metric, row.null): row for row in measurement.rows if row.seed is None}


def test_every_metric_stands_beside_its_nulls(final):
    rows = overall(final)
    expected = {
        (metric, "")
        for metric in FIT | GRAM | READING | RECOVERY | STABILITY | CODES | VARIANTS | SYMMETRY | {"n_frequent"}
    }
    expected |= {(metric, null) for metric in CODES for null in (*CODED_NULLS, "untrained")}
    expected |= {(f"{metric}_difference", null) for metric in CODES for null in (*CODED_NULLS, "untrained")}
    expected |= {("reappear_in_all", null) for null in ("", *DRAWN_NULLS, "plane_rotated")}
    expected |= {(metric, null) for metric in READING for null in (*CODED_NULLS, "untrained")}
    expected |= {(metric, null) for metric in GRAM for null in NULLS}
    expected |= {("relative_error", "mean"), ("relative_error", "untrained")}
    expected |= {(f"{metric}_unweighted", "") for metric in RECOVERY}
    expected |= {(metric, null) for metric in STABILITY | RECOVERY for null in NULLS}
    expected |= {(f"{metric}_difference", null) for metric in STABILITY for null in NULLS}
    expected |= {(f"{metric}_{p}", null) for p in "pz" for metric in STABILITY for null in DRAWN_NULLS}
    expected |= {("calibration_auc", "")}
    expected |= {(f"{name}{what}", "plane_rotated") for name in STABILITY for what in ("", "_difference", "_p", "_z")}
    expected |= {("aligned", "data_points")}
    assert {key for key in rows if not key[0].endswith("_adjusted")} == expected
    assert all(math.isfinite(row.value) for row in final.rows)


def test_no_number_is_said_twice(final):
    keys = [(row.metric, row.null, row.seed, row.seed_b) for row in final.rows]
    assert len(keys) == len(set(keys))


def test_seeds_and_pairs_have_rows_of_their_own(final):
    for metric in FIT | GRAM | READING | RECOVERY | {"self_shift", "shift_support", "n_frequent"}:
        assert [r.seed for r in final.rows if r.metric == metric and r.seed is not None] == [0, 1, 2]
    for metric in STABILITY | CODES | VARIANTS | {"shifted", "aligned"}:
        pairs = [(r.seed, r.seed_b) for r in final.rows if r.metric == metric and r.seed is not None]
        assert pairs == [(0, 1), (0, 2), (1, 2)]


def test_the_numbers_are_those_of_the_definitions(final, members, ensembles, hook, activations):
    fits = [evaluate_fit(ensembles[150].member(i), activations.x) for i in range(SEEDS)]
    atoms = [ensembles[150].member(i).atoms[fit.live] for i, fit in enumerate(fits)]
    of_seed = {(r.metric, r.seed): r.value for r in final.rows if not r.null and r.seed_b is None}
    of_pair = {(r.metric, r.seed, r.seed_b): r.value for r in final.rows if not r.null}
    for i in range(SEEDS):
        assert of_seed["explained_variance", i] == pytest.approx(fits[i].explained_variance)
        assert of_seed["n_live", i] == len(atoms[i])
        assert of_seed["relative_error", i] == pytest.approx(fits[i].relative_error)
        assert of_seed["gram_mean", i] == pytest.approx(gram(atoms[i]).gram_mean)
        assert of_seed["fourier_overlap", i] == pytest.approx(
            fourier_overlap(atoms[i], hook.truth, fits[i].energy[fits[i].live])
        )
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert of_pair["pwmcc", i, j] == pytest.approx(pwmcc(atoms[i], atoms[j]))
        assert of_pair["max_cosine", i, j] == pytest.approx(max_cosine(atoms[i], atoms[j]))
        others, every = list(range(1, P)), list(range(P))
        assert of_pair["shifted", i, j] == pytest.approx(shifted(atoms[i], atoms[j], hook.shifts, others))
        assert of_pair["aligned", i, j] == pytest.approx(aligned(atoms[i], atoms[j], hook.shifts, every))
    assert of_seed["explained_variance", None] > 0.9  # the ensemble did learn


def test_matrices_are_symmetric_with_unit_diagonal(final):
    assert set(final.matrices) == STABILITY | CODES | VARIANTS | {"shifted", "aligned"}
    for matrix in final.matrices.values():
        assert matrix.shape == (SEEDS, SEEDS)
        assert np.array_equal(matrix, matrix.T)
        assert np.array_equal(np.diag(matrix), np.ones(SEEDS))


def test_overall_values_are_jackknifed_over_seeds(final):
    for metric in STABILITY:
        assert final.value(metric) == pytest.approx(pair_interval(final.matrices[metric]))


def test_untrained_rows_are_step_zero(final, untrained):
    for metric in STABILITY | RECOVERY:
        assert final.value(metric, "untrained") == untrained.value(metric)
    assert final.value("pwmcc") != final.value("pwmcc", "untrained")


def test_step_zero_has_no_untrained_null(untrained):
    assert "untrained" not in {row.null for row in untrained.rows}


def test_adjusted_rows_name_their_null_and_are_taken_pair_by_pair(final, untrained):
    rows = {r.null: r for r in final.rows if r.metric == "pwmcc_adjusted"}
    assert "" not in rows
    assert {"ambient", "untrained"} <= set(rows) <= {*NULLS, "plane_rotated"}
    upper, matrix = np.triu_indices(SEEDS, 1), final.matrices["pwmcc"]
    nulls = {null: score.pairs for null, score in final.nulls.items()} | {"untrained": untrained.matrices["pwmcc"]}
    for null, row in rows.items():
        by_pair = (matrix[upper] - nulls[null][upper]) / (1 - nulls[null][upper])
        assert row.value == pytest.approx(by_pair.mean())
    for null, pairs in nulls.items():
        row = next(r for r in final.rows if r.metric == "pwmcc_difference" and r.null == null)
        assert row.value == pytest.approx((matrix[upper] - pairs[upper]).mean())
        assert null in rows or pairs[upper].max() > 0.9


def test_nulls_stand_where_they_should(final):
    for null in ("data", "data_points"):
        assert final.value("pwmcc", null).low > final.value("pwmcc", "ambient").high
    assert final.value("fourier_overlap", "ambient").mean == pytest.approx(4 / D, abs=0.1)
    assert final.value("fourier_overlap", "data_points").mean > 0.95


def test_p_values_are_those_of_the_draws(final):
    for null in DRAWN_NULLS:
        draws, score = final.nulls[null].draws, final.value("pwmcc").mean
        assert len(draws) == 20
        assert final.value("pwmcc_p", null).mean == pytest.approx((1 + (draws >= score).sum()) / 21)
        assert final.value("pwmcc_z", null).mean == pytest.approx((score - draws.mean()) / draws.std(ddof=1))


def test_a_tail_is_fitted_from_thirty_draws_that_none_reaches():
    matrix = np.array([[1, 0.9, 0.8], [0.9, 1, 0.85], [0.8, 0.85, 1]])
    draws = np.ones((30, 3, 3)) * np.linspace(0.1, 0.3, 30)[:, None, None]
    draws[:, range(3), range(3)] = 1
    for count in (30, 29, 19):
        result = Measurement(matrices={"pwmcc": matrix})
        null_rows(result, "pwmcc", "data", NullScore.of(draws[:count]))
        found = {row.metric: row for row in result.rows}
        assert ("pwmcc_p_fitted" in found) is (count == 30)
        assert ("pwmcc_z" in found) is ("pwmcc_p" in found) is (count > 19)
        if count == 30:
            assert found["pwmcc_p"].value == pytest.approx(1 / 31)
            assert found["pwmcc_p_fitted"].value == pytest.approx(tail_p(0.85, np.linspace(0.1, 0.3, 30)).p)
            assert found["pwmcc_p_fitted"].n == 30


def test_the_curve_uses_fewer_draws(untrained, final):
    assert len(untrained.nulls["data"].draws) == 3
    assert len(final.nulls["data"].draws) == 20
    assert overall(untrained)["aligned", "data_points"].n == 1
    assert overall(final)["aligned", "data_points"].n == 4


def test_measuring_twice_gives_the_same_rows(final, members, hook, untrained):
    again = measure(members[150], hook, ANALYSIS, final=True, untrained=untrained)
    assert again.rows == final.rows


def test_a_hook_without_truth_has_stability_but_no_overlap(ensembles, activations):
    order = torch.randperm(P * P, generator=generator("test-shuffle"))
    shuffled = replace(activations, x=activations.x[order])
    hook = Hook.of(shuffled)
    assert hook.truth is None
    assert hook.shifts is None
    result = measure(Members.of(ensembles[150].dictionaries, hook), hook, ANALYSIS, final=False)
    metrics = {row.metric for row in result.rows}
    assert metrics >= FIT | STABILITY
    assert not metrics & (RECOVERY | SYMMETRY)


def test_one_seed_has_no_stability(ensembles, hook):
    whole = ensembles[150]
    alone = SAEEnsemble(whole.params.map(lambda v: v[1:2]), whole.config, whole.init_seeds[1:2], whole.data_seeds[1:2])
    result = measure(Members.of(alone.dictionaries, hook), hook, ANALYSIS, final=False)
    metrics = {row.metric for row in result.rows}
    assert metrics >= FIT | RECOVERY
    assert not metrics & (STABILITY | SYMMETRY)


def test_a_seed_without_live_atoms_is_an_error(ensembles, hook):
    b_enc = ensembles[150].params.b_enc.clone()
    b_enc[1] = -1e6
    silent = replace(ensembles[150], params=ensembles[150].params.replace(b_enc=b_enc))
    with pytest.raises(HusaiError, match="without live atoms"):
        measure(Members.of(silent.dictionaries, hook), hook, ANALYSIS, final=False)


def test_the_verdict_names_rungs_by_their_own_levels(final):
    sentence = verdict(final)
    score = final.value("pwmcc")
    assert sentence.startswith(f"pwmcc {score.mean:.3f} [{score.low:.3f}, {score.high:.3f}] exceeds")
    assert all(null in sentence for null in NULLS)


@pytest.mark.parametrize(
    ("arguments", "shifts"),
    [((1, 6, 99), [1, 2, 3, 4, 5]), ((0, 5, 3), [0, 2, 4]), ((1, 113, 4), [1, 38, 75, 112]), ((0, 7, 1), [0])],
)
def test_spaced_shifts(arguments, shifts):
    assert spaced(*arguments) == shifts


# --- atoms ---


@pytest.fixture(scope="module")
def table(members, ensembles, hook):
    return atom_table(members[150], ensembles[150], hook)


def test_every_atom_of_every_seed_has_a_row(table):
    assert len(table) == SEEDS * D_SAE
    seeds = table[["init_seed", "data_seed"]].drop_duplicates().to_numpy().tolist()
    assert seeds == [[0, 5], [1, 6], [2, 7]]
    assert not table.duplicated(["init_seed", "atom"]).any()


def test_dead_atoms_have_no_match_and_no_label(table, members):
    dead = table[~table.live]
    assert ((dead.init_seed == 2) & (dead.atom == 0)).any()
    assert (dead.label == "dead").all()
    assert dead[["match_mean", "match_max", "decoder_overlap"]].isna().all(axis=None)
    assert (dead.subspace == "").all()
    assert (dead.firing_rate == 0).all()
    assert table.live.sum() == sum(members[150].n_live)


def test_matches_are_the_cosines_of_the_one_to_one_partners(table, members):
    own, *others = members[150].atoms
    partner = np.full((2, len(own)), np.nan)
    for row, other in zip(partner, others, strict=True):
        matching = match(cosines(own, other))
        row[matching.rows] = matching.cosines
    live = table[(table.init_seed == 0) & table.live]
    both = ~np.isnan(partner).any(0)
    assert both.any()
    assert live.match_mean.to_numpy()[both] == pytest.approx(partner.mean(0)[both])
    assert live.match_max.to_numpy()[both] == pytest.approx(partner.max(0)[both])
    assert (np.isnan(live.match_mean.to_numpy()) == np.isnan(partner).all(0)).all()
    close = sum((cosines(own, other).max(1) >= 0.7).astype(int) for other in others)
    assert live.reappears_in.tolist() == close.tolist()


def test_live_atoms_name_their_subspace(table):
    live = table[table.live]
    assert set(live.subspace) == {"sum k=2", "sum k=5"}
    assert live.decoder_overlap.between(0.4, 1 + 1e-6).all()


# --- a dictionary known by hand: both ends of every axis of the two planes ---


@pytest.fixture(scope="module")
def axes() -> tuple[Hook, SAEEnsemble]:
    """Codes are the ReLUs of ± cos and ± sin. The second seed has its last two atoms turned by 60°, and one atom dead."""
    task = Task("add", P)
    angle = 2 * math.pi * task.labels.double() / P
    x = torch.stack([(2 * angle).cos(), (2 * angle).sin(), (5 * angle).cos(), (5 * angle).sin()], 1).float()
    rows = torch.cat([torch.eye(4), -torch.eye(4)])[[0, 4, 1, 5, 2, 6, 3, 7]]
    turned = rows.clone()
    turned[6, 2:], turned[7, 2:] = torch.tensor([[3**0.5 / 2, 0.5], [-(3**0.5) / 2, -0.5]])
    W_dec = torch.stack([rows, turned])
    b_enc = torch.zeros(2, 8)
    b_enc[1, 0] = -10
    params = Params(W_dec.mT.contiguous(), b_enc, W_dec, torch.zeros(2, 4))
    return Hook.of(Activations(x, task, "hook", "planted")), SAEEnsemble(params, ReLUConfig(d_sae=8), (0, 1), (0, 1))


def test_measured_by_hand(axes):
    hook, ensemble = axes
    members = Members.of(ensemble.dictionaries, hook)
    result = measure(members, hook, ANALYSIS, final=True)
    first = {row.metric: row.value for row in result.rows if row.seed == 0 and row.seed_b is None and not row.null}
    assert first["explained_variance"] == pytest.approx(1)
    assert first["l0"] == pytest.approx(4, abs=0.2)  # one end of each axis, but where c = 0 makes the sines vanish
    assert first["fourier_overlap"] == pytest.approx(1)
    assert first["decoder_overlap"] == pytest.approx(1)
    assert first["shift_support"] == pytest.approx(1)
    assert first["purity"] == pytest.approx(0.841, abs=0.01)  # of a half-wave: 1/8 of 1/4 − 1/π²
    # 7 pairs: five equal ones, and two at 60°; that the turned atoms are nearer to ± cos does not help, as these are taken
    assert result.value("pwmcc").mean == pytest.approx((5 + 2 * 0.5) / 7)
    assert np.isnan(result.value("pwmcc").low)


def test_atoms_by_hand(axes):
    hook, ensemble = axes
    table = atom_table(Members.of(ensemble.dictionaries, hook), ensemble, hook)
    first = table[table.init_seed == 0]
    assert first.label.tolist() == ["sum"] * 8
    assert first.k.tolist() == [2] * 4 + [5] * 4
    assert first.subspace.tolist() == ["sum k=2"] * 4 + ["sum k=5"] * 4
    assert first.decoder_overlap.to_numpy() == pytest.approx(np.ones(8))
    quarter = math.pi / 2
    # exact but for harmonics: on 23 points a half-wave's 22nd is seen as its first
    assert np.abs(first.phase.to_numpy()) == pytest.approx([0, 2 * quarter, quarter, quarter] * 2, abs=0.01)
    assert np.sign(first.phase.to_numpy()[[2, 3]]).tolist() == [1, -1]
    # the first atom's twin is dead, so it is left without a partner
    assert np.isnan(first.match_mean.to_numpy()).tolist() == [True] + [False] * 7
    assert first.match_max.to_numpy()[1:] == pytest.approx([1, 1, 1, 1, 1, 0.5, 0.5])
    second = table[table.init_seed == 1]
    assert second.live.tolist() == [False] + [True] * 7
    assert second.label.tolist() == ["dead"] + ["sum"] * 7


def test_rare_atoms_count_less_by_hand():
    """Two common atoms that agree, and one that fires on a single of 37² inputs, below 0.1%, and does not."""
    task = Task("add", 37)
    angle = 2 * math.pi * task.labels.double() / 37
    x = torch.zeros(37 * 37, 4)
    x[:, 0], x[:, 1] = angle.cos(), angle.sin()
    x[100, 2], x[200, 3] = 20, 20
    W_dec = torch.eye(4)[torch.tensor([[0, 1, 2], [0, 1, 3]])]
    params = Params(W_dec.mT.contiguous(), torch.zeros(2, 3), W_dec, torch.zeros(2, 4))
    hook = Hook.of(Activations(x, task, "hook", "planted"))
    members = Members.of(SAEEnsemble(params, ReLUConfig(d_sae=3), (0, 1), (0, 1)).dictionaries, hook)
    result = measure(members, hook, ANALYSIS, final=False)
    assert result.value("n_live").mean == 3
    assert result.value("n_frequent").mean == 2
    assert result.value("pwmcc").mean == pytest.approx(2 / 3)
    assert result.value("pwmcc_frequent").mean == pytest.approx(1)
    common = float(x[:, :2].relu().pow(2).sum())
    assert result.value("pwmcc_energy_weighted").mean == pytest.approx(common / (common + 400))


# --- synthetic sources ---

ATOMS = {"gt_mcc", "gt_precision", "gt_mcc_matched"}
FIRING = {"firing_precision", "firing_recall", "firing_f1"}
PLANTED = PlantedConfig(d_model=16, n_atoms=20, k=2, samples=1500)


def dictionaries(*rows: torch.Tensor, threshold: float = 0.0) -> SAEEnsemble:
    """ReLU SAEs that read and write the given unit rows."""
    W_dec = torch.stack(rows)
    seeds = tuple(range(len(rows)))
    b_enc = torch.full(W_dec.shape[:2], -threshold)
    params = Params(W_dec.mT.contiguous(), b_enc, W_dec, torch.zeros(len(rows), W_dec.shape[2]))
    return SAEEnsemble(params, ReLUConfig(d_sae=W_dec.shape[1]), seeds, seeds)


@pytest.fixture(scope="module")
def planted_hook() -> Hook:
    return Hook.of_planted(plant(PLANTED))


@pytest.fixture(scope="module")
def true_twice(planted_hook) -> tuple[SAEEnsemble, Members]:
    """The true atoms in three orders; the third seed has 5 of them replaced by others, and one atom dead."""
    true, g = planted_hook.planted.atoms, generator("test-planted")
    other = torch.nn.functional.normalize(torch.randn(5, 16, generator=g), dim=1)
    ensemble = dictionaries(true, true[torch.randperm(20, generator=g)], torch.cat([other, true[5:]]))
    ensemble.params.b_enc[2, 7] = -1e6
    return ensemble, Members.of(ensemble.dictionaries, planted_hook)


@pytest.fixture(scope="module")
def planted_result(true_twice, planted_hook):
    random = dictionaries(
        *(torch.nn.functional.normalize(torch.randn(20, 16, generator=generator("r", i)), dim=1) for i in range(3))
    )
    start = measure(Members.of(random.dictionaries, planted_hook), planted_hook, ANALYSIS, final=False)
    return measure(true_twice[1], planted_hook, ANALYSIS, final=True, untrained=start)


def test_agreement_is_calibrated_at_the_end_and_where_truth_is_known(final, untrained, planted_result):
    for result in (final, planted_result):
        assert 0 <= result.value("calibration_auc").mean <= 1
        assert result.reliability is not None
        assert result.reliability[:, 0].sum() <= sum(
            row.value for row in result.rows if row.metric == "n_live" and row.seed is not None
        )
    assert untrained.reliability is None


def test_planted_atoms_have_their_own_scores_beside_nulls_and_no_fourier_ones(planted_result):
    rows = overall(planted_result)
    expected = {(metric, "") for metric in ATOMS | FIRING | STABILITY | SAID | VARIANTS | {"n_frequent", "l0_true"}}
    expected |= {(metric, null) for metric in SAID for null in (*CODED_NULLS, "untrained")}
    expected |= {(f"{metric}_difference", null) for metric in SAID for null in (*CODED_NULLS, "untrained")}
    expected |= {("reappear_in_all", null) for null in ("", *DRAWN_NULLS)}
    expected |= {(metric, "") for metric in FIT | GRAM}
    expected |= {(metric, null) for metric in ATOMS | STABILITY | GRAM for null in NULLS}
    expected |= {(metric, "untrained") for metric in FIRING | {"relative_error"}} | {("relative_error", "mean")}
    expected |= {(f"{metric}_difference", null) for metric in STABILITY for null in NULLS}
    expected |= {(f"{metric}_{p}", null) for p in "pz" for metric in STABILITY for null in DRAWN_NULLS}
    expected |= {("calibration_auc", "")}
    assert {key for key in rows if not key[0].endswith("_adjusted")} == expected
    assert all(math.isfinite(row.value) for row in planted_result.rows)


def test_planted_scores_by_hand(planted_result):
    of_seed = {(r.metric, r.seed): r.value for r in planted_result.rows if not r.null and r.seed_b is None}
    for seed in (0, 1):
        assert [of_seed[metric, seed] for metric in sorted(ATOMS)] == pytest.approx([1, 1, 1], abs=1e-5)
    # 14 true atoms of 20 remain live; five others match at most as random ones do, and one true atom has no partner
    assert 14 / 20 < of_seed["gt_mcc", 2] < 17.5 / 20
    assert of_seed["gt_precision", 2] == pytest.approx(of_seed["gt_mcc", 2] * 20 / 19)
    assert of_seed["gt_mcc_matched", 2] == pytest.approx(of_seed["gt_precision", 2])
    assert of_seed["l0_true", None] == 2


def test_nulls_of_planted_scores_are_those_of_random_dictionaries(planted_result):
    for metric in ATOMS:
        for null in DRAWN_NULLS:
            assert 0.4 < planted_result.value(metric, null).mean < 0.8
    ambient = planted_result.value("gt_mcc", "ambient")
    assert ambient.low < planted_result.value("gt_mcc", "untrained").mean < ambient.high + 0.03
    assert planted_result.value("gt_mcc", "data_points").mean > ambient.high
    assert planted_result.value("gt_mcc").mean > planted_result.value("gt_mcc", "data_points").high


def test_a_true_dictionary_with_a_fitting_threshold_tells_when_its_atoms_are_active(planted_hook):
    """Atoms overlap, so that without a threshold latents fire beside their atoms too."""
    true = planted_hook.planted.atoms
    scores = {}
    for threshold in (0.0, 0.5):
        members = Members.of(dictionaries(true, threshold=threshold).dictionaries, planted_hook)
        scores[threshold] = members.firings[0]
    assert scores[0.0].firing_recall > 0.85
    assert scores[0.0].firing_precision < 0.3
    assert scores[0.5].firing_precision > 0.45
    assert scores[0.5].firing_f1 > scores[0.0].firing_f1 + 0.2


def test_atoms_name_the_true_atom_they_stand_for(true_twice, planted_hook):
    table = atom_table(true_twice[1], true_twice[0], planted_hook)
    assert not {"label", "k", "purity", "phase", "decoder_overlap", "subspace"} & set(table.columns)
    first, last = table[table.init_seed == 0], table[table.init_seed == 2]
    assert first.true_atom.tolist() == list(range(20))
    assert first.true_cosine.to_numpy() == pytest.approx(np.ones(20), abs=1e-5)
    assert last.true_atom.tolist()[5:] == [5, 6, -1, *range(8, 20)]
    assert np.isnan(last.true_cosine.to_numpy()).tolist() == [i == 7 for i in range(20)]
    assert np.isnan(last.firing_f1.to_numpy()).tolist() == [i == 7 for i in range(20)]
    assert first.firing_f1.mean() == pytest.approx(true_twice[1].firings[0].firing_f1)


@pytest.fixture(scope="module")
def circles_hook() -> Hook:
    return Hook.of_circles(draw_circles(CirclesConfig(d_model=D, p=P, frequencies=(2, 5), radii=(1.0, 1.0), repeats=4)))


def test_circles_are_scored_like_a_hook_and_tuned_to_the_answer(circles_hook):
    planes = [subspace.basis.float().T for subspace in circles_hook.truth.subspaces]
    ends = torch.cat([planes[0], -planes[0], planes[1], -planes[1]])
    ensemble = dictionaries(ends, ends)
    members = Members.of(ensemble.dictionaries, circles_hook)
    result = measure(members, circles_hook, ANALYSIS, final=True)
    metrics = {key[0] for key in overall(result) if not key[1]}
    assert metrics == FIT | GRAM | READING | RECOVERY | {
        f"{m}_unweighted" for m in RECOVERY
    } | STABILITY | CODES | VARIANTS | SYMMETRY | {"n_frequent", "reappear_in_all"}
    for metric in ("fourier_overlap", "decoder_overlap", "explained_variance", "pwmcc", "shift_support"):
        assert result.value(metric).mean == pytest.approx(1, abs=1e-4), metric
    assert result.value("purity").mean == pytest.approx(0.841, abs=0.01)
    table = atom_table(members, ensemble, circles_hook)
    assert set(table.label) == {"sum"}
    assert table.k.tolist() == [2] * 4 + [5] * 4 + [2] * 4 + [5] * 4
    assert table.subspace.tolist() == ["sum k=2"] * 4 + ["sum k=5"] * 4 + ["sum k=2"] * 4 + ["sum k=5"] * 4


def test_one_atom_an_answer_is_closed_under_the_shifts_of_circles(circles_hook):
    """Shifts act as they do on a transformer's grid: answer c's mean goes to answer c + 1's."""
    means = torch.nn.functional.normalize(circles_hook.x[:P], dim=1)
    maps = circles_hook.shifts
    moved = torch.nn.functional.normalize(means @ maps.basis @ maps.maps[1] @ maps.basis.T, dim=1)
    torch.testing.assert_close(moved, means.roll(-1, 0), atol=1e-4, rtol=0)
    result = measure(
        Members.of(dictionaries(means, means).dictionaries, circles_hook), circles_hook, ANALYSIS, final=True
    )
    assert result.value("self_shift").mean == pytest.approx(1, abs=1e-4)


def test_readings_of_answers_and_of_planes_stand_above_their_nulls(circles_hook):
    """One atom an answer is an answer; the ends of the planes' axes are planes, whose codes are spread over answers."""
    means = torch.nn.functional.normalize(circles_hook.x[:P], dim=1)
    planes = [subspace.basis.float().T for subspace in circles_hook.truth.subspaces]
    ends = torch.cat([planes[0], -planes[0], planes[1], -planes[1]])
    found = {}
    for name, atoms in (("answers", means), ("axes", ends)):
        members = Members.of(dictionaries(atoms, atoms).dictionaries, circles_hook)
        found[name] = measure(members, circles_hook, ANALYSIS, final=True)
        assert found[name].value("answer_selectivity").mean == pytest.approx(1, abs=1e-6)  # nothing else varies
    answers, axes = found["answers"], found["axes"]
    assert answers.value("true_answer").mean == 1
    assert answers.value("true_plane").mean == 0
    assert answers.value("answer_overlap").mean == pytest.approx(1, abs=1e-5)
    assert axes.value("true_plane").mean == 1
    assert axes.value("subspace_recovered").mean == 1
    assert axes.value("subspace_cos2").mean == pytest.approx(1, abs=1e-4)
    assert axes.value("subspace_r2").mean == pytest.approx(1, abs=1e-4)
    for metric in ("subspace_r2", "true_plane", "purity"):
        nulls = [axes.value(metric, null).mean for null in ("ambient_relu", "data_top_k")]
        assert max(nulls) < axes.value(metric).mean - 0.05, metric


def test_short_readings_are_of_tuning_alone(circles_hook):
    atoms = torch.nn.functional.normalize(circles_hook.x[:P], dim=1)
    members = Members.of(dictionaries(atoms, atoms).dictionaries, circles_hook, full=False)
    result = measure(members, circles_hook, ANALYSIS, final=True)
    shown = {row.metric for row in result.rows} & set(FIGURES)
    assert shown == {"purity", "frequency_purity"}
    assert not any(row.null for row in result.rows if row.metric in shown)


def test_the_atom_table_has_what_each_atom_reads_and_nothing_of_dead_ones(hook):
    alive = random_direction_rows(4)
    never = torch.zeros(1, alive.shape[1])
    atoms = torch.cat([alive, never])
    params = Params(atoms.T[None], torch.tensor([[0.0] * 4 + [-1.0]]), atoms[None], torch.zeros(1, atoms.shape[1]))
    ensemble = SAEEnsemble(params, ReLUConfig(d_sae=5), (0,), (0,))
    table = atom_table(Members.of(ensemble.dictionaries, hook), ensemble, hook)
    assert table.label.tolist()[4] == "dead"
    assert table.answer_overlap.notna().tolist() == [True] * 4 + [False]
    assert table.answer_best.tolist()[4] == -1
    assert not table.true_plane.tolist()[4]


def random_direction_rows(count: int) -> torch.Tensor:
    stream = torch.Generator().manual_seed(7)
    return torch.nn.functional.normalize(torch.randn(count, D, generator=stream), dim=1)


# --- what a model makes of a dictionary ---


@pytest.fixture(scope="module")
def clock() -> Hook:
    config = CompiledConfig(kind="clock", task=TaskConfig(op="add", p=29), keys=(1, 8, 12))
    model = compile_model(config).to(torch.float32)
    return Hook.of(extract(model, Task("add", 29), "mlp_out"), model)


def ideal(hook: Hook) -> list:
    planes = [subspace.basis for subspace in hook.truth.subspaces]
    return [signed_axes(planes, hook.x.mean(0), [phase] * len(planes)) for phase in (0.0, 1.0)]


def test_a_model_is_asked_and_so_is_it_about_null_dictionaries(clock):
    result = measure(Members.of(ideal(clock), clock), clock, ANALYSIS, final=True)
    rows = overall(result)
    for metric in CAUSES:
        dense = CODED_NULLS if metric == "rotation" else ()
        assert {null for name, null in rows if name == metric} == {"", *PURSUED_NULLS, *dense}
        assert sorted(r.seed for r in result.rows if r.metric == metric and r.seed is not None) == [0, 1]
    assert result.value("rotation_true").mean == 1
    for metric, value in {
        "rotation": 1,
        "ablation": 1,
        "spliced_accuracy": 1,
        "ce_recovered": 1,
        "true_atoms": 1,
    }.items():
        assert result.value(metric).mean == pytest.approx(value, abs=1e-4)
    for null in PURSUED_NULLS:
        assert result.value("rotation", null).mean < 0.3
        assert result.value("ablation", null).mean < 0.5


def test_the_same_planes_cut_in_other_ways_agree_as_planes_and_less_in_what_they_say_or_do(clock):
    """Signed axes turned by 1 rad in every plane: the same spans, other codes, other effects on the answers."""
    members = Members.of(ideal(clock), clock)
    result = measure(members, clock, ANALYSIS, final=True)
    rows = overall(result)
    for metric in ("activation_matching", "subspace_stability", "functional"):
        assert {null for name, null in rows if name == metric} == {"", *CODED_NULLS}
    assert result.value("subspace_stability").mean == pytest.approx(1, abs=1e-6)
    assert result.value("pwmcc").mean == pytest.approx(math.cos(math.pi / 2 - 1), abs=0.02)
    assert result.value("activation_matching").mean < 0.95
    assert result.value("functional").mean < 0.95
    twice = measure(Members.of(ideal(clock)[:1] * 2, clock), clock, ANALYSIS, final=True)
    for metric in ("activation_matching", "subspace_stability", "functional", "reappear_in_all"):
        assert twice.value(metric).mean == pytest.approx(1, abs=1e-5), metric
    for null in CODED_NULLS:
        assert result.value("functional", null).mean < 0.6


def test_what_atoms_do_is_asked_only_of_what_the_model_was_given(clock):
    stand_in = clock.with_samples(permuted(clock.x, generator=generator("test-measure")))
    result = measure(Members.of(ideal(clock), stand_in), stand_in, ANALYSIS, final=True)
    assert "functional" not in result.matrices
    assert "activation_matching" in result.matrices


def test_without_causes_a_model_is_not_asked(clock):
    members = Members.of(ideal(clock), clock, causes=False)
    metrics = {row.metric for row in measure(members, clock, ANALYSIS, final=True).rows}
    assert not metrics & set(CAUSES)
    assert {"functional", "true_atoms"} <= metrics


def test_encoders_that_read_elsewhere_are_not_turned_with_the_planes(clock):
    """Those of transcoders lie in another space, here of another width."""
    hook = replace(clock, source=torch.randn(len(clock.x), 5, generator=generator("test-source")))
    elsewhere = torch.randn(12, 5, generator=generator("test-encoders"))

    def reading(one: Dictionary) -> Dictionary:
        return Dictionary(one.W_dec, lambda _: one.encode(clock.x), one.decode, {}, W_enc=elsewhere[: len(one.W_dec)])

    rows = overall(
        measure(Members.of([reading(one) for one in ideal(clock)], hook, causes=False), hook, ANALYSIS, final=True)
    )
    assert ("shared_fraction", "data") in rows
    assert ("pwmcc", "plane_rotated") in rows
    assert ("shared_fraction", "plane_rotated") not in rows


def test_shares_that_rest_on_all_seeds_have_no_interval_and_few_draws_no_quantiles(final):
    rows = overall(final)
    for key in (("reappear_in_all", ""), ("reappear_in_all", "data"), ("activation_matching", "data_relu")):
        assert math.isnan(rows[key].low)
        assert math.isnan(rows[key].high)
    assert math.isfinite(rows["activation_matching", ""].low)


def test_draws_kept_on_disk_give_the_same_rows(clock, tmp_path):
    members = Members.of(ideal(clock), clock, causes=False)
    plain = measure(members, clock, ANALYSIS, final=True)
    for _ in range(2):
        kept = measure(members, clock, ANALYSIS, final=True, cache=NullCache(tmp_path))
        assert [row[:3] for row in kept.rows] == [row[:3] for row in plain.rows]
        assert [row.value for row in kept.rows] == pytest.approx([row.value for row in plain.rows], nan_ok=True)
    assert len(list(tmp_path.glob("*.npz"))) == len(DRAWN_NULLS)


def test_samples_that_stand_in_leave_the_model_its_own(clock):
    """A dictionary from elsewhere is asked about on what the model was given; its single atoms are not."""
    stand_in = clock.with_samples(permuted(clock.x, generator=generator("test-measure")))
    assert clock.genuine is clock.site
    assert stand_in.genuine is None
    result = measure(Members.of(ideal(clock), stand_in), stand_in, ANALYSIS, final=True)
    assert result.value("rotation").mean == 1
    assert result.value("explained_variance").mean == pytest.approx(1, abs=1e-4)  # permuted, still within the planes
    others = Members.of(
        [by_projection(stand_in.x[:12] - clock.x.mean(0), clock.x.mean(0), torch.relu, "points")], stand_in
    )
    assert measure(others, stand_in, ANALYSIS, final=True).value("rotation").mean < 0.5


def test_atoms_are_true_only_if_removing_them_does_what_they_say(clock):
    good = ideal(clock)[0]
    scrambled = replace(clock.site, readout=clock.site.readout.roll(40, 0))
    wrong = replace(clock, site=scrambled)
    assert Members.of([good], clock).readings[0].figures["true_atoms"] == 1
    figures = Members.of([good], wrong).readings[0].figures
    assert figures["true_plane"] == 1
    assert figures["true_atoms"] < 0.7


def test_without_truth_a_model_is_asked_about_reconstructions_alone(clock, fresh):
    model = fresh("abe", 11)
    hook = Hook.without_truth(extract(model, Task("add", 11), "mlp_out"), model)
    causes = Members.of([by_projection(torch.eye(16), hook.x.mean(0), torch.relu, "axes")], hook).causes
    assert set(causes[0]) == {"spliced_accuracy", "spliced_ce", "ce_recovered"}


# --- codes with signs ---


def flipped(dictionary: Dictionary, signed: bool) -> Dictionary:
    """Every second atom turned round, its code with it: as good a dictionary where codes may have either sign."""
    signs = torch.ones(dictionary.d_sae).index_fill(0, torch.arange(0, dictionary.d_sae, 2), -1.0)
    return Dictionary(
        dictionary.W_dec * signs[:, None],
        lambda x: dictionary.encode(x) * signs,
        lambda codes: dictionary.decode(codes * signs),
        dictionary.meta,
        signed,
    )


def test_atoms_of_signed_codes_are_compared_by_magnitude_and_nulls_too(ensembles, hook, members, untrained):
    made = ensembles[150].dictionaries
    turned = [flipped(dictionary, True) if place == 1 else dictionary for place, dictionary in enumerate(made)]
    assert Members.of(turned, hook).signed
    assert not members[150].signed
    signed = measure(Members.of(turned, hook), hook, ANALYSIS, final=True, untrained=untrained)
    atoms = members[150].atoms
    expected = {
        "pwmcc": pairwise(atoms, lambda A, B: pwmcc(A, B, abs=True)),
        "shifted": pairwise(atoms, lambda A, B: shifted(A, B, hook.shifts, list(range(1, P)), abs=True)),
        "aligned": pairwise(atoms, lambda A, B: aligned(A, B, hook.shifts, list(range(P)), abs=True)),
    }
    for metric, matrix in expected.items():
        np.testing.assert_allclose(signed.matrices[metric], matrix, atol=1e-5)
    for name in ("pwmcc_frequent", "pwmcc_energy_weighted"):
        assert abs(signed.value(name).mean - signed.value("pwmcc").mean) < 0.2
    for null in DRAWN_NULLS:
        draw = sampler(null, hook.x)
        by_hand = null_matrices(
            draw, members[150].n_live, lambda A, B: pwmcc(A, B, abs=True), draws=ANALYSIS.null_draws, purpose=null
        )
        assert signed.value("pwmcc", null).mean == pytest.approx(by_hand[:, *np.triu_indices(SEEDS, 1)].mean())
    table = atom_table(Members.of(turned, hook), ensembles[150], hook)
    assert table["match_mean"].min() >= 0
    # negative codes say so themselves; were they taken for unsigned, the turned atoms would find no partners
    untold = [flipped(dictionary, False) if place == 1 else dictionary for place, dictionary in enumerate(made)]
    known = Members.of(untold, hook)
    assert known.signed
    misread = measure(replace(known, signed=False), hook, ANALYSIS, final=True, untrained=untrained)
    assert misread.value("pwmcc").mean < signed.value("pwmcc").mean - 0.05


def test_rungs_and_symmetry_of_unsigned_codes_are_signed(final, members):
    atoms = members[150].atoms
    np.testing.assert_allclose(final.matrices["pwmcc"], pairwise(atoms, pwmcc))
    assert final.value("pwmcc").mean < pair_interval(pairwise(atoms, lambda A, B: pwmcc(A, B, abs=True))).mean + 1e-9


def test_nothing_is_known_of_samples_that_stand_in_for_others(hook):
    assert hook.known.labels is not None
    assert hook.with_samples(hook.x.flip(0)).known == Known()
