"""The tables of a suite's results, which several sweeps may fill at once.

Finished cells wait until enough of them are there: merging takes longer the more a table holds, and their run folders keep
them meanwhile. So all merging together takes a percent of a sweep.
"""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from pyarrow import ArrowException

from husai.cell import Job
from husai.errors import HusaiError
from husai.store.files import crash_point, reason, whole_file
from husai.store.lease import hold
from husai.store.places import MERGING

IDLE = 100.0  # times as long as the last merge took, the next one waits
MEASURES = ("value", "ci_low", "ci_high")  # columns that do not say which row it is


class Tables:
    """records, atoms, costs and arrays of one results folder; they hold what `add` was given after `flush` at the latest."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self.waiting: list[Job] = []
        self.next = 0.0

    def run_ids(self) -> set[str]:
        """Run ids in the records. Raises HusaiError if the file is there but cannot be read."""
        path = self.results / "records.parquet"
        if not path.is_file():
            return set()
        try:
            column = pq.read_table(path, columns=["run_id"]).column("run_id")
        except (OSError, ArrowException, KeyError) as error:
            raise _unreadable(path, error) from None
        return set(column.unique().to_pylist())

    def add(self, job: Job) -> None:
        """A finished cell. Raises HusaiError as `flush`."""
        self.waiting.append(job)
        if time.monotonic() >= self.next:
            self.flush()

    def flush(self) -> None:
        """Merge what waits into the tables, each replaced in one step; records go last, since they say what is there.

        Raises HusaiError if a table cannot be read or written, or another process holds the folder for too long.
        """
        if not self.waiting:
            return
        start = time.monotonic()
        with hold(self.results / MERGING, about="merging results"):
            _merge(self.results, self.waiting)
        self.waiting = []
        self.next = time.monotonic() + IDLE * (time.monotonic() - start)


def read_table(path: Path) -> pd.DataFrame:
    """A results table. Raises HusaiError if it is missing or damaged."""
    try:
        return pd.read_parquet(path)
    except FileNotFoundError:
        raise HusaiError(f"{path}: no such results table") from None
    except (OSError, ValueError, ArrowException) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> HusaiError:
    return HusaiError(f"{path}: is not a readable Parquet table ({error.__class__.__name__})")


def _merge(results: Path, jobs: Sequence[Job]) -> None:
    try:
        (results / "arrays").mkdir(parents=True, exist_ok=True)
        for job in jobs:
            with whole_file(results / "arrays" / f"{job.cell.run_id}.npz") as temporary:
                shutil.copyfile(Path(job.folder) / "arrays.npz", temporary)
        crash_point("arrays-copied")
        _append(results / "costs.parquet", [pd.DataFrame([_cost(job)]) for job in jobs])
        crash_point("costs-merged")
        _append(results / "atoms.parquet", [_rows(job, "atoms.parquet") for job in jobs])
        crash_point("atoms-merged")
        _append(results / "records.parquet", [_rows(job, "records.parquet") for job in jobs])
        crash_point("records-merged")
    except OSError as error:
        raise HusaiError(f"{results}: cannot be written ({reason(error)})") from None


def _rows(job: Job, name: str) -> pd.DataFrame:
    return read_table(Path(job.folder) / name).assign(suite=job.suite)


def _cost(job: Job) -> dict[str, Any]:
    spent = json.loads((Path(job.folder) / "provenance.json").read_text(encoding="utf-8"))
    return {
        "run_id": job.cell.run_id,
        "wall_seconds": spent["wall_seconds"],
        "precision": "/".join(job.cell.config.training.pair),
        **spent["hardware"],
        "finished": spent["finished"],
    }


def _append(path: Path, parts: Sequence[pd.DataFrame]) -> None:
    """Rows of some runs into a table, in an order that depends on its content alone."""
    rows = pd.concat(parts, ignore_index=True)
    if path.is_file():
        old = read_table(path)
        kept: Any = old[~old["run_id"].isin(rows["run_id"].tolist())]
        rows = pd.concat([kept, rows], ignore_index=True)
    order = [column for column in rows.columns if column not in MEASURES]
    rows = rows.sort_values(order, kind="stable", ignore_index=True)
    with whole_file(path) as temporary:
        rows.to_parquet(temporary, index=False, compression="zstd")
