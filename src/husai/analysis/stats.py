"""Intervals over seeds and p-values. Pairs share SAEs and are never taken as independent. (docs/method.md §Uncertainty)"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student


class Interval(NamedTuple):
    """A mean with its confidence interval; low and high are nan where there are too few seeds."""

    mean: float
    low: float
    high: float


def seed_interval(values: Float[np.ndarray, "seeds"], level: float = 0.95) -> Interval:
    """Mean over seeds with a t interval (the delete-one jackknife of a mean)."""
    values = np.asarray(values, dtype=float)
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Interval(mean, float("nan"), float("nan"))
    return _interval(mean, float(values.std(ddof=1) / np.sqrt(count)), count, level)


def pair_interval(matrix: Float[np.ndarray, "seeds seeds"], level: float = 0.95) -> Interval:
    """Mean over pairs i < j of a symmetric matrix, with the delete-one-seed jackknife interval.

    t with S − 1 degrees of freedom. At least 3 seeds are needed for an interval, since deleting one of two leaves no
    pair.
    """
    matrix = np.asarray(matrix, dtype=float)
    count = len(matrix)
    mean = pair_mean(matrix)
    if count < 3:
        return Interval(mean, float("nan"), float("nan"))
    without = np.array([pair_mean(np.delete(np.delete(matrix, s, 0), s, 1)) for s in range(count)])
    variance = (count - 1) / count * ((without - without.mean()) ** 2).sum()
    return _interval(mean, float(np.sqrt(variance)), count, level)


def pair_mean(matrix: Float[np.ndarray, "seeds seeds"]) -> float:
    """Mean over the pairs i < j."""
    return float(matrix[np.triu_indices(len(matrix), 1)].mean())


def _interval(mean: float, error: float, count: int, level: float) -> Interval:
    reach = float(student.ppf((1 + level) / 2, count - 1)) * error
    return Interval(mean, mean - reach, mean + reach)


def difference_interval(
    first: Interval, first_seeds: int, second: Interval, second_seeds: int, level: float = 0.95
) -> Interval:
    """first − second for two independent sets of SAEs, from the t intervals that `seed_interval` or `pair_interval` gave them.

    Welch's interval: the squared errors add up, with the degrees of freedom of Satterthwaite (1946), S − 1 on each side. nan
    where one of them has no interval.
    """
    squares = [
        (_error(one, seeds, level) ** 2, seeds - 1) for one, seeds in ((first, first_seeds), (second, second_seeds))
    ]
    total = sum(square for square, _ in squares)
    mean = first.mean - second.mean
    if total == 0:
        return Interval(mean, mean, mean)
    freedom = total**2 / sum(square**2 / own for square, own in squares)
    reach = float(student.ppf((1 + level) / 2, freedom)) * total**0.5
    return Interval(mean, mean - reach, mean + reach)


def _error(interval: Interval, seeds: int, level: float) -> float:
    """The standard error that a t interval over seeds was made of."""
    return (interval.high - interval.mean) / float(student.ppf((1 + level) / 2, seeds - 1))


def monte_carlo_p(observed: float, draws: Float[np.ndarray, "draws"]) -> float:
    """(1 + number of draws ≥ observed) / (1 + draws): never below 1/(R + 1)."""
    return float((1 + (np.asarray(draws) >= observed).sum()) / (1 + len(draws)))


def difference_p(difference: Interval, seeds: int, level: float = 0.95) -> float:
    """Two-sided p of no difference, from the t interval that `seed_interval` or `pair_interval` gave it.

    1 where all differences are 0, nan where there is no interval.
    """
    error = _error(difference, seeds, level)
    if error == 0 and difference.mean == 0:
        return 1.0
    return 2 * float(student.sf(abs(difference.mean) / error, seeds - 1)) if error > 0 else float("nan")


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
