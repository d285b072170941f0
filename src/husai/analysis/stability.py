"""Agreement of any dictionaries, of any number of atoms, pair by pair and atom by atom. (docs/method.md §Stability)

Atoms are unit decoder rows of live latents, encoders the encoder directions of the same latents.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from husai.analysis.assignment import certified_match
from husai.analysis.matching import Matching, cosines, match, require_comparable

SAME = 0.7  # cosine from which two atoms count as one (Paulo & Belrose 2025)
EXACT = 8192  # atoms up to which all cosines are held at once and matched exactly
BLOCK = 1 << 24  # cosines held at once where only the best are asked for


class Matched(NamedTuple):
    """A one-to-one matching, and by how much the mean cosine of the best one may exceed its own (0: it is the best)."""

    matching: Matching
    gap: float

    @property
    def mean(self) -> float:
        return float(self.matching.cosines.mean())


def best_match(A: Float[Tensor, "n_A d"], B: Float[Tensor, "n_B d"], *, abs: bool = False) -> Matched:
    """Exact up to 8192 atoms, beyond by `certified_match`. abs: |cosine| is matched. Raises HusaiError as `cosines`."""
    if max(len(A), len(B)) > EXACT:
        found = certified_match(A, B, abs=abs)
        return Matched(found.matching, found.gap)
    similarity = cosines(A, B)
    return Matched(match(np.abs(similarity) if abs else similarity), 0.0)


def shared_fraction(decoders: Matching, encoders: Matching, same: float = SAME) -> float:
    """Share of matched atoms that both matchings give the same partner, at cosines of at least `same` in both.

    Paulo & Belrose 2025, arXiv 2501.16615: decoder and encoder directions are matched separately. Both matchings are of
    the same two dictionaries.
    """
    partner = np.full(1 + max(decoders.rows.max(), encoders.rows.max()), -1)
    beside = np.zeros(len(partner))
    partner[encoders.rows], beside[encoders.rows] = encoders.columns, encoders.cosines
    alike = np.minimum(decoders.cosines, beside[decoders.rows]) >= same
    return float((alike & (partner[decoders.rows] == decoders.columns)).mean())


class Nearest(NamedTuple):
    """The largest cosine and the largest |cosine| of every atom with any atom of the other dictionary."""

    rows: Float[np.ndarray, "n_A"]
    columns: Float[np.ndarray, "n_B"]
    rows_abs: Float[np.ndarray, "n_A"]
    columns_abs: Float[np.ndarray, "n_B"]


def nearest(A: Float[Tensor, "n_A d"], B: Float[Tensor, "n_B d"]) -> Nearest:
    """Many-to-one, in blocks, so that n_A × n_B cosines are never held. Raises HusaiError as `cosines`."""
    require_comparable(A, B)
    lowest, highest = torch.full((len(B),), torch.inf), torch.full((len(B),), -torch.inf)
    rows, rows_abs = [], []
    for part in A.split(max(1, BLOCK // len(B))):
        block = part @ B.T
        low, high = block.aminmax(dim=1)
        rows.append(high)
        rows_abs.append(torch.maximum(high, -low))
        low, high = block.aminmax(dim=0)
        lowest, highest = torch.minimum(lowest, low), torch.maximum(highest, high)
    found = (torch.cat(rows), highest, torch.cat(rows_abs), torch.maximum(highest, -lowest))
    return Nearest(*(values.numpy() for values in found))


class Stability(NamedTuple):
    """S dictionaries, pair by pair; matrices have ones on the diagonal.

    pwmcc, max_cosine: as in `matching`. shared_fraction: `shared_fraction`; None where encoders are not given.
    reappearance: [i, j] share of i's atoms whose best cosine with an atom of j is at least .7 (many-to-one, so not
    symmetric). gap: what the best matching's pwmcc may exceed this one by. counts: for every atom of every dictionary, in
    how many of the S − 1 others it reappears.
    """

    pwmcc: Float[np.ndarray, "seeds seeds"]
    max_cosine: Float[np.ndarray, "seeds seeds"]
    shared_fraction: Float[np.ndarray, "seeds seeds"] | None
    reappearance: Float[np.ndarray, "seeds seeds"]
    gap: Float[np.ndarray, "seeds seeds"]
    counts: tuple[Int[np.ndarray, "n"], ...]

    @property
    def everywhere(self) -> Float[np.ndarray, "seeds"]:
        """Share of each dictionary's atoms that reappear in all others."""
        return np.array([float((count == len(self.counts) - 1).mean()) for count in self.counts])


def stability(
    atoms: Sequence[Float[Tensor, "n d"]],
    encoders: Sequence[Float[Tensor, "n d_in"]] | None = None,
    *,
    abs: bool = False,
) -> Stability:
    """Every pair once. encoders: unit encoder directions of the same latents; those of nulls are the atoms themselves.

    abs: cosines count by magnitude, as of atoms whose codes have signs. Raises HusaiError for dictionaries that are empty
    or of different width.
    """
    size = len(atoms)
    pwmcc, largest, shared, again = (np.ones((size, size)) for _ in range(4))
    gap, counts = np.zeros((size, size)), tuple(np.zeros(len(own), int) for own in atoms)
    for i in range(size):
        for j in range(i + 1, size):
            matched, best = best_match(atoms[i], atoms[j], abs=abs), nearest(atoms[i], atoms[j])
            pwmcc[i, j] = pwmcc[j, i] = matched.mean
            gap[i, j] = gap[j, i] = matched.gap
            largest[i, j] = largest[j, i] = (best.rows_abs.mean() + best.columns_abs.mean()) / 2
            there, back = _same(best.rows_abs if abs else best.rows), _same(best.columns_abs if abs else best.columns)
            again[i, j], again[j, i] = there.mean(), back.mean()
            counts[i][there] += 1
            counts[j][back] += 1
            if encoders is not None:
                tied = encoders[i] is atoms[i] and encoders[j] is atoms[j]
                beside = matched if tied else best_match(encoders[i], encoders[j], abs=abs)
                shared[i, j] = shared[j, i] = shared_fraction(matched.matching, beside.matching)
    return Stability(pwmcc, largest, shared if encoders is not None else None, again, gap, counts)


def _same(best: Float[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    return best >= SAME


def activation_matching(
    A: Float[Tensor, "samples n_A"], B: Float[Tensor, "samples n_B"], *, abs: bool = False
) -> Matched:
    """Its mean: mean Pearson correlation of codes on the same samples under the matching that makes it largest.

    Signed unless `abs`. A latent whose code never changes correlates with none (0). Raises HusaiError for dictionaries
    without latents or codes of different samples.
    """
    return best_match(standardised(A), standardised(B), abs=abs)


def standardised(codes: Float[Tensor, "samples n"]) -> Float[Tensor, "n samples"]:
    """Codes as unit rows, whose cosines are Pearson correlations; a latent that never changes is a row of zeros."""
    varies = codes.amax(0) > codes.amin(0)
    return (F.normalize(codes - codes.mean(0), dim=0) * varies).T.float().contiguous()
