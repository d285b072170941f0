"""What trainings and suites tell a tracker, and when: nothing is computed for one that is off."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from husai.config import SAETrainingConfig, SuiteConfig, TrackingConfig, Trainable
from husai.optimise import Evaluated
from husai.sae.dictionary import SAEEnsemble
from husai.sae.history import StepLog, mean_log
from husai.sae.train import Stop, TrainedSAEs
from husai.tracking.base import NoTracker, Warn
from husai.tracking.opening import open_tracker, settled
from husai.truth.circuit import GateReport

Finish = Callable[[TrainedSAEs, Path], dict[str, Any]]


class Curves:
    """The callbacks of a training of SAEs, for a tracker: means over seeds, time, statistics, and what came of it.

    Time is milliseconds a step since the row before, less what looking at the SAEs took (`apart`).
    """

    def __init__(self, tracker: NoTracker, training: SAETrainingConfig) -> None:
        self.tracker = tracker
        self.on_statistics = tracker.log_statistics if tracker.on and training.log_statistics else None
        self.since: float | None = None
        self.step = 0

    def on_log(self, rows: Sequence[StepLog]) -> None:
        if not self.tracker.on:
            return
        step, now = rows[0].step, time.perf_counter()
        spent = {} if self.since is None else {"ms_step": 1e3 * (now - self.since) / max(1, step - self.step)}
        self.tracker.log({**mean_log(list(rows)), **spent}, step)
        self.since, self.step = time.perf_counter(), step

    def apart(self, look: Stop) -> Stop:
        """`look` as it is, its time left out."""

        def run(step: int, ensemble: SAEEnsemble) -> bool:
            start = time.perf_counter()
            ended = look(step, ensemble)
            if self.since is not None:
                self.since += time.perf_counter() - start
            elif step == 0:
                self.since = time.perf_counter()
            return ended

        return run if self.tracker.on else look

    def told(self, finish: Finish) -> Finish:
        """`finish` as it is, its metrics told."""

        def run(trained: TrainedSAEs, folder: Path) -> dict[str, Any]:
            metrics = finish(trained, folder)
            self.tracker.summarise(metrics)
            return metrics

        return run


class Attempts:
    """One run of a tracker for each attempt at a model, with the gate's report as its summary."""

    def __init__(self, tracking: TrackingConfig, name: str, out: Path, warn: Warn) -> None:
        self.tracking, self.name, self.out, self.warn = tracking, name, out, warn
        self.tracker = NoTracker()

    def begin(self, attempt: int, tried: Trainable) -> None:
        seed = tried.training.init_seed
        self.tracker = open_tracker(
            self.tracking,
            name=f"{self.name}-seed{seed}",
            run=f"{self.out.name}-seed{seed}",
            config=tried.model_dump(mode="json") | {"attempt": attempt + 1},
            folder=self.out.parent,
            tags=(self.name,),
            warn=self.warn,
        )

    def log(self, row: Evaluated) -> None:
        if self.tracker.on:
            self.tracker.log(asdict(row), row.step)

    def end(self, report: GateReport) -> None:
        if self.tracker.on:
            self.tracker.summarise(report.to_json())
        self.tracker.finish()
        self.tracker = NoTracker()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.tracker.finish(failed=kind is not None)


def tracking_of(suite: SuiteConfig, warn: Warn) -> TrackingConfig:
    """The suite's tracking, its mode settled once for all cells, its group the suite's name unless it has one."""
    tracking = suite.tracking
    return tracking.model_copy(update={"mode": settled(tracking.mode, warn), "group": tracking.group or suite.name})


def track_results(suite: SuiteConfig, files: Sequence[Path], cells: int, runs: Path, warn: Warn) -> None:
    """A suite's report as a run of its own: its figures, its summary, how many cells it has."""
    tracker = open_tracker(
        suite.tracking, name=suite.name, config=suite.model_dump(mode="json"), folder=runs, tags=("suite",), warn=warn
    )
    if not tracker.on:
        return
    with tracker:
        for path in files:
            if path.name == "summary.md":
                tracker.text("report", path.read_text(encoding="utf-8"))
        tracker.show([path for path in files if path.suffix == ".png"])
        tracker.summarise({"cells": cells})
