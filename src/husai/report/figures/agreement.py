"""Agreement of a suite's seeds, cell by cell: matrices, curves, and the ladder of chance levels."""

from collections.abc import Sequence
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from husai.report.figures.canvas import (
    FIT,
    GREY,
    NULL_COLORS,
    NULL_NAMES,
    RUNG_COLORS,
    SCORE,
    band,
    cell_grid,
    heat_map,
    rung,
    score_point,
    star,
    step_axis,
)
from husai.report.results import NULLS, CellView, SuiteResults
from husai.report.text import has


def stability_matrices(results: SuiteResults) -> Figure:
    """pwmcc between all seeds of every cell, each with its mean and chance levels underneath."""
    figure, panels = cell_grid(results, 1.3, 2.0, least=2.6)
    image = None
    for ax, cell in (panel for row in panels for panel in row):
        means = {null: cell.value("pwmcc", null).mean for null in ("ambient", "data", "data_points")}
        chance = "\n".join(f"{null.replace('_', ' ')} {value:.2f}" for null, value in means.items())
        image = heat_map(ax, cell.matrix("pwmcc"), f"mean {cell.value('pwmcc').mean:.2f}{star(cell)}\n{chance}")
    assert image is not None, "a suite has cells"
    everything = [panel.ax for row in panels for panel in row]
    figure.colorbar(image, ax=everything, shrink=0.6, aspect=20, label="pwmcc of two seeds")
    figure.suptitle("Agreement between seeds (row, column)\nand its chance levels. *: not converged", fontsize=8)
    return figure


def stability_over_steps(results: SuiteResults) -> Figure:
    """Raw agreement against training steps, with every chance level as a band, and explained variance."""
    figure, panels = cell_grid(results, 1.3, 1.75)
    for row in panels:
        for ax, cell in row:
            for null in ("ambient", "data", "data_points"):
                band(ax, *cell.curve("pwmcc", null), NULL_COLORS[null], lw=1)
            start = cell.value("pwmcc", step=0).mean
            ax.axhline(start, color=NULL_COLORS["untrained"], lw=0.9, ls=":")
            steps, fit = cell.curve("explained_variance")
            ax.plot(steps, [v.mean for v in fit], color=FIT, lw=0.8, ls="--")
            fill = SCORE if cell.converged else "white"
            band(ax, *cell.curve("pwmcc"), SCORE, lw=1.6, marker="o", ms=3, mfc=fill, mew=0.8)
            step_axis(ax, cell.steps)
            ax.set_ylim(0, 1.02)
            ax.set_yticks((0, 0.5, 1))
    for panel in panels[-1]:
        panel.ax.set_xlabel("training steps")
    nulls = [
        Line2D([], [], color=NULL_COLORS[n], lw=1, ls=":" if n == "untrained" else "-", label=NULL_NAMES[n])
        for n in NULLS
    ]
    entries = [
        Line2D([], [], color=SCORE, lw=1.6, marker="o", ms=3, label="pwmcc between seeds (hollow: not converged)"),
        Line2D([], [], color=FIT, lw=0.8, ls="--", label="explained variance"),
        *nulls,
    ]
    figure.legend(handles=entries, loc="outside lower center", ncols=3)
    return figure


def ladder(results: SuiteResults, cells: Sequence[CellView]) -> Figure:
    """Every cell's agreement on one line with the rungs of its ladder; thick bars are the 95% intervals of the rungs."""
    cells = list(reversed(cells))
    gaps = np.cumsum([0, *(a.place != b.place for a, b in pairwise(cells))])
    places = np.arange(len(cells)) + 0.6 * gaps
    figure, ax = plt.subplots(figsize=(6.2, 0.26 * places[-1] + 1.5))
    drawn = dict.fromkeys(NULLS)
    for y, cell in zip(places, cells, strict=True):
        score = cell.value("pwmcc")
        ax.plot([0, 1], [y, y], color="#eaeef2", lw=0.8, zorder=0)
        levels = results.rungs(cell)
        drawn |= dict.fromkeys(levels)
        for null, value in levels.items():
            ax.plot([value.low, value.high], [y, y], color=RUNG_COLORS[null], lw=4, alpha=0.35, solid_capstyle="butt")
            ax.plot([value.mean], [y], marker="|", ms=9, mew=2, color=RUNG_COLORS[null], ls="")
        score_point(ax, y, score, cell.converged)
    ax.set_ylim(-0.8, places[-1] + 0.8)
    ax.set_yticks(places, [f"{cell.place} · {cell.label}" for cell in cells])
    ax.set_xlim(0, 1.02)
    ax.set_xlabel("pwmcc between seeds, and its chance levels, with 95% intervals")
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    point = {"color": SCORE, "marker": "o", "ms": 4.5, "ls": ""}
    handles = [Line2D([], [], **point, label="pwmcc"), Line2D([], [], **point, mfc="white", label="not converged")]
    handles += [Line2D([], [], color=RUNG_COLORS[n], marker="|", ms=9, mew=2, ls="", label=n) for n in drawn]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, handletextpad=0.3, columnspacing=1.2)
    return figure


TIER_PANELS = (
    ("agreement between seeds\n(pwmcc)", ("pwmcc",), ""),
    ("true atoms\n(planted: gt_mcc)", ("gt_mcc", "true_atoms"), ""),
    ("true planes recovered\n(fraction)", ("subspace_recovered",), "atoms, no planes"),
    ("the model follows its planes\n(rotation)", ("rotation",), "no model"),
)


def tiers(results: SuiteResults, cells: Sequence[CellView]) -> Figure:
    """Agreement and recovery of every source of truth, each beside its chance levels; without controls."""
    cells = [cell for cell in reversed(cells) if not cell.control]
    gaps = np.cumsum([0, *(a.place != b.place for a, b in pairwise(cells))])
    places = np.arange(len(cells)) + 0.7 * gaps
    panels = [panel for panel in TIER_PANELS if any(has(cell, metric) for cell in cells for metric in panel[1])]
    size = (2.35 * len(panels), 0.24 * places[-1] + 1.6)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    seen: set[str] = set()
    for ax, (title, metrics, absent) in zip(axes[0], panels, strict=True):
        for y, cell in zip(places, cells, strict=True):
            metric = next((name for name in metrics if not np.isnan(cell.value(name).mean)), None)
            if metric is None:
                ax.text(
                    0.5,
                    y,
                    "no truth to score" if cell.tier == "random" else absent,
                    ha="center",
                    va="center",
                    color=GREY,
                    fontsize=6,
                )
                continue
            ax.plot([0, 1], [y, y], color="#eaeef2", lw=0.8, zorder=0)
            levels = results.rungs(cell, metric)
            seen |= {rung(null) for null in levels}
            for null, value in levels.items():
                ax.plot(
                    [value.mean], [y], marker="|", ms=9, mew=1.8, color=RUNG_COLORS[rung(null)], ls="", clip_on=False
                )
            score_point(ax, y, cell.value(metric), cell.converged)
        ax.set_title(title)
        ax.set_xlim(0, 1.02)
        ax.set_ylim(-0.8, places[-1] + 0.8)
        ax.set_xticks((0, 0.5, 1))
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
    axes[0][0].set_yticks(places, [f"{cell.place} · {cell.label}" for cell in cells])
    point = {"color": SCORE, "marker": "o", "ms": 4.5, "ls": ""}
    handles = [Line2D([], [], **point, label="score, 95%"), Line2D([], [], **point, mfc="white", label="not converged")]
    handles += [
        Line2D([], [], color=c, marker="|", ms=9, mew=1.8, ls="", label=n) for n, c in RUNG_COLORS.items() if n in seen
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=2 * len(panels) - 1, handletextpad=0.3, columnspacing=1.2
    )
    return figure
