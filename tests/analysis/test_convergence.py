from itertools import pairwise

import pytest

from husai.analysis.convergence import TOLERANCES, doublings, has_converged, is_flat, movements
from husai.analysis.stats import Interval


def point(**values):
    return {name: Interval(value, value, value) for name, value in values.items()}


FLAT = {"explained_variance": 0.99, "pwmcc": 0.8, "fourier_overlap_unweighted": 0.9, "gt_mcc": 0.9, "n_live": 100.0}


def test_flat_figures_have_converged():
    assert has_converged(point(**FLAT), point(**FLAT))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("explained_variance", 0.993),
        ("pwmcc", 0.808),
        ("fourier_overlap_unweighted", 0.88),
        ("gt_mcc", 0.906),
        ("n_live", 110.0),
    ],
)
def test_one_moving_figure_is_enough_not_to_have_converged(name, value):
    assert not has_converged(point(**FLAT), point(**{**FLAT, name: value}))


def test_the_slow_drift_that_a_tolerance_of_a_hundredth_let_through():
    # resid_post, TopK 1024, k = 32 of the default suite, 750 and 1500 steps: EV flat, pwmcc creeping upwards
    half_way = point(explained_variance=0.9995, pwmcc=0.3407, fourier_overlap_unweighted=0.147, n_live=1006.0)
    end = point(explained_variance=0.9998, pwmcc=0.3485, fourier_overlap_unweighted=0.143, n_live=1022.6)
    assert movements(half_way, end)["pwmcc"] < 0.01
    assert not has_converged(half_way, end)


def test_live_atoms_count_relative_to_their_final_number():
    assert movements(point(n_live=90.0), point(n_live=100.0)) == {"n_live": pytest.approx(0.1)}


def test_a_single_seed_is_judged_without_agreement():
    alone = {name: value for name, value in FLAT.items() if name != "pwmcc"}
    assert has_converged(point(**alone), point(**alone))
    assert set(TOLERANCES) == set(FLAT)


def test_a_run_that_may_stop_is_looked_at_each_doubling():
    assert doublings(1500) == (93, 187, 375, 750, 1500)
    assert doublings(3) == (1, 3)
    assert all(b // 2 == a for a, b in pairwise(doublings(1500)))


def test_a_run_is_flat_where_it_has_not_moved_since_half_way():
    curve = {0: point(**FLAT), 50: point(**{**FLAT, "pwmcc": 0.5}), 100: point(**FLAT), 200: point(**FLAT)}
    assert [is_flat(curve, step) for step in (0, 50, 100, 200)] == [False, False, False, True]
    assert not is_flat({0: point(**FLAT), 1: point(**FLAT)}, 1), "nothing is learned from the start alone"
