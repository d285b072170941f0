import numpy as np
import pytest
import torch
import torch.nn.functional as F

from husai.analysis.matching import pwmcc
from husai.analysis.nulls import (
    CODED_NULLS,
    DRAWN_NULLS,
    NullScore,
    adjusted,
    coded_sampler,
    null_matrices,
    pairwise,
    sampler,
)
from husai.analysis.stats import monte_carlo_p, pair_mean
from husai.seeding import generator


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator("test-nulls", seed))


def clustered() -> torch.Tensor:
    """40 inputs of rank 3 in 16 dimensions, deviations 3, 2 and 1, off the origin."""
    places = normal(40, 3) * torch.tensor([3.0, 2.0, 1.0])
    return places @ torch.linalg.qr(normal(16, 3, seed=1)).Q.T + 5


# --- what is drawn ---


@pytest.mark.parametrize("null", DRAWN_NULLS)
def test_draws_are_unit_atoms_in_the_asked_number(null):
    atoms = sampler(null, clustered())(50, generator("test"))
    assert atoms.shape == (50, 16)
    torch.testing.assert_close(atoms.norm(dim=1), torch.ones(50))


@pytest.mark.parametrize("null", DRAWN_NULLS)
def test_draws_follow_their_generator(null):
    draw = sampler(null, clustered())
    assert torch.equal(draw(20, generator("test", 0)), draw(20, generator("test", 0)))
    assert not torch.equal(draw(20, generator("test", 0)), draw(20, generator("test", 1)))


@pytest.mark.parametrize(("d", "signed"), [(128, 0.271), (10, 0.815), (6, 0.927)])
def test_ambient_dictionaries_sit_at_the_reference_values(d, signed):
    matrices = null_matrices(sampler("ambient", normal(4, d)), (1024, 1024), pwmcc, draws=2, purpose="test")
    assert matrices[:, 0, 1].mean() == pytest.approx(signed, abs=0.01)


def test_ambient_directions_ignore_the_input():
    shares = sampler("ambient", clustered())(4000, generator("test")).pow(2).mean(0)
    torch.testing.assert_close(shares, torch.full((16,), 1 / 16), rtol=0, atol=0.005)


def test_data_directions_have_the_covariance_of_the_centred_input():
    # Deviations 3 and 1 along axes turned by 30°. In two dimensions the unit directions of N(0, Σ) have second moments
    # 3/(3 + 1) and 1/(3 + 1) along these axes.
    turn = torch.tensor([[0.75**0.5, 0.5], [-0.5, 0.75**0.5]])
    x = torch.tensor([[3.0, 1.0], [3.0, -1.0], [-3.0, 1.0], [-3.0, -1.0]]) @ turn + 100
    atoms = sampler("data", x)(40_000, generator("test"))
    moments = turn @ (atoms.T @ atoms / len(atoms)) @ turn.T
    torch.testing.assert_close(moments, torch.diag(torch.tensor([0.75, 0.25])), rtol=0, atol=0.01)


def test_data_directions_stay_in_the_inputs_subspace():
    x = clustered()
    basis = torch.linalg.svd(x - x.mean(0)).Vh[:3]
    atoms = sampler("data", x)(200, generator("test"))
    torch.testing.assert_close((atoms @ basis.T).norm(dim=1), torch.ones(200), rtol=0, atol=1e-4)


def test_data_points_are_rows_of_the_centred_input():
    x = normal(30, 8) + 5
    rows = F.normalize(x - x.mean(0), dim=1)
    best = (sampler("data_points", x)(20, generator("test")) @ rows.T).max(1)
    torch.testing.assert_close(best.values, torch.ones(20))
    assert len(best.indices.unique()) == 20  # without replacement


def test_data_points_repeat_only_when_all_are_used():
    x = normal(10, 8)
    rows = F.normalize(x - x.mean(0), dim=1)
    used = (sampler("data_points", x)(25, generator("test")) @ rows.T).argmax(1).bincount(minlength=10)
    assert sorted(used.tolist()) == [2] * 5 + [3] * 5


# --- codes ---


@pytest.mark.parametrize("null", CODED_NULLS)
def test_codes_are_rectified_projections_of_the_centred_input(null):
    x = clustered()
    atoms, codes = coded_sampler(null, x, 3)(50, generator("test"))
    rung = null.removesuffix("_relu").removesuffix("_top_k")
    assert torch.equal(atoms, sampler(rung, x)(50, generator("test")))
    expected = ((x - x.mean(0)) @ atoms.T).relu()
    kept = codes > 0
    torch.testing.assert_close(codes[kept], expected[kept])
    if null.endswith("relu"):
        torch.testing.assert_close(codes, expected)
    else:
        assert set(kept.sum(1).tolist()) == {3}
        smallest = torch.where(kept, codes, torch.inf).min(1).values
        assert bool((torch.where(kept, 0, expected).max(1).values <= smallest).all())


@pytest.mark.parametrize(("l0", "k"), [(0.2, 1), (1.6, 2), (4.0, 4)])
def test_matched_codes_fire_as_often_as_observed(l0, k):
    codes = coded_sampler("data_points_top_k", clustered(), l0)(50, generator("test")).codes
    assert set((codes > 0).sum(1).tolist()) == {k}


def test_no_more_codes_are_kept_than_there_are_atoms():
    few, all_of_them = (
        coded_sampler(null, clustered(), 9)(5, generator("test")).codes for null in ("data_top_k", "data_points_relu")
    )
    assert few.shape == all_of_them.shape
    assert int((few > 0).sum(1).max()) <= 5


# --- pairs of dictionaries ---


def test_pairwise_scores_fill_a_symmetric_matrix():
    atoms = [torch.tensor([[float(i)]]) for i in (1, 2, 4)]
    matrix = pairwise(atoms, lambda a, b: float(a - b))
    assert matrix.tolist() == [[1, -1, -3], [-1, 1, -2], [-3, -2, 1]]


def test_pairwise_takes_several_scores_at_once():
    atoms = [torch.tensor([[float(i)]]) for i in (1, 2)]
    matrix = pairwise(atoms, lambda a, b: (float(a + b), float(a * b)))
    assert matrix.shape == (2, 2, 2)
    assert matrix[0, 1].tolist() == matrix[1, 0].tolist() == [3, 2]


def test_null_dictionaries_have_the_observed_numbers_of_atoms():
    sizes = []
    null_matrices(
        lambda n, g: torch.zeros(n, 2),
        (5, 3, 7),
        lambda a, b: float(sizes.append((len(a), len(b))) is None),
        draws=2,
        purpose="test",
    )
    assert sizes == [(5, 3), (5, 7), (3, 7)] * 2


def test_null_draws_are_reproducible_and_differ_between_draws_seeds_and_purposes():
    def draws(purpose: str = "p", seed: int = 0) -> np.ndarray:
        draw = sampler("ambient", normal(4, 6))
        return null_matrices(draw, (8, 8), pwmcc, draws=3, purpose=purpose, seed=seed)[:, 0, 1]

    assert np.array_equal(draws(), draws())
    values = np.concatenate([draws(), draws(seed=1), draws(purpose="q")])
    assert len(set(values.tolist())) == 9


def test_fewer_draws_are_the_first_of_many():
    draw = sampler("ambient", normal(4, 6))
    few, many = (null_matrices(draw, (8, 8), pwmcc, draws=r, purpose="p") for r in (2, 5))
    assert np.array_equal(few, many[:2])


def test_null_score_by_hand():
    # three seeds; a draw's statistic is the mean of its three pairs
    def matrix(ab: float, ac: float, bc: float) -> list[list[float]]:
        return [[1, ab, ac], [ab, 1, bc], [ac, bc, 1]]

    score = NullScore.of(np.array([matrix(0.1, 0.2, 0.3), matrix(0.3, 0.4, 0.5)]))
    assert score.draws == pytest.approx([0.2, 0.4])
    assert score.mean == pytest.approx(0.3)
    assert (score.low, score.high) == pytest.approx((0.205, 0.395))  # 2.5% and 97.5% of the way from 0.2 to 0.4
    assert score.pairs == pytest.approx(np.array(matrix(0.2, 0.3, 0.4)))


# --- a null observed is at its own level, and above the weaker rungs ---

SIZES = (36, 34, 32)


@pytest.fixture(scope="module")
def rungs() -> dict[str, NullScore]:
    x = clustered()
    return {
        null: NullScore.of(null_matrices(sampler(null, x), SIZES, pwmcc, draws=60, purpose="rung"))
        for null in DRAWN_NULLS
    }


def observed(null: str) -> np.ndarray:
    """The statistic of 20 ensembles whose SAEs are null dictionaries."""
    matrices = null_matrices(sampler(null, clustered()), SIZES, pwmcc, draws=20, purpose="observed")
    return np.array([pair_mean(matrix) for matrix in matrices])


@pytest.mark.parametrize("null", DRAWN_NULLS)
def test_null_dictionaries_sit_at_their_own_null(rungs, null):
    scores, rung = observed(null), rungs[null]
    assert ((rung.low <= scores) & (scores <= rung.high)).mean() >= 0.8  # 95% expected
    p = [monte_carlo_p(score, rung.draws) for score in scores]
    assert 0.3 < np.mean(p) < 0.7  # uniform p: .5 ± .065
    assert abs(scores.mean() - rung.mean) < (rung.high - rung.low) / 4


@pytest.mark.parametrize(("null", "weaker"), [("data", "ambient"), ("data_points", "ambient"), ("data_points", "data")])
def test_null_dictionaries_exceed_the_weaker_rungs_on_low_rank_data(rungs, null, weaker):
    for score in observed(null):
        assert score > rungs[weaker].high
        assert monte_carlo_p(score, rungs[weaker].draws) == pytest.approx(1 / 61)
    assert all(monte_carlo_p(score, rungs[null].draws) == 1 for score in observed(weaker))


# --- adjustment ---


def symmetric(ab: float, ac: float, bc: float) -> np.ndarray:
    return np.array([[1, ab, ac], [ab, 1, bc], [ac, bc, 1]])


def test_adjusted_is_one_for_identity_and_zero_at_the_null():
    null = symmetric(0.2, 0.5, 0.8)
    assert adjusted(symmetric(1, 1, 1), null) == pytest.approx(np.ones((3, 3)))
    assert adjusted(null, null) == pytest.approx(np.eye(3))


def test_adjustment_is_made_pair_by_pair():
    # (.9 − .8)/.2 = .5, (.2 − 0)/1 = .2, (.4 − .5)/.5 = −.2; their mean is 1/6, of the means it would be 1/17
    rescaled = adjusted(symmetric(0.9, 0.2, 0.4), symmetric(0.8, 0.0, 0.5))
    assert rescaled == pytest.approx(symmetric(0.5, 0.2, -0.2))


def test_adjustment_is_refused_where_a_null_leaves_no_room():
    scores = symmetric(0.95, 0.95, 0.95)
    assert adjusted(scores, symmetric(0.1, 0.1, 0.91)) is None
    assert adjusted(scores, symmetric(0.9, 0.9, 0.9)) == pytest.approx(symmetric(0.5, 0.5, 0.5))


# --- Monte-Carlo p ---


@pytest.mark.parametrize(("value", "p"), [(0.05, 1.0), (0.25, 3 / 5), (0.3, 3 / 5), (0.31, 2 / 5), (9.0, 1 / 5)])
def test_monte_carlo_p_by_hand(value, p):
    assert monte_carlo_p(value, np.array([0.1, 0.2, 0.3, 0.4])) == pytest.approx(p)


def test_codes_with_signs_are_held_against_codes_with_signs():
    """The largest by magnitude, and nothing rectified: half of all codes are negative."""
    x, rows = clustered(), torch.arange(1)
    for null in ("data_relu", "data_top_k", "data_pursued"):
        atoms, codes = coded_sampler(null, x, 3, signed=True)(50, generator("test"))
        assert (codes < 0).float().mean() > 0.2 * (codes != 0).float().mean()
        assert not (coded_sampler(null, x, 3)(50, generator("test")).codes < 0).any()
    atoms, codes = coded_sampler("data_top_k", x, 3, signed=True)(50, generator("test"))
    projections = ((x - x.mean(0)).float() @ atoms.T)[rows]
    assert codes[rows].abs().sum() == pytest.approx(projections.abs().topk(3).values.sum().item())
