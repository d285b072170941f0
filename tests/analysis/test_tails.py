import numpy as np
import pytest
import torch
from scipy.stats import gamma, kstest, norm
from scipy.stats import t as student

from husai.analysis.matching import pwmcc
from husai.analysis.nulls import NullScore, null_matrices, sampler
from husai.analysis.stats import holm, monte_carlo_p
from husai.analysis.tails import tail_p, z_score
from husai.seeding import generator

FOUR = np.array([0.1, 0.2, 0.3, 0.4])  # mean .25, sd √(.05/3)
SYMMETRIC = norm.ppf((np.arange(40) + 0.5) / 40)  # 40 normal quantiles: no skew


def test_z_by_hand():
    assert z_score(0.65, FOUR) == pytest.approx(0.4 / (0.05 / 3) ** 0.5)
    assert z_score(0.25, FOUR) == pytest.approx(0)


def test_z_of_draws_that_do_not_vary_is_not_a_number():
    assert np.isnan(z_score(0.9, np.full(50, 0.3)))
    assert np.isnan(z_score(0.9, np.full(50, 0.1) + np.linspace(0, 1e-17, 50)))


def test_a_score_far_out_is_fitted_by_hand():
    found = tail_p(4.0, SYMMETRIC)
    assert found.how == "fitted"
    assert found.why == ""
    assert found.p == pytest.approx(student.sf(4 / SYMMETRIC.std(ddof=1) / (41 / 40) ** 0.5, 5))
    assert found.p < 1 / 41, "finer than counting"


def test_a_score_that_enough_draws_reach_is_counted():
    found = tail_p(SYMMETRIC[30], SYMMETRIC)
    assert found == (monte_carlo_p(SYMMETRIC[30], SYMMETRIC), "counted", "enough draws reach the score")
    assert found.p == pytest.approx(11 / 41)
    assert tail_p(SYMMETRIC[31], SYMMETRIC).how == "fitted", "nine draws are not enough"


@pytest.mark.parametrize(
    ("draws", "why"),
    [
        (SYMMETRIC[:29], "fewer than 30 draws"),
        (np.full(40, 0.3), "the draws do not vary"),
        (np.exp(SYMMETRIC), "the draws lean to the right"),
    ],
)
def test_draws_that_bear_no_fit_are_counted(draws, why):
    assert tail_p(100.0, draws) == (1 / (len(draws) + 1), "counted", why)


def test_draws_that_lean_to_the_left_are_fitted_since_their_tail_is_lighter():
    assert tail_p(100.0, -np.exp(SYMMETRIC)).how == "fitted"


def fitted_p_values(population, draws: int, simulations: int = 1000) -> np.ndarray:
    """Of a further draw of the same population, where they are fitted (else 1)."""
    g, found = np.random.default_rng(0), []
    for _ in range(simulations):
        *null, observed = population(g, draws + 1)
        tail = tail_p(observed, np.array(null))
        found.append(tail.p if tail.how == "fitted" else 1.0)
    return np.array(found)


@pytest.mark.parametrize("draws", [30, 100])
@pytest.mark.parametrize(
    "population",
    [
        lambda g, n: g.normal(size=n),
        lambda g, n: g.gamma(4, size=n),  # skewness 1
        lambda g, n: np.exp(g.normal(size=n) / 2),  # skewness 1.8
        lambda g, n: g.exponential(size=n),  # skewness 2
        lambda g, n: g.standard_t(5, size=n),  # excess kurtosis 6
        lambda g, n: g.beta(8, 2, size=n),  # leans to the left
    ],
    ids=["normal", "gamma", "lognormal", "exponential", "heavy", "left"],
)
def test_a_true_null_is_rejected_no_more_often_than_promised(population, draws):
    p_values = fitted_p_values(population, draws)
    for level in (0.05, 0.01, 0.002):
        assert (p_values <= level).mean() <= level


def test_a_normal_fit_would_promise_too_much():
    """Why the tail is heavier: skewed draws that the test of skewness lets pass are rejected too often by a normal tail."""
    g = np.random.default_rng(0)
    draws = g.gamma(16, size=(1000, 40))
    passed = [tail_p(1e6, row).how == "fitted" for row in draws]

    def rate(degrees: int) -> float:
        reach = student.isf(0.001, degrees) * draws.std(1, ddof=1) * np.sqrt(41 / 40)
        return float((gamma.sf(draws.mean(1) + reach, 16) * passed).mean())

    assert rate(39) > 0.002
    assert rate(5) < 0.0005


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    """1200 real draws: three dictionaries of 12 random data points in 6 dimensions, mean pwmcc of their pairs."""
    x = torch.randn(200, 6, generator=generator("test-tails")) * torch.tensor([3.0, 2.0, 1.0, 1.0, 0.5, 0.5])
    matrices = null_matrices(sampler("data_points", x), (12, 12, 12), pwmcc, draws=1200, purpose="test-tails")
    return NullScore.of(matrices).draws


def test_p_values_of_real_draws_under_a_true_null(real):
    """Twenty experiments a null of 40 draws: uniform where counted, rare where fitted."""
    counted, fitted = [], []
    for block in real.reshape(20, 60):
        null, observed = block[:40], block[40:]
        for value in observed:
            counted.append(monte_carlo_p(value, null))
            fitted.append(tail_p(value, null).p)
    assert kstest(np.array(counted) - 1 / 82, "uniform").statistic < 0.1
    assert np.mean(np.array(fitted) <= 0.05) <= 0.05
    assert np.mean(np.array(fitted) <= 0.01) <= 0.01


def test_what_is_planted_is_found_in_a_table_that_counting_cannot_serve(real):
    """60 rows of 40 draws: no counted p can be rejected; the five planted ones are by fits, and nothing else."""
    nulls = real[:1000].reshape(20, 50)
    planted = real.mean() + 20 * real.std()
    rows = [(planted if row < 5 else nulls[row % 20, 40 + row % 10], nulls[row % 20, :40]) for row in range(60)]
    counted = np.array([monte_carlo_p(value, null) for value, null in rows])
    tails = [tail_p(value, null) for value, null in rows]
    assert (holm(counted) > 0.05).all()
    found = holm(np.array([tail.p for tail in tails])) <= 0.05
    could = [row for row in range(5) if tails[row].how == "fitted"]
    assert len(could) >= 4
    assert set(np.flatnonzero(found)) == set(could)
