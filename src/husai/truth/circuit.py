"""Key frequencies and the verification gate: is this model's output the Fourier circuit? (docs/method.md §The gate)

Everything is float64, over the whole grid (of a recurrent network: over all its walks, docs/method.md §Recurrent networks),
in the group coordinates of `husai.tasks.GroupView`. For `mul` and `div` the gate sees the nonzero pairs and the nonzero
answers; accuracy still counts every pair.
"""

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from husai.errors import HusaiError
from husai.models import Inputs, Model, require_inputs
from husai.tasks import GroupView
from husai.truth.evidence import evidence
from husai.truth.fourier import characters, frequency_norms, n_frequencies
from husai.truth.variants import Variant, distance_irrelevance, pizza_fve, require_variant

KEY_NORM_RATIO = 0.25  # a key's norm in W_L exceeds this share of the largest
KEY_ALPHA_RATIO = 0.1  # a key's |α| in the logits exceeds this share of the largest
MIN_KEY_SHARE = 0.95
MIN_FVE = 0.95
MIN_FVE_VARIANT = 0.999
RESTRICTED_SLACK = (1e-6, 1e-12)  # relative, absolute: exact circuits sit on the edge
EXCLUDED_SLACK = 1e-5
LIVE_NEURON = 1e-6  # a live neuron's variance exceeds this share of the largest
PURE_NEURON = 0.85


@dataclass(frozen=True)
class Condition:
    """One condition of the gate: `value relation bound`."""

    name: str
    value: float
    relation: str
    bound: float

    @property
    def passed(self) -> bool:
        return self.value >= self.bound if self.relation == ">=" else self.value <= self.bound

    def __str__(self) -> str:
        gap = "" if self.passed else f" (misses by {abs(self.value - self.bound):.3g})"
        return f"{self.name} {self.value:.6g} {self.relation} {self.bound:.6g}{gap}"


@dataclass(frozen=True)
class GateReport:
    """What the gate measured. Losses in nats; frequencies as integers 1 … n/2 of the op's group.

    key_rule: `W_L` (norms of W_out·W_U) or `logits` (coefficients α of the row-centred logits).
    key_frequencies_logits, key_frequencies_embedding: what the other readings say, for comparison.
    variant, fve_variant: the form asked for, and the R² on its regressors (None for `plain`, which is `fve`).
    neuron_purity: fraction of live MLP neurons (of a recurrent network, hidden units) with over 85% of their variance in
    one frequency.
    gradient_symmetricity (None for a recurrent network), distance_irrelevance (None where the right logit is constant):
    clock or pizza?
    spectrum_W_L (None where W_L is not the whole path), spectrum_W_E, spectrum_logits: norms (|α|) per frequency.
    """

    op: str
    p: int
    accuracy: float
    key_frequencies: tuple[int, ...]
    key_rule: str
    key_share: float
    fve: float
    base_loss: float
    restricted_loss: float
    excluded_loss: float
    neuron_purity: float
    variant: Variant
    fve_variant: float | None
    gradient_symmetricity: float | None
    distance_irrelevance: float | None
    conditions: tuple[Condition, ...]
    key_frequencies_logits: tuple[int, ...]
    key_frequencies_embedding: tuple[int, ...]
    spectrum_W_L: tuple[float, ...] | None
    spectrum_W_E: tuple[float, ...]
    spectrum_logits: tuple[float, ...]

    @property
    def passed(self) -> bool:
        return all(condition.passed for condition in self.conditions)

    @property
    def failed_conditions(self) -> tuple[str, ...]:
        return tuple(condition.name for condition in self.conditions if not condition.passed)

    def failures(self) -> str:
        """The failed conditions with how much each misses by, or an empty string."""
        return "; ".join(str(condition) for condition in self.conditions if not condition.passed)

    def to_json(self) -> dict[str, object]:
        """Plain data: every field, `passed`, `failed_conditions`, and each condition as one sentence."""
        plain = asdict(self)
        plain["conditions"] = [str(condition) for condition in self.conditions]
        return plain | {"passed": self.passed, "failed_conditions": list(self.failed_conditions)}


def verify(model: Model, task: Inputs, *, variant: str = "plain") -> GateReport:
    """Run the gate; `variant` says which form the logits must have: `plain`, or `pizza` (docs/method.md §Variants).

    Raises HusaiError for another variant, a task that is not the model's, or weights that are not finite.
    """
    form = require_variant(variant)
    require_inputs(model, task)
    if not all(bool(value.isfinite().all()) for value in model.params.values()):
        raise HusaiError(f"model {model.name}: its weights hold NaN or infinity; nothing can be verified")
    view, seen = task.group, evidence(model.to(torch.float64), task)
    logits = seen.logits
    alphas, fve_of = _logit_coefficients(logits, view)
    logit_keys = _above(alphas.abs(), KEY_ALPHA_RATIO)
    w_l = seen.logit_map
    if w_l is None:
        keys, rule, spectrum = logit_keys, "logits", None
        key_share = _ratio(alphas[[k - 1 for k in keys]].pow(2).sum(), alphas.pow(2).sum())
    else:
        norms = frequency_norms(w_l)
        keys, rule, spectrum = _above(norms, KEY_NORM_RATIO), "W_L", tuple(norms.tolist())
        key_share = _ratio(norms[[k - 1 for k in keys]].pow(2).sum(), norms.pow(2).sum())
    base, restricted, excluded = _losses(logits, view, keys)
    fve_variant = pizza_fve(logits, view, keys) if form == "pizza" else None
    conditions = [
        Condition("accuracy", seen.accuracy, ">=", 1.0),
        Condition("key_share", key_share, ">=", MIN_KEY_SHARE),
        Condition("fve", fve_of(keys), ">=", MIN_FVE)
        if fve_variant is None
        else Condition("fve_variant", fve_variant, ">=", MIN_FVE_VARIANT),
        Condition("restricted_loss", restricted, "<=", base * (1 + RESTRICTED_SLACK[0]) + RESTRICTED_SLACK[1]),
        Condition("excluded_loss", excluded, ">=", math.log(view.n) - EXCLUDED_SLACK),
        Condition("sparse_circuit", float(len(keys)), "<=", (task.p - 1) / 8),
    ]
    embedding = frequency_norms(seen.embedding)
    return GateReport(
        op=task.op,
        p=task.p,
        accuracy=seen.accuracy,
        key_frequencies=keys,
        key_rule=rule,
        key_share=key_share,
        fve=fve_of(keys),
        base_loss=base,
        restricted_loss=restricted,
        excluded_loss=excluded,
        neuron_purity=neuron_purity(seen.neurons, view),
        variant=form,
        fve_variant=fve_variant,
        gradient_symmetricity=seen.gradient_symmetricity,
        distance_irrelevance=distance_irrelevance(logits, view),
        conditions=tuple(conditions),
        key_frequencies_logits=logit_keys,
        key_frequencies_embedding=_above(embedding, KEY_NORM_RATIO),
        spectrum_W_L=spectrum,
        spectrum_W_E=tuple(embedding.tolist()),
        spectrum_logits=tuple(alphas.abs().tolist()),
    )


def _above(values: Float[Tensor, "frequencies"], ratio: float) -> tuple[int, ...]:
    """Frequencies whose value exceeds `ratio` times the largest."""
    return tuple((values > ratio * values.max()).nonzero()[:, 0].add(1).tolist())


def _ratio(part: Tensor, whole: Tensor) -> float:
    """part / whole, and 0 where there is nothing to take a part of (a dead model)."""
    return float(part / whole) if float(whole) > 0 else 0.0


def _logit_coefficients(logits: Float[Tensor, "rows n"], view: GroupView):
    """α_k of the row-centred logits on cos(w_k(s − c)), and a function from keys to their share of the variance.

    For each row the regressors of different k are orthogonal over c, so each α is its own least squares.
    """
    centred = logits - logits.mean(1, keepdim=True)
    by_answer = logits.new_zeros(view.n, view.n).index_add_(0, view.s, centred)
    offset = (torch.arange(view.n)[:, None] - torch.arange(view.n)[None]) % view.n
    by_offset = logits.new_zeros(view.n).index_add_(0, offset.flatten(), by_answer.flatten())
    cosines = torch.stack(
        [characters(k, torch.arange(view.n), view.n)[:, 0] for k in range(1, n_frequencies(view.n) + 1)]
    )
    energies = len(logits) * cosines.pow(2).sum(1)
    alphas = cosines @ by_offset / energies
    total = centred.pow(2).sum()

    def fve_of(keys: tuple[int, ...]) -> float:
        chosen = [k - 1 for k in keys]
        return _ratio((alphas[chosen].pow(2) * energies[chosen]).sum(), total)

    return alphas, fve_of


def sum_directions(view: GroupView, keys: tuple[int, ...]) -> Float[Tensor, "rows dim"]:
    """Orthonormal basis, over grid rows, of the mean-free functions cos(w_k s) and sin(w_k s) for all keys."""
    none = torch.zeros(len(view.s), 0, dtype=torch.float64)
    columns = torch.cat([none, *(characters(k, view.s, view.n) for k in keys)], dim=1)
    return torch.linalg.qr(columns - columns.mean(0)).Q


def _losses(logits: Float[Tensor, "rows n"], view: GroupView, keys: tuple[int, ...]) -> tuple[float, float, float]:
    """Cross-entropy of the logits, of their key part plus the mean row, and of what is left without the key part."""
    basis = sum_directions(view, keys)
    part = basis @ (basis.T @ logits)

    def loss(values: Tensor) -> float:
        return float(F.cross_entropy(values, view.s))

    return loss(logits), loss(part + logits.mean(0)), loss(logits - part)


def neuron_purity(post: Float[Tensor, "rows neurons"], view: GroupView) -> float:
    """Fraction of live neurons with over 85% of their centred variance in one frequency's block.

    The block of k is the span of {1, cos, sin}(u) ⊗ {1, cos, sin}(v), the constant removed.
    """
    post = post - post.mean(0)
    energy = post.pow(2).sum(0)
    live = energy > LIVE_NEURON * energy.max()
    if not bool(live.any()):
        return 0.0
    best = torch.zeros_like(energy)
    for k in range(1, n_frequencies(view.n) + 1):
        block = _block_basis(k, view.u, view.v, view.n)
        best = best.maximum((block.T @ post).pow(2).sum(0))
    return float((best[live] / energy[live] > PURE_NEURON).double().mean())


def _block_basis(k: int, u: Int[Tensor, "rows"], v: Int[Tensor, "rows"], n: int) -> Float[Tensor, "rows dim"]:
    one = torch.ones(len(u), 1, dtype=torch.float64)
    left, right = torch.cat([one, characters(k, u, n)], 1), torch.cat([one, characters(k, v, n)], 1)
    products = (left[:, :, None] * right[:, None, :]).flatten(1)[:, 1:]
    return torch.linalg.qr(products - products.mean(0)).Q
