"""What a network computes and how atoms respond to it: its spectrum, its gate, tuning maps."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from husai.report.figures.canvas import GREY, NULL_COLORS, SCORE
from husai.report.results import SuiteResults


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
        first = atoms_shown * hooks.index(cell.short_hook)
        column = axes[first : first + atoms_shown, labels.index(cell.label)]
        for ax, (codes, atom) in zip(column, results.tuning(cell), strict=False):
            image = tuning_map(ax, codes.astype(float), atom)
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
