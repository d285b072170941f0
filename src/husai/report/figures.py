"""Figures of a suite, as PDF and PNG: drawn from its tables, computing nothing."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from husai.analysis.stats import Interval
from husai.report.results import NULLS, CellView, SuiteResults

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


def ladder(results: SuiteResults) -> Figure:
    """Every cell's agreement on one line with the rungs of its ladder; thick bars are the 95% intervals of the rungs."""
    cells = list(reversed(results.cells))
    gaps = np.cumsum([0, *(a.place != b.place for a, b in pairwise(cells))])
    places = np.arange(len(cells)) + 0.6 * gaps
    figure, ax = plt.subplots(figsize=(6.2, 0.26 * places[-1] + 1.5))
    drawn = dict.fromkeys(NULLS)
    for y, cell in zip(places, cells, strict=True):
        score = cell.value("pwmcc")
        ax.plot([0, 1], [y, y], color="#eaeef2", lw=0.8, zorder=0)
        levels = cell.nulls("pwmcc")
        if twin := results.surrogate_of(cell):
            levels["surrogate_trained"] = twin.value("pwmcc")
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


def rung(null: str) -> str:
    """The rung that a null dictionary's atoms are drawn from, whatever its codes."""
    return next(name for name in sorted(RUNG_COLORS, key=len, reverse=True) if null.startswith(name))


def tiers(results: SuiteResults) -> Figure:
    """Agreement and recovery of every source of truth, each beside its chance levels."""
    cells = [cell for cell in reversed(results.cells) if not cell.control]
    gaps = np.cumsum([0, *(a.place != b.place for a, b in pairwise(cells))])
    places = np.arange(len(cells)) + 0.7 * gaps
    figure, axes = plt.subplots(1, len(TIER_PANELS), figsize=(9.4, 0.24 * places[-1] + 1.6), sharey=True)
    seen: set[str] = set()
    for ax, (title, metrics, absent) in zip(axes, TIER_PANELS, strict=True):
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
            levels = cell.nulls(metric)
            if twin := results.surrogate_of(cell):
                levels |= {"surrogate_trained": twin.value(metric)}
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
    axes[0].set_yticks(places, [f"{cell.place} · {cell.label}" for cell in cells])
    point = {"color": SCORE, "marker": "o", "ms": 4.5, "ls": ""}
    handles = [Line2D([], [], **point, label="score, 95%"), Line2D([], [], **point, mfc="white", label="not converged")]
    handles += [
        Line2D([], [], color=c, marker="|", ms=9, mew=1.8, ls="", label=n) for n, c in RUNG_COLORS.items() if n in seen
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=7, handletextpad=0.3, columnspacing=1.2)
    return figure


def score_point(ax: Axes, y: float, score: Interval, converged: bool) -> None:
    """A score with its interval on a horizontal line; hollow if it has not converged."""
    low, high = max(0.0, score.mean - score.low), max(0.0, score.high - score.mean)
    fill = SCORE if converged else "white"
    ax.errorbar(
        [score.mean], [y], xerr=[[low], [high]], fmt="o", ms=4.5, color=SCORE, mfc=fill, lw=1.2, zorder=5, clip_on=False
    )


def fourier_spectrum(model: str, gate: dict[str, Any]) -> Figure:
    """Norms of W_E and W_L (or |α| of the logits) per frequency, key frequencies marked."""
    second = ("spectrum_W_L", r"$\|W_{out} W_U\|$ (answers)")
    if gate["spectrum_W_L"] is None:
        second = ("spectrum_logits", r"$|\alpha|$ (logits)")
    panels = (("spectrum_W_E", r"$\|W_E\|$ (tokens)"), second)
    figure, axes = plt.subplots(2, 1, figsize=(6.2, 3.4), sharex=True)
    for ax, (name, label) in zip(axes, panels, strict=True):
        values = np.array(gate[name])
        frequency = np.arange(1, len(values) + 1)
        key = np.isin(frequency, gate["key_frequencies"])
        ax.bar(frequency[~key], values[~key], color=GREY, width=0.7)
        ax.bar(frequency[key], values[key], color=SCORE, width=0.7)
        for k in frequency[key]:
            ax.annotate(str(k), (k, values[k - 1]), ha="center", va="bottom", fontsize=7, color=SCORE)
        ax.set_ylabel(label, fontsize=7)
        ax.set_ylim(0, values.max() * 1.15)
        ax.set_xlim(0, len(values) + 1)
    axes[-1].set_xlabel("frequency k (key frequencies in blue)")
    figure.suptitle(f"{model}: spectrum over frequencies", fontsize=9)
    return figure


def feature_tuning(results: SuiteResults, atoms_shown: int = 2) -> Figure:
    """Codes of the most energetic atoms of one seed over the grid (a, b): a column an SAE, a few rows a hook.

    Of a recurrent network over (previous, input), mean codes.
    """
    operands = ("previous", "input") if results.cells[0].tier == "recurrent" else ("a", "b")
    hooks = list(dict.fromkeys(cell.short_hook for cell in results.cells))
    labels = list(dict.fromkeys(cell.label for cell in results.cells))
    rows = atoms_shown * len(hooks)
    figure, axes = plt.subplots(rows, len(labels), figsize=(1.25 * len(labels) + 1, 1.45 * rows + 0.2), squeeze=False)
    image = None
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
    for cell in results.cells:
        arrays, atoms = results.arrays(cell), results.first_seed_atoms(cell)
        first = atoms_shown * hooks.index(cell.short_hook)
        column = axes[first : first + atoms_shown, labels.index(cell.label)]
        for ax, codes, atom in zip(column, arrays["tuning_maps"], arrays["tuning_atoms"], strict=False):
            image = tuning_map(ax, codes.astype(float), atoms[int(atom)])
        name = cell.label.replace(", ", " ")
        column[0].set_title(f"$\\bf{{{name.replace(' ', '~')}}}$\n" + column[0].get_title(), fontsize=6, pad=2)
    for row, line in enumerate(axes):
        line[0].set_ylabel(f"{hooks[row // atoms_shown]}\n{operands[0]} →", fontsize=7)
    for ax in axes[-1]:
        ax.set_xlabel(f"{operands[1]} →", fontsize=7)
    assert image is not None, "a suite has cells"
    figure.colorbar(image, ax=axes, shrink=0.4, aspect=30, ticks=(0, 1), label="code / its maximum")
    return figure


def tuning_map(ax: Axes, codes: np.ndarray, atom: dict[str, Any]) -> AxesImage:
    """One atom's code over (a, b) on the scale of its maximum, with its label and how often it fires."""
    image = ax.imshow(codes / codes.max(), cmap="magma", origin="lower", interpolation="nearest", vmin=0, vmax=1)
    ax.set_title(
        f"{atom['label']} k={atom['k']}, purity {atom['purity']:.2f}\nfires on {atom['firing_rate']:.1%}",
        fontsize=6,
        pad=2,
    )
    return image


def gate_summary(model: str, gate: dict[str, Any]) -> Figure:
    """The gate as a table: every condition, its bound, and whether it holds."""
    figure, ax = plt.subplots(figsize=(5.2, 0.3 * len(gate["conditions"]) + 0.8))
    ax.set_axis_off()
    rows = []
    for condition in gate["conditions"]:
        name, value, relation, bound, *_ = condition.split()
        sign = {">=": "≥", "<=": "≤"}[relation]
        rows.append(
            [
                name,
                f"{float(value):.4g}",
                f"{sign} {float(bound):.4g}",
                "failed" if name in gate["failed_conditions"] else "holds",
            ]
        )
    table = ax.table(
        rows,
        colLabels=["condition", "value", "must be", ""],
        loc="center",
        cellLoc="left",
        colLoc="left",
        edges="horizontal",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.scale(1, 1.35)
    for (row, column), cell in table.get_celld().items():
        cell.set_linewidth(0.4)
        if row == 0:
            cell.set_text_props(weight="bold")
        elif column == 3:
            cell.set_text_props(color="#1a7f37" if rows[row - 1][3] == "holds" else NULL_COLORS["data_points"])
    keys = ", ".join(str(k) for k in gate["key_frequencies"])
    ax.set_title(f"Gate of {model} ({gate['op']}, p = {gate['p']}); key frequencies {keys}", loc="left")
    return figure


def drawings(results: SuiteResults) -> dict[str, Callable[[], Figure]]:
    """The figures that apply, by file name.

    Agreement needs pairs of seeds, tiers several sources besides, tuning maps one model with a grid, gates models.
    """
    of_pairs = (ladder, stability_over_steps, stability_matrices) if results.seeds > 1 else ()
    of_grids = (feature_tuning,) if results.gates and len(results.sources) == 1 else ()
    of_ladders = (tiers,) if results.seeds > 1 and len(results.sources) > 1 else ()
    found = {draw.__name__: partial(draw, results) for draw in (*of_ladders, *of_pairs, *of_grids)}
    for model, gate in results.gates.items():
        suffix = f"_{model}" if len(results.sources) > 1 else ""
        found |= {f"{draw.__name__}{suffix}": partial(draw, model, gate) for draw in (fourier_spectrum, gate_summary)}
    return found


def write_figures(results: SuiteResults, out: Path) -> list[Path]:
    """Every figure as PDF and PNG in `out/figures`; returns the files."""
    (out / "figures").mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in drawings(results).items():
        with plt.rc_context(cast(Any, STYLE)):
            figure = draw()
            for suffix in ("pdf", "png"):
                written.append(out / "figures" / f"{name}.{suffix}")
                metadata = {"CreationDate": None} if suffix == "pdf" else None
                figure.savefig(written[-1], dpi=200, metadata=metadata)
            plt.close(figure)
    return written
