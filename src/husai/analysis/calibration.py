"""Does agreement between seeds predict truth? (docs/method.md §Calibration)

An atom's score is how well seeds agree on it; whether it is true is asked of its partners in yet other seeds, so that one
atom's own noise cannot make both.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from torch import Tensor

from husai.analysis.stability import best_match
from husai.analysis.stats import Interval, seed_interval

STRATA = 3  # groups of atoms of like firing rate, within which alone atoms are compared
BINS = 10


class Bin(NamedTuple):
    """Atoms of like scores: their number, mean score, and share that is true."""

    atoms: int
    score: float
    true: float


class Calibration(NamedTuple):
    """auc: chance that a true atom has a higher score than an untrue one that fires as often, .5 if scores say nothing.

    By seed, with an interval over seeds; nan where no group has both kinds of atoms. bins: the reliability curve.
    """

    auc: Interval
    per_seed: Float[np.ndarray, "seeds"]
    bins: tuple[Bin, ...]


def calibration(
    atoms: Sequence[Float[Tensor, "n_live d"]],
    true: Sequence[Bool[np.ndarray, "n_live"]],
    rates: Sequence[Float[np.ndarray, "n_live"]],
    *,
    abs: bool = False,
) -> Calibration:
    """Unit atoms, whether each is true, and its firing rate, seed by seed.

    Of the other seeds, every second one gives an atom its score, the mean cosine of its partners; the rest say whether most of
    its partners are true. An atom without a partner in either half is left out. Raises ValueError with fewer than 3 seeds.
    """
    count = len(atoms)
    if count < 3:
        raise ValueError(
            f"{count} seeds: at least 3 are needed, one to be judged, one to match and one to say what is true"
        )
    scores, labels, aucs = [], [], []
    for seed in range(count):
        others = [(seed + step) % count for step in range(1, count)]
        agreed = [_partners(atoms[seed], atoms[other], abs) for other in others[::2]]
        judged = [_partners(atoms[seed], atoms[other], abs) for other in others[1::2]]
        score = _mean([found.cosine for found in agreed])
        votes = [
            np.where(found.place >= 0, true[other][found.place], np.nan)
            for found, other in zip(judged, others[1::2], strict=True)
        ]
        share = _mean(votes)
        known = ~np.isnan(score) & ~np.isnan(share)
        scores.append(score[known])
        labels.append(share[known] > 0.5)
        aucs.append(stratified_auc(scores[-1], labels[-1], np.asarray(rates[seed])[known]))
    per_seed = np.array(aucs)
    known = per_seed[~np.isnan(per_seed)]
    auc = seed_interval(known) if len(known) else Interval(*[float("nan")] * 3)
    return Calibration(auc, per_seed, reliability(np.concatenate(scores), np.concatenate(labels)))


class _Partners(NamedTuple):
    """Of every atom: its partner's place in the other dictionary, −1 where it has none, and their cosine or nan."""

    place: np.ndarray
    cosine: np.ndarray


def _partners(A: Tensor, B: Tensor, abs: bool) -> _Partners:
    found = best_match(A, B, abs=abs).matching
    place, cosine = np.full(len(A), -1), np.full(len(A), np.nan)
    place[found.rows], cosine[found.rows] = found.columns, found.cosines
    return _Partners(place, cosine)


def _mean(rows: list[np.ndarray]) -> np.ndarray:
    """Mean over seeds of what is known; nan where nothing is."""
    stacked = np.stack(rows)
    known = ~np.isnan(stacked)
    total = np.where(known, stacked, 0).sum(0)
    return np.where(known.any(0), total / known.sum(0).clip(min=1), np.nan)


def auc(scores: Float[np.ndarray, "n"], labels: Bool[np.ndarray, "n"]) -> float:
    """Area under the ROC curve (Mann–Whitney; ties count half); nan without both kinds."""
    positive, negative = int(labels.sum()), int((~labels).sum())
    if not positive or not negative:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[labels].sum() - positive * (positive + 1) / 2) / (positive * negative))


def stratified_auc(
    scores: Float[np.ndarray, "n"], labels: Bool[np.ndarray, "n"], rates: Float[np.ndarray, "n"], strata: int = STRATA
) -> float:
    """Mean `auc` within groups of equal size by firing rate, weighted by their pairs of a true and an untrue atom."""
    total = weight = 0.0
    for group in np.array_split(np.argsort(rates, kind="stable"), strata):
        own = labels[group]
        pairs = int(own.sum()) * int((~own).sum())
        if pairs:
            total, weight = total + pairs * auc(scores[group], own), weight + pairs
    return total / weight if weight else float("nan")


def reliability(scores: Float[np.ndarray, "n"], labels: Bool[np.ndarray, "n"], bins: int = BINS) -> tuple[Bin, ...]:
    """Share of true atoms along the scores, in groups of equal size."""
    groups = [group for group in np.array_split(np.argsort(scores, kind="stable"), bins) if len(group)]
    return tuple(Bin(len(group), float(scores[group].mean()), float(labels[group].mean())) for group in groups)
