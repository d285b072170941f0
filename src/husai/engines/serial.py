"""One item after the other, in this process."""

from collections.abc import Callable, Generator, Iterable
from typing import Self

from husai.engines import Ended, R, T


class Serial:
    """The engine that needs nothing. What a callable raises goes through."""

    workers = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, call: Callable[[T], R], items: Iterable[T]) -> Generator[Ended[T, R], None, None]:
        for item in items:
            yield Ended(item, call(item))
