import numpy as np
import pytest
from scipy import stats as scipy_stats

from husai.analysis.stats import (
    Interval,
    difference_interval,
    difference_p,
    holm,
    pair_interval,
    pair_mean,
    seed_interval,
)

# Pairs .5, .7, .9. Without seed 0, 1 or 2 the pair mean is .9, .7 or .5: jackknife variance 2/3·(.04 + 0 + .04).
BY_HAND = np.array([[1, 0.5, 0.7], [0.5, 1, 0.9], [0.7, 0.9, 1]])
T_95_TWO_DEGREES = 4.3026527


def test_pair_mean_leaves_the_diagonal_out():
    assert pair_mean(BY_HAND) == pytest.approx(0.7)


def test_pair_interval_by_hand():
    reach = T_95_TWO_DEGREES * (0.16 / 3) ** 0.5
    assert pair_interval(BY_HAND) == pytest.approx((0.7, 0.7 - reach, 0.7 + reach), rel=1e-6)


def test_pair_interval_at_another_level():
    reach = 2.9199856 * (0.16 / 3) ** 0.5  # t at 95% one-sided, two degrees
    assert pair_interval(BY_HAND, level=0.9) == pytest.approx((0.7, 0.7 - reach, 0.7 + reach), rel=1e-6)


def test_equal_pairs_give_an_interval_of_no_width():
    matrix = np.full((4, 4), 0.3)
    np.fill_diagonal(matrix, 1)
    assert pair_interval(matrix) == pytest.approx((0.3, 0.3, 0.3))


def test_two_seeds_have_a_pair_but_no_interval():
    mean, low, high = pair_interval(BY_HAND[:2, :2])
    assert mean == 0.5
    assert np.isnan(low)
    assert np.isnan(high)


def test_seed_interval_is_the_t_interval():
    values = [0.2, 0.4, 0.5, 0.9]
    low, high = scipy_stats.t.interval(0.95, 3, np.mean(values), scipy_stats.sem(values))
    assert seed_interval(np.array(values)) == pytest.approx((0.5, low, high))


def test_one_seed_has_a_mean_but_no_interval():
    mean, low, high = seed_interval(np.array([0.3]))
    assert mean == 0.3
    assert np.isnan(low)
    assert np.isnan(high)


def coverage(seeds: int, pair_noise: float, simulations: int = 2000) -> float:
    """How often the 95% interval holds the true mean where score_ij = μ + e_i + e_j + noise_ij: pairs share seeds."""
    g = np.random.default_rng(0)
    hits = 0
    for _ in range(simulations):
        own = g.normal(size=seeds)
        noise = np.triu(g.normal(size=(seeds, seeds)) * pair_noise, 1)
        interval = pair_interval(0.5 + own[:, None] + own[None] + noise + noise.T)
        hits += interval.low <= 0.5 <= interval.high
    return hits / simulations


@pytest.mark.parametrize("pair_noise", [0.0, 1.0])
def test_the_interval_covers_the_mean_of_pairs_that_share_seeds(pair_noise):
    assert 0.9 < coverage(5, pair_noise) < 0.995


def test_the_interval_covers_with_three_seeds():
    assert 0.9 < coverage(3, 0.0) < 0.995


def test_holm_by_hand():
    # .01·4; then .02·3 = .06; then .03·2 = .06; .05·1 would be less than the one before and is raised to it.
    assert holm(np.array([0.03, 0.01, 0.05, 0.02])) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm(np.array([0.9, 0.5])) == pytest.approx([1, 1]), "never above 1"
    assert holm(np.array([0.04])) == pytest.approx([0.04])


def test_holm_keeps_its_promise_where_bonferroni_would_reject_less():
    p = np.array([0.001, 0.011, 0.02, 0.04])
    assert (holm(p) <= 0.05).all()
    assert (np.minimum(1, 4 * p) <= 0.05).sum() == 2


def test_the_p_of_a_difference_is_that_of_a_t_test():
    values = np.array([0.1, 0.3, 0.2, 0.4])
    expected = scipy_stats.ttest_1samp(values, 0).pvalue
    assert difference_p(seed_interval(values), 4) == pytest.approx(expected)
    assert difference_p(seed_interval(values - values.mean()), 4) == pytest.approx(1)
    assert difference_p(Interval(0.2, 0.0, 0.4), 5) == pytest.approx(0.05), "the interval ends at 0"
    assert np.isnan(difference_p(seed_interval(values[:1]), 1))


def test_the_interval_of_a_difference_is_welchs():
    first, second = np.array([0.8, 0.82, 0.79, 0.81, 0.8]), np.array([0.6, 0.7, 0.65])
    found = difference_interval(seed_interval(first), 5, seed_interval(second), 3)
    expected = scipy_stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    assert found == pytest.approx((first.mean() - second.mean(), expected.low, expected.high))
    still = Interval(0.5, 0.5, 0.5)
    assert difference_interval(still, 5, still, 5) == (0, 0, 0)
    assert np.isnan(difference_interval(still, 5, Interval(0.5, float("nan"), float("nan")), 1).low)
