"""What a text asks of a suite's cells, each answer with the rows that it rests on. (docs/method.md §Findings)"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from husai.analysis.stats import Interval, difference_interval
from husai.analysis.verdict import STABLE, Standing, standing
from husai.errors import HusaiError
from husai.report.results import CellView, SuiteResults, rungs_of, source_of
from husai.report.tables import sentences
from husai.report.text import interval, number

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
class Row:
    """A row of the records that a number rests on, or a cell that was counted or not.

    metric, null: of the record; of a cell that was judged, what it was judged by. counted: 'yes' or 'no', '' if nothing was.
    """

    suite: str
    run_id: str
    cell: str
    metric: str = ""
    null: str = ""
    step: int | None = None
    value: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    counted: str = ""

    @property
    def score(self) -> Interval:
        """Of a record: its value and interval."""
        values = (self.value, self.ci_low, self.ci_high)
        return Interval(*(float("nan") if value is None else value for value in values))


@dataclass(frozen=True)
class Name:
    """What a cell or a list of cells is called: text that may hold digits and is no number."""

    text: str


@dataclass(frozen=True)
class Quote:
    """A number as it is printed, what was asked (`value`, `interval`, `count`, …), its rows, and the number itself."""

    text: str
    what: str
    rows: tuple[Row, ...]
    amount: float


@dataclass(frozen=True)
class Cell:
    """One cell, as a text may ask of it. step: a step at which the figure was taken, or `end`."""

    _results: SuiteResults
    _suite: str
    _view: CellView

    @property
    def name(self) -> Name:
        return Name(self._view.title)

    @property
    def setting(self) -> Name:
        """Architecture, width and sparsity."""
        return Name(self._view.setting)

    @property
    def place(self) -> Name:
        return Name(self._view.place)

    @property
    def converged(self) -> bool:
        return self._view.converged

    @property
    def seeds(self) -> Quote:
        return Quote(str(self._view.seeds), "seeds", (self._judged(),), self._view.seeds)

    @property
    def steps(self) -> Quote:
        return Quote(str(self._view.steps), "steps", (self._judged(),), self._view.steps)

    @property
    def surrogate(self) -> "Cell":
        """The cell of the same SAEs trained on the surrogate of these samples."""
        return replace(self, _view=self._results.level(self._view, "every figure", "surrogate_trained")[0])

    def value(self, metric: str, null: str = "", step: int | str = "end", digits: int = 3) -> Quote:
        """The figure over all seeds, or a chance level of it."""
        row = self._row(metric, null, step)
        return Quote(number(row.score.mean, digits), "value", (row,), row.score.mean)

    def percent(self, metric: str, null: str = "", step: int | str = "end", digits: int = 0) -> Quote:
        """The figure, a share, in percent."""
        row = self._row(metric, null, step)
        return Quote(_percent(row.score.mean, digits), "percent", (row,), row.score.mean)

    def interval(self, metric: str, null: str = "", step: int | str = "end", digits: int = 3) -> Quote:
        """The figure and its interval, as in the tables."""
        row = self._row(metric, null, step, bounded=True)
        return Quote(interval(row.score, digits), "interval", (row,), row.score.mean)

    def low(self, metric: str, null: str = "", step: int | str = "end", digits: int = 3) -> Quote:
        """The lower end of its interval."""
        row = self._row(metric, null, step, bounded=True)
        return Quote(number(row.score.low, digits), "low", (row,), row.score.low)

    def high(self, metric: str, null: str = "", step: int | str = "end", digits: int = 3) -> Quote:
        """The upper end of its interval."""
        row = self._row(metric, null, step, bounded=True)
        return Quote(number(row.score.high, digits), "high", (row,), row.score.high)

    def minus(self, other: "Cell", metric: str, step: int | str = "end", digits: int = 3) -> Quote:
        """This cell's figure minus another's, with Welch's interval (`stats.difference_interval`)."""
        if (other._suite, other._view.run_id) == (self._suite, self._view.run_id):
            raise HusaiError(f"{self._view.title}: cannot be told apart from itself; name two cells")
        rows = self._row(metric, "", step, bounded=True), other._row(metric, "", step, bounded=True)
        found = difference_interval(rows[0].score, self._view.seeds, rows[1].score, other._view.seeds)
        return Quote(interval(found, digits), "difference", rows, found.mean)

    def verdict(self) -> Quote:
        """The sentence of the tables that says which rungs the agreement exceeds."""
        nulls = rungs_of(self._view, self._results.surrogate_of(self._view))
        rows = tuple(self._row("pwmcc", null) for null in ("", *nulls))
        return Quote(self._sentence(0), "sentence", rows, rows[0].score.mean)

    def symmetry(self) -> Quote:
        """The sentence of the tables that reads the symmetry figures."""
        if not self._sentence(1):
            raise HusaiError(f"{self._view.title}: has no symmetry figures")
        figures = ("pwmcc", "shifted", "self_shift", "aligned", "shift_support")
        rows = (*(self._row(metric) for metric in figures), self._row("aligned", "data_points"))
        return Quote(self._sentence(1), "sentence", rows, rows[3].score.mean)

    def _sentence(self, which: int) -> str:
        return sentences(self._view, self._results.surrogate_of(self._view))[which]

    def _judged(self, metric: str = "", null: str = "", counted: str = "") -> Row:
        return Row(self._suite, self._view.run_id, self._view.title, metric, null, self._view.steps, counted=counted)

    def _row(self, metric: str, null: str = "", step: int | str = "end", *, bounded: bool = False) -> Row:
        """The one record of the figure over all seeds. Raises HusaiError unless there is exactly one, with a number in it."""
        view, own = self._results.level(self._view, metric, null)
        at = view.steps if step == "end" else step
        asked = {key: found for key, found in view.overall.items() if key[1] == metric}
        found = view.overall.get((int(at), metric, own), [])
        shown = f"{metric}{f' by {null}' if null else ''} at step {at}"
        if not asked:
            raise HusaiError(
                f"{view.title}: has no metric '{metric}'; there are {_listed(key[1] for key in view.overall)}"
            )
        if len(found) != 1:
            there = f"nulls {_listed(key[2] for key in asked)} and steps {_listed(key[0] for key in asked)}"
            raise HusaiError(
                f"{view.title}: {len(found) or 'no'} record{'s' * (len(found) > 1)} of {shown}; {there} are there"
            )
        row = Row(self._suite, view.run_id, view.title, metric, own, int(at), *found[0])
        if math.isnan(row.score.mean) or (bounded and math.isnan(row.score.low + row.score.high)):
            raise HusaiError(f"{view.title}: {shown} has no {'interval' if bounded else 'value'}")
        return row


@dataclass(frozen=True)
class Cells:
    """Some cells of a suite. pool: the cells they were chosen from by what was measured; of a selection, itself.

    rule: what they were chosen by, such as `pwmcc above data`; metric, nulls: the records that decided it.
    """

    _cells: tuple[Cell, ...]
    _pool: tuple[Cell, ...]
    _rule: str = ""
    _metric: str = ""
    _nulls: str = ""

    def __iter__(self) -> Iterator[Cell]:
        return iter(self._cells)

    def where(self, **labels: object) -> "Cells":
        """Those that carry the labels; a list means any of its values. Raises HusaiError if there is none."""
        chosen = _labelled(self._cells, labels)
        return Cells(chosen, chosen)

    def exceeding(self, metric: str, *rungs: str) -> "Cells":
        """Those whose figure lies above every one of the rungs (default: `verdict.STABLE`), intervals apart."""
        names = rungs or STABLE
        rule = f"{metric} above {' '.join(names)}"
        return self._judge(rule, metric, names, lambda cell: len(_standing(cell, metric, names).above) == len(names))

    def short_of(self, metric: str, *rungs: str) -> "Cells":
        """Those whose figure lies below at least one of the rungs (default: `verdict.STABLE`), intervals apart."""
        names = rungs or STABLE
        rule = f"{metric} below one of {' '.join(names)}"
        return self._judge(rule, metric, names, lambda cell: bool(_standing(cell, metric, names).below))

    def over(self, metric: str, least: float, null: str = "") -> "Cells":
        """Those whose figure is at least `least`."""
        return self._judge(
            f"{metric} at least {least:g}", metric, (null,), lambda cell: cell.value(metric, null).amount >= least
        )

    @property
    def converged(self) -> "Cells":
        return self._judge("converged", "", (), lambda cell: cell.converged)

    @property
    def settled(self) -> "Cells":
        """Those that have converged, and whose surrogates have."""
        return self._judge("converged, as its surrogate", "", (), lambda c: c.converged and c.surrogate.converged)

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
        return Quote(_percent(share, 0), self._asked("share"), self._counted(), share)

    @property
    def names(self) -> Name:
        return Name("; ".join(cell.name.text for cell in self) or "none")

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

    def _judge(self, rule: str, metric: str, nulls: tuple[str, ...], holds: Callable[[Cell], bool]) -> "Cells":
        return Cells(tuple(cell for cell in self if holds(cell)), self._cells, rule, metric, " ".join(nulls))

    def _asked(self, what: str) -> str:
        return f"{what}: {self._rule}" if self._rule else what

    def _counted(self) -> tuple[Row, ...]:
        chosen = {cell._view.run_id for cell in self}
        return tuple(
            cell._judged(self._metric, self._nulls, "yes" if cell._view.run_id in chosen else "no")
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
            dials = _listed(cell._view.sparsity_param for cell in cells)
            known = f"there are {_listed(there)}" if there else f"labels are {', '.join(LABELS)} and {dials}"
            raise HusaiError(f"no cell has {label} {wanted!r}; {known}")
        cells = tuple(kept)
    return cells


def _label(view: CellView, label: str) -> tuple[object, ...]:
    """What a cell has under a label; any other label is the name of what sets the sparsity, such as `k`."""
    if label in LABELS:
        return LABELS[label](view)
    return (view.sparsity,) if label == view.sparsity_param else ()


def _standing(cell: Cell, metric: str, rungs: tuple[str, ...]) -> Standing:
    levels = {rung: cell._row(metric, rung, bounded=True).score for rung in rungs}
    return standing(cell._row(metric, bounded=True).score, levels)


def _percent(share: float, digits: int) -> str:
    return f"{number(100 * share, digits)}%"


def _listed(values: Any) -> str:
    """Different values in order, for people."""
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) or "''" for v in sorted(set(values)))
