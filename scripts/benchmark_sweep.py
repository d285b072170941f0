"""Sweeps: what `python scripts/benchmark.py sweep` measures.

What the machinery of a sweep adds to bare training, how fast it decides what is missing when all is finished, and how much two
workers of Ray gain over one process. Bare and swept trainings of the same cell follow each other, so that noise hits both.
"""

import csv
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from benchmark_sae import hardware, markdown

from husai.cell import Course, Job
from husai.config import SuiteConfig
from husai.console import say
from husai.engines import Ended, R, T
from husai.engines.ray import Ray
from husai.engines.serial import Serial
from husai.sae.train import train_saes
from husai.sweep.plan import plan
from husai.sweep.run import sweep
from husai.sweep.tables import Tables

CELLS, RAY_CELLS, FINISHED = 100, 8, 10_000
SECONDS, RAY_SECONDS = 5.5, 11.0  # a cell takes at least 5 s, or 10 s, after calibration on this machine
OVERHEAD, DECISION, SPEED_UP = 0.03, 2.0, 1.6  # the targets
SHORT, LONGER = 100, 1000  # steps of the short training, and more of the other
ANALYSIS = {"curve": [0], "null_draws": 1, "curve_null_draws": 1, "aligned_null_draws": 1, "causes": False}


def suite_of(cells: int, steps: int) -> SuiteConfig:
    """Cells that differ in the learning rate alone."""
    base = {
        "model": {"planted": {"d_model": 64, "n_atoms": 128, "k": 4, "samples": 8192}},
        "name": "atoms",
        "sae": {"architecture": "topk", "d_sae": 256, "k": 4, "k_aux": 16, "dead_steps": 20},
        "training": {"steps": steps, "batch_size": 512, "lr": 1e-3},
    }
    rates = [round(1e-3 * (1 + index / 1000), 9) for index in range(cells)]
    data = {"name": "benchmark", "base": base, "axes": {"training.lr": rates}, "analysis": ANALYSIS}
    return SuiteConfig.parse({**data, "init_seeds": [0, 1], "data_seeds": [0, 1]})


def bare(job: Job) -> None:
    """Train and measure a cell in this process, and keep nothing."""
    course = Course(job, lambda **_: None)
    train_saes(course.hook.x, job.cell.config, stop=course.observe, stop_at=course.looks)


def steps_for(seconds: float) -> int:
    """Training steps that make a bare cell take that long here, from two short ones."""
    times = []
    for steps in (SHORT, SHORT + LONGER):
        (job,), _ = plan(suite_of(1, steps), [None], Path("runs"))
        start = time.perf_counter()
        bare(job)
        times.append(time.perf_counter() - start)
    return max(1, round(SHORT + LONGER * (seconds - times[0]) / (times[1] - times[0])))


@dataclass
class Beside(Serial):
    """Does every item bare first, and sums up what that takes."""

    wall: float = 0.0
    cpu: float = 0.0
    least: float = float("inf")
    each: list[float] = field(default_factory=list)

    def run(self, call: Callable[[T], R], items: Iterable[T]) -> Iterator[Ended[T, R]]:
        for item in items:
            wall, cpu = time.perf_counter(), time.process_time()
            bare(cast(Job, item))
            self.each.append(time.perf_counter() - wall)
            self.wall, self.cpu = self.wall + self.each[-1], self.cpu + time.process_time() - cpu
            yield Ended(item, call(item))


def overhead(cells: int, seconds: float, folder: Path) -> dict[str, Any]:
    """A whole sweep against the same cells bare, all in this process on one thread."""
    torch.set_num_threads(1)
    planned, _ = plan(suite_of(cells, steps_for(seconds)), [None], folder / "runs")
    beside, wall, cpu = Beside(), time.perf_counter(), time.process_time()
    tally = sweep(planned, folder / "results", beside)
    wall, cpu = time.perf_counter() - wall - beside.wall, time.process_time() - cpu - beside.cpu
    assert len(tally.computed) == cells, tally.failed
    return {
        "what": f"sweep of {cells} cells over bare training and measuring",
        "cell_s": sorted(beside.each)[cells // 2],
        "bare_s": beside.wall,
        "swept_s": wall,
        "bare_cpu_s": beside.cpu,
        "swept_cpu_s": cpu,
        "ratio": wall / beside.wall - 1,
        "cpu_ratio": cpu / beside.cpu - 1,
        "wanted": f"<= {OVERHEAD}",
        "met": wall / beside.wall - 1 <= OVERHEAD,
    }


def decision(cells: int, folder: Path) -> dict[str, Any]:
    """From the suite's plain data to the answer that nothing is missing, where records hold 20 rows of every cell."""
    planned, _ = plan(suite_of(cells, 100), [None], folder / "runs")
    ids = [job.cell.run_id for job in planned for _ in range(20)]
    (folder / "results").mkdir(parents=True)
    pd.DataFrame({"run_id": ids, "value": range(len(ids))}).to_parquet(folder / "results" / "records.parquet")
    start = time.perf_counter()
    planned, _ = plan(suite_of(cells, 100), [None], folder / "runs")
    planning = time.perf_counter() - start
    tally = sweep(planned, folder / "results", Serial())
    whole = time.perf_counter() - start
    assert len(tally.finished) == cells
    return {
        "what": f"decision that {cells} cells are finished",
        "planning_s": planning,
        "swept_s": whole,
        "wanted": f"<= {DECISION} s",
        "met": whole <= DECISION,
    }


def ray_gain(cells: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Serial over Ray with two workers, each cell on one thread; Ray is started before the clock."""
    steps, times = steps_for(seconds), {}
    for name in ("serial", "ray"):
        planned, _ = plan(suite_of(cells, steps), [None], folder / name / "runs", threads=1, deterministic=True)
        with Serial() if name == "serial" else Ray(2) as engine:
            start = time.perf_counter()
            tally = sweep(planned, folder / name / "results", engine)
            times[name] = time.perf_counter() - start
        assert len(tally.computed) == cells, tally.failed
        assert len(Tables(folder / name / "results").run_ids()) == cells
    same = (folder / "serial/results/records.parquet").read_bytes() == (
        folder / "ray/results/records.parquet"
    ).read_bytes()
    gain = times["serial"] / times["ray"]
    return {
        "what": f"Ray with two workers over serial, {cells} cells; records {'equal' if same else 'DIFFER'}",
        "cell_s": times["serial"] / cells,
        "bare_s": times["serial"],
        "swept_s": times["ray"],
        "ratio": gain,
        "wanted": f">= {SPEED_UP}",
        "met": gain >= SPEED_UP and same,
    }


def write_tables(rows: list[dict[str, Any]], out: Path) -> str:
    """sweep.md and sweep.csv; returns the former."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    whole = [{name: row.get(name, "") for name in names} for row in rows]
    lines = [
        "# Sweeps",
        "",
        f"{hardware()}.",
        "",
        "`ratio` of the first row: time of the sweep over that of the same cells bare, less one; both in one process on one "
        "thread, cell by cell side by side; `cpu_ratio`: of processor time, without waits for the disk. `ratio` of Ray's row: "
        "wall time of the serial sweep (`bare_s`) over Ray's (`swept_s`), on two processors. planning_s: reading the suite and "
        "making its cells, part of `swept_s`.",
        "",
        *markdown(whole),
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "sweep.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (out / "sweep.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, names, lineterminator="\n")
        table.writeheader()
        table.writerows(whole)
    return "\n".join(lines)


def benchmark(
    out: Path, *, cells: int = CELLS, finished: int = FINISHED, ray_cells: int = RAY_CELLS, scale: float = 1.0
) -> bool:
    """Measure, write the tables, print them; False if a target is missed. scale: of the cells' seconds."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        rows = [decision(finished, place / "decision")]
        rows.append(ray_gain(ray_cells, scale * RAY_SECONDS, place / "ray"))
        rows.append(overhead(cells, scale * SECONDS, place / "overhead"))
        say(write_tables(rows[::-1], out))
    return all(row["met"] for row in rows)
