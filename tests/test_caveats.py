from dataclasses import replace
from pathlib import Path

import pytest

from husai.report.caveats import caveats, heading
from husai.report.results import SuiteResults

RESULTS = Path(__file__).parents[1] / "results"


@pytest.fixture
def ladder():
    """The committed ladder, with convergence as a test says."""
    results = SuiteResults.load(RESULTS / "ladder")

    def with_converged(count):
        cells = [replace(cell, converged=index < count) for index, cell in enumerate(results.cells)]
        results.__dict__["cells"] = cells  # where the cached property keeps them
        return results

    return with_converged


def test_nothing_is_said_of_cells_that_converged_from_unrelated_starts(ladder):
    results = ladder(10**6)
    assert caveats(results) == []
    assert heading(results.cells) == ""


def test_cells_of_different_convergence_are_not_compared(ladder):
    results = ladder(27)
    said, twins = caveats(results)
    assert said.startswith("1 of 28 cells have not converged")
    assert "its surrogate has not" in twins
    assert "do not compare" in said
    assert heading(results.cells) == ""


def test_fewer_than_four_fifths_head_the_tables(ladder):
    assert heading(ladder(23).cells) == ""
    assert heading(ladder(22).cells) == " (unconverged)"
    (said,) = caveats(ladder(0))
    assert "not where it leads" in said


@pytest.mark.parametrize("metric", ["pwmcc", "max_cosine"])
def test_agreement_before_training_is_told_of_every_measure(metric, ladder):
    results = ladder(10**6)
    cell = results.cells[0]
    records = cell.records.copy()
    start = (
        (records["step"] == 0) & (records["metric"] == metric) & (records["null"] == "") & records["init_seed"].isna()
    )
    assert start.sum() == 1
    records.loc[start, ["value", "ci_low", "ci_high"]] = [0.6, 0.58, 0.62]
    results.cells[0] = replace(cell, records=records)
    (said,) = caveats(results)
    assert "before any training" in said
    assert f"{cell.label} ({metric} 0.600 vs " in said
