"""Whether a fast twin may stand in for the plain computation."""

import importlib.util

import torch
from torch import Tensor

from husai.sae.params import FOUR, Params


def plain_floats(params: Params, x: Tensor) -> bool:
    """Whether the four tensors and x are contiguous float32 on the CPU, and a sample is reconstructed from itself."""
    tensors = [x, *(value for name, value in params.items() if name in FOUR)]
    square = params.W_dec.shape[-1] == x.shape[-1]
    return square and all(t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous() for t in tensors)


def numba_there() -> bool:
    """Whether numba (the extra `fast`) can be imported."""
    return importlib.util.find_spec("numba") is not None
