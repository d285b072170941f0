"""Does agreement between seeds predict truth? What the records say, and its table. (docs/method.md §Calibration)"""

from typing import NamedTuple

import numpy as np

from husai.analysis.stats import Interval
from husai.report.caveats import heading
from husai.report.results import CellView, SuiteResults
from husai.report.text import interval, markdown, named

MEANING = """AUC: the chance that of two atoms that fire alike, one true and one not, seeds agree more on the true one. At .5
agreement says nothing about truth; where the interval holds .5, it is not shown to say anything.
"""


class Roc(NamedTuple):
    """false, true: shares of the untrue and of the true atoms among those of the highest agreement, from none to all."""

    false: np.ndarray
    true: np.ndarray


class Judged(NamedTuple):
    """A cell whose atoms' truth is known. auc: nan where `missing` says why. bins: [number, mean agreement, share true]."""

    cell: CellView
    auc: Interval
    bins: np.ndarray
    missing: str

    @property
    def share_true(self) -> float:
        """Of all atoms that were judged."""
        return float(self.bins[:, 0] @ self.bins[:, 2] / self.bins[:, 0].sum())

    @property
    def roc(self) -> Roc | None:
        """By the groups of the reliability curve, so not held to firing rates; None unless there are atoms of both kinds."""
        true = self.bins[::-1, 0] * self.bins[::-1, 2]
        false = self.bins[::-1, 0] - true
        if not true.sum() or not false.sum():
            return None
        return Roc(*(np.append(0, own.cumsum() / own.sum()) for own in (false, true)))


def judged(results: SuiteResults) -> list[Judged]:
    """The cells with a reliability curve; none in results that were written before there were any."""
    curves = [(cell, results.array(cell, "reliability")) for cell in results.cells]
    return [_judge(cell, bins.astype(float)) for cell, bins in curves if bins is not None and len(bins)]


def _judge(cell: CellView, bins: np.ndarray) -> Judged:
    auc = cell.value("calibration_auc")
    if auc.mean == auc.mean:
        return Judged(cell, auc, bins, "")
    if not bins[:, 2].any():
        return Judged(cell, auc, bins, "no atom is true")
    if (bins[:, 2] == 1).all():
        return Judged(cell, auc, bins, "every atom is true")
    return Judged(cell, auc, bins, "no atoms of like firing rate are both")


def predicts(results: SuiteResults) -> str:
    """A section: the AUC of every cell whose atoms' truth is known; '' if there is none."""
    found = judged(results)
    if not found:
        return ""
    rows = [
        [*named(one.cell), one.cell.tier, one.missing or interval(one.auc), f"{one.share_true:.1%}"] for one in found
    ]
    table = markdown(["hook", "SAE", "tier", "AUC", "partners true"], rows)
    return f"## Does agreement predict truth?{heading(results.cells)}\n\n{MEANING}\n{table}\n"
