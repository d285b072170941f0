"""Agreement of any dictionaries, of any number of atoms, pair by pair and atom by atom. (docs/method.md §Stability)

Atoms are unit decoder rows of live latents, encoders the encoder directions of the same latents.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from husai.analysis.agreement import Agreement, Pair, agreement, joined
from husai.analysis.assignment import certified_match
from husai.analysis.matching import Matching, cosines, match, require_comparable

SAME = 0.7  # cosine from which two atoms count as one (Paulo & Belrose 2025)
EXACT = 8192  # atoms up to which all cosines are held at once and matched exactly
BLOCK = 1 << 24  # cosines held at once where only the best are asked for


class Matched(NamedTuple):
    """A one-to-one matching, and by how much the mean cosine of the best one may exceed its own (0: it is the best)."""

    matching: Matching
    gap: float


def best_match(A: Float[Tensor, "n_A d"], B: Float[Tensor, "n_B d"], *, abs: bool = False) -> Matched:
    """Exact up to 8192 atoms, beyond by `certified_match`. abs: |cosine| is matched. Raises HusaiError as `cosines`."""
    if max(len(A), len(B)) > EXACT:
        found = certified_match(A, B, abs=abs)
        return Matched(found.matching, found.gap)
    similarity = cosines(A, B)
    return Matched(match(np.abs(similarity) if abs else similarity), 0.0)


def shared(decoders: Matching, encoders: Matching, same: float = SAME) -> Bool[np.ndarray, "pairs"]:
    """Which matched atoms both matchings give the same partner, at cosines of at least `same` in both.

    Their share is `shared_fraction` (Paulo & Belrose 2025, arXiv 2501.16615): decoder and encoder directions are matched
    separately. Both matchings are of the same two dictionaries.
    """
    partner = np.full(1 + max(decoders.rows.max(), encoders.rows.max()), -1)
    beside = np.zeros(len(partner))
    partner[encoders.rows], beside[encoders.rows] = encoders.columns, encoders.cosines
    alike = np.minimum(decoders.cosines, beside[decoders.rows]) >= same
    return alike & (partner[decoders.rows] == decoders.columns)


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
    """How far S dictionaries agree by what their atoms are.

    pwmcc, max_cosine: as in `matching`. shared_fraction: the share of `shared` atoms; None where encoders are not given.
    reappearance: [i, j] share of i's atoms whose best cosine with an atom of j is at least .7 (many-to-one, so not
    symmetric); of every atom, the share of the other dictionaries in which it reappears.
    """

    pwmcc: Agreement
    max_cosine: Agreement
    shared_fraction: Agreement | None
    reappearance: Agreement

    @property
    def known(self) -> dict[str, Agreement]:
        """Those that there are, by name."""
        return {name: found for name, found in self._asdict().items() if found is not None}

    @property
    def counts(self) -> tuple[Int[np.ndarray, "n"], ...]:
        """For every atom of every dictionary, in how many of the S − 1 others it reappears."""
        others = len(self.reappearance.atoms) - 1
        return tuple(np.rint(shares * others).astype(int) for shares in self.reappearance.atoms)

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
    sizes = [len(own) for own in atoms]
    pairs: dict[str, dict[tuple[int, int], Pair]] = {name: {} for name in Stability._fields}
    for place in combinations(range(len(sizes)), 2):
        (A, B), of = (atoms[i] for i in place), (sizes[place[0]], sizes[place[1]])
        matched, best = best_match(A, B, abs=abs), nearest(A, B)
        pairs["pwmcc"][place] = Pair.matched(matched.matching, matched.matching.cosines, of, matched.gap)
        largest = float(best.rows_abs.mean() + best.columns_abs.mean()) / 2
        pairs["max_cosine"][place] = Pair(largest, largest, best.rows_abs, best.columns_abs)
        there, back = (best.rows_abs, best.columns_abs) if abs else (best.rows, best.columns)
        there, back = (there >= SAME).astype(float), (back >= SAME).astype(float)
        pairs["reappearance"][place] = Pair(float(there.mean()), float(back.mean()), there, back)
        if encoders is not None:
            C, D = (encoders[i] for i in place)
            beside = matched if C is A and D is B else best_match(C, D, abs=abs)
            alike = shared(matched.matching, beside.matching).astype(float)
            pairs["shared_fraction"][place] = Pair.matched(matched.matching, alike, of)
    found = {name: joined(sizes, own) for name, own in pairs.items()}
    return Stability(
        found["pwmcc"],
        found["max_cosine"],
        None if encoders is None else found["shared_fraction"],
        found["reappearance"],
    )


def activation_matching(codes: Sequence[Float[Tensor, "samples n"]], *, abs: bool = False) -> Agreement:
    """Mean Pearson correlation of codes on the same samples under the one-to-one matching that makes it largest.

    Signed unless `abs`. A latent whose code never changes correlates with none (0). Raises HusaiError for dictionaries
    without latents or codes of different samples.
    """
    rows = [standardised(own) for own in codes]
    sizes = [len(own) for own in rows]

    def measure(i: int, j: int) -> Pair:
        found = best_match(rows[i], rows[j], abs=abs)
        return Pair.matched(found.matching, found.matching.cosines, (sizes[i], sizes[j]), found.gap)

    return agreement(sizes, measure)


def standardised(codes: Float[Tensor, "samples n"]) -> Float[Tensor, "n samples"]:
    """Codes as unit rows, whose cosines are Pearson correlations; a latent that never changes is a row of zeros."""
    varies = codes.amax(0) > codes.amin(0)
    return (F.normalize(codes - codes.mean(0), dim=0) * varies).T.float().contiguous()
