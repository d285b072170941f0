"""Memory that the kernels use again from step to step: fresh pages cost as much as the work on them."""

import threading
from math import prod

import torch
from torch import Tensor


class _Kept(threading.local):
    def __init__(self) -> None:
        self.tensors: dict[tuple[str, torch.dtype], Tensor] = {}


_KEPT = _Kept()


def room(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """An uninitialised tensor; the next call for this name on this thread gives the same memory again."""
    kept = _KEPT.tensors
    held = kept.get((name, dtype))
    if held is None or held.numel() < prod(shape):
        held = kept[name, dtype] = torch.empty(prod(shape), dtype=dtype)
    return held[: prod(shape)].view(shape)
