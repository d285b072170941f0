"""Every score on trial: negative controls, in which it must show nothing, and positive ones, in which it must find something.

    python scripts/controls.py [--out results/controls] [--runs runs] [--jobs 2]

Trains what is missing under RUNS (16 ensembles and two transformers), writes controls.csv and summary.md, and exits with 1
if a control does not come out as it must. (docs/method.md §Controls)
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from husai.console import exits, say


@exits
def main(
    out: Annotated[Path, typer.Option(help="folder for controls.csv and summary.md")] = Path("results/controls"),
    runs: Annotated[Path, typer.Option(help="folder for run folders")] = Path("runs"),
    jobs: Annotated[int, typer.Option(min=1, help="cells computed at once")] = os.cpu_count() or 1,
) -> int:
    """Run all controls and write their table."""
    from husai.controls.run import run_controls

    held = run_controls(out, runs, jobs=jobs)
    say(f"{'Every control holds' if held else 'Some controls do not come out as they must'}; read {out}/summary.md")
    return 0 if held else 1


if __name__ == "__main__":
    typer.run(main)
