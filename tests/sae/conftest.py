from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from husai.sae.params import Params


@pytest.fixture
def sae_lens():
    """Imported in a test, not on collection, so that the test's warning filters apply."""
    import sae_lens

    return sae_lens


def random_params(seeds: int, d_in: int, d_sae: int, *, unit: bool = False) -> Params:
    """Float64 parameters without any special structure; decoder norms between 0.5 and 2, or 1."""
    g = torch.Generator().manual_seed(17)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    W_dec = F.normalize(normal(seeds, d_sae, d_in), dim=-1)
    if not unit:
        W_dec = W_dec * (0.5 + 1.5 * torch.rand(seeds, d_sae, 1, generator=g, dtype=torch.float64))
    return Params(normal(seeds, d_in, d_sae), 0.3 * normal(seeds, d_sae), W_dec, 0.3 * normal(seeds, d_in))


@pytest.fixture
def make_params():
    return random_params


class Planted(NamedTuple):
    """Activations x = z·atoms with 3 of 48 atoms active, and Gaussian noise of the same shape."""

    x: Tensor
    atoms: Tensor
    noise: Tensor


@pytest.fixture(scope="session")
def planted() -> Planted:
    g = torch.Generator().manual_seed(0)
    samples, d_in, count, active = 6144, 32, 48, 3
    atoms = F.normalize(torch.randn(count, d_in, generator=g), dim=-1)
    chosen = torch.stack([torch.randperm(count, generator=g)[:active] for _ in range(samples)])
    magnitudes = torch.rand(samples, active, generator=g) + 0.5
    codes = torch.zeros(samples, count).scatter(1, chosen, magnitudes)
    return Planted(codes @ atoms, atoms, torch.randn(samples, d_in, generator=g))
