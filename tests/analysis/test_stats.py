import numpy as np
import pytest
from scipy import stats as scipy_stats

from husai.analysis.stats import (
    Interval,
    PairSquares,
    corrected_interval,
    difference_interval,
    difference_p,
    holm,
    jackknife_interval,
    pair_interval,
    pair_mean,
    plain_interval,
    seed_interval,
    skewed_interval,
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


def two_sided(half: int) -> np.ndarray:
    """Seeds of effects ±1 in equal number, and nothing of a pair's own."""
    q = np.repeat([1.0, -1.0], half)
    return q[:, None] + q


def test_without_skewness_and_noise_of_pairs_the_correction_is_none():
    """Ten seeds ±1: mean square of the seeds 8 · 10 / 9, its jackknife variance 4 / 80 of that; t has 9 degrees."""
    reach = 2.2621572 * (4 / 80 * 80 / 9) ** 0.5
    assert corrected_interval(two_sided(5)) == pytest.approx((0, -reach, reach), rel=1e-6)
    assert jackknife_interval(two_sided(5)) == pytest.approx((0, -reach, reach), rel=1e-6)


def test_where_seeds_bring_nothing_all_pairs_make_one_mean_square():
    """Ten seeds in a circle, pairs 1 at odd and −1 at even distances but 0 across: every seed's mean is 0, Σ y² is 40.

    40 / 44 over 44 degrees of freedom and 45 pairs; the jackknife sees no variance at all.
    """
    distance = np.abs(np.subtract.outer(np.arange(10), np.arange(10)))
    distance = np.minimum(distance, 10 - distance)
    matrix = np.choose(distance, [1.0, 1.0, -1.0, 1.0, -1.0, 0.0])
    squares = PairSquares.of(matrix)
    assert (squares.mean, squares.seed, squares.pair) == pytest.approx((0, 0, 40 / 35), abs=1e-12)
    reach = 2.0153676 * (40 / 44 / 45) ** 0.5
    assert corrected_interval(matrix) == pytest.approx((0, -reach, reach), rel=1e-6, abs=1e-12)
    assert jackknife_interval(matrix).high == pytest.approx(0, abs=1e-9)


def test_the_correction_takes_what_pairs_bring_out_of_the_jackknife():
    """Effects ±1 plus the circle's pairs: variance 4/80 · 80/9 − 2/72 · 40/35, with Satterthwaite's degrees of freedom."""
    distance = np.abs(np.subtract.outer(np.arange(10), np.arange(10)))
    distance = np.minimum(distance, 10 - distance)
    matrix = two_sided(5) + np.choose(distance, [1.0, 1.0, -1.0, 1.0, -1.0, 0.0])
    jackknife, twice = 4 / 80 * 80 / 9, 2 / 72 * 40 / 35
    degrees = (jackknife - twice) ** 2 / (jackknife**2 / 9 + twice**2 / 35)
    reach = scipy_stats.t.ppf(0.975, degrees) * (jackknife - twice) ** 0.5
    assert corrected_interval(matrix) == pytest.approx((0, -reach, reach), rel=1e-6, abs=1e-12)


def test_the_ends_are_where_halls_cubic_in_t_is_the_quantile():
    values = np.array([0.9, 0.91, 0.92, 0.9, 0.93, 0.91, 0.9, 0.92, 0.93, 0.6])
    mean, low, high = skewed_interval(values)
    n, skewness = len(values), scipy_stats.skew(values)
    for end, quantile in ((low, 2.2621572), (high, -2.2621572)):
        t = (mean - end) / scipy_stats.sem(values)
        cubic = t + skewness * (t**2 / 3 + 1 / 6) / n**0.5 + skewness**2 * t**3 / (27 * n)
        assert cubic == pytest.approx(quantile, rel=1e-6)
    assert mean - low > high - mean, "further down, where the tail is"


def test_intervals_are_corrected_from_ten_seeds_on():
    generator = np.random.default_rng(0)
    values = generator.exponential(size=10)
    matrix = values[:, None] + values
    assert pair_interval(matrix) == corrected_interval(matrix) != jackknife_interval(matrix)
    assert pair_interval(matrix[:9, :9]) == jackknife_interval(matrix[:9, :9])
    assert seed_interval(values) == skewed_interval(values) != plain_interval(values)
    assert seed_interval(values[:9]) == plain_interval(values[:9])
    assert corrected_interval(np.full((10, 10), 0.3)) == pytest.approx((0.3, 0.3, 0.3))
    assert seed_interval(np.full(10, 0.3)) == pytest.approx((0.3, 0.3, 0.3))


def test_the_jackknife_is_what_leaving_one_seed_out_gives():
    generator = np.random.default_rng(0)
    above = np.triu(generator.random((6, 6)), 1)
    matrix = above + above.T
    without = [pair_mean(np.delete(np.delete(matrix, s, 0), s, 1)) for s in range(6)]
    reach = scipy_stats.t.ppf(0.975, 5) * (5 / 6 * np.square(np.subtract(without, np.mean(without))).sum()) ** 0.5
    mean, low, high = jackknife_interval(matrix)
    assert (mean - low, high - mean) == pytest.approx((reach, reach))


def test_the_interval_of_a_difference_is_welchs():
    first, second = np.array([0.8, 0.82, 0.79, 0.81, 0.8]), np.array([0.6, 0.7, 0.65])
    found = difference_interval(seed_interval(first), 5, seed_interval(second), 3)
    expected = scipy_stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    assert found == pytest.approx((first.mean() - second.mean(), expected.low, expected.high))
    still = Interval(0.5, 0.5, 0.5)
    assert difference_interval(still, 5, still, 5) == (0, 0, 0)
    assert np.isnan(difference_interval(still, 5, Interval(0.5, float("nan"), float("nan")), 1).low)
