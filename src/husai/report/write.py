"""The whole report of a suite."""

import shutil
import tempfile
from pathlib import Path

from husai.report.figures import write_figures
from husai.report.results import SuiteResults
from husai.report.tables import write_tables


def write_report(results: Path, out: Path) -> list[Path]:
    """Tables and figures of `results` into `out`, all or none; returns the files.

    Raises HusaiError if a table is missing or damaged.
    """
    loaded = SuiteResults.load(results)
    with tempfile.TemporaryDirectory(prefix="husai-report-") as made:
        whole = Path(made)
        written = [path.relative_to(whole) for path in write_tables(loaded, whole) + write_figures(loaded, whole)]
        for path in written:
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(whole / path, out / path)
    return [out / path for path in written]
