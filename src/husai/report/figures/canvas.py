"""What every figure is drawn with: style, colours, one panel a cell, curves over steps."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from husai.analysis.stats import Interval
from husai.report.results import NAMES, CellView, SuiteResults
from husai.report.settings import Place, placed

INK, SCORE, GREY, FIT = "#1b1f24", "#0b5fa5", "#8c959f", "#3a7d44"
NULL_COLORS = {"ambient": "#9aa5b1", "untrained": "#57606a", "data": "#e0a030", "data_points": "#c4452d"}
RUNG_COLORS = NULL_COLORS | {"plane_rotated": "#2a9d8f", "surrogate_trained": "#7d4fa3"}
NULL_NAMES = {
    "ambient": "ambient: random directions",
    "untrained": "untrained: step 0",
    "data": "data: same covariance",
    "data_points": "data_points: random inputs",
}
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "figure.dpi": 150,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.05,
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
}


class Panel(NamedTuple):
    """The axes of one cell."""

    ax: Axes
    cell: CellView


def cell_grid(
    results: SuiteResults, width: float, height: float, *, least: float = 5.6, most: int = 7
) -> tuple[Figure, list[list[Panel]]]:
    """One panel a cell: a row a hook (more if it has over `most` cells), each row with the hook's name at its left.

    width, height: of a panel, in inches. least: width of the figure.
    """
    places = dict.fromkeys(cell.place for cell in results.cells)
    by_hook = [[cell for cell in results.cells if cell.place == place] for place in places]
    columns = min(most, max(len(cells) for cells in by_hook))
    rows = [cells[start : start + columns] for cells in by_hook for start in range(0, len(cells), columns)]
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(max(width * columns + 0.5, least), height * len(rows)), squeeze=False, sharey=True
    )
    panels = []
    for line, cells in zip(axes, rows, strict=True):
        line[0].set_ylabel(cells[0].place, weight="bold")
        for ax in line[len(cells) :]:
            ax.set_axis_off()
        for ax, cell in zip(line, cells, strict=False):
            ax.set_title(cell.label.replace(", ", "\n"))
        panels.append([Panel(ax, cell) for ax, cell in zip(line, cells, strict=False)])
    return figure, panels


def heat_map(ax: Axes, matrix: np.ndarray, note: str) -> AxesImage:
    """S×S agreement with its values written in; the diagonal, always 1, is left blank."""
    shown = np.where(np.eye(len(matrix), dtype=bool), np.nan, matrix)
    image = ax.imshow(shown, cmap="YlGnBu", vmin=0, vmax=1)
    for i in range(len(matrix)):
        for j in range(len(matrix)):
            if i != j:
                ink = "white" if matrix[i, j] > 0.6 else INK
                ax.text(j, i, f"{matrix[i, j]:.2f}".lstrip("0"), ha="center", va="center", fontsize=5.5, color=ink)
    ax.set_xticks(range(len(matrix)))
    ax.set_yticks(range(len(matrix)))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labelsize=6)
    ax.set_xlabel(note, fontsize=6)
    return image


def star(cell: CellView) -> str:
    return "" if cell.converged else "*"


def band(ax: Axes, steps: Sequence[int], values: Sequence[Interval], color: str, **style: object) -> None:
    """A curve with its interval as a band."""
    x = np.array(steps, dtype=float)
    ax.plot(x, [v.mean for v in values], color=color, **style)  # pyright: ignore[reportArgumentType]
    ax.fill_between(x, [v.low for v in values], [v.high for v in values], color=color, alpha=0.2, lw=0)


def step_axis(ax: Axes, last: int) -> None:
    """Logarithmic steps with 0 at the left."""
    ax.set_xscale("symlog", linthresh=10)
    ax.set_xlim(0, last * 1.15)
    ticks = [0, *(10**e for e in range(1, 6) if 10**e <= last)]
    ax.set_xticks(ticks, ["0", *(f"$10^{e}$" for e in range(1, len(ticks)))])
    ax.minorticks_off()


def rung(null: str) -> str:
    """The rung that a null dictionary's atoms are drawn from, whatever its codes."""
    return next(name for name in sorted(RUNG_COLORS, key=len, reverse=True) if null.startswith(name))


def score_point(ax: Axes, y: float, score: Interval, converged: bool) -> None:
    """A score with its interval on a horizontal line; hollow if it has not converged."""
    low, high = max(0.0, score.mean - score.low), max(0.0, score.high - score.mean)
    fill = SCORE if converged else "white"
    ax.errorbar(
        [score.mean], [y], xerr=[[low], [high]], fmt="o", ms=4.5, color=SCORE, mfc=fill, lw=1.2, zorder=5, clip_on=False
    )


METHOD_COLORS = ("#0b5fa5", "#c4452d", "#3a7d44", "#7d4fa3", "#d98e04", "#16808a", "#d6558c", "#8b5a2b")
PALEST = 0.62  # how much white the densest of several cells has


class Hand(NamedTuple):
    """How cells of several methods are told apart: colour by architecture, darker where sparser, dashed where wider."""

    places: dict[str, Place]
    architectures: tuple[str, ...]
    ranks: dict[tuple[str, int], int]
    narrow: int

    @classmethod
    def of(cls, cells: Sequence[CellView]) -> "Hand":
        places = placed(cells)
        ranks: dict[tuple[str, int], int] = {}
        for kind, d_sae, rank in places.values():
            ranks[kind, d_sae] = max(rank, ranks.get((kind, d_sae), 0))
        kinds = dict.fromkeys(cell.architecture for cell in cells)
        return cls(places, tuple(kinds), ranks, min(cell.d_sae for cell in cells))

    def color(self, cell: CellView) -> tuple[float, float, float]:
        kind, d_sae, rank = self.places[cell.run_id]
        most = self.ranks[kind, d_sae]
        return _paler(self._of(kind), PALEST * (1 - rank / most) if most else 0.0)

    def _of(self, architecture: str) -> str:
        return METHOD_COLORS[self.architectures.index(architecture) % len(METHOD_COLORS)]

    def dash(self, cell: CellView) -> str:
        return "-" if cell.d_sae == self.narrow else "--"

    def legend(self) -> list[Line2D]:
        """One entry an architecture, and what shade and dashes mean where there are any."""
        entries = [
            Line2D([], [], color=self._of(kind), lw=2, label=NAMES.get(kind, kind)) for kind in self.architectures
        ]
        if any(self.ranks.values()):
            entries.append(Line2D([], [], color=_paler(INK, PALEST), lw=2, label="paler: denser codes"))
        if any(d_sae != self.narrow for _, d_sae in self.ranks):
            entries.append(Line2D([], [], color=INK, lw=1, ls="--", label=f"wider than {self.narrow}"))
        return entries


def _paler(color: str, white: float) -> tuple[float, float, float]:
    red, green, blue = (1 - (1 - part) * (1 - white) for part in to_rgb(color))
    return red, green, blue
