"""Dictionaries built by hand from the truth: what every score says of the best there is. (docs/method.md §Ideal dictionaries)

Where the truth is a set of planes, more than one sparse code is right. These are the three that come to mind first.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from husai.analysis.answers import answer_directions
from husai.sae.dictionary import Dictionary
from husai.sae.topk import keep_largest

Bases = Sequence[Float[Tensor, "d 2"]]


def signed_axes(bases: Bases, mean: Float[Tensor, "d"], phases: Sequence[float] | None = None) -> Dictionary:
    """Two orthogonal axes a plane, with an atom for each of their ends: 4 atoms a plane, of which about 2 fire.

    bases: orthonormal columns of planes that are orthogonal to one another. phases: by how much the axes of each plane are
    turned (radians, default 0). Reconstructs whatever lies in the planes.
    """
    atoms = _corners(bases, 4, phases)
    return by_projection(atoms, mean, torch.relu, "signed axes")


def polygon(bases: Bases, mean: Float[Tensor, "d"], corners: int, phases: Sequence[float] | None = None) -> Dictionary:
    """Evenly spaced directions in every plane, of which only the one nearest to the sample fires: one code a plane.

    Reconstructs the better, the more corners there are. Arguments as for `signed_axes`.
    """
    atoms = _corners(bases, corners, phases)

    def nearest(projections: Tensor) -> Tensor:
        return keep_largest(projections.unflatten(1, (len(bases), corners)), 1).flatten(1)

    return by_projection(atoms, mean, nearest, f"{corners}-gon")


def answer_atoms(x: Float[Tensor, "samples d"], answers: Int[Tensor, "samples"], n: int) -> Dictionary:
    """One atom an answer 0 … n − 1, which points at its mean; only the one nearest to the sample fires."""
    atoms = answer_directions(x, answers, n).float()
    return by_projection(atoms, x.mean(0), lambda projections: keep_largest(projections, 1), "answers")


def _corners(bases: Bases, corners: int, phases: Sequence[float] | None) -> Float[Tensor, "atoms d"]:
    angles = torch.arange(corners) * (2 * math.pi / corners)
    turned = [angles + phase for phase in (phases or [0.0] * len(bases))]
    waves = [torch.stack([angle.cos(), angle.sin()], dim=1) for angle in turned]
    return torch.cat([wave @ basis.float().T for wave, basis in zip(waves, bases, strict=True)])


def by_projection(
    atoms: Float[Tensor, "n d"], mean: Float[Tensor, "d"], code: Callable[[Tensor], Tensor], name: str
) -> Dictionary:
    """A dictionary whose codes are a function of the projections of x − mean on its atoms, which get length 1."""
    atoms, mean = F.normalize(atoms, dim=1), mean.float()
    return Dictionary(
        atoms, lambda x: code((x - mean) @ atoms.T), lambda codes: mean + codes @ atoms, {"architecture": name}
    )
