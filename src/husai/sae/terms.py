"""What training may add to an architecture's own loss, and what steers it: pure functions of stacked tensors."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

ADDED = ("decorrelation", "probe", "temporal")  # names of the terms that a recipe adds
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


def probe(
    codes: Float[Tensor, "seeds batch d_sae"],
    weight: Float[Tensor, "seeds d_sae classes"],
    bias: Float[Tensor, "seeds classes"],
    labels: Int[Tensor, "seeds batch"],
) -> Float[Tensor, "seeds"]:
    """Mean over the batch of the cross-entropy, in nats, of softmax(h·weight + bias) to the labels (requirements.md D2)."""
    logits = torch.baddbmm(bias[:, None], codes, weight)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels).mean(-1)


def temporal(
    codes: Float[Tensor, "seeds batch d_sae"],
    before: Float[Tensor, "seeds batch d_sae"],
    follows: Bool[Tensor, "seeds batch"],
) -> Float[Tensor, "seeds"]:
    """Mean of ‖h_t − h_{t−1}‖² over the samples that follow another (requirements.md D2); 0 if none does.

    before: codes of the samples one step earlier; of no account where `follows` is false.
    """
    moved = (codes - before).pow(2).sum(-1) * follows
    return moved.sum(-1) / follows.sum(-1).clamp(min=1)


def steer(
    strength: Float[Tensor, "seeds"], l0: Float[Tensor, "seeds"], *, target: float, rate: float
) -> Float[Tensor, "seeds"]:
    """strength · exp(rate · (log L0 − log target)), kept between 1e-4 and 1e4; an L0 of 0 counts as target/100."""
    off = (l0 / target).clamp(1 / FAR, FAR).log()
    return (strength * (rate * off).exp()).clamp(WEAKEST, STRONGEST)
