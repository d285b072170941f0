"""Does agreement predict truth: the AUC of every method, and its reliability curves, a row a source."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from husai.report.calibration import Judged, judged
from husai.report.figures.canvas import GREY, INK, Hand
from husai.report.results import NAMES, SuiteResults


def calibration(results: SuiteResults) -> Figure:
    """Left the AUC with its interval, .5 being chance; then by architecture the share of true atoms along their agreement, and
    under it the ROC curve of the same groups of atoms."""
    found = [one for one in judged(results) if not one.cell.control]
    cells = [one.cell for one in found]
    hand = Hand.of(cells)
    places = list(dict.fromkeys(cell.place for cell in cells))
    size = (1.25 * len(hand.architectures) + 2.3, 2.5 * len(places) + 1.0)
    widths = [1.35, *[1] * len(hand.architectures)]
    figure = plt.figure(figsize=size)
    grid = figure.add_gridspec(2 * len(places), len(widths), width_ratios=widths)
    for row, place in enumerate(places):
        own = [one for one in found if one.cell.place == place]
        areas = figure.add_subplot(grid[2 * row : 2 * row + 2, 0])
        _areas(areas, own, hand)
        areas.set_ylabel(f"{place}\n({own[0].cell.tier})" if own[0].cell.tier != place else place, weight="bold")
        areas.set_title("AUC, 95%" if row == 0 else "")
        areas.set_xlabel("AUC (.5: agreement says nothing)" if place == places[-1] else "")
        for column, kind in enumerate(hand.architectures, start=1):
            alike = [one for one in own if one.cell.architecture == kind]
            curves, rocs = (figure.add_subplot(grid[2 * row + at, column]) for at in (0, 1))
            _curves(curves, alike, hand)
            _rocs(rocs, alike, hand)
            curves.set_title(NAMES.get(kind, kind) if row == 0 else "")
            if column == 1:
                curves.set_ylabel("share true", fontsize=6)
                curves.set_xlabel("mean cosine with partners", fontsize=6, labelpad=1)
                rocs.set_ylabel("ROC: of the true", fontsize=6)
                rocs.set_xlabel("of the untrue", fontsize=6, labelpad=1)
    base = Line2D([], [], color=GREY, lw=0.6, ls=":", label="share true of all atoms; ROC of chance")
    hollow = Line2D([], [], color=INK, marker="o", ms=3, mfc="white", ls="", label="not converged")
    figure.legend(handles=[*hand.legend(), base, hollow], loc="outside lower center", ncols=4, columnspacing=1.2)
    return figure


def _areas(ax: Axes, found: Sequence[Judged], hand: Hand) -> None:
    """One line a cell, grouped by architecture; cells without an AUC say why."""
    ax.axvline(0.5, color=INK, lw=0.6, ls=":")
    ordered = sorted(found, key=lambda one: hand.architectures.index(one.cell.architecture))
    for y, one in enumerate(reversed(ordered)):
        color = hand.color(one.cell)
        if one.missing:
            ax.text(0.02, y, one.missing, va="center", fontsize=4.5, color=GREY)
            continue
        if one.auc.low == one.auc.low:
            ax.plot([max(0.0, one.auc.low), min(1.0, one.auc.high)], [y, y], color=color, lw=1, ls=hand.dash(one.cell))
        fill = color if one.cell.converged else "white"
        ax.plot([one.auc.mean], [y], marker="o", ms=3, color=color, mfc=fill, mew=0.7, ls="", label=one.cell.label)
    ax.set_xlim(0, 1)
    ax.set_xticks((0, 0.5, 1))
    ax.set_ylim(-0.8, len(ordered) - 0.2)
    ax.set_yticks([])


def _curves(ax: Axes, found: Sequence[Judged], hand: Hand) -> None:
    if not found:
        ax.set_axis_off()
        return
    for one in found:
        color = hand.color(one.cell)
        fill = color if one.cell.converged else "white"
        ax.axhline(one.share_true, color=color, lw=0.6, ls=":", alpha=0.6)
        ax.plot(
            *(one.bins[:, 1], one.bins[:, 2]),
            color=color,
            ls=hand.dash(one.cell),
            lw=0.9,
            marker="o",
            ms=2,
            mfc=fill,
            mew=0.5,
            label=one.cell.label,
            clip_on=False,
            in_layout=False,
        )
    ax.set_xlim(min(0.0, *(float(np.min(one.bins[:, 1])) for one in found)), 1)
    ax.set_ylim(-0.03, 1.03)
    ax.set_xticks((0, 0.5, 1))
    ax.set_yticks((0, 0.5, 1))


def _rocs(ax: Axes, found: Sequence[Judged], hand: Hand) -> None:
    """Share of the true against share of the untrue atoms, from those that are agreed on most; none where all are of a kind."""
    if not any(one.roc for one in found):
        ax.set_axis_off()
        return
    ax.plot([0, 1], [0, 1], color=GREY, lw=0.6, ls=":")
    for one in found:
        if one.roc is not None:
            color = hand.color(one.cell)
            ax.plot(one.roc.false, one.roc.true, color=color, ls=hand.dash(one.cell), lw=0.9, label=one.cell.label)
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.set_xticks((0, 1))
    ax.set_yticks((0, 1))
