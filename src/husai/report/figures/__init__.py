"""Figures of a suite, as PDF and PNG: drawn from its tables, computing nothing."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from husai.report.figures.agreement import ladder, stability_matrices, stability_over_steps, tiers
from husai.report.figures.canvas import STYLE
from husai.report.figures.circuit import feature_tuning, fourier_spectrum, gate_summary
from husai.report.results import SuiteResults


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
