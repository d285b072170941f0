"""Figures and tables of the committed ladder, with measures, calibration or cells added as a test needs them."""

import json
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from husai.analysis.stats import Interval
from husai.measure import PAIRED
from husai.report.calibration import Judged, judged, predicts
from husai.report.caveats import caveats
from husai.report.figures import LARGE, drawings
from husai.report.figures.atlas import atlas, beyond
from husai.report.figures.calibration import calibration
from husai.report.figures.canvas import Hand
from husai.report.figures.trajectories import trajectories
from husai.report.measures import measures
from husai.report.results import SuiteResults
from husai.report.settings import PAIRS, line_name, lines, placed
from husai.report.tables import SECTIONS, summary
from husai.report.verdicts import score_sentences

RESULTS = Path(__file__).parents[1] / "results"
LADDER = RESULTS / "ladder"
BINS = np.stack([np.full(10, 12.8), np.linspace(0.2, 1, 10), np.linspace(0, 1, 10)], axis=1)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def results():
    return SuiteResults.load(LADDER)


@pytest.fixture
def grown(tmp_path):
    """Writes a suite with three sparsities and a wide setting of every TopK and ReLU cell of the ladder, and an AUC."""
    records, atoms = (pd.read_parquet(LADDER / f"{name}.parquet") for name in ("records", "atoms"))
    tables, ids = [], []
    (tmp_path / "arrays").mkdir()
    for old, own in records.groupby("run_id"):
        for d_sae, sparsity in ((128, 1.0), (128, 2.0), (128, 4.0), (512, 2.0)):
            ids.append(f"{old}-{d_sae}-{sparsity:g}")
            tables.append(own.assign(run_id=ids[-1], d_sae=d_sae, sparsity=sparsity))
            truth = BINS if sparsity > 1 else BINS * [1, 1, 0]
            np.savez(tmp_path / "arrays" / f"{ids[-1]}.npz", reliability=truth)
            if sparsity > 1:
                head = own[own["init_seed"].isna() & (own["metric"] == "l0") & (own["step"] == own["step"].max())]
                row = head.assign(metric="calibration_auc", value=0.8, ci_low=0.7, ci_high=0.9)
                tables.append(row.assign(run_id=ids[-1], d_sae=d_sae, sparsity=sparsity))
    pd.concat(tables).to_parquet(tmp_path / "records.parquet")
    atoms.to_parquet(tmp_path / "atoms.parquet")
    (tmp_path / "cells.json").write_text(json.dumps(ids))
    for name in ("gate.json", "truth.json"):
        (tmp_path / name).write_text((LADDER / name).read_text())
    return SuiteResults.load(tmp_path)


def xs(line):
    return np.asarray(line.get_xdata(), dtype=float)


def ys(line):
    return np.asarray(line.get_ydata(), dtype=float)


def drawn(ax, label):
    return next(line for line in ax.get_lines() if line.get_label() == label)


def test_trajectories_show_every_step_of_every_measure(results):
    figure = trajectories(results)
    panels = np.array(figure.axes).reshape(-1, 7)
    assert [ax.get_title() for ax in panels[0]] == list(dict.fromkeys(cell.place for cell in results.cells))
    titles = [line[0].get_ylabel() for line in panels]
    labelled = [[ax.xaxis.get_tick_params()["labelbottom"] for ax in line] for line in panels]
    assert labelled == [[row == len(panels) - 1] * 7 for row in range(len(panels))]
    assert titles[:3] == ["pwmcc", "max_cosine", "explained\nvariance"]
    cell = results.cells[0]
    for row, metric in ((0, "pwmcc"), (2, "explained_variance"), (3, "gt_mcc")):
        steps, values = cell.curve(metric)
        line = drawn(panels[row][0], cell.label)
        assert steps[0] == 0
        np.testing.assert_array_equal(xs(line), steps)
        np.testing.assert_allclose(ys(line), [value.mean for value in values])


def test_the_end_of_a_trajectory_is_hollow_unless_it_converged(results):
    results.__dict__["cells"] = [replace(cell, converged=cell.architecture == "topk") for cell in results.cells]
    ax = trajectories(results).axes[0]
    ends = [line for line in ax.get_lines() if line.get_marker() == "o"]
    own = [cell for cell in results.cells if cell.place == ax.get_title() and not cell.control]
    assert [line.get_markerfacecolor() != "white" for line in ends] == [cell.converged for cell in own]
    assert {cell.converged for cell in own} == {True, False}
    np.testing.assert_allclose([ys(line)[0] for line in ends], [cell.value("pwmcc").mean for cell in own])


def test_cells_stand_by_method_and_rank_of_sparsity(results):
    topk = next(cell for cell in results.cells if cell.architecture == "topk")
    cells = [replace(topk, run_id=f"k{k}", sparsity=k) for k in (4.0, 1.0, 2.0)]
    relu = next(cell for cell in results.cells if cell.architecture == "relu")
    cells += [replace(relu, run_id=f"l{value}", sparsity=value) for value in (1.0, 5.0)]
    ranks = {run: place.rank for run, place in placed(cells).items()}
    assert ranks == {"k4.0": 0, "k2.0": 1, "k1.0": 2, "l1.0": 0, "l5.0": 1}, "few latents and a large λ are sparse"
    elsewhere = replace(topk, run_id="there", model="clock", hook="blocks.0.hook_mlp_out", sparsity=8.0)
    (both,) = lines([cells[0], elsewhere]).values()
    assert line_name(both) == "TopK 128, k=4/8"


def test_shades_go_by_sparsity_and_dashes_by_width(results):
    topk = next(cell for cell in results.cells if cell.architecture == "topk")
    cells = [replace(topk, run_id=f"k{k}", sparsity=k) for k in (4.0, 1.0)]
    cells.append(replace(topk, run_id="wide", d_sae=512, sparsity=1.0))
    hand = Hand.of(cells)
    dense, sparse, wide = (hand.color(cell) for cell in cells)
    assert sum(dense) > sum(sparse)
    assert wide == sparse
    assert [hand.dash(cell) for cell in cells] == ["-", "-", "--"]


def test_old_results_have_no_calibration(results):
    assert judged(results) == []
    assert predicts(results) == ""
    assert "calibration" not in drawings(results)
    assert "predict truth" not in summary(results)


def test_calibration_tells_an_auc_or_why_there_is_none(grown):
    found = {one.cell.run_id: one for one in judged(grown)}
    assert len(found) == len(grown.cells)
    for one in found.values():
        assert one.missing == ("no atom is true" if one.cell.sparsity == 1 else "")
        assert one.share_true == pytest.approx(0 if one.missing else 0.5)
    text = predicts(grown)
    assert text.count("0.800 [0.700, 0.900]") == sum(not one.missing for one in found.values())
    assert text.count("no atom is true") == sum(bool(one.missing) for one in found.values())


def test_the_figure_of_calibration_holds_curves_areas_and_chance(grown):
    figure = calibration(grown)
    areas, first = figure.axes[0], figure.axes[1]
    planted = [cell for cell in grown.cells if cell.place == "planted" and not cell.control]
    points = [line for line in areas.get_lines() if line.get_marker() == "o"]
    assert [xs(line)[0] for line in points] == [0.8] * sum(cell.sparsity > 1 for cell in planted)
    assert any(list(xs(line)) == [0.5, 0.5] for line in areas.get_lines()), "chance"
    bars = [list(xs(line)) for line in areas.get_lines() if len(xs(line)) == 2]
    assert [0.7, 0.9] in bars
    assert {text.get_text() for text in areas.texts} == {"no atom is true"}
    curves = [line for line in first.get_lines() if line.get_marker() == "o"]
    assert len(curves) == 4
    np.testing.assert_allclose(xs(curves[-1]), BINS[:, 1])
    rocs = next(ax for ax in figure.axes if ax.get_ylabel().startswith("ROC"))
    assert len([line for line in rocs.get_lines() if len(xs(line)) > 2]) == 3, "not the one in which no atom is true"
    assert any(list(xs(line)) == list(ys(line)) == [0, 1] for line in rocs.get_lines()), "chance"


def test_the_roc_curve_takes_groups_from_the_highest_agreement(results):
    """Four groups of ten; true: 0, 5, 5, 10. From the top: 10 true, then 5 and 5 untrue, then the same, then 10 untrue."""
    bins = np.array([[10, 0.2, 0], [10, 0.4, 0.5], [10, 0.6, 0.5], [10, 0.8, 1]])
    one = Judged(results.cells[0], Interval(0, 0, 0), bins, "")
    roc = one.roc
    assert roc is not None
    np.testing.assert_allclose(roc.true, [0, 0.5, 0.75, 1, 1])
    np.testing.assert_allclose(roc.false, [0, 0, 0.25, 0.5, 1])
    assert one._replace(bins=bins[:1]).roc is None


def test_every_measure_of_pairs_has_a_name_in_reports():
    assert tuple(PAIRS) == PAIRED


def test_a_large_suite_is_drawn_as_an_atlas_and_by_source(grown):
    assert len(grown.cells) >= LARGE
    names = set(drawings(grown))
    assert {"atlas", "trajectories", "calibration", "ladder_planted", "tiers_clock_mlp_out"} <= names
    assert not {"ladder", "tiers", "stability_matrices", "stability_over_steps"} & names
    figure = drawings(grown)["ladder_planted"]()
    assert len(figure.axes[0].get_yticklabels()) == 8, "its own cells, controls are a rung"


def test_the_atlas_holds_a_number_for_every_cell(grown):
    figure = atlas(grown)
    own = [cell for cell in grown.cells if not cell.control]
    places = list(dict.fromkeys(cell.place for cell in own))
    ax = figure.axes[0]
    assert len(ax.texts) == len(own)
    names = [label.get_text() for label in ax.get_yticklabels()]
    cell = own[-1]
    (text,) = [
        text for text in ax.texts if text.get_position() == (places.index(cell.place), names.index(cell.setting))
    ]
    shown = f"{beyond(grown, cell).value:.2f}".replace("0.", ".")
    assert text.get_text().rstrip("*†") == shown
    assert text.get_text().endswith("*") == (not cell.converged)
    marked = cell.converged and not grown.surrogate_of(cell).converged
    assert text.get_text().endswith("†") == marked


def test_beyond_is_held_against_the_highest_fair_rung(results, monkeypatch):
    cell = results.cells[0]
    levels = {"ambient": 0.9, "plane_rotated": 0.95, "data": 0.3, "data_points": 0.4, "surrogate_trained": 0.5}
    monkeypatch.setattr(
        SuiteResults, "rungs", lambda *_: {n: Interval(v, v - 0.01, v + 0.01) for n, v in levels.items()}
    )
    score = cell.value("pwmcc")
    assert beyond(results, cell) == pytest.approx((score.mean - 0.5, score.low > 0.51)), "planted atoms have no planes"
    clock = next(cell for cell in results.cells if cell.model == "clock")
    assert beyond(results, clock).value == pytest.approx(clock.value("pwmcc").mean - 0.95)


def test_rungs_hold_what_was_trained_on_a_surrogate(results):
    cell = next(cell for cell in results.cells if cell.place == "planted")
    twin = results.surrogate_of(cell)
    assert results.rungs(cell)["surrogate_trained"] == twin.value("pwmcc")
    assert "surrogate_trained" not in results.rungs(twin)


def test_every_measure_stands_beside_its_highest_chance_level(results):
    text = measures(results)
    cell = next(cell for cell in results.cells if cell.place == "planted" and cell.architecture == "topk")
    trained = results.surrogate_of(cell).value("pwmcc").mean
    assert f"{cell.value('pwmcc').mean:.3f} (surrogate_trained {trained:.3f})" in text
    assert "| pwmcc | max_cosine |" in text
    assert "shared_fraction" not in text, "what no cell has gets no column"


def test_every_score_of_a_cell_has_a_sentence_that_names_its_rungs(results):
    """The ladder has seven measures less those of later work, and what was found of the truth."""
    cell = next(cell for cell in results.cells if cell.model == "clock" and not cell.control)
    said = score_sentences(results, cell)
    names = [sentence.split(" ")[0] for sentence in said]
    assert {"max_cosine", "fourier_overlap", "answer_specificity"} <= set(names)
    assert "pwmcc" not in names, "which heads the list"
    assert len(names) == len(set(names))
    for name, sentence in zip(names, said, strict=True):
        assert sentence.startswith(f"{name} {cell.value(name).mean:.3f} [")
        assert all(rung in sentence for rung in results.rungs(cell, name))
    text = summary(results)
    assert all(f"  - {sentence}\n" in text for sentence in said)


def test_a_section_joins_by_its_name(results, monkeypatch):
    monkeypatch.setattr("husai.report.tables.SECTIONS", (*SECTIONS, lambda found: f"## {len(found.cells)} more\n"))
    assert summary(results).endswith("## 28 more\n")


def test_a_surrogate_that_stands_elsewhere_in_training_is_named(results):
    cells = [replace(cell, converged=True) for cell in results.cells]
    at = next(i for i, cell in enumerate(cells) if cell.place == "planted" and cell.control)
    cells[at] = replace(cells[at], converged=False)
    results.__dict__["cells"] = cells
    counted, twins = caveats(results)
    assert counted.startswith("1 of 28")
    assert "(planted)" in counted
    assert twins.endswith(f"planted, {cells[at].setting} (its surrogate has not).")
    assert twins.count(";") == 0
