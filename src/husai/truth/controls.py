"""Samples that stand in for a hook's activations and keep only part of what is in them. (docs/method.md §Controls)"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from husai.config import ControlConfig
from husai.seeding import generator
from husai.tasks import Task
from husai.truth.synthetic import Planted


def surrogate(x: Float[Tensor, "samples d"], *, generator: torch.Generator) -> Float[Tensor, "samples d"]:
    """As many Gaussian samples of x's mean and covariance: its second moments, and nothing else of it."""
    mean = x.double().mean(0)
    centred = x.double() - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return (mean + (noise * values.clamp(min=0).sqrt()) @ vectors.T).float()


def permuted(x: Float[Tensor, "samples d"], *, generator: torch.Generator) -> Float[Tensor, "samples d"]:
    """x with each coordinate along its principal axes permuted over the samples, each in an order of its own.

    Principal axes and not neurons, since a rotated model has no privileged ones.
    """
    mean = x.double().mean(0)
    axes = torch.linalg.svd(x.double() - mean, full_matrices=False).Vh
    coordinates = (x.double() - mean) @ axes.T
    order = torch.stack([torch.randperm(len(x), generator=generator) for _ in range(coordinates.shape[1])], dim=1)
    return (mean + coordinates.gather(0, order) @ axes).float()


def stand_in(x: Float[Tensor, "samples d"], control: ControlConfig) -> Float[Tensor, "samples d"]:
    """The samples of a control, from its own stream of its seed."""
    draw = {"surrogate": surrogate, "permuted": permuted}[control.kind]
    return draw(x, generator=generator(f"control-{control.kind}", control.seed))


def token_dictionary(x: Float[Tensor, "pairs d"], task: Task) -> Planted:
    """What x is if it is a sum of one vector a token, whichever operand the token is: one atom a token, as if planted.

    The vector of token t is the mean of centred x over the pairs with a = t, averaged with that over b = t; its code is
    its length once for each operand that is t. Samples are the centred x.
    """
    x = x - x.mean(0)
    sums = torch.zeros(task.p, x.shape[1]).index_add_(0, task.a, x).index_add_(0, task.b, x)
    operands = F.one_hot(task.a, task.p) + F.one_hot(task.b, task.p)
    vectors = sums / operands.sum(0)[:, None]
    return Planted(x, F.normalize(vectors, dim=1), operands * vectors.norm(dim=1))
