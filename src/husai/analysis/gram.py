"""How far atoms of one dictionary point the same way: the off-diagonal of the decoder's Gram matrix. (docs/method.md §Fit)"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

PART = 1024  # rows of the matrix that are in memory at once


class Gram(NamedTuple):
    """gram_mean: mean |cos| over pairs of different atoms. gram_max: mean over atoms of the largest |cos| to another."""

    gram_mean: float
    gram_max: float


def gram(atoms: Float[Tensor, "n d"]) -> Gram:
    """Of n ≥ 2 unit atoms; nan for fewer."""
    count = len(atoms)
    if count < 2:
        return Gram(float("nan"), float("nan"))
    total, largest = 0.0, []
    for start in range(0, count, PART):
        cosines = (atoms[start : start + PART] @ atoms.T).abs()
        rows = torch.arange(len(cosines))
        cosines[rows, start + rows] = 0.0
        total += float(cosines.double().sum())
        largest.append(cosines.amax(1))
    return Gram(total / (count * (count - 1)), float(torch.cat(largest).double().mean()))
