"""Which rungs pwmcc is beyond once all p-values of a suite are corrected together. (docs/method.md §Chance)"""

from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from husai.analysis.stats import holm
from husai.analysis.verdict import standing
from husai.report.results import RUNGS, CellView, SuiteResults, rows_of
from husai.report.text import interval, markdown, named, number, plural

ALPHA = 0.05


@dataclass(frozen=True)
class Tested:
    """pwmcc of a cell against a rung. counted, fitted: p-values (nan where not fitted). corrected: by Holm, over the suite."""

    cell: CellView
    rung: str
    draws: int
    counted: float
    fitted: float
    corrected: float = float("nan")

    @property
    def p(self) -> float:
        return self.counted if self.fitted != self.fitted else self.fitted

    @property
    def beyond(self) -> bool:
        return self.corrected <= ALPHA

    @property
    def starved(self) -> bool:
        """Whether no draw reached the score and it still is not beyond: more draws could make it so."""
        return not self.beyond and self.fitted != self.fitted and self.counted * (self.draws + 1) < 1.5

    @property
    def verdict(self) -> str:
        return "yes" if self.beyond else "too few draws" if self.starved else "no"


def tested(results: SuiteResults) -> list[Tested]:
    """Every cell that is no control against every rung that has a p-value, corrected together."""
    found = [
        Tested(cell, rung, draws, cell.value("pwmcc_p", rung).mean, cell.value("pwmcc_p_fitted", rung).mean)
        for cell in results.cells
        if not cell.control
        for rung, draws in _drawn(cell).items()
    ]
    corrected = holm(np.array([one.p for one in found])).tolist()
    return [replace(one, corrected=p) for one, p in zip(found, corrected, strict=True)]


def _drawn(cell: CellView) -> dict[str, int]:
    """Numbers of draws behind the p-values of pwmcc at the end, by rung from the bottom of the ladder."""
    rows = cell.records[(cell.records["metric"] == "pwmcc_p") & (cell.records["step"] == cell.steps)]
    draws = {str(row["null"]): int(row["n"]) for row in rows_of(rows)}
    return {rung: draws[rung] for rung in RUNGS if rung in draws}


def significance(results: SuiteResults) -> str:
    """The section of `summary.md`; '' where nothing was tested."""
    found = tested(results)
    if not found:
        return ""
    header = ["hook", "SAE", "pwmcc", "rung", "its level", "z", "counted p", "fitted p", "corrected p", "beyond"]
    rows = [
        [
            *named(one.cell),
            interval(one.cell.value("pwmcc")),
            one.rung,
            interval(one.cell.value("pwmcc", one.rung)),
            number(one.cell.value("pwmcc_z", one.rung).mean, 1),
            _p(one.counted),
            _p(one.fitted),
            _p(one.corrected),
            one.verdict,
        ]
        for one in found
    ]
    return f"## Beyond chance, corrected\n\n{_head(found)}\n\n{markdown(header, rows)}\n{_sentences(found)}\n"


def _p(value: float) -> str:
    return "–" if value != value else f"{value:.2g}"


def _countable(found: list[Tested]) -> bool:
    """Whether counting alone could reject: the smallest p that each row's draws allow is small enough for the table."""
    return all(one.draws + 1 >= len(found) / ALPHA for one in found)


def _head(found: list[Tested]) -> str:
    cells = {one.cell.run_id for one in found}
    by_rung = {rung: sorted({one.draws for one in found if one.rung == rung}) for rung in (one.rung for one in found)}
    draws = ", ".join(f"{rung} {' or '.join(map(str, counts))}" for rung, counts in by_rung.items())
    fits = sum(one.fitted == one.fitted for one in found)
    counting = (
        "Counted p-values could reject by themselves."
        if _countable(found)
        else f"Counted p-values by themselves could reject nothing: that takes {round(len(found) / ALPHA) - 1} draws of each."
    )
    fitted = (
        f"In {plural(fits, 'row')} a fitted p-value stands for the counted one. It is a fit and no count: the tail of "
        "Student's t with 5 degrees of freedom, laid through the draws."
        if fits
        else "No p-value is fitted."
    )
    return (
        f"Is the agreement more than a draw of the rung would show? Holm's correction is over {plural(len(found), 'row')}: "
        f"{plural(len(cells), 'cell')} and the rungs drawn for them (controls, `untrained` and `surrogate_trained` have no p). "
        f"Draws: {draws}. {counting} {fitted} *Beyond*: corrected p at most {ALPHA}; *too few draws*: none reaches the "
        "score, and there are not enough of them to reject."
    )


def _sentences(found: list[Tested]) -> str:
    """Where the corrected p-values and the intervals over seeds name different rungs."""
    told = [one for one in found if not one.starved]
    differing = [
        f"- **{cell.place}, {cell.label}**: {said}."
        for own in (list(rows) for _, rows in groupby(told, key=lambda one: one.cell.run_id))
        if (said := _difference(cell := own[0].cell, own))
    ]
    parts = []
    if differing:
        parts.append("Where this says other than the intervals over seeds:\n\n" + "\n".join(differing) + "\n")
    elif told:
        parts.append("The rungs named here are those that the intervals over seeds name above.\n")
    if len(told) < len(found):
        parts.append(f"Of {plural(len(found) - len(told), 'row')} nothing can be said: too few draws.\n")
    return "\n".join(parts)


def _difference(cell: CellView, own: list[Tested]) -> str:
    levels = {one.rung: cell.value("pwmcc", one.rung) for one in own}
    above = standing(cell.value("pwmcc"), levels).above
    lost = [f"{one.rung} (p {_p(one.corrected)})" for one in own if one.rung in above and not one.beyond]
    gained = [f"{one.rung} (p {_p(one.corrected)})" for one in own if one.beyond and one.rung not in above]
    parts = [f"above {', '.join(lost)} by its interval, but not after correction"] if lost else []
    parts += (
        [f"these seeds are beyond {', '.join(gained)}; by the interval, further ones need not be"] if gained else []
    )
    return "; ".join(parts)
