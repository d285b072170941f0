"""A suite on one page: what every method found at every source, as numbers on colour."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from husai.analysis.stats import Interval
from husai.report.figures.canvas import GREY, INK, star
from husai.report.results import CellView, SuiteResults
from husai.report.settings import line_name, lines

NAN = float("nan")


class Found(NamedTuple):
    """A number of one cell; sure: the intervals of what was subtracted and what from do not overlap."""

    value: float
    sure: bool = False


def beyond(results: SuiteResults, cell: CellView) -> Found:
    """pwmcc minus the highest of the rungs that stable features must exceed; nan unless all are known."""
    asked, known = results.stable(cell), results.rungs(cell)
    levels = {name: known[name] for name in asked if name in known}
    if len(levels) < len(asked):
        return Found(NAN)
    score, highest = cell.value("pwmcc"), max(levels.values(), key=lambda level: level.mean)
    return Found(score.mean - highest.mean, _apart(score, highest))


def unequal(results: SuiteResults, cell: CellView) -> bool:
    """Whether of the cell and its surrogate only one has converged."""
    twin = results.surrogate_of(cell)
    return twin is not None and twin.converged != cell.converged


def _apart(score: Interval, level: Interval) -> bool:
    return score.low > level.high or score.high < level.low


def _above_chance(*metrics: str) -> Callable[[SuiteResults, CellView], Found]:
    """The first of these that a cell has, minus its highest chance level."""

    def read(results: SuiteResults, cell: CellView) -> Found:
        for name in metrics:
            score, levels = cell.value(name), results.rungs(cell, name)
            if score.mean == score.mean and levels:
                highest = max(levels.values(), key=lambda level: level.mean)
                return Found(score.mean - highest.mean, _apart(score, highest))
        return Found(NAN)

    return read


BLOCKS: tuple[tuple[str, Callable[[SuiteResults, CellView], Found]], ...] = (
    ("agreement\nbeyond the\nhighest rung", beyond),
    ("truth found:\ngt_mcc, or\nspecificity", _above_chance("gt_mcc", "answer_specificity")),
    ("true planes\nrecovered", _above_chance("subspace_recovered")),
    ("seeds span\nthe same\ntrue planes", _above_chance("subspace_stability")),
)


def atlas(results: SuiteResults) -> Figure:
    """A row a method and sparsity, sparsest first, a block a question, a column a source. *: not converged; bold: see below."""
    cells = [cell for cell in results.cells if not cell.control]
    places, rows = list(dict.fromkeys(cell.place for cell in cells)), lines(cells)
    asked = [(title, {cell.run_id: read(results, cell) for cell in cells}) for title, read in BLOCKS]
    asked = [entry for entry in asked if any(one.value == one.value for one in entry[1].values())]
    width = 0.34 * len(places) * len(asked) + 2.2
    figure, axes = plt.subplots(1, len(asked), figsize=(width, 0.19 * len(rows) + 1.7), sharey=True, squeeze=False)
    for ax, (title, found) in zip(axes[0], asked, strict=True):
        _block(ax, list(rows.values()), places, found, {c.run_id for c in cells if unequal(results, c)})
        ax.set_title(title, fontsize=7)
    names = [line_name(own) for own in rows.values()]
    axes[0][0].set_yticks(range(len(rows)), names)
    figure.supxlabel(
        "Agreement: pwmcc minus the highest of data, data_points, surrogate_trained and, where there are true planes, "
        "plane_rotated;\nthe others less their highest chance level. Bold: intervals apart. *: not converged; †: its surrogate "
        "has not. ·: nothing to ask.",
        fontsize=6.5,
    )
    return figure


def _block(
    ax: Axes, rows: Sequence[Sequence[CellView]], places: Sequence[str], found: dict[str, Found], odd: set[str]
) -> None:
    """odd: run ids that are marked with a dagger."""
    values = np.full((len(rows), len(places)), NAN)
    for y, own in enumerate(rows):
        for cell in own:
            one, x = found[cell.run_id], places.index(cell.place)
            values[y, x] = one.value
            mark = star(cell) or ("†" if cell.run_id in odd else "")
            text = "·" if one.value != one.value else f"{one.value:.2f}".replace("0.", ".", 1) + mark
            strong = abs(one.value) > 0.6
            ink = GREY if text == "·" else "white" if strong else INK
            ax.text(
                x,
                y,
                text,
                ha="center",
                va="center",
                fontsize=5.5,
                color=ink,
                weight="bold" if one.sure and cell.run_id not in odd else None,
                in_layout=False,
            )
    ax.imshow(np.ma.masked_invalid(values), cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    kinds = [own[0].architecture for own in rows]
    for y in range(1, len(rows)):
        if kinds[y] != kinds[y - 1]:
            ax.axhline(y - 0.5, color="white", lw=2)
    ax.set_xticks(range(len(places)), places, rotation=60, ha="right", rotation_mode="anchor", fontsize=6)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
