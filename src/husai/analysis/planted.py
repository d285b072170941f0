"""Does it find what was planted: a dictionary and its codes against known atoms. (docs/method.md §Recovery of planted atoms)

Matchings have a row a true atom and a column a live atom; |cosine|, because a direction and its opposite span one line.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from husai.analysis.matching import Matching, cosines, match


class AtomRecovery(NamedTuple):
    """Directions. gt_mcc: matched |cosines| summed, over the number of true atoms, so that a missed one counts 0.

    gt_precision: the same sum over the number of live atoms, so that a superfluous one counts 0.
    gt_mcc_matched: the same sum over the smaller of the two numbers: the all-atom mean, which neither lowers.
    """

    gt_mcc: float
    gt_precision: float
    gt_mcc_matched: float


class FiringRecovery(NamedTuple):
    """Codes. Of the latent matched to each true atom, how its firing agrees with the atom's; averaged over true atoms.

    A true atom without a partner counts 0. f1: (n_true,) the F1 of each true atom.
    """

    firing_precision: float
    firing_recall: float
    firing_f1: float
    f1: Float[np.ndarray, "n_true"]


def match_true(atoms: Float[Tensor, "n_live d"], true: Float[Tensor, "n_true d"]) -> Matching:
    """The one-to-one matching of true atoms (rows) and live atoms (columns), both of length 1, of largest |cosine|."""
    return match(np.abs(cosines(true, atoms)))


def atom_recovery(atoms: Float[Tensor, "n_live d"], true: Float[Tensor, "n_true d"]) -> AtomRecovery:
    """How well the live unit atoms cover the true ones, each at most once."""
    total = float(match_true(atoms, true).cosines.sum())
    return AtomRecovery(total / len(true), total / len(atoms), total / min(len(true), len(atoms)))


def firing_recovery(
    fires: Bool[Tensor, "samples n_live"], active: Bool[Tensor, "samples n_true"], matching: Matching
) -> FiringRecovery:
    """How well the live latents' firing tells when their true atoms are active.

    Every latent must fire and every true atom be active in some sample.
    """
    found, there = fires[:, matching.columns], active[:, matching.rows]
    hits = (found & there).sum(0).double()
    positives, actual = found.sum(0), there.sum(0)

    def over_all(values: Tensor) -> np.ndarray:
        every = np.zeros(active.shape[1])
        every[matching.rows] = values.numpy()
        return every

    f1 = over_all(2 * hits / (positives + actual))
    return FiringRecovery(
        firing_precision=float(over_all(hits / positives).mean()),
        firing_recall=float(over_all(hits / actual).mean()),
        firing_f1=float(f1.mean()),
        f1=f1,
    )
