import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

from husai.analysis.stats import pair_interval
from husai.errors import HusaiError
from husai.planner import plan_seeds
from husai.report.results import SuiteResults

RESULTS = Path(__file__).parents[1] / "results"


@pytest.fixture(scope="module")
def planted() -> SuiteResults:
    return SuiteResults.load(RESULTS / "planted")


def test_a_score_of_single_saes_needs_as_many_seeds_as_its_t_interval_says(planted):
    (plan,), values = plan_seeds(planted, "explained_variance", 0.002), planted.cells[0].per_seed("explained_variance")
    assert plan.seeds_needed is not None

    def width(seeds):
        return student.ppf(0.975, seeds - 1) * values.std(ddof=1) / math.sqrt(seeds)

    assert width(plan.seeds_needed) <= 0.002 < width(plan.seeds_needed - 1)
    assert plan.half_width == pytest.approx(width(len(values)))


def test_a_score_of_pairs_is_planned_from_its_matrix(planted):
    (plan,), matrix = plan_seeds(planted, "pwmcc", 0.005), planted.cells[0].matrix("pwmcc")
    interval = pair_interval(matrix)
    assert plan.half_width == pytest.approx((interval.high - interval.low) / 2)
    assert plan.seeds_needed is not None
    assert plan.seeds_needed > plan.seeds, "the interval is wider than that now"
    assert plan.cautious is not None
    assert plan.cautious > plan.seeds_needed
    assert 0 <= plan.seed_share <= 1


def test_the_width_one_has_needs_no_more_seeds_than_one_has():
    for cell in plan_seeds(SuiteResults.load(RESULTS / "default"), "pwmcc", 1.0):
        assert cell.seeds_needed == 3


def test_a_narrower_interval_needs_more_seeds(planted):
    needed = [plan_seeds(planted, "pwmcc", width)[0].seeds_needed for width in (0.05, 0.01, 0.002)]
    assert needed == sorted(needed)
    assert len(set(needed)) == 3
    assert plan_seeds(planted, "pwmcc", 1e-6)[0].seeds_needed is None


def test_what_cannot_be_planned(planted, monkeypatch):
    with pytest.raises(HusaiError, match=r"no cell of the suite has it; there are .*pwmcc"):
        plan_seeds(planted, "nonsense", 0.1)
    monkeypatch.setattr(type(planted.cells[0]), "matrix", lambda self, metric: np.eye(3))
    with pytest.raises(HusaiError, match="has 3 seeds; at least 4"):
        plan_seeds(planted, "pwmcc", 0.1)


def test_the_command_prints_a_line_a_cell_and_refuses_what_is_no_width(capsys):
    from husai.cli import main

    with pytest.raises(SystemExit) as end:
        main(["plan", str(RESULTS / "planted"), "--half-width", "0.005"])
    assert end.value.code in (0, None)
    assert "TopK 128, k=4" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["plan", str(RESULTS / "planted"), "--half-width", "0"])
    assert end.value.code == 2
    assert "must be above 0" in capsys.readouterr().err
