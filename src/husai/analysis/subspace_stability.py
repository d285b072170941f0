"""Do dictionaries span the same planes, however they cut them up? (docs/method.md §Stability)"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from husai.analysis.agreement import Agreement, Pair, agreement
from husai.analysis.matching import require_comparable
from husai.analysis.subspaces import coinciding, leading_span, least_cos2, spanning
from husai.errors import HusaiError
from husai.truth.planes import GroundTruth


def subspace_stability(
    codes: Sequence[Float[Tensor, "samples n"]], atoms: Sequence[Float[Tensor, "n d"]], truth: GroundTruth
) -> Agreement:
    """`span_stability` of unit atoms and what they contribute, codes in units of such atoms."""
    return span_stability([spread(own) for own in codes], atoms, truth)


def spread(codes: Float[Tensor, "samples n"]) -> Float[Tensor, "n"]:
    """Standard deviation of every code over the samples, float64."""
    centred = codes - codes.mean(0)
    return torch.linalg.vector_norm(centred, dim=0, dtype=torch.float64) / len(codes) ** 0.5


def span_stability(
    spreads: Sequence[Float[Tensor, "n"]], atoms: Sequence[Float[Tensor, "n d"]], truth: GroundTruth
) -> Agreement:
    """Mean over true subspaces of the least squared principal cosine between the spans that two dictionaries have of each.

    A span is that of `subspace_recovery`: the leading directions, as many as the subspace has, of the unit atoms that have
    most energy in it, each times its spread (the standard deviation of its codes). 0 for a subspace that one of the two
    does not span. In the result, `atoms` holds one value a true subspace, in the order of the truth, instead of one an
    atom; `matched` is empty. The chance level is this of `data_points` dictionaries of as many atoms.

    Raises HusaiError if a dictionary is empty, or not of the truth's width, or has another number of spreads than atoms.
    """
    bases = [subspace.basis for subspace in truth.subspaces]
    shared, spans = coinciding(bases), []
    for own, varies in zip(atoms, spreads, strict=True):
        require_comparable(own, bases[0].T)
        if len(varies) != len(own):
            raise HusaiError(f"codes: of {len(varies)} latents, but the dictionary has {len(own)} atoms")
        parts = zip(spanning(own, varies, bases, shared), bases, strict=True)
        spans.append([leading_span(weighted, basis.shape[1]) for weighted, basis in parts])

    def measure(i: int, j: int) -> Pair:
        values = np.array([least_cos2(first, second) for first, second in zip(spans[i], spans[j], strict=True)])
        mean = float(values.mean())
        return Pair(mean, mean, values, values)

    return agreement([len(bases)] * len(spans), measure)
