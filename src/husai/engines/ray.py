"""A Ray cluster: the one at an address, or one started on this machine for as long as the sweep takes."""

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from functools import partial
from math import ceil
from typing import Any, Self

from husai.engines import RETRIES, Ended, R, T, died
from husai.errors import HusaiError

AHEAD = 1  # items that wait at the cluster beyond those that run, so that no worker idles
REACHED_WITHIN = 10.0  # seconds


class Ray:
    """cpus_each, gpus_each: what an item takes, fractions too. address: of a running cluster, `auto` for the one this machine
    belongs to; None: one of this machine's `workers` × `cpus_each` processors.

    Raises HusaiError if Ray is not installed or the cluster cannot be reached.
    """

    def __init__(
        self, workers: int, *, cpus_each: float = 1.0, gpus_each: float = 0.0, address: str | None = None
    ) -> None:
        try:
            import ray
        except ImportError:
            raise HusaiError("--engine ray: Ray is not installed; pip install 'husai[cluster]' brings it") from None
        self.ray, self.cpus_each, self.gpus_each = ray, cpus_each, gpus_each
        if address not in (None, "auto"):
            _require_reachable(address)
        own = {"num_cpus": ceil(workers * cpus_each), "include_dashboard": False} if address is None else {}
        try:
            with _signals_kept():
                ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **own)
        except (ConnectionError, OSError, RuntimeError, TimeoutError, ValueError) as error:
            raise HusaiError(f"--engine ray: {_first(error)}") from None
        self.most = workers if address is None else None

    @property
    def workers(self) -> int:
        """Items that fit on the cluster as it is now, at least 1."""
        there = self.ray.cluster_resources()
        fits = float("inf") if self.most is None else self.most
        for kind, flag, each in (("CPU", "cpus", self.cpus_each), ("GPU", "gpus", self.gpus_each)):
            has = there.get(kind, 0.0)
            if has < each:
                raise HusaiError(f"--{flag} {each:g}: the cluster has {has:g} {kind}s; allowed is at most that")
            fits = min(fits, has / each) if each else fits
        return max(1, int(fits))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.ray.shutdown()

    def run(self, call: Callable[[T], R], items: Iterable[T]) -> Generator[Ended[T, R], None, None]:
        ray, source = self.ray, iter(items)
        remote = ray.remote(
            num_cpus=self.cpus_each, num_gpus=self.gpus_each, max_retries=RETRIES, retry_exceptions=False
        )(_call_in)
        start = partial(remote.remote, os.getcwd(), call)
        running: dict[Future[R], tuple[T, Any]] = {}
        done = False
        try:
            while not done or running:
                while not done and len(running) < self.workers + AHEAD:
                    try:
                        item = next(source)
                    except StopIteration:
                        done = True
                        break
                    reference = start(item)
                    running[reference.future()] = item, reference
                if running:
                    # not ray.wait, in which an exception of a signal's handler becomes a SystemError
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        yield self._ended(running.pop(future)[0], future)
        finally:
            for _, reference in running.values():
                ray.cancel(reference, force=True)

    def _ended(self, item: T, future: Future[R]) -> Ended[T, R]:
        errors = self.ray.exceptions
        try:
            return Ended(item, future.result())
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
            return Ended(item, None, died(RETRIES + 1, error.__class__.__name__))
        except errors.RayError as error:
            return Ended(item, None, _first(error))


def _call_in(folder: str, call: Callable[[T], R], item: T) -> R:
    """On the cluster: paths that items name begin where the sweep was started."""
    os.chdir(folder)
    return call(item)


def _require_reachable(address: str) -> None:
    """Raises HusaiError if nobody listens there, for which Ray would wait for minutes."""
    found = re.fullmatch(r"(?:ray://)?\[?([^/\s]+?)\]?:(\d{1,5})", address)
    if found is None or not 0 < int(found[2]) < 2**16:
        raise HusaiError(f"--address {address}: must be HOST:PORT of a Ray cluster, or auto")
    try:
        socket.create_connection((found[1], int(found[2])), REACHED_WITHIN).close()
    except (OSError, UnicodeError) as error:
        raise HusaiError(f"--address {address}: no Ray cluster answers there ({error})") from None


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts its own answer to SIGTERM in the place of the command's; only the main thread may put it back."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _first(error: Exception) -> str:
    """The last line of a message, which says what is wrong; Ray puts tracebacks before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else error.__class__.__name__
