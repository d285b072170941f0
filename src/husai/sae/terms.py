"""What training may add to an architecture's own loss, and what steers it: pure functions of stacked tensors."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

WEAKEST, STRONGEST = 1e-4, 1e4  # what the controller may multiply a coefficient by
FAR = 100.0  # an L0 further from its target than this factor steers no harder


class Term(NamedTuple):
    """A loss term of the decoder alone and its gradient."""

    value: Float[Tensor, "seeds"]
    W_dec: Float[Tensor, "seeds d_sae d_out"]


def decorrelation(W_dec: Float[Tensor, "seeds d_sae d_out"]) -> Float[Tensor, "seeds"]:
    """Σ_{i≠j} (ŵ_i·ŵ_j)² over unit decoder rows ŵ (requirements.md D2).

    All pairs are summed as ‖ŴᵀŴ‖², a d_out × d_out matrix, less the pairs of a row with itself.
    """
    unit = F.normalize(W_dec, dim=-1)
    return (unit.mT @ unit).pow(2).sum((1, 2)) - unit.pow(2).sum(-1).pow(2).sum(-1)


def decorrelation_term(W_dec: Float[Tensor, "seeds d_sae d_out"], weight: float) -> Term:
    """weight · `decorrelation`, with its gradient."""
    with torch.enable_grad():
        rows = W_dec.detach().requires_grad_()
        value = weight * decorrelation(rows)
        (gradient,) = torch.autograd.grad(value.sum(), rows)
    return Term(value.detach(), gradient)


def steer(
    strength: Float[Tensor, "seeds"], l0: Float[Tensor, "seeds"], *, target: float, rate: float
) -> Float[Tensor, "seeds"]:
    """strength · exp(rate · (log L0 − log target)), kept between 1e-4 and 1e4; an L0 of 0 counts as target/100."""
    off = (l0 / target).clamp(1 / FAR, FAR).log()
    return (strength * (rate * off).exp()).clamp(WEAKEST, STRONGEST)
