"""Ground truth at a hook: which Fourier variables the activations carry, and in which subspaces. (docs/method.md §Truth)

Variables, in the group coordinates in which the operation is a sum s = u + v: `a` (functions of u), `b` (of v), `sum`
(of u + v, the answer) and `difference` (of u − v). On walks the operands are called `previous` (the state before the step)
and `input`. A family is one variable at one frequency. For mul and div the rows with a zero get a family of their own,
`zero`.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from husai.activations import Activations
from husai.errors import HusaiError
from husai.models import Inputs
from husai.truth.fourier import characters, n_frequencies

MIN_SHARE = 0.01  # a family is part of the hook's truth from this share of the variance on
MIN_SINGULAR_RATIO = 0.05  # below this the second direction of a plane does not count
MERGE_COSINE = 0.95  # planes of one frequency with all principal cosines above this are one plane
DEPENDENT = 1e-9  # functions of unit norm whose combination has a smaller squared norm are linearly dependent

Variable = str


@dataclass(frozen=True)
class Families:
    """Orthonormal functions over the grid, grouped by (variable, frequency).

    names: (variable, k) of every family. owner: (columns,) the family of each column. basis: (pairs, columns), float64;
    orthonormal within a family and, if `orthogonal`, between families (they are not for `squares`). The first column of
    a family is its cosine.
    triangles: where families overlap, R of each with (cosine, sine) = (its two columns)·R; None where they do not.
    """

    names: tuple[tuple[Variable, int], ...]
    owner: Tensor
    basis: Float[Tensor, "pairs columns"]
    triangles: Float[Tensor, "families 2 2"] | None = None

    @classmethod
    def of(
        cls, blocks: dict[tuple[Variable, int], Tensor], triangles: Float[Tensor, "families 2 2"] | None = None
    ) -> "Families":
        """From each family's orthonormal columns."""
        owner = torch.cat([torch.full((block.shape[1],), i) for i, block in enumerate(blocks.values())])
        return cls(tuple(blocks), owner, torch.cat(list(blocks.values()), dim=1), triangles)

    @property
    def orthogonal(self) -> bool:
        """Whether families do not overlap, so that their energies add up."""
        return self.triangles is None

    @cached_property
    def gram(self) -> Float[Tensor, "columns columns"]:
        """Inner products of the basis functions."""
        return self.basis.T @ self.basis

    def columns(self, variable: Variable, k: int) -> Float[Tensor, "pairs dim"]:
        """The functions of one family. Raises HusaiError if there is no such family."""
        if (variable, k) not in self.names:
            known = ", ".join(dict.fromkeys(name for name, _ in self.names))
            raise HusaiError(f"family: there is none of {variable} at k={k}; allowed are frequencies of {known}")
        return self.basis[:, self.owner == self.names.index((variable, k))]

    def coefficients(self, values: Float[Tensor, "pairs m"]) -> Float[Tensor, "columns m"]:
        """Inner products of every basis function with every centred column of `values`."""
        return self.basis.T @ (values - values.mean(0)).double()

    def energy(self, coefficients: Float[Tensor, "columns m"]) -> Float[Tensor, "families m"]:
        """Energy ‖P_family·values‖² of every column in every family, from its coefficients."""
        return coefficients.new_zeros(len(self.names), coefficients.shape[1]).index_add_(
            0, self.owner, coefficients.pow(2)
        )

    def joint_energy(
        self, coefficients: Float[Tensor, "columns m"], members: Bool[Tensor, "families"]
    ) -> Float[Tensor, "m"]:
        """Energy of every column in the joint span of some families, which is one number however they overlap."""
        chosen = members[self.owner]
        found = coefficients[chosen]
        if self.orthogonal:
            return found.pow(2).sum(0)
        return (found * (_inverse(self.gram[chosen][:, chosen]) @ found)).sum(0)

    def attribute(self, coefficients: Float[Tensor, "columns m"], total: Float[Tensor, ""]) -> "Attribution":
        """What each family accounts for in values of these coefficients and this total energy, all columns together.

        Where families overlap this is a choice, made one family after the other, and families with a share of at least
        1% are fitted jointly. (docs/method.md §Truth)
        """
        if self.orthogonal:
            return Attribution(self.energy(coefficients).sum(1) / total, coefficients)
        shares = _selected_in_turn(self.gram, coefficients) / total
        chosen = (shares >= MIN_SHARE)[self.owner]
        loadings = torch.zeros_like(coefficients)
        loadings[chosen] = _inverse(self.gram[chosen][:, chosen]) @ coefficients[chosen]
        return Attribution(shares, loadings)


class Attribution(NamedTuple):
    """shares: of every family; they sum to the share in the span of all. loadings: values = basis · loadings + rest."""

    shares: Float[Tensor, "families"]
    loadings: Float[Tensor, "columns m"]


def _selected_in_turn(
    gram: Float[Tensor, "columns columns"], coefficients: Float[Tensor, "columns m"]
) -> Float[Tensor, "families"]:
    """Energy that each family of two columns adds when, time and again, the one that adds most is taken out of the rest."""
    count = len(gram) // 2
    blocks = torch.arange(len(gram)).view(count, 2)
    energy, left = gram.new_zeros(count), torch.ones(count, dtype=torch.bool)
    while bool(left.any()):
        own = gram[blocks[:, :, None], blocks[:, None, :]]
        inverses, parts = _inverse(own), coefficients[blocks]
        gains = (parts * (inverses @ parts)).sum((1, 2)).clamp(min=0).masked_fill(~left, -1.0)
        best = int(gains.argmax())
        energy[best], left[best] = gains[best], False
        weights = gram[:, blocks[best]] @ inverses[best]
        coefficients = coefficients - weights @ coefficients[blocks[best]]
        gram = gram - weights @ gram[blocks[best]]
    return energy


def _inverse(gram: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """Pseudo-inverse of inner products of unit functions: combinations of squared norm below 1e-9 are rounding."""
    return torch.linalg.pinv(gram, atol=DEPENDENT, rtol=0.0, hermitian=True)


@lru_cache(maxsize=4)
def families(task: Inputs) -> Families:
    """All families of a grid or of walks. At the Nyquist frequency sum and difference are one function, kept as `sum`."""
    view, rows, (first, second) = task.group, len(task.a), task.variables
    blocks: dict[tuple[Variable, int], Tensor] = {}
    triangles: list[Tensor] = []
    coordinates = {first: view.u, second: view.v, "sum": view.s, "difference": (view.u - view.v) % view.n}
    for k in range(1, n_frequencies(view.n) + 1):
        for variable in coordinates:
            if variable == "difference" and 2 * k == view.n:
                continue
            full = torch.zeros(rows, 1 if 2 * k == view.n else 2, dtype=torch.float64)
            full[view.rows] = characters(k, coordinates[variable], view.n)
            blocks[variable, k] = _orthonormal(full)
            if not view.uniform:
                triangles.append(blocks[variable, k].T @ full)
    if len(view.rows) < rows:
        zero_a, zero_b = task.a == 0, task.b == 0
        indicators = [zero_a] if not zero_b.any() else [zero_a, zero_b, zero_a & zero_b]
        blocks["zero", 0] = _orthonormal(torch.stack(indicators, dim=1).double())
    return Families.of(blocks, torch.stack(triangles) if triangles else None)


def answer_families(answers: Int[Tensor, "samples"], n: int) -> Families:
    """All families of samples of which only the answer in Z_n is known; each answer must be as frequent as the others."""
    blocks = {("sum", k): _orthonormal(characters(k, answers, n)) for k in range(1, n_frequencies(n) + 1)}
    return Families.of(blocks)


def _orthonormal(columns: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
    """Orthonormal basis of the mean-free columns, in their order and with their signs."""
    q, r = torch.linalg.qr(columns - columns.mean(0))
    return q * r.diagonal().sign()


@dataclass(frozen=True)
class Subspace:
    """One true subspace: `basis` is (d, dim) with orthonormal columns; `share` of the hook's variance."""

    k: int
    variables: tuple[Variable, ...]
    basis: Float[Tensor, "d dim"]
    share: float

    @property
    def label(self) -> str:
        return f"{'/'.join(self.variables)} k={self.k}"


@dataclass(frozen=True)
class GroundTruth:
    """The truth at one hook.

    subspaces: merged, sorted by share, at least 1% each. shares: every (variable, k, share), sorted.
    unexplained: share of the variance in no family at all; with all shares it sums to 1.
    """

    hook: str
    subspaces: tuple[Subspace, ...]
    shares: tuple[tuple[Variable, int, float], ...]
    unexplained: float

    @cached_property
    def union(self) -> Float[Tensor, "d dim"]:
        """Orthonormal basis of the span of all true subspaces."""
        return span([subspace.basis for subspace in self.subspaces])

    @cached_property
    def answer_span(self) -> Float[Tensor, "d dim"] | None:
        """Orthonormal basis of the span of the subspaces that carry the answer (`sum`); None if there are none."""
        bases = [subspace.basis for subspace in self.subspaces if "sum" in subspace.variables]
        return span(bases) if bases else None

    def share_of(self, variable: Variable) -> float:
        """Summed share of a variable over all frequencies."""
        return sum(share for name, _, share in self.shares if name == variable)


def describe(truth: GroundTruth | None) -> dict[str, Any]:
    """Subspaces with their shares as plain data; without truth, none and 0 dimensions."""
    if truth is None:
        return {"subspaces": [], "dim": 0, "unexplained": None}
    subspaces = [{"label": s.label, "dim": s.basis.shape[1], "share": s.share} for s in truth.subspaces]
    return {"subspaces": subspaces, "dim": truth.union.shape[1], "unexplained": truth.unexplained}


def span(bases: list[Float[Tensor, "d _"]]) -> Float[Tensor, "d dim"]:
    """Orthonormal basis of the joint span."""
    u, s, _ = torch.linalg.svd(torch.cat(bases, dim=1), full_matrices=False)
    return u[:, s > 1e-6 * s[0]]


def find_truth(activations: Activations) -> GroundTruth:
    """The true subspaces of an activation grid.

    Raises HusaiError if no family holds 1% of the variance: such a hook has no truth to score against.
    """
    return truth_among(families(activations.task), activations.x, activations.hook)


def truth_among(family: Families, x: Float[Tensor, "pairs d"], hook: str) -> GroundTruth:
    """The subspaces in which x varies with the functions of `family`; `hook` names x in messages. Raises as above."""
    x = x.double()
    x = x - x.mean(0)
    total = x.pow(2).sum()
    if not float(total) > 0:
        raise HusaiError(f"hook {hook}: its activations do not vary over the grid, so it has no truth")
    shares, loadings = family.attribute(family.coefficients(x), total)
    order = shares.argsort(descending=True).tolist()
    groups: list[Subspace] = []
    for i in order:
        if float(shares[i]) < MIN_SHARE:
            break
        variable, k = family.names[i]
        plane = Subspace(k, (variable,), plane_of(loadings[family.owner == i].T), float(shares[i]))
        twin = next((j for j, other in enumerate(groups) if other.k == k and coincide(other.basis, plane.basis)), None)
        if twin is None:
            groups.append(plane)
        else:
            groups[twin] = _merge(groups[twin], plane, list(dict.fromkeys(name for name, _ in family.names)))
    if not groups:
        raise HusaiError(
            f"hook {hook}: no Fourier family holds {MIN_SHARE:.0%} of its variance, so it has no truth to score against"
        )
    listed = tuple((*family.names[i], float(shares[i])) for i in order)
    return GroundTruth(hook, tuple(sorted(groups, key=lambda g: -g.share)), listed, float(1 - shares.sum()))


def plane_of(directions: Float[Tensor, "d columns"]) -> Float[Tensor, "d dim"]:
    """Orthonormal basis of the directions that count: a singular value above 5% of the first."""
    u, s, _ = torch.linalg.svd(directions, full_matrices=False)
    return u[:, s > MIN_SINGULAR_RATIO * s[0]]


def coincide(first: Float[Tensor, "d _"], second: Float[Tensor, "d _"]) -> bool:
    """Whether all principal cosines of two subspaces, given by orthonormal columns, exceed .95."""
    return bool((torch.linalg.svdvals(first.T @ second) > MERGE_COSINE).all())


def _merge(first: Subspace, second: Subspace, order: list[Variable]) -> Subspace:
    """One subspace for both: the leading directions of their span, weighted by their shares; variables in `order`."""
    weighted = torch.cat([first.basis * first.share**0.5, second.basis * second.share**0.5], dim=1)
    dim = max(first.basis.shape[1], second.basis.shape[1])
    basis = torch.linalg.svd(weighted, full_matrices=False).U[:, :dim]
    variables = tuple(variable for variable in order if variable in (*first.variables, *second.variables))
    return Subspace(first.k, variables, basis, first.share + second.share)
