"""Randomness is an argument: one independent stream per purpose, never the global state."""

import hashlib

import torch


def generator(purpose: str, *seeds: int) -> torch.Generator:
    """A CPU generator whose stream depends on `purpose` and all `seeds` and on nothing else.

    Two purposes with the same seed give unrelated streams, so that an init seed and a data seed of equal value do not
    share random numbers.
    """
    digest = hashlib.sha256(repr((purpose, *seeds)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
