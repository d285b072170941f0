"""What a kernel gives for one seed, and a whole stack's step from it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from husai.sae.architecture import Step
from husai.sae.params import Params


@dataclass(frozen=True)
class OneSeed:
    """As `Step`, without a seed axis. residual: x − x̂, valid until the next seed's step."""

    gradients: Params
    mse: Tensor
    l0: Tensor
    fired: Tensor
    terms: Mapping[str, Tensor]
    residual: Float[Tensor, "batch d_in"]


def each_seed(one: Callable[[int, Params], OneSeed], params: Params) -> Step:
    """Steps of all seeds, one after another: one(seed, its parameters without a seed axis)."""
    seeds = range(len(params.b_enc))
    steps = [one(seed, params.map(lambda value, seed=seed: value.detach()[seed])) for seed in seeds]
    made = [dict(done.gradients.items()) for done in steps]
    gradients = {name: torch.stack([one[name] for one in made]) for name in made[0]}
    mse, l0, fired = (torch.stack([getattr(done, name) for done in steps]) for name in ("mse", "l0", "fired"))
    terms = {name: torch.stack([done.terms[name] for done in steps]) for name in steps[0].terms}
    return Step(Params.of(gradients), mse, terms, l0, fired)
