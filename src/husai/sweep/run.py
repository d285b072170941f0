"""Which cells are missing, and who computes them until none is."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from husai.cell import Job
from husai.engines import Engine
from husai.store.checksums import verify
from husai.store.failures import failure_of, note_failure
from husai.store.folders import finished
from husai.store.lease import Watch, break_dead, read_holder
from husai.store.places import lease_path
from husai.sweep.compute import Outcome, compute
from husai.sweep.tables import Tables

PATIENCE = 1.0  # seconds between two looks at cells that others have
MARGIN = 0.9  # of a cell's usual time that must be left for one to begin


class TimeUp(BaseException):
    """The time that a sweep was given is over."""


@dataclass
class Tally:
    """How the cells of a sweep stand. finished: by others, or before it began. left: for want of time."""

    finished: list[Job] = field(default_factory=list)
    computed: list[Job] = field(default_factory=list)
    failed: list[tuple[Job, str]] = field(default_factory=list)
    left: list[Job] = field(default_factory=list)


@dataclass(frozen=True)
class Events:
    """Who is told. on_missing(jobs): once, what is to be computed; on_done(job, outcome): a cell ended."""

    on_missing: Callable[[Sequence[Job]], None] = lambda _jobs: None
    on_done: Callable[[Job, Outcome], None] = lambda _job, _outcome: None


def sweep(
    planned: Sequence[Job],
    results: Path,
    engine: Engine,
    *,
    retry_failed: bool = False,
    ends: float | None = None,
    events: Events = Events(),
) -> Tally:
    """Compute the missing cells and bring the tables up to date, whatever ends the sweep.

    Cells that failed before are not tried again unless `retry_failed`. Cells that another sweep on the same store has are
    waited for, and computed here if it dies. ends: of `time.monotonic()`, when the time is over: no cell begins that
    would take longer, and what runs then is stopped. Raises HusaiError if the tables cannot be read or written.
    """
    tally, tables = Tally(), Tables(results)
    try:
        missing = _sort_out(planned, tables, tally, retry_failed=retry_failed)
        events.on_missing(missing)
        with _alarm(ends):
            _compute(missing, engine, tables, tally, ends, events)
    except TimeUp:
        pass
    finally:
        tables.flush()
    ended = {id(job) for job in (*tally.finished, *tally.computed, *(job for job, _ in tally.failed))}
    tally.left = [job for job in planned if id(job) not in ended]
    return tally


def _sort_out(planned: Sequence[Job], tables: Tables, tally: Tally, *, retry_failed: bool) -> list[Job]:
    """The cells to compute; all others go to the tally."""
    known, missing = tables.run_ids(), list[Job]()
    for job in planned:
        place = Path(job.folder)
        if job.cell.run_id in known:
            tally.finished.append(job)
        elif finished(place) and not verify(place):
            tables.add(job)
            tally.finished.append(job)
        elif not retry_failed and (why := failure_of(place)) is not None:
            tally.failed.append((job, why))
        else:
            missing.append(job)
    return missing


def _compute(
    missing: Sequence[Job], engine: Engine, tables: Tables, tally: Tally, ends: float | None, events: Events
) -> None:
    """Until no cell is left but those for which there is no time."""
    watch, seconds = Watch(), list[float]()
    while missing:
        held: list[Job] = []
        with closing(engine.run(compute, _in_time(missing, seconds, ends))) as running:
            for ended in running:
                job, outcome = ended.item, ended.result
                if outcome is None:  # its worker died, and could not say so
                    outcome = Outcome("failed", why=ended.trouble)
                    note_failure(Path(job.folder), job.title, outcome.why)
                if outcome.state == "held":
                    held.append(job)
                    continue
                if outcome.state == "failed":
                    tally.failed.append((job, outcome.why))
                else:
                    tables.add(job)
                    (tally.computed if outcome.state == "computed" else tally.finished).append(job)
                if outcome.state == "computed":
                    seconds.append(outcome.seconds)
                events.on_done(job, outcome)
        missing = _released(held, watch)


def _in_time(missing: Sequence[Job], seconds: Sequence[float], ends: float | None) -> Iterator[Job]:
    """Missing cells as long as there is time for one that takes as long as most before it."""
    for job in missing:
        usual = sorted(seconds)[len(seconds) // 2] if seconds else 0.0
        if ends is None or time.monotonic() + MARGIN * usual < ends:
            yield job


def _released(held: Sequence[Job], watch: Watch) -> list[Job]:
    """Of cells that others have, wait until one is free or finished; all of them are then tried again."""
    while held:
        for path in (lease_path(Path(job.folder)) for job in held):
            holder = read_holder(path)
            if holder is None or (watch.stale(path) and break_dead(path, holder.token)):
                return list(held)
        time.sleep(PATIENCE)
    return []


@contextmanager
def _alarm(ends: float | None) -> Iterator[None]:
    """Raise TimeUp within when it is time; only the main thread of a process can be woken so."""
    if ends is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_signal: int, _frame: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(ends - time.monotonic(), 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
