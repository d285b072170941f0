"""Every score of every ideal dictionary of a compiled clock, as the docs say."""

import math
import runpy
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "ideal_table.py"
HALF = 1 / 4 - 1 / math.pi**2  # variance of the positive part of a cosine


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """The script's table, of a smaller clock: nearly the same, as the scores are of waves, not of p."""
    build = runpy.run_path(str(SCRIPT))["table"]
    return build(keys=(3, 10, 17, 24), p=59)


def wedge(corners: int) -> float:
    """Share of the first harmonic in the variance of cos θ cut to |θ| < π/corners."""
    half = math.pi / corners
    square = (half + math.sin(2 * half) / 2) / (2 * math.pi)
    mean = math.sin(half) / math.pi
    return 2 * square**2 / (square - mean**2)


PURITY = {"signed_axes": 1 / 8 / HALF, "3-gon": wedge(3), "4-gon": wedge(4), "8-gon": wedge(8)}
VARIANCE = {corners: 0.5 + corners * math.sin(2 * math.pi / corners) / (4 * math.pi) for corners in (3, 4, 8)}


@pytest.mark.parametrize(("name", "value"), PURITY.items())
def test_purity_is_the_share_of_the_first_harmonic(table, name, value):
    assert table.loc["purity", f"mlp_out {name}"] == pytest.approx(value, abs=0.01)


@pytest.mark.parametrize(("corners", "value"), VARIANCE.items())
def test_a_polygon_explains_what_its_corners_can(table, corners, value):
    column = table[f"mlp_out {corners}-gon"]
    assert column["explained_variance"] == pytest.approx(value, abs=0.01)
    assert column["ablation_removed"] == pytest.approx(value, abs=0.01)


@pytest.mark.parametrize("name", ["signed_axes", "3-gon", "4-gon", "8-gon"])
def test_dictionaries_of_planes(table, name):
    column = table[f"mlp_out {name}"]
    whole = ["fourier_overlap", "decoder_overlap", "true_plane", "true_atoms", "subspace_recovered", "rotation"]
    assert column[whole].tolist() == pytest.approx([1] * len(whole), abs=1e-4)
    assert column["true_answer"] == 0
    assert column["ablation_others"] == pytest.approx(0, abs=1e-4)
    assert column["pwmcc"] < 1


def test_the_dictionary_of_answers(table):
    column = table["mlp_out answers"]
    exact = ["explained_variance", "l0", "answer_selectivity", "answer_specificity", "answer_overlap", "true_answer"]
    assert column[exact].tolist() == pytest.approx([1] * len(exact), abs=1e-4)
    assert column[["pwmcc", "shifted", "self_shift", "aligned"]].tolist() == pytest.approx([1] * 4, abs=1e-4)
    assert column["decoder_overlap"] == pytest.approx(1 / 4, abs=1e-4)
    assert column["true_plane"] == 0
    assert column["subspace_recovered"] == 0
    assert column["rotation"] < 0.05
    assert abs(column["ablation"]) < 0.05
    assert column["spliced_accuracy"] == 1


def test_a_few_data_points_are_no_dictionary(table):
    column = table["mlp_out data_points"]
    assert column["subspace_recovered"] == 0
    assert column["rotation"] < 0.1
    assert column["ablation"] < 0.3
    assert column["spliced_accuracy"] < 0.8


def test_before_the_mlp_there_are_planes_of_operands_alone(table):
    column = table["resid_mid signed_axes"]
    assert column[["true_plane", "subspace_recovered", "rotation", "ablation"]].tolist() == pytest.approx(
        [1] * 4, abs=1e-4
    )
    assert column["answer_selectivity"] == pytest.approx(0, abs=1e-4)
    assert math.isnan(column["shifted"])


def test_the_committed_table_agrees(table):
    committed = pd.read_csv(ROOT / "results" / "ideal" / "table.csv", index_col="score")
    assert list(committed.columns) == list(table.columns)
    for name in ("purity", "explained_variance", "rotation", "true_plane", "true_answer", "subspace_recovered"):
        for column in ("mlp_out signed_axes", "mlp_out 3-gon", "mlp_out 4-gon", "mlp_out 8-gon"):
            assert committed.loc[name, column] == pytest.approx(table.loc[name, column], abs=0.02)


def test_the_docs_say_what_the_table_says():
    committed = pd.read_csv(ROOT / "results" / "ideal" / "table.csv", index_col="score")
    lines = (ROOT / "docs" / "method.md").read_text(encoding="utf-8").splitlines()
    shown = {line.split("|")[1].strip(" `"): line.split("|")[2:-1] for line in lines if line.startswith("| `")}
    for score, row in committed.iterrows():
        said = [float("nan" if "–" in cell else cell) for cell in shown[str(score)]]
        assert said == pytest.approx(row.tolist(), abs=6e-4, nan_ok=True), score
