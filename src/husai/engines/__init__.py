"""Where a callable runs: here, in worker processes, or on a Ray cluster. Engines know nothing of sweeps.

An engine takes items from an iterator whenever it has room, so that whoever hands them out decides until the last moment, and
yields each with what came of it as it ends, in any order. Closing the iterator that `run` returns stops what still runs.
"""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, Self, TypeVar

T = TypeVar("T")
R = TypeVar("R")
EngineName = Literal["serial", "processes", "ray"]
RETRIES = 2  # times an item is tried again after the worker that had it died


@dataclass(frozen=True)
class Ended(Generic[T, R]):
    """An item and what the callable returned; or, where its worker died or it raised, None and why in words."""

    item: T
    result: R | None
    trouble: str = ""


class Engine(Protocol):
    """workers: how many items it may run at once; of a cluster that grows, now."""

    @property
    def workers(self) -> int: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def run(self, call: Callable[[T], R], items: Iterable[T]) -> Generator[Ended[T, R], None, None]:
        """Call `call`, which any process can import, with every item."""
        ...


def died(tries: int, how: str) -> str:
    """What is said of an item whose workers died."""
    return f"its worker died {tries} times ({how}), as for want of memory; fewer --jobs may help"
