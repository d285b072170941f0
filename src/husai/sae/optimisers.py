"""What moves parameters: Adam, RMSprop with bias correction; and the average of where they have been."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from husai.config import SAETrainingConfig
from husai.sae.params import Params
from husai.sae.resample import rows_of

EPS = 1e-8


class RMSprop(torch.optim.Optimizer):
    """p ← p − lr · g / (√v̂ + ε), v̂ the bias-corrected average of g²: Adam at β1 = 0, without a first moment in memory."""

    def __init__(self, params: Iterable[Tensor], lr: float, beta2: float, eps: float = EPS) -> None:
        super().__init__(params, {"lr": lr, "beta2": beta2, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update from the gradients at hand; `closure` is torch's and plays no part."""
        for group in self.param_groups:
            beta2, eps, lr = group["beta2"], group["eps"], group["lr"]
            for value in group["params"]:
                if value.grad is None:
                    continue
                state = self.state[value]
                if not state:
                    state["step"], state["exp_avg_sq"] = 0, torch.zeros_like(value)
                state["step"] += 1
                square = state["exp_avg_sq"].mul_(beta2).addcmul_(value.grad, value.grad, value=1 - beta2)
                root = (square / (1 - beta2 ** state["step"])).sqrt_().add_(eps)
                value.addcdiv_(value.grad, root, value=-lr)


def optimiser_of(params: Iterable[Tensor], recipe: SAETrainingConfig, kept: float = 1.0) -> torch.optim.Optimizer:
    """The optimiser that a recipe names, for gradients that carry the factor `kept`: with ε along, both cancel it."""
    eps = EPS * kept
    if recipe.optimiser == "rmsprop":
        return RMSprop(params, recipe.lr, recipe.beta2, eps)
    betas = (recipe.beta1, recipe.beta2)
    return torch.optim.Adam(list(params), lr=recipe.lr, betas=betas, eps=eps, fused=True)


class Average:
    """Exponential moving average of the weights after each step, without the start: step s of t weighs decay^(t−s)."""

    def __init__(self, params: Params, decay: float) -> None:
        self.decay, self.weight = decay, 0.0
        self.total = params.map(lambda value: torch.zeros_like(value.detach()))

    def update(self, params: Params) -> None:
        with torch.no_grad():
            for total, value in zip(self.total, params, strict=True):
                total.lerp_(value, 1 - self.decay)
        self.weight += (1 - self.decay) * (1 - self.weight)

    def value(self) -> Params:
        """The average over all updates so far."""
        return self.total.map(lambda total: total / self.weight)

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight, "total": dict(self.total.items())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight = state["weight"]
        for name, total in self.total.items():
            total.copy_(state["total"][name])

    def restart(self, params: Params, replaced: Bool[Tensor, "seeds d_sae"]) -> None:
        """What a replaced latent was no longer counts."""
        with torch.no_grad():
            for (name, total), value in zip(self.total.items(), params, strict=True):
                if (rows := rows_of(name, value, replaced)) is not None:
                    total.copy_(torch.where(rows, value * self.weight, total))
