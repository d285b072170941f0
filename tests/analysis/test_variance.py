import numpy as np
import pytest

from husai.analysis.stats import jackknife_interval
from husai.analysis.variance import PairSpread, agreement_by_shared, crossed_components, pair_spread


def test_two_factors_by_hand():
    """Rows 0, 2 and columns 0, 4 add up exactly: effects ±1 and ±2 on two levels have variances 2 and 8."""
    found = crossed_components(np.array([[0.0, 4.0], [2.0, 6.0]]), ("init", "data"))
    assert {name: component.variance for name, component in found.items()} == {
        ("init",): 2.0,
        ("data",): 8.0,
        ("init", "data"): 0.0,
    }


def test_an_interaction_by_hand():
    """A checkerboard of ±1: both mean effects are 0, so each factor alone gets (0 − 4) / 2."""
    found = crossed_components(np.array([[1.0, -1.0], [-1.0, 1.0]]), ("init", "data"))
    assert [component.variance for component in found.values()] == [-2.0, -2.0, 4.0]
    assert found["init",].low == found["init",].high == 0


def test_components_of_three_factors_are_found_on_average():
    """Planted: init 1, data .25, model 4, init × data .5, the rest .1; other sets of factors nothing."""
    generator, shape = np.random.default_rng(0), (5, 6, 7)
    planted = {(0,): 1.0, (1,): 0.25, (2,): 4.0, (0, 1): 0.5, (0, 1, 2): 0.1}
    totals: dict[tuple[str, ...], list[float]] = {}
    for _ in range(400):
        values = np.zeros(shape)
        for axes, variance in planted.items():
            size = [length if axis in axes else 1 for axis, length in enumerate(shape)]
            values = values + generator.normal(size=size) * np.sqrt(variance)
        for name, component in crossed_components(values, ("init", "data", "model")).items():
            totals.setdefault(name, []).append(component.variance)
    names = ("init", "data", "model")
    for name, found in totals.items():
        expected = planted.get(tuple(names.index(part) for part in name), 0.0)
        assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / 20 + 1e-3), name


@pytest.mark.parametrize(("levels", "share"), [(5, 0.5), (10, 0.2), (5, 0.9)])
def test_coverage_of_a_components_interval(levels, share):
    """The generalized interval is approximate: here 93 to 97%, and the noise of 500 simulations, at a nominal 95%."""
    generator, covered = np.random.default_rng(1), 0
    for _ in range(500):
        seed = generator.normal(size=(levels, 1)) * np.sqrt(share)
        values = seed + generator.normal(size=(levels, levels)) * np.sqrt(1 - share)
        component = crossed_components(values, ("init", "data"))["init",]
        covered += component.low <= share <= component.high
    assert 0.92 <= covered / 500 <= 0.98


def test_what_cannot_be_decomposed():
    with pytest.raises(ValueError, match="two levels"):
        crossed_components(np.zeros((1, 3)), ("init", "data"))
    with pytest.raises(ValueError, match="a finite value in every cell"):
        crossed_components(np.array([[0.0, np.nan], [1.0, 2.0]]), ("init", "data"))


def test_pair_spread_by_hand():
    """q = (1, −1, 1, −1) without any noise: variance 4/3 over four seeds, nothing of a pair's own."""
    q = np.array([1.0, -1.0, 1.0, -1.0])
    spread = pair_spread(q[:, None] + q)
    assert spread.mean == pytest.approx(0)
    assert spread.seed == pytest.approx(4 / 3)
    assert spread.pair == pytest.approx(0, abs=1e-12)


def drawn(seeds, seed_variance, pair_variance, generator):
    q = generator.normal(size=seeds) * np.sqrt(seed_variance)
    noise = np.triu(generator.normal(size=(seeds, seeds)), 1) * np.sqrt(pair_variance)
    return 0.6 + q[:, None] + q + noise + noise.T


def test_pair_spread_is_right_on_average_and_predicts_the_jackknife():
    """What the planner expects for 12 seeds from a spread is what intervals over 12 seeds turn out to be."""
    generator, found, widths = np.random.default_rng(2), [], []
    for _ in range(400):
        found.append(pair_spread(drawn(6, 9e-4, 4e-4, generator)))
        interval = jackknife_interval(drawn(12, 9e-4, 4e-4, generator))
        widths.append((interval.high - interval.low) / 2)
    assert np.mean([spread.seed for spread in found]) == pytest.approx(9e-4, rel=0.1)
    assert np.mean([spread.pair for spread in found]) == pytest.approx(4e-4, rel=0.1)
    assert PairSpread(0.6, 9e-4, 4e-4).half_width(12) == pytest.approx(np.sqrt(np.mean(np.square(widths))), rel=0.1)


def test_seeds_for_a_width():
    spread = PairSpread(0.6, 9e-4, 4e-4)
    wanted = spread.seeds_for(0.02)
    assert wanted is not None
    assert spread.half_width(wanted) <= 0.02 < spread.half_width(wanted - 1)
    assert PairSpread(0.6, 1.0, 0.0).seeds_for(1e-3) is None
    with pytest.raises(ValueError, match="at least 4"):
        pair_spread(np.eye(3))


def test_pairs_are_grouped_by_what_they_share():
    matrix = np.array([[1, 0.1, 0.2, 0.3], [0.1, 1, 0.4, 0.5], [0.2, 0.4, 1, 0.6], [0.3, 0.5, 0.6, 1]])
    found = agreement_by_shared(matrix, {"init": [0, 0, 1, 1], "data": [0, 1, 0, 1]})
    assert found == {(): (pytest.approx((0.3 + 0.4) / 2), 2), ("data",): (0.35, 2), ("init",): (0.35, 2)}
