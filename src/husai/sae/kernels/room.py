"""Memory that the kernels use again from step to step: fresh pages cost as much as the work on them."""

import threading
from math import prod

import torch
from torch import Tensor


class _Kept(threading.local):
    def __init__(self) -> None:
        self.tensors: dict[tuple[str, torch.dtype], Tensor] = {}
        self.views: dict[tuple[str, torch.dtype, tuple[int, ...]], Tensor] = {}


_KEPT = _Kept()


def room(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """An uninitialised tensor; the next call for this name on this thread gives the same memory again."""
    view = _KEPT.views.get((name, dtype, shape))
    return _fresh(name, shape, dtype) if view is None else view


def _fresh(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    held = _KEPT.tensors.get((name, dtype))
    if held is None or held.numel() < prod(shape):
        held = _KEPT.tensors[name, dtype] = torch.empty(prod(shape), dtype=dtype)
        _KEPT.views = {key: view for key, view in _KEPT.views.items() if key[:2] != (name, dtype)}
    view = _KEPT.views[name, dtype, shape] = held[: prod(shape)].view(shape)
    return view
