"""Agreement of two dictionaries: one-to-one (`pwmcc`) and many-to-one (`max_cosine`). (docs/method.md §Stability)

A and B are unit decoder rows of live atoms; they may have different numbers of atoms.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from husai.errors import HusaiError


class Matching(NamedTuple):
    """An optimal one-to-one matching of min(n_A, n_B) pairs: A's rows, B's rows, and their cosines."""

    rows: Int[np.ndarray, "n"]
    columns: Int[np.ndarray, "n"]
    cosines: Float[np.ndarray, "n"]


def cosines(A: Float[Tensor, "n_A d"], B: Float[Tensor, "n_B d"], *, abs: bool = False) -> Float[np.ndarray, "n_A n_B"]:
    """Signed cosines of unit rows, or their magnitudes. Raises HusaiError as `require_comparable` does."""
    require_comparable(A, B)
    found = (A @ B.T).numpy()
    return np.abs(found) if abs else found


def require_comparable(A: Float[Tensor, "n_A d_A"], B: Float[Tensor, "n_B d_B"]) -> None:
    """Raises HusaiError if a dictionary is empty or the widths differ."""
    if A.shape[1] != B.shape[1]:
        raise HusaiError(f"dictionaries of different input width ({A.shape[1]} and {B.shape[1]}) cannot be compared")
    if len(A) == 0 or len(B) == 0:
        raise HusaiError("a dictionary without live atoms cannot be compared")


def match(similarity: Float[np.ndarray, "n_A n_B"]) -> Matching:
    """The matching of largest total similarity (Hungarian algorithm)."""
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    return Matching(rows, columns, similarity[rows, columns])


def pwmcc(
    A: Float[Tensor, "n_A d"],
    B: Float[Tensor, "n_B d"],
    *,
    abs: bool = False,
) -> float:
    """Pairwise mean correlation coefficient: mean cosine under the optimal one-to-one matching.

    Signed by default, because ReLU codes give atoms a sign; `abs=True` takes |cosine| (Song et al. 2025), as atoms of
    signed codes need.
    """
    return float(match(cosines(A, B, abs=abs)).cosines.mean())


def max_cosine(A: Float[Tensor, "n_A d"], B: Float[Tensor, "n_B d"]) -> float:
    """Mean of each atom's best |cosine|, averaged over both directions; many-to-one, so duplicates inflate it."""
    similarity = cosines(A, B, abs=True)
    return float((similarity.max(1).mean() + similarity.max(0).mean()) / 2)
