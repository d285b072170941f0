"""Does a dictionary recover whole subspaces, however it cuts them up? (docs/method.md §Subspaces)"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from husai.errors import HusaiError
from husai.truth.planes import Families, GroundTruth, coincide, plane_of

RECOVERED = 0.9  # squared principal cosines from which a subspace counts as recovered
PROBES = 4  # atoms from whose codes a subspace's functions are predicted
LONGEST = 32  # atoms up to which it is asked how few suffice
TIE = 1e-5  # shares of energy that differ by less are equal but for rounding
DEPENDENT = 1e-10  # a code with a smaller share of its variance left, after others were taken out, is a copy of theirs


class Aggregate(NamedTuple):
    """Over all subspaces of a hook. recovered: fraction. cos2: mean of the least squared principal cosine. r2: mean."""

    recovered: float
    cos2: float
    r2: float


class SubspaceRecovery(NamedTuple):
    """One value a merged true subspace, in the order of the truth.

    label: its name. assigned: number of atoms with more energy in it than in any other. cos2: least squared cosine of
    the principal angles between it and the span of these atoms, 0 if they do not span enough. recovered: cos2 ≥ .9.
    r2: share of the variance of its Fourier functions that at most 4 codes predict. needed: number of atoms from which
    cos2 ≥ .9; nan where 32 do not suffice.
    """

    label: tuple[str, ...]
    assigned: Int[np.ndarray, "subspaces"]
    cos2: Float[np.ndarray, "subspaces"]
    recovered: Bool[np.ndarray, "subspaces"]
    r2: Float[np.ndarray, "subspaces"]
    needed: Float[np.ndarray, "subspaces"]

    @property
    def aggregate(self) -> Aggregate:
        return Aggregate(float(self.recovered.mean()), float(self.cos2.mean()), float(self.r2.mean()))


def subspace_recovery(
    codes: Float[Tensor, "samples n_live"], atoms: Float[Tensor, "n_live d"], truth: GroundTruth, families: Families
) -> SubspaceRecovery:
    """Recovery of every true subspace by unit atoms and what they contribute, codes in units of such atoms.

    families: the Fourier functions of the samples. Raises HusaiError if they are of other samples, or lack a function
    that the truth names.
    """
    if len(codes) != len(families.basis):
        raise HusaiError(f"codes: {len(codes)} samples, but the families are of {len(families.basis)}")
    centred = codes.double()
    centred = centred - centred.mean(0)
    bases = [subspace.basis for subspace in truth.subspaces]
    assigned, cos2, needed = [], [], []
    spread = centred.pow(2).mean(0).sqrt()
    for basis, own in zip(bases, spanning(atoms, spread, bases, coinciding(bases)), strict=True):
        own = own[(own @ basis).pow(2).sum(1).argsort(descending=True, stable=True)]
        assigned.append(len(own))
        cos2.append(span_cos2(own, basis))
        needed.append(_needed(own, basis))
    targets = [
        torch.cat([families.columns(variable, subspace.k) for variable in subspace.variables], dim=1)
        for subspace in truth.subspaces
    ]
    least = np.array(cos2)
    return SubspaceRecovery(
        label=tuple(subspace.label for subspace in truth.subspaces),
        assigned=np.array(assigned),
        cos2=least,
        recovered=least >= RECOVERED,
        r2=np.array(probe_r2(centred, targets)),
        needed=np.array(needed),
    )


def coinciding(bases: list[Float[Tensor, "d _"]]) -> Bool[Tensor, "subspaces subspaces"]:
    """Which subspaces are one plane, of several frequencies."""
    return torch.tensor([[one.shape == other.shape and coincide(one, other) for other in bases] for one in bases])


def spanning(
    atoms: Float[Tensor, "n d"],
    spread: Float[Tensor, "n"],
    bases: list[Float[Tensor, "d _"]],
    shared: Bool[Tensor, "subspaces subspaces"],
) -> list[Float[Tensor, "n_own d"]]:
    """For each subspace its atoms, times the standard deviation of their codes; those that are `coinciding` share theirs."""
    weighted, home = atoms.double() * spread.double()[:, None], _home(atoms, bases)
    return [weighted[own[home]] for own in shared]


def _home(atoms: Float[Tensor, "n d"], bases: list[Float[Tensor, "d _"]]) -> Int[Tensor, "n"]:
    """The subspace that holds most of each atom's energy, the first of several that hold as much."""
    shares = torch.stack([(atoms.double() @ basis).pow(2).sum(1) for basis in bases])
    return (shares >= shares.max(0).values - TIE).int().argmax(0)


def leading_span(weighted: Float[Tensor, "n d"], dim: int) -> Float[Tensor, "d dim"] | None:
    """Orthonormal basis of the `dim` leading directions of weighted atoms; None if too few count.

    A direction counts, as in a true plane, if its singular value exceeds 5% of the first.
    """
    span = plane_of(weighted.T)[:, :dim] if len(weighted) >= dim else None
    return span if span is not None and span.shape[1] == dim else None


def least_cos2(first: Float[Tensor, "d dim"] | None, second: Float[Tensor, "d dim"] | None) -> float:
    """Least squared principal cosine of two subspaces of as many dimensions; 0 where one is missing."""
    if first is None or second is None:
        return 0.0
    return float(torch.linalg.svdvals(first.T @ second).min().square())


def span_cos2(weighted: Float[Tensor, "n d"], basis: Float[Tensor, "d dim"]) -> float:
    """Least squared principal cosine between a subspace and the `leading_span` of weighted atoms; 0 if there is none."""
    return least_cos2(basis, leading_span(weighted, basis.shape[1]))


def _needed(weighted: Float[Tensor, "n d"], basis: Float[Tensor, "d dim"]) -> float:
    """The least number of leading rows that recover the subspace; nan if none up to 32 does."""
    counts = range(basis.shape[1], min(len(weighted), LONGEST) + 1)
    return next((float(m) for m in counts if span_cos2(weighted[:m], basis) >= RECOVERED), float("nan"))


def probe_r2(centred: Float[Tensor, "samples n"], targets: list[Float[Tensor, "samples functions"]]) -> list[float]:
    """For each set of centred targets, R² (pooled over the set) of least squares on at most 4 centred codes.

    Codes are chosen one by one, each the one that explains most of what is left. Centring stands for the intercept.
    """
    variance = centred.pow(2).sum(0)
    left = [variance.clone() for _ in targets]
    products = list((centred.T @ torch.cat(targets, dim=1)).split([target.shape[1] for target in targets], dim=1))
    chosen = [centred[:, :0] for _ in targets]
    explained = [0.0 for _ in targets]
    for _ in range(min(PROBES, centred.shape[1])):
        steps = []
        for j, target in enumerate(targets):
            usable = left[j] > DEPENDENT * variance
            best = int(torch.where(usable, products[j].pow(2).sum(1) / left[j], -1.0).argmax())
            step = centred[:, best] - chosen[j] @ (chosen[j].T @ centred[:, best])
            step = step / step.norm() if bool(usable[best]) else torch.zeros_like(step)
            explained[j] += float((step @ target).square().sum())
            chosen[j] = torch.cat([chosen[j], step[:, None]], dim=1)
            steps.append(step)
        reached = centred.T @ torch.stack(steps, dim=1)
        for j, target in enumerate(targets):
            left[j] = left[j] - reached[:, j].square()
            products[j] = products[j] - reached[:, j : j + 1] * (steps[j] @ target)
    return [amount / float(target.square().sum()) for amount, target in zip(explained, targets, strict=True)]


def above(observed: SubspaceRecovery, nulls: list[SubspaceRecovery]) -> Aggregate:
    """The aggregate figures less their mean over null dictionaries of equal size."""
    mean = np.mean([null.aggregate for null in nulls], axis=0)
    return Aggregate(*(np.array(observed.aggregate) - mean).tolist())
