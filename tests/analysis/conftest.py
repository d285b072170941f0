import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from husai.activations import Activations
from husai.seeding import generator
from husai.tasks import Task
from husai.truth.planes import GroundTruth, find_truth

D = 32
RADII = {2: 3.0, 5: 2.0, 9: 1.5}  # frequency: radius of its circle


class Circles(NamedTuple):
    """Planted circles: planes[k] is (d, 2) and holds the cosine's and the sine's direction of frequency k."""

    activations: Activations
    truth: GroundTruth
    planes: dict[int, Tensor]
    answers: Tensor  # (n,) the coordinate of every grid row's answer in the operation's group
    means: Tensor  # (n, d) the centred activation of every answer


def plant(op: str = "add", variable: str = "s") -> Circles:
    """x = Σ_k r_k·U_k·[cos w_k v, sin w_k v] + offset over the grid of p = 23, U_k random orthonormal planes in 32
    dimensions; v is the answer's coordinate (or `u`, the first input's). Rows outside the group have only the offset.
    """
    task = Task(op, 23)
    view = task.group
    basis = torch.linalg.qr(torch.randn(D, 2 * len(RADII), generator=generator("test-circles"), dtype=torch.float64)).Q
    planes = dict(zip(RADII, basis.split(2, dim=1), strict=True))

    def circle(values: Tensor) -> Tensor:
        angle = 2 * math.pi * values.double() / view.n
        return sum(
            radius * torch.stack([(k * angle).cos(), (k * angle).sin()], 1) @ planes[k].T for k, radius in RADII.items()
        )

    x = torch.zeros(len(task.a), D, dtype=torch.float64)
    x[view.rows] = circle(getattr(view, variable))
    activations = Activations((x + 0.7).float(), task, "blocks.0.hook_resid_post", "planted", True)
    return Circles(activations, find_truth(activations), planes, view.s, circle(torch.arange(view.n)).float())


@pytest.fixture(scope="session")
def plant_circles() -> Callable[..., Circles]:
    return plant


@pytest.fixture(scope="session")
def circles() -> Circles:
    return plant()


@pytest.fixture(scope="session")
def directions() -> Callable[..., Tensor]:
    """n random unit rows in d dimensions."""

    def draw(n: int, d: int, seed: int = 0) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(n, d, generator=generator("test-directions", seed)), dim=-1)

    return draw


@pytest.fixture
def sae_lens():
    """Imported in a test, not on collection, so that the test's warning filters apply."""
    import sae_lens.synthetic

    return sae_lens
