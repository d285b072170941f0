"""Figures of a suite, as PDF and PNG: drawn from its tables, computing nothing."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from husai.report.calibration import judged
from husai.report.figures.agreement import ladder, stability_matrices, stability_over_steps, tiers
from husai.report.figures.atlas import atlas
from husai.report.figures.calibration import calibration
from husai.report.figures.canvas import STYLE
from husai.report.figures.circuit import feature_tuning, fourier_spectrum, gate_summary
from husai.report.figures.trajectories import trajectories
from husai.report.intake import file_name
from husai.report.results import CellView, SuiteResults

LARGE = 40  # cells from which figures with a panel or a line a cell are drawn source by source, or left out


def drawings(results: SuiteResults) -> dict[str, Callable[[], Figure]]:
    """The figures that apply, by file name.

    Agreement needs pairs of seeds, tiers several sources besides, tuning maps one model with a grid, gates models. Of a large
    suite there is an atlas, and ladder and tiers are drawn by source, without lines of their own for controls.
    """
    several = len(results.sources) > 1
    found: dict[str, Callable[[], Figure]] = {}
    if results.seeds > 1:
        found |= _of_agreement(results, (tiers, ladder) if several else (ladder,))
        found["trajectories"] = partial(trajectories, results)
    if any(not one.cell.control for one in judged(results)):
        found["calibration"] = partial(calibration, results)
    if results.gates and not several:
        found["feature_tuning"] = partial(feature_tuning, results)
    for model, gate in results.gates.items():
        suffix = file_name(f"_{model}") if several else ""
        found |= {f"{draw.__name__}{suffix}": partial(draw, model, gate) for draw in (fourier_spectrum, gate_summary)}
    return found


def _of_agreement(results: SuiteResults, draws: Sequence[Callable[..., Figure]]) -> dict[str, Callable[[], Figure]]:
    if len(results.cells) < LARGE:
        found = {draw.__name__: partial(draw, results, results.cells) for draw in draws}
        return found | {draw.__name__: partial(draw, results) for draw in (stability_over_steps, stability_matrices)}
    by_place: dict[str, list[CellView]] = {}
    for cell in results.cells:
        if not cell.control:
            by_place.setdefault(cell.place, []).append(cell)
    return {"atlas": partial(atlas, results)} | {
        f"{draw.__name__}_{file_name(place)}": partial(draw, results, own)
        for draw in draws
        for place, own in by_place.items()
    }


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
