"""Planes, or also their phases? A dictionary with each true plane turned by its own angle. (docs/method.md §Chance)"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from husai.truth.planes import GroundTruth


def plane_rotated(atoms: Float[Tensor, "n d"], truth: GroundTruth, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Unit atoms, with what lies in each true subspace turned by a random orthogonal map of it; the rest stays.

    Atoms are split over all subspaces jointly (least squares), so that what two overlapping ones share is turned once. In a
    plane the map is a rotation by a uniform angle; on a line, ±1; in more dimensions, Haar's.
    """
    bases = [subspace.basis.double() for subspace in truth.subspaces]
    inside = atoms.double() @ torch.linalg.pinv(torch.cat(bases, dim=1)).T
    moved = atoms.double().clone()
    for basis, own in zip(bases, inside.split([basis.shape[1] for basis in bases], dim=1), strict=True):
        moved += (own @ _turn(basis.shape[1], generator) - own) @ basis.T
    return F.normalize(moved, dim=1).to(atoms.dtype)


def _turn(dim: int, generator: torch.Generator) -> Float[Tensor, "dim dim"]:
    q, r = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    q = q * r.diagonal().sign()  # Haar's measure (Mezzadri 2007)
    if dim == 2 and q.det() < 0:
        q[:, 0] = -q[:, 0]
    return q
