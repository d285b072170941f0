"""Does it find what is there: a dictionary against the hook's true subspaces. (docs/method.md §Recovery)"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from husai.truth.planes import Families, GroundTruth

CONSTANT = 1e-12  # a code whose variance is a smaller share of its mean square is constant but for rounding
TRUE = 0.9  # an atom is true from this share of its energy in one true subspace on, or this cosine with what is known


def fourier_overlap(
    atoms: Float[Tensor, "n d"], truth: GroundTruth, weights: Float[Tensor, "n"] | None = None
) -> float:
    """Share of the unit atoms' energy inside the union of the true subspaces, averaged with `weights` (default even)."""
    return _mean(_share(atoms, truth.union), weights)


def decoder_overlap(
    atoms: Float[Tensor, "n d"], truth: GroundTruth, weights: Float[Tensor, "n"] | None = None
) -> float:
    """The same inside each atom's best single true subspace."""
    return _mean(best_subspace(atoms, truth)[0], weights)


def best_subspace(atoms: Float[Tensor, "n d"], truth: GroundTruth) -> tuple[Float[Tensor, "n"], Tensor]:
    """Each atom's largest share of energy in one true subspace, and the index of that subspace."""
    shares = torch.stack([_share(atoms, subspace.basis) for subspace in truth.subspaces])
    best = shares.max(0)
    return best.values, best.indices


def _share(atoms: Tensor, basis: Float[Tensor, "d dim"]) -> Float[Tensor, "n"]:
    return (atoms.double() @ basis.double()).pow(2).sum(1)


def _mean(values: Tensor, weights: Tensor | None) -> float:
    if weights is None:
        return float(values.mean())
    return float((values * weights).sum() / weights.sum())


class TrueAtoms(NamedTuple):
    """Which atoms are true. plane: by their energy in one true subspace. answer: by their cosine with an answer mean.

    true: by either, and, if it is known, confirmed by the effect of their removal.
    """

    plane: Bool[np.ndarray, "n"]
    answer: Bool[np.ndarray, "n"]
    true: Bool[np.ndarray, "n"]


def true_atoms(
    atoms: Float[Tensor, "n d"],
    truth: GroundTruth,
    overlap: Float[np.ndarray, "n"],
    confirmed: tuple[Bool[np.ndarray, "n"], Bool[np.ndarray, "n"]] | None = None,
) -> TrueAtoms:
    """Which unit atoms have at least .9 of their energy in one true subspace, or an `answer_overlap` of at least .9.

    overlap: of `analysis.answers`; at a hook whose truth does not hold the answer it makes no atom true. confirmed: whether
    removing the atom does what its label, and what its nearest answer predicts (`analysis.causal.Effects`); without it,
    that is not asked.
    """
    plane = (best_subspace(atoms, truth)[0] >= TRUE).numpy()
    answer = (overlap >= TRUE) & (truth.answer_span is not None)
    as_label, as_answer = (True, True) if confirmed is None else confirmed
    return TrueAtoms(plane, answer, (plane & as_label) | (answer & as_answer))


class Tuning(NamedTuple):
    """What each atom's code over the grid is a function of, by the energy of its centred code in each Fourier family.

    label, k: the largest family's variable and frequency. purity: that family's share. frequency_purity: largest share
    of one frequency over all its variables together. phase: angle of the code's (cos, sin) coefficients in the
    label's family, in (−π, π]. mixed: share in no family. Atoms whose code never varies are 'dead', with 0 and nan.
    """

    label: list[str]
    k: np.ndarray
    purity: np.ndarray
    frequency_purity: np.ndarray
    phase: np.ndarray
    mixed: np.ndarray


def tuning(codes: Float[Tensor, "pairs n"], family: Families) -> Tuning:
    """Tuning of n atoms from their codes over the samples that `family` has functions of.

    Shares of families and `mixed` sum to 1. For `squares`, whose families overlap, a share is what its family explains
    by itself; `frequency_purity` and `mixed` are of joint fits.
    """
    codes = codes.double()
    total = (codes - codes.mean(0)).pow(2).sum(0)
    alive = total > CONSTANT * codes.pow(2).sum(0)
    coefficients = family.coefficients(codes)
    shares = family.energy(coefficients) / total.clamp(min=1e-300)
    best = shares.argmax(0)
    per_frequency, explained = _pooled(family, coefficients, shares, total.clamp(min=1e-300))
    first = torch.searchsorted(family.owner, best)  # a family's columns are adjacent, its cosine first
    single = torch.bincount(family.owner)[best] == 1
    cosine, sine = coefficients.gather(0, torch.stack([first, (first + 1).clamp(max=len(coefficients) - 1)]))
    if family.triangles is not None:  # from the orthonormal columns to the cosine and sine themselves
        triangle = family.triangles[best]
        sine = sine / triangle[:, 1, 1]
        cosine = (cosine - triangle[:, 0, 1] * sine) / triangle[:, 0, 0]
    phase = torch.atan2(sine.masked_fill(single, 0.0), cosine)
    names = [family.names[i] for i in best.tolist()]
    live = alive.numpy()
    return Tuning(
        label=[name if ok else "dead" for (name, _), ok in zip(names, live, strict=True)],
        k=np.where(live, [k for _, k in names], 0),
        purity=np.where(live, shares.max(0).values.numpy(), np.nan),
        frequency_purity=np.where(live, per_frequency.max(0).values.numpy(), np.nan),
        phase=np.where(live, phase.numpy(), np.nan),
        mixed=np.where(live, (1 - explained).numpy(), np.nan),
    )


def _pooled(
    family: Families, coefficients: Float[Tensor, "columns n"], shares: Float[Tensor, "families n"], total: Tensor
) -> tuple[Float[Tensor, "frequencies n"], Float[Tensor, "n"]]:
    """Shares of every frequency over all its variables, and of all families together."""
    frequencies = torch.tensor([k for _, k in family.names])
    if family.orthogonal:
        per_frequency = shares.new_zeros(int(frequencies.max()) + 1, shares.shape[1])
        return per_frequency.index_add_(0, frequencies, shares), shares.sum(0)
    per_frequency = [family.joint_energy(coefficients, frequencies == k) for k in frequencies.unique().tolist()]
    every = family.joint_energy(coefficients, torch.ones_like(frequencies, dtype=torch.bool))
    return torch.stack(per_frequency) / total, every / total
