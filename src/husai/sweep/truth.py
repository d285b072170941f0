"""What belongs to a suite as a whole, beside its tables."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from husai.cell import Job, hook_of
from husai.store.files import write_atomic
from husai.truth.circuit import GateReport


def write_truth(results: Path, planned: Sequence[Job], gates: dict[str, GateReport]) -> None:
    """What belongs to a suite as a whole: its cells, its models' gate reports, and the truth at their hooks.

    `cells.json` lists the run ids of the suite as it stands; tables may hold cells of earlier versions besides.
    `gate.json` has a report for every model (none for a synthetic source), `truth.json` the hooks of every model and source.
    Since ids name model and hooks, files written for the same ids stay as they are.
    """
    cells = json.dumps([job.cell.run_id for job in planned], indent=2) + "\n"
    files = [results / name for name in ("cells.json", "gate.json", "truth.json")]
    if all(file.is_file() for file in files) and files[0].read_text(encoding="utf-8") == cells:
        return
    truth: dict[str, dict[str, Any]] = {}
    for (model, hook), job in {(job.model_name, job.cell.hook): job for job in planned}.items():
        truth.setdefault(model, {})[hook] = hook_of(job).describe()
    gate = {name: report.to_json() for name, report in gates.items()}
    write_atomic(results / "gate.json", json.dumps(gate, indent=2) + "\n")
    write_atomic(results / "truth.json", json.dumps(truth, indent=2) + "\n")
    write_atomic(results / "cells.json", cells)
