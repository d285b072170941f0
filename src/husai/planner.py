"""How many seeds does a result need? Read off the spread that a suite's seeds already show. (docs/method.md §Planning)"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from husai.analysis.stats import Interval, seed_interval, t_reach
from husai.analysis.variance import pair_spread
from husai.errors import HusaiError
from husai.report.results import CellView, SuiteResults

MOST = 1000  # seeds beyond which no number is given


@dataclass(frozen=True)
class Plan:
    """One cell, or models of a kind, which then count as seeds: half the width of its interval now, and how many seeds are
    expected to bring it to the wanted one (None: > 1000).

    cautious: the same if the spread is as large as it can be at 90%, since it is known from a few seeds only. seed_share: how
    much of the variance of the mean is due to seeds and not to single pairs; nan for scores of single SAEs.
    """

    cell: str
    value: float
    seeds: int
    half_width: float
    seeds_needed: int | None
    cautious: int | None
    seed_share: float


def plan_seeds(results: SuiteResults, metric: str, half_width: float) -> list[Plan]:
    """A plan for every cell of a suite that has the metric; and for cells of several models of a kind, how many models.

    Models are the outer unit: more seeds do not narrow what is said of models in general.
    Raises HusaiError if no cell has it, or for a cell with too few seeds to say (2 for scores of single SAEs, 4 of pairs).
    """
    found = [_plan(cell, metric, half_width) for cell in results.cells if not math.isnan(cell.value(metric).mean)]
    if not found:
        known = sorted({row for cell in results.cells for row in cell.records["metric"]})
        raise HusaiError(f"metric '{metric}': no cell of the suite has it; there are {', '.join(known)}")
    return [*found, *_plan_models(results, metric, half_width)]


def _plan(cell: CellView, metric: str, half_width: float) -> Plan:
    now, values = cell.value(metric), cell.per_seed(metric)
    name = f"{cell.place}, {cell.label}"
    if len(values):
        if len(values) < 2:
            raise HusaiError(f"{name}: has {len(values)} seed; at least 2 are needed to plan for '{metric}'")
        return _plan_values(name, now, values, half_width)
    matrix = cell.matrix(metric)
    if len(matrix) < 4:
        raise HusaiError(
            f"{name}: has {len(matrix)} seeds; at least 4 are needed to plan for '{metric}', a score of pairs"
        )
    spread = pair_spread(matrix)
    parts = 4 * spread.seed / len(matrix), 2 * spread.pair / (len(matrix) * (len(matrix) - 1))
    share = parts[0] / sum(parts) if sum(parts) else float("nan")
    return _plan_with(lambda width: spread.seeds_for(width, most=MOST), name, now, len(matrix), half_width, share)


def _plan_models(results: SuiteResults, metric: str, half_width: float) -> list[Plan]:
    found = []
    for precision, cells in ((p, g) for g in results.recipes for p in dict.fromkeys(cell.precision for cell in g)):
        own = [cell for cell in cells if cell.precision == precision and not math.isnan(cell.value(metric).mean)]
        if len({cell.model for cell in own}) == len(own) > 1:
            means = np.array([cell.value(metric).mean for cell in own])
            name = f"{len(own)} models, {own[0].short_hook}, {own[0].label}"
            found.append(_plan_values(name, seed_interval(means), means, half_width))
    return found


def _plan_values(name: str, now: Interval, values: np.ndarray, half_width: float) -> Plan:
    """By the spread of one value a seed or model."""
    deviation = float(values.std(ddof=1))

    def needed(width: float) -> int | None:
        return next((n for n in range(2, MOST + 1) if t_reach(deviation / math.sqrt(n), n - 1) <= width), None)

    return _plan_with(needed, name, now, len(values), half_width, float("nan"))


def _plan_with(
    needed: Callable[[float], int | None], name: str, now: Interval, seeds: int, half_width: float, share: float
) -> Plan:
    wider = math.sqrt((seeds - 1) / float(chi2.ppf(0.1, seeds - 1)))
    reach = (now.high - now.low) / 2
    return Plan(name, now.mean, seeds, reach, needed(half_width), needed(half_width / wider), share)
