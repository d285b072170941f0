"""Circuits other than the plain one: the gate's variants, and two measures of which kind a model is.

(docs/method.md §Variants of the gate; Zhong et al. 2023, arXiv 2306.17844)
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from husai.errors import HusaiError
from husai.seeding import generator
from husai.tasks import GroupView, Task
from husai.transformer.model import OPERANDS, Transformer
from husai.truth.fourier import characters

Variant = Literal["plain", "pizza"]
TRIPLES = 100  # random (a, b, c) over which gradient symmetricity is averaged, as in its source
CONSTANT = 1e-6  # the right logit counts as constant if it varies less than this share of the logits' variation


def require_variant(name: str) -> Variant:
    """Raises HusaiError unless the gate has this variant."""
    found = next((variant for variant in get_args(Variant) if variant == name), None)
    if found is None:
        raise HusaiError(f"variant: '{name}' is unknown; allowed are {', '.join(get_args(Variant))}")
    return found


def pizza_fve(logits: Float[Tensor, "rows n"], view: GroupView, keys: tuple[int, ...]) -> float:
    """R² of the row-centred logits, pooled, on cos w_k(s − c) and cos w_k(u − v)·cos w_k(s − c) for the keys k.

    Regressors of different k are orthogonal over c in every row, so each key is fitted by itself: the row's coefficient
    on cos w_k(s − c), as a function of the pair, on the constant and cos w_k(u − v). At the Nyquist frequency, where
    u − v is s, the constant alone. 0 for logits without variance.
    """
    centred = logits - logits.mean(1, keepdim=True)
    total, explained = centred.square().sum(), centred.new_zeros(())
    answers, ones = torch.arange(view.n), torch.ones(len(view.s), 1, dtype=logits.dtype)
    for k in keys:
        waves = characters(k, answers, view.n)
        strength = (centred @ waves * waves[view.s]).sum(1) / waves[:, 0].square().sum()
        form = ones if 2 * k == view.n else torch.cat([ones, characters(k, view.u - view.v, view.n)[:, :1]], dim=1)
        basis = torch.linalg.qr(form).Q
        explained = explained + waves[:, 0].square().sum() * (basis.T @ strength).square().sum()
    return float(explained / total) if float(total) > 0 else 0.0


def gradient_symmetricity(model: Transformer, task: Task) -> float:
    """Mean cosine of the gradients of logit c by the embeddings of a and of b, over 100 fixed random (a, b, c).

    From −1 to 1; near 1 where the model treats a and b alike. Rows and answers are those of the op's group.
    (Zhong et al. 2023, §4.2)
    """
    view, random = task.group, generator("gradient-symmetricity")
    rows = view.rows[torch.randint(len(view.rows), (TRIPLES,), generator=random)]
    answers = view.answer_tokens[torch.randint(view.n, (TRIPLES,), generator=random)]
    embedded: list[Tensor] = []

    def keep(name: str, value: Tensor) -> Tensor:
        if name == "hook_embed":
            embedded.append(value.detach().requires_grad_())
            return embedded[0]
        return value

    with torch.enable_grad():
        logits = model.run(task.tokens(model.layout)[rows], keep)[:, -1]
        (gradient,) = torch.autograd.grad(logits.gather(1, answers[:, None]).sum(), embedded)
    first, second = OPERANDS[model.layout]
    return float(F.cosine_similarity(gradient[:, first], gradient[:, second], dim=-1).mean())


def distance_irrelevance(logits: Float[Tensor, "rows n"], view: GroupView) -> float | None:
    """How little the right logit depends on u − v: its mean deviation at fixed u − v over its deviation at large.

    From 0 (a function of u − v) to about 1 (u − v says nothing); None if the right logit is constant, as in an exact
    clock, so that there is nothing to explain. (Zhong et al. 2023, §4.2)
    """
    right = logits.gather(1, view.s[:, None])[:, 0]
    whole = right.std(correction=0)
    if float(whole) <= CONSTANT * float(logits.std()):
        return None
    distance = (view.u - view.v) % view.n
    counts = distance.bincount(minlength=view.n)

    def mean(values: Tensor) -> Float[Tensor, "n"]:
        return values.new_zeros(view.n).index_add_(0, distance, values) / counts.clamp(min=1)

    variance = mean((right - mean(right)[distance]).square())
    return float(variance[counts > 0].sqrt().mean() / whole)
