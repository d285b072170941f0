"""Every measure against training steps, from step 0: a column a source, a row a measure."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from husai.report.figures.canvas import GREY, INK, Hand, rung, step_axis
from husai.report.results import CellView, SuiteResults
from husai.report.settings import PAIRS

DRAWN = ("ambient", "data", "data_points")  # rungs that are drawn at every step
OTHERS = (
    ("explained\nvariance", ("explained_variance",)),
    ("true atoms\n(planted: gt_mcc)", ("gt_mcc", "true_atoms")),
    ("answers", ("answer_overlap",)),
    ("planes", ("subspace_recovered",)),
    ("Fourier", ("fourier_overlap",)),
)
ROWS = (*((title, (metric,)) for metric, title in PAIRS.items()), *OTHERS)


def trajectories(results: SuiteResults) -> Figure:
    """All that was measured more than once, a dot where it was; cells of a source in one panel, without controls.

    A thin line joins what was measured before training and at the end alone.
    """
    cells = [cell for cell in results.cells if not cell.control]
    places = list(dict.fromkeys(cell.place for cell in cells))
    rows = [(title, metrics) for title, metrics in ROWS if any(_measured(cell, metrics) for cell in cells)]
    width, height = max(1.45 * len(places) + 0.9, 4.6), 0.92 * len(rows) + 1.3
    figure, axes = plt.subplots(len(rows), len(places), figsize=(width, height), sharey=True, squeeze=False)
    hand = Hand.of(cells)
    for line, (title, metrics) in zip(axes, rows, strict=True):
        line[0].set_ylabel(title, fontsize=7)
        for ax, place in zip(line, places, strict=True):
            own = [cell for cell in cells if cell.place == place]
            _panel(ax, own, metrics, hand)
            step_axis(ax, max(cell.steps for cell in own))
            ax.tick_params(labelbottom=ax in axes[-1])
            ax.set_ylim(-0.04, 1.04)
            ax.set_yticks((0, 0.5, 1))
    for ax, place in zip(axes[0], places, strict=True):
        ax.set_title(place, weight="bold")
    for ax in axes[-1]:
        ax.set_xlabel("training steps")
    marks = [
        Line2D([], [], color=GREY, lw=0.6, label="highest chance level of drawn atoms"),
        Line2D([], [], color=INK, marker="o", ms=3, mfc="white", ls="", label="not converged"),
    ]
    figure.legend(handles=[*hand.legend(), *marks], loc="outside lower center", ncols=5, columnspacing=1.2)
    return figure


def _measured(cell: CellView, metrics: Sequence[str]) -> str | None:
    """The first of these that the cell has at more than one step."""
    return next((name for name in metrics if len(cell.curve(name)[0]) > 1), None)


def _panel(ax: Axes, cells: Sequence[CellView], metrics: Sequence[str], hand: Hand) -> None:
    known = [(cell, metric) for cell in cells if (metric := _measured(cell, metrics))]
    if not known:
        ax.text(0.5, 0.5, "not measured", ha="center", va="center", color=GREY, fontsize=6, transform=ax.transAxes)
    for cell, metric in known:
        drawn = {null: level for null, level in cell.nulls(metric).items() if rung(null) in DRAWN}
        if drawn:
            highest: dict[int, float] = {}
            for null in drawn:
                for step, level in zip(*cell.curve(metric, null), strict=True):
                    highest[step] = max(level.mean, highest.get(step, level.mean))
            steps = sorted(highest)
            ax.plot(steps, [highest[step] for step in steps], color=GREY, lw=0.5, alpha=0.7, zorder=1)
        steps, values = cell.curve(metric)
        color = hand.color(cell)
        taken = {"marker": ".", "ms": 2.5, "mew": 0, "lw": 1 if len(steps) > 2 else 0.4, "label": cell.label}
        ax.plot(steps, [value.mean for value in values], color=color, ls=hand.dash(cell), **taken)
        end, fill = values[-1].mean, color if cell.converged else "white"
        ax.plot(
            [steps[-1]],
            [end],
            marker="o",
            ms=3,
            color=color,
            mfc=fill,
            mew=0.7,
            ls="",
            zorder=4,
            clip_on=False,
            in_layout=False,
        )
