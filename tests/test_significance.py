from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from husai.report.results import SuiteResults
from husai.report.significance import significance, tested
from husai.report.tables import summary

RESULTS = Path(__file__).parents[1] / "results"
RUNGS = ("ambient", "data", "data_points")


@pytest.fixture
def ladder() -> SuiteResults:
    """Made before p-values were fitted: 14 cells and their controls, 40 draws of each of three rungs."""
    return SuiteResults.load(RESULTS / "ladder")


def with_fits(results: SuiteResults, *p_values: float, cells: int = 14) -> SuiteResults:
    """The first cells that are no controls, with z 7 and fitted p-values of the three rungs, the same in every cell."""
    chosen = []
    for cell in [cell for cell in results.cells if not cell.control][:cells]:
        records = cell.records
        own = records[(records["metric"] == "pwmcc_p") & records["null"].isin(RUNGS[: len(p_values)])]
        fits = own.assign(metric="pwmcc_p_fitted", value=own["null"].map(dict(zip(RUNGS, p_values, strict=False))))
        chosen.append(replace(cell, records=pd.concat([records, fits, own.assign(metric="pwmcc_z", value=7.0)])))
    results.__dict__["cells"] = chosen  # where the cached property keeps them
    return results


def test_every_cell_that_is_no_control_is_tested_against_every_drawn_rung(ladder):
    found = tested(ladder)
    assert len(found) == 14 * 3
    assert {one.rung for one in found} == set(RUNGS)
    assert not any(one.cell.control for one in found)
    assert {one.draws for one in found} == {40}


def test_records_without_fits_say_that_they_cannot_say(ladder):
    text = significance(ladder)
    assert "42 rows: 14 cells" in text
    assert "ambient 40, data 40, data_points 40" in text
    assert "could reject nothing: that takes 839 draws" in text
    assert "No p-value is fitted" in text
    assert text.count("| 0.024 | – | 1 | too few draws |") == 42
    assert "Of 42 rows nothing can be said" in text
    assert "interval" not in text


def test_corrected_by_hand(ladder):
    found = tested(with_fits(ladder, 0.01, 0.02, 0.06, cells=1))
    assert [one.corrected for one in found] == pytest.approx([0.03, 0.04, 0.06])
    assert [one.verdict for one in found] == ["yes", "yes", "no"]


def test_a_counted_p_stands_where_none_is_fitted(ladder):
    found = tested(with_fits(ladder, 1e-6, 1e-6, cells=1))
    assert [one.p for one in found] == pytest.approx([1e-6, 1e-6, 1 / 41])
    assert [one.verdict for one in found] == ["yes", "yes", "yes"], "the last of Holm's rows is not multiplied"


def test_fits_are_called_fits(ladder):
    text = significance(with_fits(ladder, 1e-6, 1e-6, 1e-6))
    assert "In 42 rows a fitted p-value stands for the counted one. It is a fit and no count" in text
    assert "| 7.0 | 0.024 | 1e-06 | 4.2e-05 | yes |" in text
    assert "nothing can be said" not in text


def test_what_the_intervals_say_is_said_again_only_where_it_differs(ladder):
    """By its interval the ReLU SAE of add-p113-0 is not told apart from data_points; all others exceed all rungs."""
    text = significance(with_fits(ladder, 1e-6, 1e-6, 1e-6))
    (line,) = [line for line in text.splitlines() if line.startswith("- ")]
    assert line.startswith("- **add-p113-0 mlp_out, ReLU 128, λ=5**: these seeds are beyond data_points (p 4.2e-05)")


def test_a_rung_lost_to_the_correction_is_named(ladder):
    text = significance(with_fits(ladder, 1e-6, 0.04, 1e-6, cells=2))
    assert text.count("above data (p 0.08) by its interval, but not after correction") == 2


def test_agreement_of_both_is_one_sentence(ladder):
    text = significance(with_fits(ladder, 1e-6, 1e-6, 1e-6, cells=2))
    assert "The rungs named here are those that the intervals over seeds name above." in text


def test_enough_draws_to_count_are_told(ladder):
    text = significance(with_fits(ladder, cells=1))
    assert "takes 59 draws of each" in text
    few = with_fits(ladder, cells=1).cells[0]
    many = few.records.assign(n=59)
    ladder.__dict__["cells"] = [replace(few, records=many)]
    assert "Counted p-values could reject by themselves" in significance(ladder)


def test_the_summary_holds_it_after_the_table_of_rungs(ladder):
    text = summary(ladder)
    assert text.index("## Stability") < text.index("## Beyond chance, corrected") < text.index("## Symmetry")


def test_where_nothing_was_tested_nothing_is_said(ladder):
    ladder.__dict__["cells"] = [cell for cell in ladder.cells if cell.control]
    assert significance(ladder) == ""
