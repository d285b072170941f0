"""Do matched atoms do the same to the model's answers? (docs/method.md §Stability)"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from husai.analysis.agreement import Agreement, Pair, agreement
from husai.analysis.matching import Matching
from husai.analysis.site import Site
from husai.analysis.stability import standardised
from husai.analysis.subspace_stability import spread
from husai.analysis.symmetry import spaced
from husai.errors import HusaiError

ROWS = 1024  # samples on which atoms are removed where the rest of the model has to be run for each
PAIRS = 64  # matched atoms of two dictionaries of which it is then asked, those with most energy
HELD = 1 << 26  # changed logits held at once
NOTHING = 1e-5  # changes below this share of the logits are rounding

Cosines = Callable[[int, int, Matching], Float[np.ndarray, "pairs"]]


def functional(
    matched: Mapping[tuple[int, int], Matching],
    codes: Sequence[Float[Tensor, "samples n"]],
    atoms: Sequence[Float[Tensor, "n d"]],
    site: Site,
) -> Agreement:
    """Mean over matched atoms of the cosine between what removing each of the two changes in the answers' logits.

    matched: of every pair i < j, as `pwmcc` matches decoders. codes: what unit atoms contribute to each of the site's samples.
    What is removed is an atom's variation, (f_i − f̄_i)·atom_i, as for `effects`; a dictionary's error stays where it is.
    A change counts less its mean over the p answers, and over all samples together. An atom whose removal changes
    nothing has cosine 0. Exact where logits are linear in the activations. Elsewhere the rest of the model is run
    on at most 1024 evenly spaced samples, for at most 64 matched atoms of two dictionaries: those with the largest sum of
    both shares of energy Σ_x (f_i − f̄_i)². `matched` of the result holds the pairs that were asked; the values of other
    atoms are nan.

    Raises HusaiError if codes are of other samples or latents, atoms of another width, or a pair was not matched.
    """
    _require(matched, codes, atoms, site)
    energy = [spread(own).square() for own in codes]
    exact = site.readout is not None
    cosines = _linear(codes, atoms, energy, site) if exact else _nonlinear(codes, atoms, site)

    def measure(i: int, j: int) -> Pair:
        found = matched[i, j] if exact else _loudest(matched[i, j], energy[i], energy[j])
        return Pair.matched(found, cosines(i, j, found), (len(atoms[i]), len(atoms[j])))

    return agreement([len(own) for own in atoms], measure)


def _require(matched: Mapping, codes: Sequence[Tensor], atoms: Sequence[Tensor], site: Site) -> None:
    samples, d = site.x.shape
    for own, rows in zip(codes, atoms, strict=True):
        if own.shape != (samples, len(rows)) or rows.shape[1] != d:
            raise HusaiError(
                f"functional: codes {tuple(own.shape)} and atoms {tuple(rows.shape)} do not fit {samples} samples of width {d}"
            )
    missing = [(i, j) for j in range(len(atoms)) for i in range(j) if (i, j) not in matched]
    if missing:
        raise HusaiError(f"functional: dictionaries {missing[0]} are not matched one-to-one; pwmcc matches all pairs")


def _loudest(matching: Matching, first: Float[Tensor, "n_A"], second: Float[Tensor, "n_B"]) -> Matching:
    """The matched pairs with the largest sum of both shares of energy."""
    shares = (first / first.sum())[matching.rows] + (second / second.sum())[matching.columns]
    kept = shares.argsort(descending=True, stable=True)[:PAIRS].numpy()
    return Matching(*(values[kept] for values in matching))


def _linear(
    codes: Sequence[Float[Tensor, "samples n"]],
    atoms: Sequence[Float[Tensor, "n d"]],
    energy: Sequence[Float[Tensor, "n"]],
    site: Site,
) -> Cosines:
    """A change is an outer product of codes and readout, so that its cosine is theirs multiplied."""
    assert site.readout is not None
    least = _least(site.logits)
    readout = site.readout.double()
    readout = readout - readout.mean(1, keepdim=True)
    written = [own.double() @ readout for own in atoms]
    units = [standardised(own) for own in codes]
    sizes = [own.norm(dim=1) * (len(site.x) * varies).sqrt() for own, varies in zip(written, energy, strict=True)]

    def cosines(i: int, j: int, found: Matching) -> Float[np.ndarray, "pairs"]:
        rows, columns = torch.from_numpy(found.rows), torch.from_numpy(found.columns)
        parts = zip(rows.split(PAIRS), columns.split(PAIRS), strict=True)
        together = torch.cat([torch.linalg.vecdot(units[i][own], units[j][other]) for own, other in parts])
        alike = F.cosine_similarity(written[i][rows], written[j][columns], dim=1)
        something = (sizes[i][rows] > least) & (sizes[j][columns] > least)
        return torch.where(something, together * alike, 0.0).numpy()

    return cosines


def _nonlinear(
    codes: Sequence[Float[Tensor, "samples n"]], atoms: Sequence[Float[Tensor, "n d"]], site: Site
) -> Cosines:
    """The model is run once an atom, unless more changes than can be held come between two pairs that it is in."""
    rows = torch.tensor(spaced(0, len(site.x), ROWS))
    here, least = site.among(rows), _least(site.logits[rows])
    means = [own.mean(0) for own in codes]

    @lru_cache(maxsize=max(2, HELD // here.logits.numel()))
    def change(seed: int, i: int) -> Float[Tensor, "rows p"]:
        removed = (means[seed][i] - codes[seed][rows, i])[:, None]
        changed = _centred(here.after(removed, atoms[seed][i : i + 1]) - here.logits)
        size = float(changed.norm())
        return changed / size if size > least else torch.zeros_like(changed)

    def cosines(i: int, j: int, found: Matching) -> Float[np.ndarray, "pairs"]:
        pairs = zip(found.rows.tolist(), found.columns.tolist(), strict=True)
        return np.array([float((change(i, row) * change(j, column)).sum()) for row, column in pairs])

    return cosines


def _least(logits: Float[Tensor, "samples p"]) -> float:
    """The size of changes that are more than rounding."""
    return NOTHING * float(_centred(logits.double()).norm())


def _centred(logits: Float[Tensor, "samples p"]) -> Float[Tensor, "samples p"]:
    return logits - logits.mean(1, keepdim=True)
