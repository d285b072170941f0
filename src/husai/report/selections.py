"""What a text asks of the cells of a suite together, with the rows that every answer rests on. (docs/method.md §Findings)"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import rankdata

from husai.analysis.verdict import Standing, standing
from husai.errors import HusaiError
from husai.report.quotes import Cell, Name, Quote, Row, listed, percent_text
from husai.report.results import CellView, SuiteResults, source_of
from husai.report.text import number

LABELS: dict[str, Callable[[CellView], tuple[object, ...]]] = {
    "model": lambda cell: (source_of(cell.model),),
    "hook": lambda cell: (cell.short_hook, cell.hook),
    "tier": lambda cell: (cell.tier,),
    "architecture": lambda cell: (cell.architecture,),
    "d_sae": lambda cell: (cell.d_sae,),
    "sparsity_param": lambda cell: (cell.sparsity_param,),
    "sparsity": lambda cell: (cell.sparsity,),
    "control": lambda cell: (cell.control,),
    "run_id": lambda cell: (cell.run_id,),
}


@dataclass(frozen=True)
class Cells:
    """Some cells of a suite. pool: the cells they were chosen from by what was measured; of a selection, itself.

    rule: what they were chosen by, such as `pwmcc above data`; metric, nulls: the records that decided it, of each cell.
    """

    _cells: tuple[Cell, ...]
    _pool: tuple[Cell, ...]
    _rule: str = ""
    _metric: str = ""
    _nulls: Callable[[Cell], tuple[str, ...]] = lambda _: ()

    def __iter__(self) -> Iterator[Cell]:
        return iter(self._cells)

    def where(self, **labels: object) -> "Cells":
        """Those that carry the labels; a list means any of its values. Raises HusaiError if there is none."""
        chosen = _labelled(self._cells, labels)
        return Cells(chosen, chosen)

    def exceeding(self, metric: str, *rungs: str) -> "Cells":
        """Those whose figure lies above every one of the rungs (default: `Cell.stable`), intervals apart."""
        asked = _asked(rungs)
        rule = f"{metric} above {' '.join(rungs) or 'all that stable features must exceed'}"
        return self._judge(rule, metric, asked, lambda c: len(_standing(c, metric, asked(c)).above) == len(asked(c)))

    def short_of(self, metric: str, *rungs: str) -> "Cells":
        """Those whose figure lies below at least one of the rungs (default: `Cell.stable`), intervals apart."""
        asked = _asked(rungs)
        rule = f"{metric} below one of {' '.join(rungs) or 'those that stable features must exceed'}"
        return self._judge(rule, metric, asked, lambda cell: bool(_standing(cell, metric, asked(cell)).below))

    def over(self, metric: str, least: float, null: str = "") -> "Cells":
        """Those whose figure is at least `least`."""
        rule = f"{metric} at least {least:g}"
        return self._judge(rule, metric, _asked((null,)), lambda cell: cell.value(metric, null).amount >= least)

    def surely(self, metric: str, *, over: float = -math.inf, under: float = math.inf) -> "Cells":
        """Those whose figure has an interval, which lies above `over` and below `under`, ends excluded."""
        rule = f"{metric} with an interval above {over:g} and below {under:g}"

        def holds(cell: Cell) -> bool:
            found = cell._view.value(metric)
            return found.low > over and found.high < under

        return self._judge(rule, metric, _asked(("",)), holds)

    def fallen(self, metric: str, by: float) -> "Cells":
        """Those whose figure ends at least `by` below that of an earlier step."""

        def holds(cell: Cell) -> bool:
            curve = [score.mean for score in cell._view.curve(metric)[1]]
            return max(curve) - cell.value(metric).amount >= by

        return self._judge(f"{metric} ends {by:g} or more below an earlier step", metric, _asked(("",)), holds)

    def unlike(self, metric: str, null: str, factor: float) -> "Cells":
        """Those whose figure and its chance level differ by more than a factor, either way."""

        def holds(cell: Cell) -> bool:
            ratio = cell.value(metric).amount / cell.value(metric, null).amount
            return not 1 / factor <= ratio <= factor

        return self._judge(f"{metric} and its {null} differ {factor:g}-fold", metric, _asked(("", null)), holds)

    @property
    def converged(self) -> "Cells":
        return self._judge("converged", "", _asked(("",)), lambda cell: cell.converged)

    @property
    def settled(self) -> "Cells":
        """Those that have converged, and whose surrogates have."""
        rule = "converged, as its surrogate"
        return self._judge(rule, "", _asked(("",)), lambda c: c.converged and c.surrogate.converged)

    def without(self, others: "Cells") -> "Cells":
        """The rest."""
        left_out = {cell._view.run_id for cell in others}
        rest = tuple(cell for cell in self if cell._view.run_id not in left_out)
        return replace(others, _cells=rest, _pool=self._cells, _rule=f"not {others._rule or 'of the others'}")

    @property
    def count(self) -> Quote:
        return Quote(str(len(self._cells)), self._asked("count"), self._counted(), len(self._cells))

    @property
    def share(self) -> Quote:
        """How much of the cells they were chosen from, in percent."""
        share = len(self._some(self._pool)) and len(self._cells) / len(self._pool)
        return Quote(percent_text(share, 0), self._asked("share"), self._counted(), share)

    @property
    def names(self) -> Name:
        """Where they were trained and what they are, an asterisk on those that have not converged."""
        return Name("; ".join(f"{cell.name.text}{_star(cell)}" for cell in self) or "none")

    @property
    def settings(self) -> Name:
        """What they are alone, for cells of one source."""
        return Name("; ".join(f"{cell.setting.text}{_star(cell)}" for cell in self) or "none")

    def include(self, cell: Cell) -> bool:
        return any(own._view.run_id == cell._view.run_id for own in self)

    def lowest(self, metric: str, null: str = "") -> Cell:
        """The cell with the smallest figure."""
        return min(self._some(self._cells), key=lambda cell: cell.value(metric, null).amount)

    def highest(self, metric: str, null: str = "") -> Cell:
        """The cell with the largest figure."""
        return max(self._some(self._cells), key=lambda cell: cell.value(metric, null).amount)

    def least(self, metric: str, null: str = "", digits: int = 3) -> Quote:
        """The smallest figure of a cell."""
        return self.lowest(metric, null).value(metric, null, digits=digits)

    def most(self, metric: str, null: str = "", digits: int = 3) -> Quote:
        """The largest figure of a cell."""
        return self.highest(metric, null).value(metric, null, digits=digits)

    def mean(self, metric: str, null: str = "", digits: int = 3) -> Quote:
        """The mean of the cells' figures."""
        found = [cell.value(metric, null) for cell in self._some(self._cells)]
        mean = math.fsum(quote.amount for quote in found) / len(found)
        return Quote(number(mean, digits), "mean", tuple(row for quote in found for row in quote.rows), mean)

    def correlation(self, metric: str, other: str, digits: int = 2) -> Quote:
        """Spearman's rank correlation of two figures over the cells. HusaiError for fewer than 3, or if all are equal."""
        pairs = [(cell.value(metric), cell.value(other)) for cell in self]
        ranks = [[quote.amount for quote in own] for own in zip(*pairs, strict=True)]
        if len(pairs) < 3 or any(len(set(own)) == 1 for own in ranks):
            raise HusaiError(f"{metric} and {other} of {len(pairs)} cells have no rank correlation")
        rho = float(np.corrcoef(*map(rankdata, ranks))[0, 1])
        rows = tuple(row for pair in pairs for quote in pair for row in quote.rows)
        return Quote(number(rho, digits), "rank correlation", rows, rho)

    def _judge(
        self, rule: str, metric: str, nulls: Callable[[Cell], tuple[str, ...]], holds: Callable[[Cell], bool]
    ) -> "Cells":
        return Cells(tuple(cell for cell in self if holds(cell)), self._cells, rule, metric, nulls)

    def _asked(self, what: str) -> str:
        return f"{what}: {self._rule}" if self._rule else what

    def _counted(self) -> tuple[Row, ...]:
        chosen = {cell._view.run_id for cell in self}
        return tuple(
            cell._judged(self._metric, " ".join(self._nulls(cell)), "yes" if cell._view.run_id in chosen else "no")
            for cell in self._pool
        )

    def _some(self, cells: tuple[Cell, ...]) -> tuple[Cell, ...]:
        if not cells:
            raise HusaiError(
                f"no cell is left ({self._rule or 'none was chosen'}), so nothing can be said of its figures"
            )
        return cells


@dataclass(frozen=True)
class Suite:
    """A suite's cells, as a text may ask for them. Those of controls are chosen by `control`, such as 'surrogate-0'."""

    _results: SuiteResults
    _name: str

    def cells(self, **labels: object) -> Cells:
        """Those that carry the labels; a list means any of its values. Raises HusaiError if there is none."""
        every = tuple(Cell(self._results, self._name, view) for view in self._results.cells)
        return Cells(every, every).where(**{"control": "", **labels})

    def cell(self, **labels: object) -> Cell:
        """The one cell that carries the labels. Raises HusaiError if there is none or several."""
        found = list(self.cells(**labels))
        if len(found) > 1:
            asked = ", ".join(f"{label} {value}" for label, value in labels.items())
            raise HusaiError(f"{len(found)} cells of '{self._name}' have {asked}: {self.cells(**labels).names.text}")
        return found[0]


def _labelled(cells: tuple[Cell, ...], labels: dict[str, object]) -> tuple[Cell, ...]:
    for label, wanted in labels.items():
        kept, there = [], set()
        for cell in cells:
            own = _label(cell._view, label)
            there.update(own)
            if set(own) & set(wanted if isinstance(wanted, list | tuple) else [wanted]):
                kept.append(cell)
        if not kept:
            dials = listed(cell._view.sparsity_param for cell in cells)
            known = f"there are {listed(there)}" if there else f"labels are {', '.join(LABELS)} and {dials}"
            raise HusaiError(f"no cell has {label} {wanted!r}; {known}")
        cells = tuple(kept)
    return cells


def _label(view: CellView, label: str) -> tuple[object, ...]:
    """What a cell has under a label; any other label is the name of what sets the sparsity, such as `k`."""
    if label in LABELS:
        return LABELS[label](view)
    return (view.sparsity,) if label == view.sparsity_param else ()


def _asked(rungs: tuple[str, ...]) -> Callable[[Cell], tuple[str, ...]]:
    """The same rungs of every cell; without any those that its features must exceed to be called stable."""
    return lambda cell: rungs or cell.stable


def _star(cell: Cell) -> str:
    return "" if cell.converged else " *"


def _standing(cell: Cell, metric: str, rungs: tuple[str, ...]) -> Standing:
    levels = {rung: cell._row(metric, rung, bounded=True).score for rung in rungs}
    return standing(cell._row(metric, bounded=True).score, levels)
