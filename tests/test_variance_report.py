"""The sources of variance in a summary: designs whose effects are known, and suites that are none."""

from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import pandas as pd
import pytest

from husai.cell import RECORD_COLUMNS
from husai.planner import plan_seeds
from husai.report.caveats import caveats
from husai.report.results import SuiteResults
from husai.report.variance import DATA, INIT, MODEL, designs, variance_section

RESULTS = Path(__file__).parents[1] / "results"
SEEDS = list(product((0, 1), (0, 1)))
AGREEMENT = {(True, False): 0.9, (False, True): 0.7, (False, False): 0.5}


def record(model, run, metric, value, first, second=(None, None)):
    shared = dict.fromkeys(RECORD_COLUMNS) | {"suite": "s", "task": "add", "p": 5, "hook": "blocks.0.hook_resid_post"}
    kind = {"tier": "trained", "architecture": "topk", "d_sae": 8, "sparsity_param": "k", "sparsity": 1.0}
    seeds = {"init_seed": first[0], "data_seed": first[1], "init_seed_b": second[0], "data_seed_b": second[1]}
    own = {"model": model, "run_id": run, "metric": metric, "value": value, "step": 10, "null": "", "converged": True}
    return shared | kind | seeds | own | {"verified": True}


def cell(model, run, shift=0.0, seeds=SEEDS):
    """Explained variance: 2 for init seed 1, 4 for data order 1, and a shift; agreement by what a pair shares."""
    rows = [record(model, run, "explained_variance", 2 * a + 4 * b + shift, (a, b)) for a, b in seeds]
    overall = record(model, run, "explained_variance", 3 + shift, (None, None))
    rows.append(overall | {"ci_low": 2 + shift, "ci_high": 4 + shift})
    rows += [
        record(model, run, "pwmcc", AGREEMENT[one[0] == two[0], one[1] == two[1]], one, two)
        for one, two in combinations(seeds, 2)
    ]
    return rows


def suite(*cells, precisions=None):
    records = pd.DataFrame([row for rows in cells for row in rows])
    models = dict.fromkeys(records["model"])
    return SuiteResults(Path(), records, pd.DataFrame(), {}, {name: {} for name in models}, precisions or {})


def test_the_spread_of_two_factors_on_two_models_by_hand():
    """Effects ±1 and ±2 on two levels are variances 2 and 8; models differ by nothing."""
    (design,) = designs(suite(cell("m0", "a"), cell("m1", "b")))
    found = design.components("explained_variance")
    assert found is not None
    assert {name: part.mean**2 for name, part in found.items() if part.mean} == pytest.approx({(INIT,): 2, (DATA,): 8})
    assert found[MODEL,].mean == 0
    assert design.over_models("explained_variance") == pytest.approx((3, 3, 3))


def test_agreement_is_told_by_what_a_pair_shares():
    text = variance_section(suite(cell("m0", "a"), cell("m1", "b")))
    row = next(line for line in text.splitlines() if line.startswith("| pwmcc"))
    assert [part.strip().split(" [")[0] for part in row.strip("|").split("|")[1:]] == [
        *("0.500", "0.900", "0.700"),
        *("0.400", "0.200"),
    ]
    assert "2 init seeds × 2 data orders × 2 models" in text


def test_precision_is_a_difference_by_model_and_no_factor():
    several = [cell("m0", "a"), cell("m1", "b"), cell("m0", "c", 0.1), cell("m1", "d", 0.3)]
    results = suite(*several, precisions={"c": "fp32/bf16", "d": "fp32/bf16"})
    (design,) = designs(results)
    assert design.precisions == ["fp32/fp32", "fp32/bf16"]
    change = design.lowering("explained_variance")["fp32/bf16"]
    assert change.mean == pytest.approx(0.2)
    assert change.high - change.mean == pytest.approx(12.7062 * 0.1, rel=1e-4), "t with one degree of freedom"
    text = variance_section(results)
    assert "less fp32/fp32" in text
    assert "| fp32/fp32, sd by" in text
    assert "| fp32/bf16, sd by" in text
    assert set(design.factors) == {INIT, DATA, MODEL}
    found = [design.components("explained_variance", at) for at in (0, 1)]
    assert found[0] is not None
    assert found[1] is not None
    assert [parts[MODEL,].mean ** 2 for parts in found] == pytest.approx([0, 0.02]), "of shifts .1 and .3"
    assert [parts[INIT,].mean ** 2 for parts in found] == pytest.approx([2, 2])
    assert sum("fp32/bf16" in one.label for one in results.cells) == 2


def test_what_is_no_complete_crossed_design_has_no_section():
    assert variance_section(suite(cell("m0", "a", seeds=SEEDS[:3]))) == "", "a combination is missing"
    assert variance_section(suite(cell("m0", "a", seeds=[(0, 0), (1, 1)]))) == "", "seeds go together"
    assert variance_section(suite(cell("m0", "a"), cell("m0", "b"))) == "", "two cells cannot be told apart"
    assert variance_section(SuiteResults.load(RESULTS / "planted")) == ""


def test_saes_that_share_seeds_are_no_independent_draws():
    said = caveats(suite(cell("m0", "a")))
    assert any("1 of 1 cells SAEs share init seeds" in text for text in said)
    assert not any("share" in text for text in caveats(suite(cell("m0", "a", seeds=[(0, 0), (1, 1)]))))


def test_the_first_member_is_told_from_others_of_its_init_seed():
    results = suite(cell("m0", "a"))
    seeds = [{"run_id": "a", "init_seed": init, "data_seed": data} for init, data in SEEDS]
    atoms = pd.DataFrame(
        [one | {"atom": atom, "energy": 10 * i + atom} for i, one in enumerate(seeds) for atom in (0, 1)]
    )
    found = replace(results, atoms=atoms).first_seed_atoms(results.cells[0])
    assert {atom: row["energy"] for atom, row in found.items()} == {0: 0, 1: 1}


def test_models_are_planned_as_the_outer_unit():
    *cells, models = plan_seeds(suite(cell("m0", "a"), cell("m1", "b", 0.2)), "explained_variance", 0.5)
    assert len(cells) == 2
    assert models.cell.startswith("2 models")
    assert models.seeds == 2
    assert models.half_width == pytest.approx(12.7062 * 0.1, rel=1e-4)
    assert models.seeds_needed == 3, "sd .1414: t 4.303 · .1414 / √3 = .351, with two models 1.27"
