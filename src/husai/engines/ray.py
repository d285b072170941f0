"""A Ray cluster: the one at an address, or one started on this machine for as long as the sweep takes."""

import logging
from collections.abc import Callable, Iterable, Iterator
from math import ceil
from typing import Any, Self

from husai.engines import RETRIES, Ended, R, T, died
from husai.errors import HusaiError

AHEAD = 1  # items that wait at the cluster beyond those that run, so that no worker idles


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
        own = {"num_cpus": ceil(workers * cpus_each), "include_dashboard": False} if address is None else {}
        try:
            ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **own)
        except (ConnectionError, OSError, RuntimeError, TimeoutError, ValueError) as error:
            raise HusaiError(f"--engine ray: {_first(error)}") from None
        self.most = workers if address is None else None

    @property
    def workers(self) -> int:
        """Items that fit on the cluster as it is now, at least 1."""
        there = self.ray.cluster_resources()
        fits = [there.get("CPU", 0.0) / self.cpus_each if self.cpus_each else float("inf")]
        if self.gpus_each:
            fits.append(there.get("GPU", 0.0) / self.gpus_each)
            if not fits[-1] >= 1:
                raise HusaiError(
                    f"--gpus {self.gpus_each:g}: the cluster has {there.get('GPU', 0.0):g} GPUs; allowed is at most that"
                )
        return max(1, int(min(*fits, self.most or float("inf"), 1e6)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.ray.shutdown()

    def run(self, call: Callable[[T], R], items: Iterable[T]) -> Iterator[Ended[T, R]]:
        ray, source = self.ray, iter(items)
        remote = ray.remote(
            num_cpus=self.cpus_each, num_gpus=self.gpus_each, max_retries=RETRIES, retry_exceptions=False
        )(call)
        running: dict[Any, T] = {}
        done = False
        try:
            while not done or running:
                while not done and len(running) < self.workers + AHEAD:
                    try:
                        item = next(source)
                    except StopIteration:
                        done = True
                        break
                    running[remote.remote(item)] = item
                if running:
                    ready, _ = ray.wait(list(running), num_returns=1)
                    for reference in ready:
                        yield self._ended(running.pop(reference), reference)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def _ended(self, item: T, reference: Any) -> Ended[T, Any]:
        errors = self.ray.exceptions
        try:
            return Ended(item, self.ray.get(reference))
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
            return Ended(item, None, died(RETRIES + 1, error.__class__.__name__))
        except errors.RayError as error:
            return Ended(item, None, _first(error))


def _first(error: Exception) -> str:
    """The last line of a message, which says what is wrong; Ray puts tracebacks before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else error.__class__.__name__
