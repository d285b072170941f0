"""A suite on one page: what every method found at every source, as numbers on colour."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from husai.analysis.stats import Interval
from husai.analysis.verdict import STABLE
from husai.report.figures.canvas import GREY, INK, star
from husai.report.results import CellView, SuiteResults
from husai.report.settings import line_name, lines

NAN = float("nan")


class Found(NamedTuple):
    """A number of one cell; sure: the intervals of what was subtracted and what from do not overlap."""

    value: float
    sure: bool = False


def beyond(results: SuiteResults, cell: CellView) -> Found:
    """pwmcc minus the highest of the rungs `STABLE`."""
    levels = {name: level for name, level in results.rungs(cell).items() if name in STABLE}
    if not levels:
        return Found(NAN)
    score, highest = cell.value("pwmcc"), max(levels.values(), key=lambda level: level.mean)
    return Found(score.mean - highest.mean, _apart(score, highest))


def _apart(score: Interval, level: Interval) -> bool:
    return score.low > level.high or score.high < level.low


def _first(*metrics: str) -> Callable[[SuiteResults, CellView], Found]:
    """The first of these that a cell has."""

    def read(results: SuiteResults, cell: CellView) -> Found:
        values = (cell.value(name).mean for name in metrics)
        return Found(next((value for value in values if value == value), NAN))

    return read


BLOCKS: tuple[tuple[str, Callable[[SuiteResults, CellView], Found], str], ...] = (
    ("agreement\nbeyond the\nhighest rung", beyond, "RdBu"),
    ("truth found\n(gt_mcc, or\ntrue atoms)", _first("gt_mcc", "true_atoms"), "YlGn"),
    ("atoms of\nan answer", _first("true_answer"), "YlGn"),
    ("true planes\nrecovered", _first("subspace_recovered"), "YlGn"),
)


def atlas(results: SuiteResults) -> Figure:
    """A row a method and sparsity, sparsest first, a block a question, a column a source. *: not converged; bold: see below."""
    cells = [cell for cell in results.cells if not cell.control]
    places, rows = list(dict.fromkeys(cell.place for cell in cells)), lines(cells)
    asked = [
        (title, read, colors, {cell.run_id: read(results, cell) for cell in cells}) for title, read, colors in BLOCKS
    ]
    asked = [entry for entry in asked if any(one.value == one.value for one in entry[3].values())]
    width = 0.34 * len(places) * len(asked) + 2.2
    figure, axes = plt.subplots(1, len(asked), figsize=(width, 0.19 * len(rows) + 1.7), sharey=True, squeeze=False)
    for ax, (title, _, colors, found) in zip(axes[0], asked, strict=True):
        _block(ax, list(rows.values()), places, found, colors)
        ax.set_title(title, fontsize=7)
    names = [line_name(own) for own in rows.values()]
    axes[0][0].set_yticks(range(len(rows)), names)
    figure.supxlabel(
        "Beyond: pwmcc minus the highest of data, data_points and surrogate_trained; bold: the intervals do not overlap.\n"
        "*: not converged. ·: nothing to ask.",
        fontsize=6.5,
    )
    return figure


def _block(
    ax: Axes, rows: Sequence[Sequence[CellView]], places: Sequence[str], found: dict[str, Found], colors: str
) -> None:
    values = np.full((len(rows), len(places)), NAN)
    for y, own in enumerate(rows):
        for cell in own:
            one, x = found[cell.run_id], places.index(cell.place)
            values[y, x] = one.value
            text = "·" if one.value != one.value else f"{one.value:.2f}".replace("0.", ".", 1) + star(cell)
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
                weight="bold" if one.sure else None,
                in_layout=False,
            )
    least = -1 if colors == "RdBu" else 0
    ax.imshow(np.ma.masked_invalid(values), cmap=colors, vmin=least, vmax=1, aspect="auto")
    kinds = [own[0].architecture for own in rows]
    for y in range(1, len(rows)):
        if kinds[y] != kinds[y - 1]:
            ax.axhline(y - 0.5, color="white", lw=2)
    ax.set_xticks(range(len(places)), places, rotation=60, ha="right", rotation_mode="anchor", fontsize=6)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
