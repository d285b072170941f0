"""Samples that stand in for a hook's activations and keep only part of what is in them. (docs/method.md §Controls)"""

import torch
from jaxtyping import Float
from torch import Tensor

from husai.config import ControlConfig
from husai.seeding import generator


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
