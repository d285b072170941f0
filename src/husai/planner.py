"""How many seeds does a result need? Read off the spread that a suite's seeds already show. (docs/method.md §Planning)"""

import math
from dataclasses import dataclass

from scipy.stats import chi2

from husai.analysis.stats import t_reach
from husai.analysis.variance import pair_spread
from husai.errors import HusaiError
from husai.report.results import CellView, SuiteResults

MOST = 1000  # seeds beyond which no number is given


@dataclass(frozen=True)
class Plan:
    """One cell: half the width of its interval now, and the seeds expected to bring it to the wanted one (None: > 1000).

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
    """A plan for every cell of a suite that has the metric.

    Raises HusaiError if no cell has it, or for a cell with too few seeds to say (2 for scores of single SAEs, 4 of pairs).
    """
    found = [_plan(cell, metric, half_width) for cell in results.cells if not math.isnan(cell.value(metric).mean)]
    if not found:
        known = sorted({row for cell in results.cells for row in cell.records["metric"]})
        raise HusaiError(f"metric '{metric}': no cell of the suite has it; there are {', '.join(known)}")
    return found


def _plan(cell: CellView, metric: str, half_width: float) -> Plan:
    now, values = cell.value(metric), cell.per_seed(metric)
    name = f"{cell.place}, {cell.label}"
    if len(values):
        seeds, share = len(values), float("nan")
        if seeds < 2:
            raise HusaiError(f"{name}: has {seeds} seed; at least 2 are needed to plan for '{metric}'")
        deviation = float(values.std(ddof=1))

        def needed(width: float) -> int | None:
            return next((n for n in range(2, MOST + 1) if t_reach(deviation / math.sqrt(n), n - 1) <= width), None)

    else:
        matrix = cell.matrix(metric)
        seeds = len(matrix)
        if seeds < 4:
            raise HusaiError(
                f"{name}: has {seeds} seeds; at least 4 are needed to plan for '{metric}', a score of pairs"
            )
        spread = pair_spread(matrix)
        parts = 4 * spread.seed / seeds, 2 * spread.pair / (seeds * (seeds - 1))
        share = parts[0] / sum(parts) if sum(parts) else float("nan")

        def needed(width: float) -> int | None:
            return spread.seeds_for(width, most=MOST)

    wider = math.sqrt((seeds - 1) / float(chi2.ppf(0.1, seeds - 1)))
    reach = (now.high - now.low) / 2
    return Plan(name, now.mean, seeds, reach, needed(half_width), needed(half_width / wider), share)
