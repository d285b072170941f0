"""The whole report of a suite."""

from pathlib import Path

from husai.report.figures import write_figures
from husai.report.results import SuiteResults
from husai.report.tables import write_tables


def write_report(results: Path, out: Path) -> list[Path]:
    """Tables and figures of `results` into `out`; returns the files. Raises HusaiError if a table is missing or damaged."""
    loaded = SuiteResults.load(results)
    out.mkdir(parents=True, exist_ok=True)
    return write_tables(loaded, out) + write_figures(loaded, out)
