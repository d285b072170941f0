"""What a text asks of one cell, each answer with the rows that it rests on. (docs/method.md §Findings)"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from husai.analysis.stats import Interval, difference_interval
from husai.errors import HusaiError
from husai.report.results import CellView, SuiteResults, rungs_of
from husai.report.tables import sentences
from husai.report.text import interval, number


@dataclass(frozen=True)
class Row:
    """A row of the records that a number rests on, or a cell that was counted or not.

    metric, null: of the record; of a cell that was judged, what it was judged by. counted: 'yes' or 'no', '' if nothing was.
    init_seed, data_seed: of one SAE; none over all seeds.
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
    init_seed: int | None = None
    data_seed: int | None = None

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
    def stable(self) -> tuple[str, ...]:
        """The rungs that its pwmcc must exceed before its features are called stable."""
        return self._results.stable(self._view)

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
        return Quote(percent_text(row.score.mean, digits), "percent", (row,), row.score.mean)

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

    def seed_least(self, metric: str, digits: int = 0) -> Quote:
        """The smallest figure of one of its SAEs at the end."""
        return self._of_seed(metric, min, digits)

    def seed_most(self, metric: str, digits: int = 0) -> Quote:
        """The largest figure of one of its SAEs at the end."""
        return self._of_seed(metric, max, digits)

    def minus(self, other: "Cell", metric: str, step: int | str = "end", digits: int = 3) -> Quote:
        """This cell's figure minus another's, with Welch's interval (`stats.difference_interval`)."""
        if (other._suite, other._view.run_id) == (self._suite, self._view.run_id):
            raise HusaiError(f"{self._view.title}: cannot be told apart from itself; name two cells")
        rows = self._row(metric, "", step, bounded=True), other._row(metric, "", step, bounded=True)
        found = difference_interval(rows[0].score, self._view.seeds, rows[1].score, other._view.seeds)
        return Quote(interval(found, digits), "difference", rows, found.mean)

    def differs(self, other: "Cell", metric: str) -> bool:
        """Whether the interval of `minus` leaves zero out."""
        rows = self._row(metric, bounded=True), other._row(metric, bounded=True)
        found = difference_interval(rows[0].score, self._view.seeds, rows[1].score, other._view.seeds)
        return found.low > 0 or found.high < 0

    def atoms_over(self, column: str, least: float) -> Quote:
        """The share of live atoms of all seeds whose value in the atom table is at least `least`, in percent."""
        own = self._results.atoms[self._results.atoms["run_id"] == self._view.run_id]
        if column not in own or not np.asarray(own["live"]).any():
            raise HusaiError(f"{self._view.title}: has no {column} of live atoms")
        share = float((own.loc[own["live"], column] >= least).mean())
        return Quote(
            percent_text(share, 0), f"share of live atoms with {column} at least {least:g}", (self._judged(),), share
        )

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

    def _of_seed(self, metric: str, choose: Callable[..., int], digits: int) -> Quote:
        """The figure of the SAE that `choose` takes. Raises HusaiError if it is none of single SAEs."""
        found = self._view.per_seed(metric)
        if not len(found):
            raise HusaiError(f"{self._view.title}: has no {metric} of single SAEs")
        at = choose(range(len(found)), key=found.__getitem__)
        value, (init, data) = float(found[at]), self._view.seed_pairs[at]
        row = replace(self._judged(metric), value=value, init_seed=init, data_seed=data)
        return Quote(number(value, digits), "seed", (row,), value)

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
                f"{view.title}: has no metric '{metric}'; there are {listed(key[1] for key in view.overall)}"
            )
        if len(found) != 1:
            there = f"nulls {listed(key[2] for key in asked)} and steps {listed(key[0] for key in asked)}"
            raise HusaiError(
                f"{view.title}: {len(found) or 'no'} record{'s' * (len(found) > 1)} of {shown}; {there} are there"
            )
        row = Row(self._suite, view.run_id, view.title, metric, own, int(at), *found[0])
        if math.isnan(row.score.mean) or (bounded and math.isnan(row.score.low + row.score.high)):
            raise HusaiError(f"{view.title}: {shown} has no {'interval' if bounded else 'value'}")
        return row


def percent_text(share: float, digits: int) -> str:
    return f"{number(100 * share, digits)}%"


def listed(values: Any) -> str:
    """Different values in order, for people."""
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) or "''" for v in sorted(set(values)))
