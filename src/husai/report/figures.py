"""Figures of a suite, as PDF and PNG: drawn from its tables, computing nothing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from husai.analysis.stats import Interval
from husai.report.results import NULLS, CellView, SuiteResults

INK, SCORE, GREY = "#1b1f24", "#0b5fa5", "#8c959f"
NULL_COLORS = {"ambient": "#9aa5b1", "untrained": "#57606a", "data": "#e0a030", "data_points": "#c4452d"}
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


def title_of(cell: CellView) -> str:
    return f"{cell.short_hook} · {cell.label}" + ("" if cell.converged else "\nnot converged")


def grid(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[list[Axes]]]:
    """A figure of rows × columns panels of the given size in inches."""
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    return figure, [list(row) for row in axes]


def cell_grid(
    results: SuiteResults, most_columns: int, width: float, height: float
) -> tuple[Figure, list[tuple[Axes, CellView]]]:
    """One panel a cell; every hook starts on a new row, and panels without a cell stay blank."""
    by_hook = [[c for c in results.cells if c.hook == hook] for hook in dict.fromkeys(c.hook for c in results.cells)]
    widest = max(len(cells) for cells in by_hook)
    columns = -(-widest // -(-widest // most_columns))
    rows = [cells[start : start + columns] for cells in by_hook for start in range(0, len(cells), columns)]
    figure, axes = grid(len(rows), columns, width, height)
    for line in axes:
        for ax in line:
            ax.set_axis_off()
    panels = [(ax, cell) for line, cells in zip(axes, rows, strict=True) for ax, cell in zip(line, cells, strict=False)]
    for ax, _ in panels:
        ax.set_axis_on()
    return figure, panels


def heat_map(ax: Axes, matrix: np.ndarray, title: str, note: str) -> None:
    """S×S agreement with its values written in; the diagonal, always 1, is left blank."""
    shown = np.where(np.eye(len(matrix), dtype=bool), np.nan, matrix)
    ax.imshow(shown, cmap="YlGnBu", vmin=0, vmax=1)
    for i in range(len(matrix)):
        for j in range(len(matrix)):
            if i != j:
                ink = "white" if matrix[i, j] > 0.6 else INK
                ax.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", fontsize=6, color=ink)
    ax.set_xticks(range(len(matrix)))
    ax.set_yticks(range(len(matrix)))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_title(title)
    ax.set_xlabel(note, fontsize=6.5)


def stability_matrices(results: SuiteResults) -> Figure:
    """pwmcc between all seeds of every cell, each with its mean and chance levels underneath."""
    figure, panels = cell_grid(results, 5, 1.75, 2.15)
    for ax, cell in panels:
        rungs = [cell.value("pwmcc", null).mean for null in ("ambient", "data", "data_points")]
        note = (
            f"mean {cell.value('pwmcc').mean:.2f}\nambient {rungs[0]:.2f} · data {rungs[1]:.2f} · points {rungs[2]:.2f}"
        )
        heat_map(ax, cell.matrix("pwmcc"), title_of(cell), note)
    figure.suptitle("pwmcc between seeds (signed, one-to-one), with its chance levels", fontsize=9)
    return figure


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
    """Raw agreement against training steps, with every chance level as a band, and explained variance in grey."""
    figure, panels = cell_grid(results, 4, 2.1, 2.0)
    for ax, cell in panels:
        for null in ("ambient", "data", "data_points"):
            band(ax, *cell.curve("pwmcc", null), NULL_COLORS[null], lw=1)
        start = cell.value("pwmcc", step=0).mean
        ax.axhline(start, color=NULL_COLORS["untrained"], lw=0.8, ls=":")
        steps, fit = cell.curve("explained_variance")
        ax.plot(steps, [v.mean for v in fit], color=GREY, lw=0.8, ls="--")
        band(ax, *cell.curve("pwmcc"), SCORE, lw=1.6, marker="o", ms=2.5)
        step_axis(ax, cell.steps)
        ax.set_ylim(0, 1.02)
        ax.set_title(title_of(cell))
        if cell.hook == results.cells[-1].hook:
            ax.set_xlabel("training steps")
    figure.supylabel("mean cosine of matched atoms · explained variance", fontsize=8)
    entries = [Line2D([], [], color=SCORE, lw=1.6, marker="o", ms=2.5, label="pwmcc between seeds")]
    entries += [
        Line2D(
            [],
            [],
            color=NULL_COLORS[n],
            lw=0.8 if n == "untrained" else 1,
            ls=":" if n == "untrained" else "-",
            label=NULL_NAMES[n],
        )
        for n in NULLS
    ]
    entries.append(Line2D([], [], color=GREY, lw=0.8, ls="--", label="explained variance"))
    figure.legend(handles=entries, loc="outside lower center", ncols=3)
    return figure


def ladder(results: SuiteResults) -> Figure:
    """Every cell's agreement on one line with the rungs of its ladder."""
    cells = list(reversed(results.cells))
    figure, ax = plt.subplots(figsize=(6.2, 0.26 * len(cells) + 1.3))
    for y, cell in enumerate(cells):
        score = cell.value("pwmcc")
        ax.plot([0, 1], [y, y], color="#eaeef2", lw=0.8, zorder=0)
        for null in NULLS:
            value = cell.value("pwmcc", null)
            ax.plot([value.mean], [y], marker="|", ms=9, mew=2, color=NULL_COLORS[null], ls="")
        ax.errorbar(
            [score.mean],
            [y],
            xerr=[[max(0.0, score.mean - score.low)], [max(0.0, score.high - score.mean)]],
            fmt="o",
            ms=4.5,
            color=SCORE,
            mfc=SCORE if cell.converged else "white",
            lw=1.2,
        )
    ax.set_yticks(range(len(cells)), [f"{cell.short_hook} · {cell.label}" for cell in cells])
    ax.set_xlim(0, 1.02)
    ax.set_xlabel("pwmcc between seeds (95% interval over seeds; hollow: not converged)")
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    handles = [Line2D([], [], color=SCORE, marker="o", ms=4.5, ls="", label="pwmcc")]
    handles += [Line2D([], [], color=NULL_COLORS[n], marker="|", ms=9, mew=2, ls="", label=n) for n in NULLS]
    figure.legend(handles=handles, loc="outside upper center", ncols=5)
    return figure


def fourier_spectrum(results: SuiteResults) -> Figure:
    """Norms of W_E and W_L (or |α| of the logits) per frequency, key frequencies marked."""
    gate = results.gate
    second = ("spectrum_W_L", "‖W_out·W_U‖ (answers)")
    if gate["spectrum_W_L"] is None:
        second = ("spectrum_logits", "|α| (logits)")
    panels = (("spectrum_W_E", "‖W_E‖ (tokens)"), second)
    figure, axes = grid(2, 1, 6.2, 1.5)
    for (ax,), (name, label) in zip(axes, panels, strict=True):
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
    axes[-1][0].set_xlabel("frequency k (key frequencies in blue)")
    figure.suptitle(f"{gate['model']}: spectrum over frequencies", fontsize=9)
    return figure


def feature_tuning(results: SuiteResults) -> Figure:
    """Codes of the two most energetic atoms of one seed over the grid (a, b): a row an SAE, columns by hook."""
    hooks = list(dict.fromkeys(cell.short_hook for cell in results.cells))
    labels = list(dict.fromkeys(cell.label for cell in results.cells))
    figure, axes = plt.subplots(
        len(labels), 2 * len(hooks), figsize=(1.5 * 2 * len(hooks) + 0.9, 1.62 * len(labels) + 0.3), squeeze=False
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for cell in results.cells:
        row, column = labels.index(cell.label), 2 * hooks.index(cell.short_hook)
        arrays, atoms = results.arrays(cell), results.first_seed_atoms(cell)
        for ax, codes, atom in zip(axes[row][column:], arrays["tuning_maps"][:2], arrays["tuning_atoms"], strict=False):
            tuning_map(ax, codes.astype(float), atoms[int(atom)])
        if column == 0:
            axes[row][0].text(
                -0.12, 0.5, cell.label, transform=axes[row][0].transAxes, ha="right", va="center", fontsize=7
            )
    for position, hook in enumerate(hooks):
        name = axes[0][2 * position].text(
            1.05, 1.24, hook, transform=axes[0][2 * position].transAxes, ha="center", fontsize=8, weight="bold"
        )
        name.set_in_layout(False)
    figure.suptitle(
        "Codes of the two most energetic atoms of one seed over the inputs (a upwards, b to the right)\n", fontsize=8
    )
    return figure


def tuning_map(ax: Axes, codes: np.ndarray, atom: dict[str, object]) -> None:
    """One atom's code over (a, b), with its label and how often it fires."""
    ax.imshow(codes, cmap="magma", origin="lower", interpolation="nearest")
    ax.set_title(
        f"{atom['label']} k={atom['k']}, purity {atom['purity']:.2f}\nfires on {atom['firing_rate']:.1%}",
        fontsize=6,
        pad=2,
    )


def gate_summary(results: SuiteResults) -> Figure:
    """The gate as a table: every condition, its bound, and whether it holds."""
    gate = results.gate
    figure, ax = plt.subplots(figsize=(5.2, 0.3 * len(gate["conditions"]) + 0.8))
    ax.set_axis_off()
    rows = []
    for condition in gate["conditions"]:
        name, value, relation, bound, *_ = condition.split()
        rows.append([name, value, f"{relation} {bound}", "failed" if name in gate["failed_conditions"] else "holds"])
    table = ax.table(
        rows, colLabels=["condition", "value", "must be", ""], loc="center", cellLoc="left", edges="horizontal"
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
    ax.set_title(f"Gate of {gate['model']} ({gate['op']}, p = {gate['p']}); key frequencies {keys}", loc="left")
    return figure


FIGURES: dict[str, Callable[[SuiteResults], Figure]] = {
    "ladder": ladder,
    "stability_over_steps": stability_over_steps,
    "stability_matrices": stability_matrices,
    "fourier_spectrum": fourier_spectrum,
    "feature_tuning": feature_tuning,
    "gate_summary": gate_summary,
}


OF_PAIRS = ("ladder", "stability_over_steps", "stability_matrices")  # there is nothing to compare with one seed


def write_figures(results: SuiteResults, out: Path) -> list[Path]:
    """Every figure as PDF and PNG in `out/figures`; returns the files."""
    (out / "figures").mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in FIGURES.items():
        if results.seeds < 2 and name in OF_PAIRS:
            continue
        with plt.rc_context(cast(Any, STYLE)):
            figure = draw(results)
            for suffix in ("pdf", "png"):
                written.append(out / "figures" / f"{name}.{suffix}")
                metadata = {"CreationDate": None} if suffix == "pdf" else None
                figure.savefig(written[-1], dpi=200, metadata=metadata)
            plt.close(figure)
    return written
