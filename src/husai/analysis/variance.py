"""Where the spread of a score comes from, and how many seeds an interval needs. (docs/method.md §Sources of variance)"""

from collections.abc import Mapping, Sequence
from itertools import chain, combinations
from math import prod
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from husai.analysis.stats import PairSquares, t_reach

Factors = tuple[str, ...]
DRAWS = 10_000


class Component(NamedTuple):
    """A variance with its interval: what one factor, or some together beyond what each does alone, add to a score's spread.

    variance: as estimated, below 0 where there is less spread than the rest alone would bring. low, high: at least 0.
    """

    variance: float
    low: float
    high: float


def crossed_components(
    values: Float[np.ndarray, "*levels"], factors: Sequence[str], level: float = 0.95
) -> dict[Factors, Component]:
    """Variance components of a complete crossed design with random factors, one value a cell (ANOVA, method of moments).

    values: one axis a factor, at least two levels each. Returns a component for every set of factors; that of all of them
    includes what no factor explains. Intervals are generalized ones (Weerahandi 1993, JASA 88): the estimate with every mean
    square replaced by what its chi-square distribution says of its expectation, drawn 10,000 times, and 0 if below. Raises
    ValueError for missing cells or a factor with one level.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != len(factors) or min(values.shape) < 2 or not np.isfinite(values).all():
        raise ValueError(
            f"values: shape {values.shape} for factors {', '.join(factors)}; needed are an axis for each, at least two "
            "levels an axis, and a finite value in every cell"
        )
    axes = range(values.ndim)
    subsets = list(chain.from_iterable(combinations(axes, size) for size in range(values.ndim, 0, -1)))
    squares = {subset: _mean_square(values, subset) for subset in subsets}
    generator, expected = np.random.default_rng(0), {}
    for subset in subsets:
        degrees = prod(values.shape[axis] - 1 for axis in subset)
        expected[subset] = degrees * squares[subset] / generator.chisquare(degrees, DRAWS)
    found: dict[Factors, Component] = {}
    for subset in subsets:
        repeats = prod(values.shape[axis] for axis in axes if axis not in subset)
        # E MS_T = Σ_{U ⊇ T} (cells a level combination of U) σ²_U, so σ²_T alternates over the sets that contain T
        above = [other for other in subsets if set(subset) <= set(other)]
        signs = {other: (-1) ** (len(other) - len(subset)) / repeats for other in above}
        variance = sum(sign * squares[other] for other, sign in signs.items())
        drawn = np.zeros(DRAWS)
        for other, sign in signs.items():
            drawn += sign * expected[other]
        low, high = np.quantile(drawn.clip(min=0), ((1 - level) / 2, (1 + level) / 2))
        found[tuple(factors[axis] for axis in subset)] = Component(variance, float(low), float(high))
    return dict(sorted(found.items(), key=lambda item: len(item[0])))


def _mean_square(values: np.ndarray, subset: tuple[int, ...]) -> float:
    """Of the effects of a set of factors: means over all other axes, less the means over each of its own."""
    others = tuple(axis for axis in range(values.ndim) if axis not in subset)
    effects = values.mean(others, keepdims=True)
    for axis in subset:
        effects = effects - effects.mean(axis, keepdims=True)
    repeats = prod(values.shape[axis] for axis in others)
    return float(repeats * (effects**2).sum() / prod(values.shape[axis] - 1 for axis in subset))


class PairSpread(NamedTuple):
    """Of a score of pairs, y_ij = mean + q_i + q_j + e_ij: the variances of q (a seed's) and of e (a pair's own)."""

    mean: float
    seed: float
    pair: float

    def half_width(self, seeds: int, level: float = 0.95) -> float:
        """Expected half width of the interval of the pair mean over so many seeds, if seeds bring more than pairs do."""
        variance = 4 * self.seed / seeds + 2 * self.pair / (seeds * (seeds - 1))
        return t_reach(variance**0.5, seeds - 1, level)

    def seeds_for(self, half_width: float, *, most: int = 1000) -> int | None:
        """The fewest seeds, from 3 on, whose interval is expected to be at most so wide; None beyond `most`."""
        return next((seeds for seeds in range(3, most + 1) if self.half_width(seeds) <= half_width), None)


def pair_spread(matrix: Float[np.ndarray, "seeds seeds"]) -> PairSpread:
    """The two variances behind a symmetric matrix of pair scores, by least squares; below 0 counts as 0.

    Raises ValueError with fewer than 4 seeds, which cannot tell them apart.
    """
    n = len(matrix)
    if n < 4:
        raise ValueError(f"{n} seeds: at least 4 are needed to tell what a seed brings from what a pair brings")
    squares = PairSquares.of(matrix)
    return PairSpread(squares.mean, max((squares.seed - squares.pair) / (n - 2), 0.0), squares.pair)


def agreement_by_shared(
    matrix: Float[np.ndarray, "saes saes"], seeds: Mapping[str, Sequence[int]]
) -> dict[Factors, tuple[float, int]]:
    """Mean score of the pairs that share exactly these seeds, and their number: () for pairs that share none.

    seeds: of every SAE, by kind (init, data, model).
    """
    groups: dict[Factors, list[float]] = {}
    for i, j in combinations(range(len(matrix)), 2):
        shared = tuple(name for name, values in seeds.items() if values[i] == values[j])
        groups.setdefault(shared, []).append(float(matrix[i, j]))
    return {shared: (float(np.mean(scores)), len(scores)) for shared, scores in sorted(groups.items())}
