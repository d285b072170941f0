"""How measurements are written down: one number a row."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from husai.analysis.nulls import NullScore, adjusted
from husai.analysis.stats import Interval, monte_carlo_p, pair_interval, pair_mean, seed_interval
from husai.analysis.tails import tail_p, z_score

MIN_P_DRAWS = 20  # with fewer draws a p-value cannot fall below .05 and none is given


class Row(NamedTuple):
    """One number. `seed`, `seed_b` index the ensemble's members (None: the figure is over all of them).

    null: '' for an observed score; the null's name for a null, an adjusted score or a p-value.
    n: how many things were averaged (pairs, seeds or draws).
    """

    metric: str
    null: str
    value: float
    low: float = float("nan")
    high: float = float("nan")
    n: int = 1
    seed: int | None = None
    seed_b: int | None = None

    def columns(self) -> dict[str, str | float | int]:
        """The number as tables have it, whoever it is of."""
        return {
            "metric": self.metric,
            "null": self.null,
            "value": self.value,
            "ci_low": self.low,
            "ci_high": self.high,
            "n": self.n,
        }


@dataclass
class Measurement:
    """Rows of numbers and the S×S matrices behind them; `nulls` by null name for the headline score.

    reliability: of atoms in groups of like agreement, their number, mean agreement and share that is true.
    """

    rows: list[Row] = field(default_factory=list)
    matrices: dict[str, Float[np.ndarray, "seeds seeds"]] = field(default_factory=dict)
    nulls: dict[str, NullScore] = field(default_factory=dict)
    reliability: Float[np.ndarray, "bins 3"] | None = None

    def overall(self) -> dict[str, Interval]:
        """Observed figures over all seeds, by metric."""
        return {r.metric: Interval(r.value, r.low, r.high) for r in self.rows if r.seed is None and not r.null}

    def value(self, metric: str, null: str = "") -> Interval:
        """The ensemble's figure for a metric (mean over seeds or pairs)."""
        row = next(r for r in self.rows if r.metric == metric and r.null == null and r.seed is None)
        return Interval(row.value, row.low, row.high)


def per_seed(result: Measurement, metric: str, values: list[float]) -> None:
    result.rows += [Row(metric, "", value, seed=index) for index, value in enumerate(values)]
    result.rows.append(Row(metric, "", *seed_interval(np.array(values)), n=len(values)))


def pair_rows(result: Measurement, metric: str, matrix: Float[np.ndarray, "seeds seeds"]) -> None:
    result.matrices[metric] = matrix
    above = zip(*np.triu_indices(len(matrix), 1), strict=True)
    result.rows += [Row(metric, "", float(matrix[i, j]), seed=int(i), seed_b=int(j)) for i, j in above]
    result.rows.append(Row(metric, "", *pair_interval(matrix), n=len(matrix) * (len(matrix) - 1) // 2))


def null_rows(result: Measurement, metric: str, null: str, score: NullScore) -> None:
    """The null itself, and the score adjusted by it (where the null leaves room), with its z and p-values."""
    matrix, count = result.matrices[metric], len(score.draws)
    if metric == "pwmcc":
        result.nulls[null] = score
    result.rows.append(Row(metric, null, score.mean, score.low, score.high, n=count))
    rescaled = adjusted(matrix, score.pairs)
    if rescaled is not None:
        result.rows.append(Row(f"{metric}_adjusted", null, *pair_interval(rescaled), n=count))
    result.rows.append(Row(f"{metric}_difference", null, *pair_interval(matrix - score.pairs), n=count))
    if count >= MIN_P_DRAWS:
        result.rows += _p_rows(metric, null, pair_mean(matrix), score.draws)


def _p_rows(metric: str, null: str, observed: float, draws: Float[np.ndarray, "draws"]) -> list[Row]:
    """The counted p, z where the draws vary, and the fitted p where the tail can be fitted."""
    count = len(draws)
    found = [Row(f"{metric}_p", null, monte_carlo_p(observed, draws), n=count)]
    steps, tail = z_score(observed, draws), tail_p(observed, draws)
    if steps == steps:
        found.append(Row(f"{metric}_z", null, steps, n=count))
    if tail.how == "fitted":
        found.append(Row(f"{metric}_p_fitted", null, tail.p, n=count))
    return found
