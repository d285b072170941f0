"""A sentence for every headline score: which of its rungs it exceeds. (docs/method.md §Chance)"""

from husai.analysis.verdict import rung_sentence
from husai.report.results import CellView, SuiteResults
from husai.report.settings import PAIRS
from husai.report.text import has

FOUND = (
    "fourier_overlap",
    "gt_mcc",
    "true_atoms",
    "answer_specificity",
    "subspace_recovered",
    "rotation",
    "spliced_accuracy",
)  # what was found of the truth, beside how far seeds agree


def score_sentences(results: SuiteResults, cell: CellView) -> list[str]:
    """Of every score of `PAIRS` and `FOUND` that has an interval and rungs, but for pwmcc."""
    asked = [metric for metric in (*PAIRS, *FOUND) if metric != "pwmcc" and has(cell, metric)]
    scores = {metric: (cell.value(metric), results.rungs(cell, metric)) for metric in asked}
    return [
        rung_sentence(score, rungs, metric)
        for metric, (score, rungs) in scores.items()
        if rungs and score.low == score.low
    ]
