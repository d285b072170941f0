"""What every measure of stability returns: one score a pair of dictionaries, and what stands behind it."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from husai.analysis.matching import Matching
from husai.analysis.stats import Interval, pair_interval


class Pair(NamedTuple):
    """One measure of two dictionaries A and B.

    there, back: the score as A sees B, and as B sees A; the same for measures that do not ask one way. rows, columns: what each
    atom of A, and of B, brings to it; nan for an atom that is left without a partner. matching: the one-to-one matching that
    was scored, None for many-to-one measures. gap: what the best matching's score may exceed this one by.
    """

    there: float
    back: float
    rows: Float[np.ndarray, "n_A"]
    columns: Float[np.ndarray, "n_B"]
    matching: Matching | None = None
    gap: float = 0.0

    @classmethod
    def matched(
        cls, matching: Matching, values: Float[np.ndarray, "pairs"], sizes: tuple[int, int], gap: float = 0.0
    ) -> "Pair":
        """The mean of one value a matched pair. sizes: (n_A, n_B)."""
        rows, columns = (np.full(size, np.nan) for size in sizes)
        rows[matching.rows] = columns[matching.columns] = values
        mean = float(values.mean())
        return cls(mean, mean, rows, columns, matching, gap)


class Agreement(NamedTuple):
    """One measure of S dictionaries.

    matrix: [i, j] the score as i sees j; the diagonal is 1. atoms: of every dictionary what each atom brings, its mean over
    the others it has a partner in; nan where it has none. matched: for i < j the one-to-one matching that was scored; empty for
    many-to-one measures. gap: what the best matchings' scores may exceed these by; 0 where they are exact.
    """

    matrix: Float[np.ndarray, "seeds seeds"]
    atoms: tuple[Float[np.ndarray, "n"], ...]
    matched: Mapping[tuple[int, int], Matching]
    gap: Float[np.ndarray, "seeds seeds"]

    @property
    def both(self) -> Float[np.ndarray, "seeds seeds"]:
        """The matrix, averaged over both directions."""
        return (self.matrix + self.matrix.T) / 2

    @property
    def interval(self) -> Interval:
        """Mean over pairs, with the delete-one-seed jackknife interval."""
        return pair_interval(self.both)


def agreement(sizes: Sequence[int], measure: Callable[[int, int], Pair]) -> Agreement:
    """A measure of the pairs i < j of dictionaries with so many atoms, each taken once."""
    return joined(sizes, {(i, j): measure(i, j) for i, j in combinations(range(len(sizes)), 2)})


def joined(sizes: Sequence[int], pairs: Mapping[tuple[int, int], Pair]) -> Agreement:
    """Pairs i < j of dictionaries with so many atoms as one result."""
    count = len(sizes)
    matrix, gap = np.eye(count), np.zeros((count, count))
    total, known = [np.zeros(size) for size in sizes], [np.zeros(size) for size in sizes]
    for (i, j), pair in pairs.items():
        matrix[i, j], matrix[j, i] = pair.there, pair.back
        gap[i, j] = gap[j, i] = pair.gap
        for place, values in ((i, pair.rows), (j, pair.columns)):
            there = ~np.isnan(values)
            known[place] += there
            total[place][there] += values[there]
    atoms = tuple(np.where(k > 0, t / k.clip(min=1), np.nan) for t, k in zip(total, known, strict=True))
    matched = {place: pair.matching for place, pair in pairs.items() if pair.matching is not None}
    return Agreement(matrix, atoms, matched, gap)
