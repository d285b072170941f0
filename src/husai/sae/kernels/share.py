"""One loop over blocks on all of torch's threads, each of which calls serial kernels and serial BLAS.

A block's intermediate results then stay in the cache of the core that made them, and no core waits at the end of every
operation for the others, which costs most where a machine is busy.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import count

import torch


@cache
def _helpers(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="husai-kernel")


@contextmanager
def serial() -> Iterator[int]:
    """torch's operators use one thread inside; yields how many they used before, which `share` is to use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def share(work: Callable[[int], None], blocks: int, threads: int) -> None:
    """Call work(0) … work(blocks − 1), each once, on that many threads, within `serial`; the first error is raised.

    What a block writes must belong to it alone: then no result depends on the number of threads.
    """
    turn = count()

    def serve() -> None:
        with torch.no_grad():
            while (block := next(turn)) < blocks:
                work(block)

    others = [_helpers(threads).submit(serve) for _ in range(min(threads, blocks) - 1)]
    try:
        serve()
    finally:
        for other in others:
            other.result()
