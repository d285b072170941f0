"""One cell in whatever process an engine gives it: under its lease, once, with its failure noted."""

import shutil
import time
from pathlib import Path
from typing import Literal, NamedTuple

from husai.cell import Job, run_cell
from husai.errors import HusaiError
from husai.store.checksums import CHECKSUMS, verify
from husai.store.failures import forget_failure, note_failure
from husai.store.folders import discard, finished
from husai.store.lease import Lease
from husai.store.places import lease_path


class Outcome(NamedTuple):
    """What came of a cell. held: another process has it. seconds: it took. why: it failed."""

    state: Literal["computed", "finished", "held", "failed"]
    seconds: float = 0.0
    why: str = ""


def compute(job: Job) -> Outcome:
    """Compute a cell, unless it is finished or another process has it. Whatever goes wrong in it is noted and returned."""
    place, start = Path(job.folder), time.perf_counter()
    lease = Lease.take(lease_path(place), about=job.title)
    if lease is None:
        return Outcome("held")
    with lease:
        if finished(place):
            if not verify(place):
                return Outcome("finished")
            discard(place)  # damaged
        elif (place / CHECKSUMS).is_file():
            discard(place)  # it was finished, and lost its mark
        remove_leftovers(place)
        try:
            run_cell(job, say=lease.say)
        except HusaiError as error:
            why = str(error)
        except Exception as error:  # a fault in one cell is no reason to lose the others
            why = f"{error.__class__.__name__}: {error}"
        else:
            forget_failure(place)
            return Outcome("computed", time.perf_counter() - start)
        note_failure(place, job.title, why)
        return Outcome("failed", time.perf_counter() - start, why)


def remove_leftovers(place: Path) -> None:
    """What a writer of this run left when it was killed; whoever calls has the run's lease."""
    for leftover in place.parent.glob(f".{place.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)
