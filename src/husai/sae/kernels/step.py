"""What a kernel gives for one seed, and a whole stack's step from it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from husai.sae.architecture import Step
from husai.sae.params import Params


@dataclass(frozen=True)
class OneSeed:
    """As `Step`, without a seed axis and gradients. residual: x − x̂, valid until the next seed's step."""

    mse: Tensor
    l0: Tensor
    fired: Tensor
    peak: Tensor
    terms: Mapping[str, Tensor]
    residual: Float[Tensor, "batch d_in"]
    seen: Mapping[str, Tensor] = field(default_factory=dict)


def each_seed(one: Callable[[int, Params, Params], OneSeed], params: Params) -> Step:
    """Steps of all seeds, one after another: one(seed, its parameters, where its gradients go), without a seed axis."""
    values = params.map(torch.Tensor.detach)
    gradients = values.map(torch.empty_like)

    def part(whole: Params, seed: int) -> Params:
        return whole.map(lambda value: value[seed])

    steps = [one(seed, part(values, seed), part(gradients, seed)) for seed in range(len(values.b_enc))]
    names = ("mse", "l0", "fired", "peak")
    mse, l0, fired, peak = (torch.stack([getattr(done, name) for done in steps]) for name in names)
    terms = {name: torch.stack([done.terms[name] for done in steps]) for name in steps[0].terms}
    seen = {name: torch.stack([done.seen[name] for done in steps]) for name in steps[0].seen}
    return Step(gradients, mse, terms, l0, fired, peak, seen)
