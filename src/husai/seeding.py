"""Randomness is an argument: one independent stream per purpose, never the global state."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def generator(purpose: str, *seeds: int) -> torch.Generator:
    """A CPU generator whose stream depends on `purpose` and all `seeds` and on nothing else.

    Two purposes with the same seed give unrelated streams, so that an init seed and a data seed of equal value do not
    share random numbers.
    """
    digest = hashlib.sha256(repr((purpose, *seeds)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@contextmanager
def deterministic(asked: bool = True) -> Iterator[None]:
    """Within, torch takes deterministic algorithms only, on one thread, so that reruns on a machine agree in every bit.

    Nothing changes unless `asked`. An operation that has no such algorithm raises RuntimeError (on CUDA; the CPU's have).
    """
    if not asked:
        yield
        return
    before, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, cuBLAS has none
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.set_num_threads(threads)
