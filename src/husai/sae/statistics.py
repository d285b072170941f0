"""How parameters and their gradients are distributed, for a tracker."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from husai.sae.params import Params

BINS = 64


class Statistic(NamedTuple):
    """norm and mean of a tensor's entries, and their histogram: `counts` between neighbouring `edges`, one more of these."""

    norm: float
    mean: float
    counts: Int[np.ndarray, "bins"]
    edges: Float[np.ndarray, "bins+1"]


def statistic(value: Tensor) -> Statistic:
    """Of one tensor. Its entries must be finite."""
    entries = value.detach().double().cpu().flatten().numpy()
    counts, edges = np.histogram(entries, bins=BINS)
    return Statistic(float(np.linalg.norm(entries)), float(entries.mean()), counts, edges)


def statistics(params: Params, kept: float) -> dict[str, Statistic]:
    """Of every parameter and of its last gradient (after clipping, less the factor `kept`), by name and place of the seed."""
    found: dict[str, Statistic] = {}
    for name, value in params.items():
        for seed, own in enumerate(value):
            found[f"parameters/{name}/{seed}"] = statistic(own)
            if value.grad is not None:
                found[f"gradients/{name}/{seed}"] = statistic(value.grad[seed] / kept)
    return found
