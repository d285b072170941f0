"""Where the spread of scores comes from, of a suite whose SAEs are a complete crossed design. Nothing of any other.

(docs/method.md §Sources of variance)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float

from husai.analysis.stats import Interval, seed_interval
from husai.analysis.variance import Factors, agreement_by_shared, crossed_components
from husai.report.results import CellView, SuiteResults
from husai.report.text import interval, markdown

SCORES = (
    *("explained_variance", "l0", "n_live", "fourier_overlap_unweighted", "decoder_overlap_unweighted", "gt_mcc"),
    *("true_atoms", "answer_overlap", "answer_specificity", "rotation"),
)
PAIRS = ("pwmcc", "max_cosine", "shared_fraction", "activation_matching", "functional", "shifted")
INIT, DATA, MODEL, PRECISION = "init seed", "data order", "model", "precision"
FP32 = "fp32/fp32"
EXPLAINED = """SAEs cross the factors named. First, a table a precision: the
standard deviation that each factor, or several beyond what
each does alone, brings to a score of single SAEs, with 95% intervals; the last row includes what no factor explains. Means
and the tables below have models as the unit: intervals are t intervals over models. Second: pairs of one model that share no
seed, one or the other; the last two columns are differences, model by model.
"""


@dataclass(frozen=True)
class Design:
    """Cells of one hook and recipe, one for each model and precision, whose SAEs cross the same init and data seeds.

    cells: by model and precision.
    """

    cells: dict[tuple[str, str], CellView]
    models: list[str]
    precisions: list[str]
    inits: list[int]
    orders: list[int]

    @property
    def title(self) -> str:
        first = self.cells[self.models[0], self.precisions[0]]
        return f"{first.short_hook}, {first.setting}"

    @property
    def factors(self) -> dict[str, int]:
        """Random ones that have several levels, and how many; precisions are chosen, so that each is taken by itself."""
        found = {
            INIT: len(self.inits),
            DATA: len(self.orders),
            MODEL: len(self.models),
        }
        return {name: levels for name, levels in found.items() if levels > 1}

    def values(self, score: str) -> Float[np.ndarray, "models precisions inits orders"] | None:
        """A score of every single SAE; None if a cell does not have it."""
        found = [[self.cells[m, p].per_seed(score) for p in self.precisions] for m in self.models]
        if any(len(one) != len(self.inits) * len(self.orders) for row in found for one in row):
            return None
        return np.array(found).reshape(*self.shape)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.models), len(self.precisions), len(self.inits), len(self.orders)

    def components(self, score: str, at: int = 0) -> dict[Factors, Interval] | None:
        """Standard deviation that every set of factors brings, with its interval; None where the score does not vary.

        at: place of the precision.
        """
        values = self.values(score)
        if values is None:
            return None
        values = values[:, at].transpose(1, 2, 0)
        if not np.isfinite(values).all() or np.ptp(values) < 1e-9:
            return None
        found = crossed_components(values.squeeze(), tuple(self.factors))
        return {name: Interval(*(max(part, 0.0) ** 0.5 for part in component)) for name, component in found.items()}

    def over_models(self, score: str, at: int = 0) -> Interval:
        """Mean with its interval; models are the outer unit. at: place of the precision."""
        values = self.values(score)
        assert values is not None
        return seed_interval(values[:, at].mean((1, 2)))

    def lowering(self, score: str) -> dict[str, Interval]:
        """For every precision but the first: the score there less that in the first, of the same seeds; over models."""
        values = self.values(score)
        assert values is not None
        differences = (values - values[:, :1]).mean((2, 3))
        return {name: seed_interval(differences[:, i]) for i, name in enumerate(self.precisions) if i}

    def agreement(self, score: str) -> dict[Factors, Float[np.ndarray, "models"]] | None:
        """Mean score of a model's pairs that share no seed, the init seed, or the data order; None if a cell has it not."""
        pairs = list(product(self.inits, self.orders))
        seeds = {INIT: [init for init, _ in pairs], DATA: [order for _, order in pairs]}
        shared: dict[Factors, list[list[float]]] = {}
        for model in self.models:
            matrices = [self.cells[model, precision].matrix(score) for precision in self.precisions]
            if any(len(matrix) != len(pairs) for matrix in matrices):
                return None
            groups = [agreement_by_shared(matrix, seeds) for matrix in matrices]
            for name in groups[0]:
                shared.setdefault(name, []).append([group[name][0] for group in groups])
        return {name: np.mean(means, axis=1) for name, means in shared.items()}


def designs(results: SuiteResults) -> list[Design]:
    """The complete crossed designs among a suite's cells, without controls: at least two init seeds and two data orders."""
    found = [_design(cells) for cells in results.recipes]
    return [design for design in found if design is not None]


def variance_section(results: SuiteResults) -> str:
    """Part of `summary.md`: the spread of scores by factor, and agreement by what a pair shares; '' without such a design."""
    parts = [_text(design) for design in designs(results)]
    return "".join([f"\n## Sources of variance\n\n{EXPLAINED}", *parts]) if parts else ""


def _text(design: Design) -> str:
    extent = " × ".join(f"{levels} {name}s" for name, levels in design.factors.items())
    extent += f", {len(design.precisions)} {PRECISION}s" if len(design.precisions) > 1 else ""
    tables = [*(_spread_table(design, at) for at in range(len(design.precisions))), _agreement_table(design)]
    if len(design.precisions) > 1:
        tables.append(_precision_table(design))
    return "\n".join([f"\n### {design.title}: {extent}\n", *tables])


def _spread_table(design: Design, at: int) -> str:
    found = {score: parts for score in SCORES if (parts := design.components(score, at)) is not None}
    rows = [["mean", *(interval(design.over_models(score, at), 4) for score in found)]]
    names = list(next(iter(found.values()), {}))
    rows += [[" × ".join(name), *(interval(parts[name], 4) for parts in found.values())] for name in names]
    return markdown(["sd by" if len(design.precisions) == 1 else f"{design.precisions[at]}, sd by", *found], rows)


def _agreement_table(design: Design) -> str:
    rows = []
    for score in PAIRS:
        means = design.agreement(score)
        if means is not None:
            same = [means[()], means[INIT,], means[DATA,]]
            more = [seed_interval(mean - means[()]) for mean in same[1:]]
            rows.append([score, *(interval(seed_interval(mean)) for mean in same), *map(interval, more)])
    return markdown(["pairs that share", "no seed", INIT, DATA, f"{INIT} less none", f"{DATA} less none"], rows)


def _precision_table(design: Design) -> str:
    scores = [score for score in SCORES if design.components(score) is not None]
    changes = {score: design.lowering(score) for score in scores}
    rows = [[name, *(interval(changes[score][name], 4) for score in scores)] for name in design.precisions[1:]]
    return markdown([f"less {design.precisions[0]}", *scores], rows)


def _design(cells: Sequence[CellView]) -> Design | None:
    models = list(dict.fromkeys(cell.model for cell in cells))
    precisions = sorted({cell.precision or FP32 for cell in cells}, key=lambda name: (name != FP32, name))
    placed = {(cell.model, cell.precision or FP32): cell for cell in cells}
    inits, orders = (sorted({pair[i] for pair in cells[0].seed_pairs}) for i in (0, 1))
    complete = len(cells) == len(placed) == len(models) * len(precisions)
    crossed = all(cell.seed_pairs == list(product(inits, orders)) for cell in cells)
    if not (complete and crossed and min(len(inits), len(orders)) > 1):
        return None
    return Design(placed, models, precisions, inits, orders)
