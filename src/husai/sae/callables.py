"""SAEs in no format at all: two functions and a matrix, as a Dictionary. (docs/bring_your_own.md)"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from husai.errors import HusaiError
from husai.sae.dictionary import PART, Dictionary

Array = np.ndarray[Any, Any] | Tensor
Function = Callable[[Any], Any]


def of_callables(
    encode: Function, decode: Function, W_dec: Array, name: str = "SAE", *, signed_codes: bool = False
) -> Dictionary:
    """A Dictionary that calls encode: (n, d_in) → (n, d_sae) codes and decode: (n, d_sae) → (n, d_in).

    W_dec: (d_sae, d_in), one atom a row. If it is a NumPy array, the functions are given NumPy arrays (float32), else torch
    tensors; they may return either. At most 8192 samples are given at once. signed_codes: whether codes may be negative, so
    that an atom's sign means nothing; those that are, on some sample, say so themselves. Raises HusaiError for what is no
    function or no matrix, and when called for results of another shape, or with NaN.
    """
    for what, function in (("encode", encode), ("decode", decode)):
        if not callable(function):
            raise HusaiError(f"{name}: {what} must be a function, got {type(function).__name__}")
    atoms = _tensor(W_dec, f"{name}: W_dec")
    if atoms.ndim != 2 or 0 in atoms.shape:
        raise HusaiError(f"{name}: W_dec must have shape (d_sae, d_in), one atom a row; got {tuple(atoms.shape)}")
    numpy, (d_sae, d_in) = not isinstance(W_dec, Tensor), atoms.shape

    def call(function: Function, what: str, given: Tensor, width: int) -> Tensor:
        with torch.no_grad():
            found = _tensor(function(given.numpy() if numpy else given), f"{name}: what {what} returns")
        if found.shape != (len(given), width):
            wanted = "d_sae, the rows of W_dec" if what == "encode" else "d_in, the columns of W_dec"
            raise HusaiError(
                f"{name}: {what} returns shape {tuple(found.shape)} for {len(given)} samples; it must be "
                f"{(len(given), width)}, {width} being {wanted}"
            )
        return found

    def encoded(x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_sae"]:
        return torch.cat([call(encode, "encode", part, d_sae) for part in x.split(PART)])

    def decoded(codes: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_in"]:
        return torch.cat([call(decode, "decode", part, d_in) for part in codes.split(PART)])

    return Dictionary(atoms, encoded, decoded, {"architecture": "callables"}, signed_codes)


def _tensor(value: Any, what: str) -> Tensor:
    """float32 on the CPU. Raises HusaiError for what is no array of finite numbers."""
    try:
        if value is None:
            raise TypeError
        found = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value, dtype=np.float32))
        found = found.to("cpu", torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise HusaiError(
            f"{what} must be a NumPy array or torch tensor of numbers, got {type(value).__name__}"
        ) from None
    if not bool(found.isfinite().all()):
        raise HusaiError(f"{what} holds NaN or infinity")
    return found
