"""Intervals over seeds and p-values. Pairs share SAEs and are never taken as independent. (docs/method.md §Uncertainty)"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import stdtr, stdtrit

MANY = 10  # seeds from which on intervals are corrected for skewness, and those of pairs for what single pairs bring


class Interval(NamedTuple):
    """A mean with its confidence interval; low and high are nan where there are too few seeds."""

    mean: float
    low: float
    high: float


def t_reach(error: float, degrees: float, level: float = 0.95) -> float:
    """How far a t interval reaches to either side of its mean. error: the standard deviation of that mean."""
    return float(stdtrit(degrees, (1 + level) / 2)) * error


def seed_interval(values: Float[np.ndarray, "seeds"], level: float = 0.95) -> Interval:
    """Mean over seeds with a t interval; from 10 seeds on, one that allows for skewness (`skewed_interval`)."""
    values = np.asarray(values, dtype=float)
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Interval(mean, float("nan"), float("nan"))
    return (plain_interval if count < MANY else skewed_interval)(values, level)


def plain_interval(values: Float[np.ndarray, "seeds"], level: float = 0.95) -> Interval:
    """Mean over at least 2 seeds with its t interval, which is the delete-one jackknife's."""
    reach = t_reach(_error(values), len(values) - 1, level)
    return Interval(float(np.mean(values)), float(np.mean(values) - reach), float(np.mean(values) + reach))


def skewed_interval(values: Float[np.ndarray, "seeds"], level: float = 0.95) -> Interval:
    """The t interval with its ends moved as the values' skewness asks for (Hall 1992, JRSS B 54, 221–228)."""
    return _turned(float(np.mean(values)), t_reach(_error(values), len(values) - 1, level), _error(values), values)


def pair_interval(matrix: Float[np.ndarray, "seeds seeds"], level: float = 0.95) -> Interval:
    """Mean over pairs i < j of a symmetric matrix with its interval; none below 3 seeds.

    Up to 9 seeds the delete-one-seed jackknife (`jackknife_interval`), from 10 on `corrected_interval`.
    """
    matrix = np.asarray(matrix, dtype=float)
    if len(matrix) < 3:
        return Interval(pair_mean(matrix), float("nan"), float("nan"))
    return (jackknife_interval if len(matrix) < MANY else corrected_interval)(matrix, level)


def jackknife_interval(matrix: Float[np.ndarray, "seeds seeds"], level: float = 0.95) -> Interval:
    """Delete-one-seed jackknife of the pair mean, t with S − 1 degrees of freedom; at least 3 seeds.

    Its variance (S − 1)/S Σ (θ_s − θ)² is 4/(S(S − 2)) of the seeds' mean square, since leaving seed s out moves the mean by
    −2/S of that seed's effect.
    """
    squares, count = PairSquares.of(matrix), len(matrix)
    reach = t_reach(squares.jackknife_error, count - 1, level)
    return Interval(squares.mean, squares.mean - reach, squares.mean + reach)


def corrected_interval(matrix: Float[np.ndarray, "seeds seeds"], level: float = 0.95) -> Interval:
    """Interval of the pair mean without the jackknife's two faults: for at least 5 seeds, meant for 10 and more.

    The jackknife counts what single pairs bring twice: its variance less that (Efron and Stein 1981, Ann. Stat. 9) is
    unbiased, with Satterthwaite's degrees of freedom, and is taken where it is narrower; where seeds bring nothing, one mean
    square of all pairs takes its place. And the ends are moved for the skewness of the seeds' effects (`skewed_interval`).
    """
    squares, n = PairSquares.of(matrix), len(matrix)
    own = n * (n - 3) / 2
    if squares.seed <= squares.pair:
        degrees = n - 1 + own
        error = (2 * (squares.seed * (n - 1) + squares.pair * own) / degrees / (n * (n - 1))) ** 0.5
        return _turned(squares.mean, t_reach(error, degrees, level), error, squares.effects)
    jackknife, twice = squares.jackknife_error**2, 2 * squares.pair / ((n - 1) * (n - 2))
    error = (jackknife - twice) ** 0.5
    degrees = (jackknife - twice) ** 2 / (jackknife**2 / (n - 1) + twice**2 / own)
    plain = t_reach(jackknife**0.5, n - 1, level), jackknife**0.5
    reach, error = min((t_reach(error, degrees, level), error), plain)
    return _turned(squares.mean, reach, error, squares.effects)


def _error(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def _turned(mean: float, reach: float, error: float, values: np.ndarray) -> Interval:
    """mean ± reach with both ends moved for the skewness of the values: the inverse of Hall's cubic in t."""
    deviations, root = values - np.mean(values), np.sqrt(len(values))
    spread = float((deviations**2).mean())
    third = float((deviations**3).mean()) / spread**1.5 / 3 if spread > 0 else 0.0  # of the skewness
    if not error > 0 or abs(third) < 1e-6:
        return Interval(mean, mean - reach, mean + reach)
    ends = (np.cbrt(1 + 3 * third * (side * reach / error / root - third / 2 / len(values))) - 1 for side in (1, -1))
    low, high = (mean - float(root / third * end) * error for end in ends)
    return Interval(mean, low, high)


class PairSquares(NamedTuple):
    """y_ij = mean + q_i + q_j + e_ij by least squares: the effects q of S seeds, and both mean squares.

    seed: (S − 2) Σ q² / (S − 1), expected to be σ_e² + (S − 2) σ_q²; pair: of what is left, on S(S − 3)/2 degrees of freedom,
    expected to be σ_e²; nan with 3 seeds. (Griffing 1956, Aust. J. Biol. Sci. 9, method 4)
    """

    mean: float
    effects: Float[np.ndarray, "seeds"]
    seed: float
    pair: float

    @classmethod
    def of(cls, matrix: Float[np.ndarray, "seeds seeds"]) -> "PairSquares":
        """At least 3 seeds. Only what is above the diagonal is read."""
        above = np.triu(np.asarray(matrix, dtype=float), 1)
        n, mean = len(above), pair_mean(above)
        effects = (above.sum(0) + above.sum(1) - (n - 1) * mean) / (n - 2)
        left = (above - mean - effects[:, None] - effects)[np.triu_indices(n, 1)]
        pair = float((left**2).sum() / (n * (n - 3) / 2)) if n > 3 else float("nan")
        return cls(mean, effects, float((n - 2) * (effects**2).sum() / (n - 1)), pair)

    @property
    def jackknife_error(self) -> float:
        """The delete-one-seed jackknife's standard deviation of the mean."""
        n = len(self.effects)
        return (4 * self.seed / (n * (n - 2))) ** 0.5


def pair_mean(matrix: Float[np.ndarray, "seeds seeds"]) -> float:
    """Mean over the pairs i < j."""
    return float(matrix[np.triu_indices(len(matrix), 1)].mean())


def difference_interval(
    first: Interval, first_seeds: int, second: Interval, second_seeds: int, level: float = 0.95
) -> Interval:
    """first − second for two independent sets of SAEs, from the intervals that `seed_interval` or `pair_interval` gave them.

    Welch's interval: the squared errors add up, with the degrees of freedom of Satterthwaite (1946), S − 1 on each side. nan
    where one of them has no interval.
    """
    squares = [
        (_error_of(one, seeds, level) ** 2, seeds - 1) for one, seeds in ((first, first_seeds), (second, second_seeds))
    ]
    total = sum(square for square, _ in squares)
    mean = first.mean - second.mean
    if not total > 0:
        return Interval(mean, mean - total, mean + total)
    reach = t_reach(total**0.5, total**2 / sum(square**2 / own for square, own in squares), level)
    return Interval(mean, mean - reach, mean + reach)


def _error_of(interval: Interval, seeds: int, level: float) -> float:
    """The standard error behind an interval over seeds: half its width by t. Not exact from 10 seeds on, where it is skewed."""
    return (interval.high - interval.low) / 2 / t_reach(1.0, seeds - 1, level)


def monte_carlo_p(observed: float, draws: Float[np.ndarray, "draws"]) -> float:
    """(1 + number of draws ≥ observed) / (1 + draws): never below 1/(R + 1)."""
    return float((1 + (np.asarray(draws) >= observed).sum()) / (1 + len(draws)))


def difference_p(difference: Interval, seeds: int, level: float = 0.95) -> float:
    """Two-sided p of no difference, from the interval that `seed_interval` or `pair_interval` gave it.

    1 where all differences are 0, nan where there is no interval.
    """
    error = _error_of(difference, seeds, level)
    if error == 0 and difference.mean == 0:
        return 1.0
    return 2 * float(stdtr(seeds - 1, -abs(difference.mean) / error)) if error > 0 else float("nan")


def holm(p_values: Float[np.ndarray, "tests"]) -> Float[np.ndarray, "tests"]:
    """p-values corrected for their number (Holm 1979): rejecting those ≤ α is wrong in any of them at most with chance α.

    The i-th smallest of m is multiplied by m − i + 1; none is smaller than one before it, or above 1.
    """
    p_values = np.asarray(p_values, dtype=float)
    order = p_values.argsort(kind="stable")
    scaled = p_values[order] * np.arange(len(order), 0, -1)
    corrected = np.empty_like(scaled)
    corrected[order] = np.maximum.accumulate(scaled).clip(max=1.0)
    return corrected
