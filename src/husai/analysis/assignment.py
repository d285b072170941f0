"""One-to-one matching of dictionaries too large for their n² cosines, with a certificate. (docs/method.md §Large dictionaries)

A few candidates an atom are matched exactly. The prices v ≥ 0 of that matching bound every other one: no matching has a
total above Σ_i max_j (c_ij − v_j) + Σ_j v_j (weak duality of linear programs). The pairs by which this bound exceeds the
matching are the next candidates, until the two meet.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching, min_weight_full_bipartite_matching
from torch import Tensor

from husai.analysis.matching import Matching, require_comparable

CANDIDATES = 16  # pairs a row starts with
MORE = 4  # pairs a column starts with; a row that could do better gets as many in the third pass, then twice as many each time
MOST = 256  # pairs a row on average, which bound the memory
TOLERANCE = 1e-5  # of the mean cosine, at which a matching is good enough
PASSES = 50  # passes over all cosines at most
BLOCK = 1 << 22  # cosines computed at once


class Certified(NamedTuple):
    """A matching of the smaller dictionary's atoms. bound: no one-to-one matching has a larger mean cosine.

    pairs: how many candidates it was chosen from. passes: how often all cosines were computed.
    """

    matching: Matching
    bound: float
    pairs: int
    passes: int

    @property
    def mean(self) -> float:
        return float(self.matching.cosines.mean())

    @property
    def gap(self) -> float:
        """By how much an optimal matching's mean cosine may exceed this one's; up to rounding in float32."""
        return max(0.0, self.bound - self.mean)


def certified_match(
    A: Float[Tensor, "n_A d"],
    B: Float[Tensor, "n_B d"],
    *,
    abs: bool = False,
    tolerance: float = TOLERANCE,
    passes: int = PASSES,
) -> Certified:
    """A matching of unit rows whose mean cosine is within `tolerance` of the optimum, or what `passes` passes gave.

    abs: |cosine| is matched. Memory grows with n · candidates, time with n² · d a pass. Raises HusaiError as `cosines` does.
    """
    require_comparable(A, B)
    if len(A) > len(B):
        found = certified_match(B, A, abs=abs, tolerance=tolerance, passes=passes)
        columns, rows, cosines = found.matching
        order = rows.argsort()
        return found._replace(matching=Matching(rows[order], columns[order], cosines[order]))
    A, B = A.float(), B.float()
    n, m = len(A), len(B)
    graph, count = _completed(_nearest(A, B, CANDIDATES, abs).joined(_nearest(B, A, MORE, abs).turned), A, B, abs), 2
    while True:
        columns, values = _solve(graph, n, m)
        prices = _prices(graph, columns, values, m)
        done = _scan(A, B, prices, values - prices[columns], min(MORE << (count - 2), MOST, m), abs)
        count += 1
        bound = float((done.best.sum() + prices.sum(dtype=float)) / n)
        found = Certified(Matching(np.arange(n), columns, values), bound, len(graph.value), count)
        full = len(graph.value) + len(done.better.value) > max(MOST * n, m)
        if found.gap <= tolerance or count >= passes or full or not len(done.better.value):
            return found
        graph = graph.joined(done.better)


class _Pairs(NamedTuple):
    """Candidates, each once."""

    row: Int[np.ndarray, "pairs"]
    column: Int[np.ndarray, "pairs"]
    value: Float[np.ndarray, "pairs"]

    def joined(self, others: "_Pairs") -> "_Pairs":
        both = _Pairs(*(np.concatenate(parts) for parts in zip(self, others, strict=True)))
        _, first = np.unique(both.row * (both.column.max() + 1) + both.column, return_index=True)
        return _Pairs(*(part[first] for part in both))

    @property
    def turned(self) -> "_Pairs":
        return _Pairs(self.column, self.row, self.value)


class _Scan(NamedTuple):
    """One pass over all cosines c. best: max_j (c_ij − v_j) of every row. better: pairs above what the row has now."""

    best: Float[np.ndarray, "n_A"]
    better: _Pairs


def _scan(A: Tensor, B: Tensor, prices: np.ndarray, paid: np.ndarray, count: int, abs: bool) -> _Scan:
    """paid: c − v of every row's pair. `count` pairs at most are found for a row."""
    v, best, rows, columns, values = torch.from_numpy(prices), [], [], [], []
    size = min(max(1, BLOCK // len(B)), len(A))
    held = torch.empty(2, size, len(B))  # used by every block: new ones each time would leave holes in memory
    for start in range(0, len(A), size):
        part = A[start : start + size]
        cosines = torch.mm(part, B.T, out=held[0, : len(part)])
        reduced = (cosines.abs_() if abs else cosines).sub_(v)
        top = reduced.amax(1)
        best.append(top.double().numpy())
        some = (top > torch.from_numpy(paid[start : start + size] + 1e-6)).nonzero()[:, 0]
        at = torch.index_select(reduced, 0, some, out=held[1, : len(some)]).topk(count, dim=1)
        better = at.values > torch.from_numpy(paid[start : start + size])[some, None]
        rows.append((start + some)[:, None].expand_as(better)[better].numpy())
        columns.append(at.indices[better].numpy())
        values.append((at.values + v[at.indices])[better].double().numpy())
    return _Scan(np.concatenate(best), _Pairs(*(np.concatenate(part) for part in (rows, columns, values))))


def _nearest(A: Tensor, B: Tensor, count: int, abs: bool) -> _Pairs:
    """Every row's largest cosines."""
    nothing, worst = np.zeros(len(B), np.float32), np.full(len(A), -np.inf)
    return _scan(A, B, nothing, worst, min(count, len(B)), abs).better


def _completed(graph: _Pairs, A: Tensor, B: Tensor, abs: bool) -> _Pairs:
    """With pairs for rows that could not all have one of their candidates at once: any columns that are left."""
    n, m = len(A), len(B)
    edges = csr_matrix((np.ones(len(graph.row), bool), (graph.row, graph.column)), shape=(n, m))
    columns = maximum_bipartite_matching(edges, perm_type="column")
    rows = np.flatnonzero(columns < 0)
    free = np.setdiff1d(np.arange(m), columns)[: len(rows)]
    cosines = (A[rows] * B[free]).sum(1).double().numpy()
    return graph.joined(_Pairs(rows, free, np.abs(cosines) if abs else cosines))


def _solve(graph: _Pairs, n: int, m: int) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """The best matching among the candidates: the column of every row, and its value."""
    cost = csr_matrix((2 - graph.value, (graph.row, graph.column)), shape=(n, m))  # a cost of 0 would be no edge
    _, columns = min_weight_full_bipartite_matching(cost)
    chosen, values = columns[graph.row] == graph.column, np.empty(n)
    values[graph.row[chosen]] = graph.value[chosen]
    return columns, values


def _prices(graph: _Pairs, columns: np.ndarray, values: np.ndarray, m: int) -> Float[np.ndarray, "m"]:
    """The smallest prices v ≥ 0 at which every row prefers its own pair to its other candidates (Bellman–Ford)."""
    prices = np.zeros(m)
    order = graph.column.argsort(kind="stable")
    row, column, gain = graph.row[order], graph.column[order], (graph.value - values[graph.row])[order]
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    for _ in range(m):
        asked = np.maximum.reduceat(prices[columns[row]] + gain, starts)
        raised = np.maximum(prices[column[starts]], asked)
        if np.all(raised <= prices[column[starts]] + 1e-12):
            break
        prices[column[starts]] = raised
    return prices.astype(np.float32)
