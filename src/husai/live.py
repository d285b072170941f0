"""What a sweep looks like while it goes on: a live view in a terminal, a line now and then anywhere else.

Cells tell how far they are in their leases, so that the view needs no engine, and shows those of other machines too.
"""

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from husai import console
from husai.cell import Job
from husai.errors import HusaiError
from husai.store.lease import Holder, read_holder
from husai.store.places import lease_path
from husai.sweep.compute import Outcome

REFRESH, LINE_EVERY = 1.0, 30.0  # seconds
WIDTH = 9  # of a column at least, so that figures of another length do not move the others
SHOWN = {"loss": "loss", "explained_variance": "EV", "l0": "L0", "pwmcc": "pwmcc"}


@dataclass
class View:
    """Cells done, failed and running of those that were missing. Used as a context manager; told by `sweep.run.Events`."""

    quiet: bool = False
    missing: dict[str, Job] = field(default_factory=dict)
    done: int = 0
    failed: int = 0
    steps: int = 0
    start: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._lines, name="progress", daemon=True)
        self._live = Live(
            console=console.out, get_renderable=self._table, refresh_per_second=1 / REFRESH, transient=True
        )

    def __enter__(self) -> Self:
        if not self.quiet:
            if console.out.is_terminal:
                self._live.start()
            else:
                self._thread.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._over.set()
        if self._live.is_started:
            self._live.stop()

    def begin(self, missing: Sequence[Job]) -> None:
        """These are to be computed."""
        self.missing, self.start = {job.cell.run_id: job for job in missing}, time.monotonic()

    def ended(self, job: Job, outcome: Outcome) -> None:
        """One of them ended."""
        self.missing.pop(job.cell.run_id, None)
        if outcome.state == "failed":
            self.failed += 1
        else:
            self.done += 1
            self.steps += job.cell.config.training.end * len(job.cell.config.init_seeds)

    @property
    def left(self) -> int:
        return len(self.missing)

    def running(self) -> list[tuple[Job, Holder]]:
        """Missing cells that some process has, and how far it says it is."""
        missing, found = dict(self.missing), list[tuple[Job, Holder]]()
        if not missing:
            return found
        folder = lease_path(Path(next(iter(missing.values())).folder)).parent
        for path in sorted(folder.glob("*.json")):
            job = missing.get(path.stem)
            with contextlib.suppress(HusaiError):
                if job is not None and (holder := read_holder(path)) is not None and not holder.dead_here():
                    found.append((job, holder))
        return found

    def summary(self, running: Sequence[tuple[Job, Holder]]) -> str:
        """Cells done, failed, running and left, cells and steps a time, and how long it will take."""
        elapsed = max(time.monotonic() - self.start, 1e-9)
        parts = [_share(holder.progress) for _, holder in running]
        steps = self.steps + sum(
            share * job.cell.config.training.end * len(job.cell.config.init_seeds)
            for (job, _), share in zip(running, parts, strict=True)
        )
        ended = self.done + self.failed + sum(parts)
        waiting = max(self.left - len(running), 0)  # one may have ended meanwhile
        text = f"{self.done} done, {self.failed} failed, {len(running)} running, {waiting} waiting"
        if ended <= 0:
            return text
        remaining, speed = (self.left - sum(parts)) * elapsed / ended, f"{steps / elapsed:.3g} SAE steps/s"
        return f"{text} · {3600 * ended / elapsed:.3g} cells/h · {speed} · about {_clock(remaining)} left"

    def _table(self) -> Group:
        running = self.running()
        table = Table(box=None, pad_edge=False)
        for name in ("cell", "step", *SHOWN.values()):
            table.add_column(name, justify="left" if name == "cell" else "right", min_width=WIDTH)
        for job, holder in running:
            told = holder.progress
            step = f"{told['step']} of {told['of']}" if "of" in told else "starting"
            table.add_row(*map(Text, (job.title, step, *(_figure(told, name) for name in SHOWN))))
        return Group(table, Text(self.summary(running)))

    def _lines(self) -> None:
        while not self._over.wait(LINE_EVERY):
            running = self.running()
            console.say(f"  {self.summary(running)}")
            for job, holder in running:
                console.say(f"    {job.title}: {_progress(holder.progress)}")


def _share(told: dict[str, Any]) -> float:
    """How much of a cell is done, from 0 to 1, by what it told of itself."""
    step, end = told.get("step", 0), told.get("of", 0)
    numbers = isinstance(step, int | float) and isinstance(end, int | float) and end > 0
    return min(max(step / end, 0.0), 1.0) if numbers else 0.0


def _figure(told: dict[str, Any], name: str) -> str:
    value = told.get(name)
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def _progress(told: dict[str, Any]) -> str:
    if "of" not in told:
        return "starting"
    figures = [f"{label} {text}" for name, label in SHOWN.items() if (text := _figure(told, name))]
    return ", ".join([f"step {told['step']} of {told['of']}", *figures])


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
