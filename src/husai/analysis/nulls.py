"""Chance as a ladder of explanations: dictionaries drawn without any SAE. (docs/method.md §Chance)

ambient: isotropic directions. data: directions ~ N(0, Σ) with Σ the covariance of the SAE's input. data_points: atoms
are random centred inputs. (`untrained`, the SAEs before their first step, comes with every run and needs no drawing.)
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from husai.analysis.stats import pair_mean
from husai.sae.abstopk import keep_extremes
from husai.sae.topk import keep_largest
from husai.seeding import generator

LONGEST_PURSUIT = 32  # atoms a sample is at most made of in a pursuit
NULL_LIMIT = 0.9  # above it a null leaves no room to adjust by
DRAWN_NULLS = ("ambient", "data", "data_points")
PURSUED_NULLS = ("ambient_pursued", "data_pursued", "data_points_pursued")
CODED_NULLS = ("ambient_relu", "data_relu", "data_top_k", "data_points_relu", "data_points_top_k")

Draw = Callable[[int, torch.Generator], Float[Tensor, "n d"]]
PairScore = Callable[[Tensor, Tensor], float | tuple[float, ...]]


class NullScore(NamedTuple):
    """A null of a pairwise statistic, the mean pairwise score of S null dictionaries.

    mean: over all draws. low, high: 2.5% and 97.5% quantiles of the draws. draws: (R,) the statistic of every draw.
    pairs: (S, S) mean score of each pair over the draws, for adjustment pair by pair.
    """

    mean: float
    low: float
    high: float
    draws: Float[np.ndarray, "draws"]
    pairs: Float[np.ndarray, "seeds seeds"]

    @classmethod
    def of(cls, matrices: Float[np.ndarray, "draws seeds seeds"]) -> "NullScore":
        means = np.array([pair_mean(matrix) for matrix in matrices])
        low, high = np.quantile(means, [0.025, 0.975])
        return cls(float(means.mean()), float(low), float(high), means, matrices.mean(0))


def sampler(null: str, x: Float[Tensor, "samples d"]) -> Draw:
    """The function (n, generator) → n unit atoms of a null, for SAEs whose (raw or scaled) inputs are x."""
    centred = (x - x.mean(0)).float()
    if null == "ambient":
        return lambda n, g: F.normalize(torch.randn(n, x.shape[1], generator=g), dim=-1)
    if null == "data":
        values, vectors = torch.linalg.eigh((centred.double().T @ centred.double()) / len(x))
        root = (vectors * values.clamp(min=0).sqrt()).T.float()
        return lambda n, g: F.normalize(torch.randn(n, x.shape[1], generator=g) @ root, dim=-1)
    assert null == "data_points", null
    return lambda n, g: F.normalize(centred[_rows(len(x), n, g)], dim=-1)


class Coded(NamedTuple):
    """A null dictionary with something to say of every sample. atoms: unit rows. codes: float32, at least 0."""

    atoms: Float[Tensor, "n d"]
    codes: Float[Tensor, "samples n"]


def coded_sampler(
    null: str, x: Float[Tensor, "samples d"], l0: float, *, signed: bool = False
) -> Callable[[int, torch.Generator], Coded]:
    """The function (n, generator) → n atoms of a rung and their codes, f = ReLU((x − x̄)·atom), for scores of codes.

    ambient_relu, data_relu, data_points_relu: atoms of the rung named. data_top_k, data_points_top_k: of whose codes each
    sample keeps its k largest, k being the observed `l0` rounded, at least 1, at most n. ambient_pursued,
    data_pursued, data_points_pursued: atoms of the rung named, and codes that reconstruct, by k steps of matching pursuit
    (at most 32). signed: nothing is rectified, and the largest are those by magnitude, as for SAEs whose codes have signs.
    (docs/method.md §Chance)
    """
    assert null in (*CODED_NULLS, *PURSUED_NULLS), null
    draw = sampler(null.removesuffix("_relu").removesuffix("_top_k").removesuffix("_pursued"), x)
    centred = (x - x.mean(0)).float()

    def coded(n: int, g: torch.Generator) -> Coded:
        atoms = draw(n, g)
        if null.endswith("_pursued"):
            return Coded(atoms, pursue(centred, atoms, min(LONGEST_PURSUIT, max(1, round(l0))), signed=signed))
        projections = centred @ atoms.T
        if null.endswith("_top_k"):
            keep = keep_extremes if signed else keep_largest
            return Coded(atoms, keep(projections, min(n, max(1, round(l0)))))
        return Coded(atoms, projections if signed else projections.relu())

    return coded


def pursue(
    centred: Float[Tensor, "samples d"], atoms: Float[Tensor, "n d"], steps: int, *, signed: bool = False
) -> Float[Tensor, "samples n"]:
    """Codes of matching pursuit (Mallat & Zhang 1993): each step adds the unit atom that takes most off what is left.

    They are ≥ 0 unless `signed`.
    """
    codes, left = centred.new_zeros(len(centred), len(atoms)), centred.clone()
    for _ in range(steps):
        projections = left @ atoms.T
        best = (projections.abs() if signed else projections).argmax(1)
        amounts = projections.gather(1, best[:, None])[:, 0]
        amounts = amounts if signed else amounts.relu()
        codes.scatter_add_(1, best[:, None], amounts[:, None])
        left -= amounts[:, None] * atoms[best]
    return codes


def _rows(available: int, n: int, g: torch.Generator) -> Tensor:
    """n rows without replacement while they last."""
    return torch.cat([torch.randperm(available, generator=g) for _ in range(-(-n // available))])[:n]


def null_matrices(
    draw: Draw, n_live: tuple[int, ...], score: PairScore, *, draws: int, purpose: str, seed: int = 0
) -> Float[np.ndarray, "draws seeds seeds *scores"]:
    """Pairwise scores of `draws` × S null dictionaries with the observed numbers of live atoms."""
    matrices = []
    for r in range(draws):
        stream = generator(f"null-{purpose}", seed, r)
        matrices.append(pairwise([draw(n, stream) for n in n_live], score))
    return np.stack(matrices)


def pairwise(atoms: list[Tensor], score: PairScore) -> Float[np.ndarray, "seeds seeds *scores"]:
    """Symmetric matrix of score(A_i, A_j), each pair i < j computed once; the diagonal is 1."""
    count = len(atoms)
    values = {(i, j): score(atoms[i], atoms[j]) for i in range(count) for j in range(i + 1, count)}
    matrix = np.ones((count, count, *np.shape(next(iter(values.values())))))
    for (i, j), value in values.items():
        matrix[i, j] = matrix[j, i] = value
    return matrix


def adjusted(
    scores: Float[np.ndarray, "seeds seeds"], null: Float[np.ndarray, "seeds seeds"], limit: float = NULL_LIMIT
) -> Float[np.ndarray, "seeds seeds"] | None:
    """(score − null) / (1 − null), pair by pair; None where the null exceeds `limit` and the ratio would mean nothing."""
    off = ~np.eye(len(scores), dtype=bool)
    if null[off].max() > limit:
        return None
    result = np.ones_like(scores)
    result[off] = (scores[off] - null[off]) / (1 - null[off])
    return result
