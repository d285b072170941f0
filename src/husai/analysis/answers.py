"""Does an atom stand for an answer: by what it fires for, and by where it points. (docs/method.md §Answers)"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from husai.analysis.recovery import CONSTANT
from husai.errors import HusaiError

ROUNDING = 1e-6  # an answer mean this far from the overall mean, over the root mean square of the samples, is rounding


class AnswerScores(NamedTuple):
    """One value an atom.

    selectivity: η², the share of the code's variance that is a function of the answer; nan if the code never varies.
    specificity: largest share of the code's sum that falls on one answer; nan if the code is 0 throughout.
    overlap: largest cosine of the atom with a centred answer mean. Both by magnitude where any code is below 0.
    best_answer: the answer of `specificity`. nearest_answer: that of `overlap`. Both −1 where there is none.
    """

    selectivity: Float[np.ndarray, "n_atoms"]
    specificity: Float[np.ndarray, "n_atoms"]
    overlap: Float[np.ndarray, "n_atoms"]
    best_answer: Int[np.ndarray, "n_atoms"]
    nearest_answer: Int[np.ndarray, "n_atoms"]


def answer_scores(
    codes: Float[Tensor, "samples n_atoms"],
    atoms: Float[Tensor, "n_atoms d"],
    x: Float[Tensor, "samples d"],
    answers: Int[Tensor, "samples"],
    n: int,
) -> AnswerScores:
    """How far each live latent stands for one of the answers 0 … n − 1.

    codes: at least 0. atoms: of length 1. x: the activations; samples without an answer in Z_n are left out of all
    three. Raises HusaiError if numbers of samples or answers do not fit.
    """
    if not len(codes) == len(x) == len(answers):
        raise HusaiError(
            f"answers: {len(codes)} codes, {len(x)} activations and {len(answers)} answers do not belong together"
        )
    if len(answers) == 0 or not 0 <= int(answers.min()) <= int(answers.max()) < n:
        raise HusaiError(f"answers: every sample needs one from 0 to {n - 1}")
    counts = answers.bincount(minlength=n)[:, None].double()
    signed = bool((codes < 0).any())
    selectivity, share = _of_codes(codes.double(), answers, counts)
    if signed:
        _, share = _of_codes(codes.double().abs(), answers, counts)
    specificity, best = share.max(0)
    alike = atoms.double() @ answer_directions(x, answers, n).T
    overlap, nearest = (alike.abs() if signed else alike).max(1)
    silent = specificity.isnan()
    return AnswerScores(
        selectivity=selectivity.numpy(),
        specificity=specificity.numpy(),
        overlap=overlap.numpy(),
        best_answer=best.masked_fill(silent, -1).numpy(),
        nearest_answer=nearest.masked_fill(overlap <= 0, -1).numpy(),
    )


def _of_codes(
    codes: Float[Tensor, "samples n_atoms"], answers: Int[Tensor, "samples"], counts: Float[Tensor, "n 1"]
) -> tuple[Float[Tensor, "n_atoms"], Float[Tensor, "n n_atoms"]]:
    """η² of every code, and the share of its sum that falls on every answer."""
    sums = codes.new_zeros(len(counts), codes.shape[1]).index_add_(0, answers, codes)
    square, mean = codes.pow(2).sum(0), codes.mean(0)
    total = (codes - mean).pow(2).sum(0)
    between = (counts * (sums / counts.clamp(min=1) - mean).pow(2)).sum(0)
    return (between / total).where(total > CONSTANT * square, torch.nan), sums / sums.sum(0)


def answer_directions(x: Float[Tensor, "samples d"], answers: Int[Tensor, "samples"], n: int) -> Float[Tensor, "n d"]:
    """Unit vectors from the mean of all samples to the mean of each answer's; 0 where they are the same up to rounding."""
    x = x.double()
    counts = answers.bincount(minlength=n)[:, None]
    centred = x - x.mean(0)
    means = centred.new_zeros(n, x.shape[1]).index_add_(0, answers, centred) / counts.clamp(min=1)
    apart = means.norm(dim=1, keepdim=True) > ROUNDING * x.pow(2).sum(1).mean().sqrt()
    return F.normalize(means, dim=1) * apart
