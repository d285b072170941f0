"""Worker processes on this machine. One that dies takes no other with it: its item is tried again by a new one."""

import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Self

from husai.engines import RETRIES, Ended, R, T, died

GRACE = 10.0  # seconds a worker has to clean up before it is killed


class Stopped(BaseException):
    """The parent wants this worker to end."""


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    item: Any = None
    tries: int = 0
    busy: bool = False

    def give(self, call: Callable[[Any], Any], item: Any, tries: int) -> None:
        self.item, self.tries, self.busy = item, tries, True
        self.pipe.send((call, item))


class Processes:
    """`workers` processes, each started when there is something for it to do."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.context = get_context("spawn")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, call: Callable[[T], R], items: Iterable[T]) -> Generator[Ended[T, R], None, None]:
        source, again = iter(items), deque[tuple[T, int]]()
        workers: list[_Worker] = []
        try:
            while True:
                self._hand_out(workers, call, source, again)
                busy = [worker for worker in workers if worker.busy]
                if not busy:
                    return
                for ready in wait([worker.pipe for worker in busy]):
                    worker = next(one for one in busy if one.pipe is ready)
                    try:
                        kind, value = worker.pipe.recv()
                    except (EOFError, OSError):
                        workers.remove(worker)
                        how, item, tries = _ended(worker), worker.item, worker.tries + 1
                        if tries > RETRIES:
                            yield Ended(item, None, died(tries, how))
                        else:
                            again.append((item, tries))
                        continue
                    worker.busy = False
                    yield Ended(worker.item, value) if kind == "done" else Ended(worker.item, None, value)
        finally:
            _stop(workers)

    def _hand_out(
        self, workers: list[_Worker], call: Callable[[T], R], source: Iterator[T], again: deque[tuple[T, int]]
    ) -> None:
        """An item for every idle worker, and new workers as long as there are items for them. again: items whose workers died,
        and how many did."""
        idle = [worker for worker in workers if not worker.busy]
        while len(workers) - len(idle) < self.workers:
            try:
                item, tries = again.popleft() if again else (next(source), 0)
            except StopIteration:
                return
            worker = idle.pop() if idle else self._start(workers)
            try:
                worker.give(call, item, tries)
            except OSError:  # it died while idle
                workers.remove(worker)
                worker.process.join()
                again.append((item, tries))

    def _start(self, workers: list[_Worker]) -> _Worker:
        here, there = self.context.Pipe()
        process = self.context.Process(target=_work, args=(there,), daemon=True)
        resource_tracker.ensure_running()  # now, since its start would undo the next line
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # and in the worker, also while it imports
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        there.close()
        workers.append(_Worker(process, here))
        return workers[-1]


def _ended(worker: _Worker) -> str:
    """How a process that is gone went."""
    worker.process.join()
    code = worker.process.exitcode
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _stop(workers: list[_Worker]) -> None:
    """End all workers: at once if idle, after cleaning up if not, by force if they do not."""
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join(GRACE)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.pipe.close()


def _stopped(_signal: int, _frame: object) -> None:
    signal.signal(
        signal.SIGTERM, signal.SIG_IGN
    )  # a second one, as when the whole group was told, would stop the cleaning up
    raise Stopped


def _work(pipe: Connection) -> None:
    """A worker: callables and items in, results or the words of exceptions out, until the parent is gone.

    Ctrl-C reaches the whole process group; only the parent answers it, and starts workers that do not.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stopped)
    try:
        while True:
            call, item = pipe.recv()
            try:
                answer = ("done", call(item))
            except Exception as error:  # a fault of one item is no fault of the worker
                answer = ("failed", f"{error.__class__.__name__}: {error}")
            pipe.send(answer)
    except (EOFError, OSError, Stopped):
        return
