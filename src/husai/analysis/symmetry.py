"""One dictionary, or one up to the task's symmetry? (docs/method.md §Symmetry)

The symmetry c → c + Δ rotates the planes of the answer jointly and maps one good dictionary to another. As an operator
S_Δ is the identity off the true subspaces that carry the answer (`sum`) and, inside them, the least-squares linear map
from the answer means μ_c to μ_{c+Δ}; atoms are renormalised after it. Planes of a and b alone are left where they are:
answer means say nothing about them.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from husai.activations import Activations
from husai.analysis.matching import match
from husai.truth.planes import GroundTruth

EXACT_ATOMS = 256  # up to here every shift is matched exactly
SHORTLIST = 3  # beyond, `aligned` matches exactly only the shifts with the largest upper bounds


class Shifts(NamedTuple):
    """S_Δ for Δ = 0 … n − 1: `basis` (d, r) of the answer subspaces, `maps` (n, r, r) acting on row coordinates."""

    basis: Float[Tensor, "d r"]
    maps: Float[Tensor, "n r r"]

    def similarity(self, A: Float[Tensor, "n_A d"], B: Float[Tensor, "n_B d"], *, abs: bool = False):
        """A function Δ → cosines (n_A, n_B) of A with S_Δ B, or their magnitudes."""
        inside_a, inside_b = A @ self.basis, B @ self.basis
        outside = A @ B.T - inside_a @ inside_b.T
        rest = (1 - inside_b.pow(2).sum(1)).clamp(min=0)

        def at(delta: int) -> Float[np.ndarray, "n_A n_B"]:
            moved = inside_b @ self.maps[delta]
            norms = (rest + moved.pow(2).sum(1)).clamp(min=1e-12).sqrt()
            found = ((outside + inside_a @ moved.T) / norms).numpy()
            return np.abs(found) if abs else found

        return at


def shift_maps(activations: Activations, truth: GroundTruth) -> Shifts | None:
    """The operators S_Δ of a hook; None where no true subspace carries the answer, so that shifts do nothing."""
    view = activations.task.group
    return answer_shifts(activations.x[view.rows], view.s, view.n, truth)


def answer_shifts(
    x: Float[Tensor, "samples d"], answers: Int[Tensor, "samples"], n: int, truth: GroundTruth
) -> Shifts | None:
    """The same of any samples of which the answer in Z_n is known."""
    if truth.answer_span is None:
        return None
    x = x.double()
    coordinates = (x - x.mean(0)) @ truth.answer_span
    counts = answers.bincount(minlength=n)[:, None]
    means = coordinates.new_zeros(n, coordinates.shape[1]).index_add_(0, answers, coordinates) / counts
    maps = [torch.linalg.lstsq(means, means.roll(-delta, 0)).solution for delta in range(n)]
    return Shifts(truth.answer_span.float(), torch.stack(maps).float())


def shifted(A: Tensor, B: Tensor, shifts: Shifts, deltas: list[int], *, abs: bool = False) -> float:
    """Mean over `deltas` (all Δ ≠ 0, or a spaced sample of them) of pwmcc(A, S_Δ B), signed or not as there.

    With B = A this is `self_shift`: how nearly one dictionary is closed under the symmetry.
    """
    at = shifts.similarity(A, B, abs=abs)
    return float(np.mean([match(at(delta)).cosines.mean() for delta in deltas]))


def aligned(A: Tensor, B: Tensor, shifts: Shifts, deltas: list[int], *, abs: bool = False) -> float:
    """Max over `deltas` (all Δ, 0 included) of pwmcc(A, S_Δ B), signed or not as there.

    Above 256 atoms only the few Δ with the largest upper bound (mean best cosine of the smaller dictionary's atoms) are
    matched, so the figure is a lower bound of the maximum there; its null is computed the same way.
    """
    at = shifts.similarity(A, B, abs=abs)
    if max(len(A), len(B)) > EXACT_ATOMS:
        bounds = []
        for delta in deltas:
            similarity = at(delta)
            bounds.append(similarity.max(1 if len(A) <= len(B) else 0).mean())
        deltas = [deltas[i] for i in np.argsort(bounds)[::-1][:SHORTLIST]]
    return float(max(match(at(delta)).cosines.mean() for delta in deltas))


def spaced(first: int, order: int, count: int) -> list[int]:
    """At most `count` shifts from first … order − 1, evenly spaced."""
    every = np.arange(first, order)
    return every[np.linspace(0, len(every) - 1, min(count, len(every))).round().astype(int)].tolist()
