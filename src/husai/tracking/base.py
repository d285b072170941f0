"""What every tracker has, and how a run is kept from failing or waiting because of one."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

LIMIT = 90.0  # seconds a run waits for any one answer of a tracker
LONGEST = 160  # characters of an error's message that a notice quotes
RETRY_AFTER = 600.0  # seconds in which a process does not try again what failed

Warn = Callable[[str], object]
Result = TypeVar("Result")
failed: dict[
    str, float
] = {}  # when trackers last failed in this process, by name; every cell of a sweep would wait anew


class Distribution(Protocol):
    """norm and mean of some numbers, and how many (`counts`) lie between neighbouring `edges`."""

    @property
    def norm(self) -> float: ...
    @property
    def mean(self) -> float: ...
    @property
    def counts(self) -> Any: ...
    @property
    def edges(self) -> Any: ...


class NoTracker:
    """Takes figures while a run goes on, and keeps nothing. What does keep them extends it.

    on: whether anything is kept; where not, nobody need compute it. As a context it finishes at the end.
    """

    on = False

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Figures at one step."""

    def log_statistics(self, statistics: Mapping[str, Distribution], step: int) -> None:
        """Norm, mean and histogram of each, by name."""

    def summarise(self, metrics: Mapping[str, Any]) -> None:
        """What came of the run: numbers and plain data by name."""

    def text(self, name: str, markdown: str) -> None:
        """A page of text."""

    def show(self, images: Iterable[Path]) -> None:
        """PNG files, by the stem of their names."""

    def finish(self, failed: bool = False) -> None:
        """No more figures will come."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.finish(failed=kind is not None)


class Unanswered(Exception):
    """A tracker took longer than a run waits."""


def within(seconds: float, action: Callable[[], Result]) -> Result:
    """What `action` returns or raises, done in a thread of its own. Raises Unanswered if it takes longer than `seconds`.

    The thread is then left behind; it does not keep the process from ending.
    """
    found: list[Result] = []
    trouble: list[Exception] = []

    def work() -> None:
        try:
            found.append(action())
        except Exception as error:  # carried over to who asked
            trouble.append(error)

    thread = threading.Thread(target=work, daemon=True, name="husai-tracker")
    thread.start()
    thread.join(seconds)
    if trouble:
        raise trouble[0]
    if not found:
        raise Unanswered
    return found[0]


class Tracker(NoTracker):
    """Another program's tracker. Any failure on its side ends tracking with a notice, never the run."""

    name: str
    on = True

    def __init__(self, run: Any, warn: Warn) -> None:
        self.run, self.warn, self.last = run, warn, 0

    def _try(self, action: Callable[[], object]) -> None:
        if not self.on:
            return
        try:
            within(LIMIT, action)
        except Exception as error:  # they raise many kinds; none may end a run
            self.on, failed[self.name] = False, time.monotonic()
            self.warn(f"{self.name} stopped working ({named(error)}); going on without it")


def named(error: Exception) -> str:
    """What went wrong: the kind of error and the first line of what it says."""
    if isinstance(error, Unanswered):
        return f"no answer within {LIMIT:.0f} s"
    said = str(error).strip().split("\n")[0][:LONGEST]
    return f"{error.__class__.__name__}: {said}" if said else error.__class__.__name__
