"""The training loop of the models under study: AdamW on a scheduled rate, evaluations, and the best weights on the way."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from husai.config import OptimiserConfig
from husai.errors import HusaiError
from husai.schedule import trapezoid


class Evaluated(Protocol):
    """What the loop, its progress bar and its tracker read of an evaluation; a dataclass, one row of a history."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def step(self) -> int: ...
    @property
    def train_loss(self) -> float: ...
    @property
    def test_loss(self) -> float: ...
    @property
    def figures(self) -> str: ...


Batch = TypeVar("Batch")
Row = TypeVar("Row", bound=Evaluated)
NewModel = TypeVar("NewModel")


@dataclass(frozen=True)
class TrainedModel(Generic[NewModel, Row]):
    """Final and best weights (by default of lowest held-out loss) with the history that led there."""

    final: NewModel
    best: NewModel
    best_step: int
    history: tuple[Row, ...]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in float64: float32 rounding of tiny losses causes spikes late in training."""
    return F.cross_entropy(logits.double(), labels)


def optimise(
    params: dict[str, Tensor],
    recipe: OptimiserConfig,
    batches: Iterator[Batch],
    *,
    loss: Callable[[dict[str, Tensor], Batch], Tensor],
    evaluate: Callable[[dict[str, Tensor], int, float, float], Row],
    snapshot: Callable[[dict[str, Tensor]], NewModel],
    judge: Callable[[Row], float] = lambda row: row.test_loss,
    on_evaluation: Callable[[Row], None] = lambda _: None,
    on_step: Callable[[int, dict[str, Tensor]], None] = lambda _step, _params: None,
) -> TrainedModel[NewModel, Row]:
    """Train `params` in place for `recipe.steps` steps, one batch each.

    evaluate(params, step, rate, seconds): called every `log_every` steps and at the end. snapshot(params): a model that
    later steps leave alone. judge: what the best weights are lowest in. on_step: called after every step. Raises
    HusaiError if the loss stops being finite.
    """
    params = {name: value.requires_grad_() for name, value in params.items()}
    optimiser = torch.optim.AdamW(
        list(params.values()), lr=recipe.lr, weight_decay=recipe.weight_decay, betas=(0.9, recipe.beta2), fused=True
    )
    history: list[Row] = []
    best, best_step, best_loss = snapshot(params), 0, float("inf")
    start = time.perf_counter()
    for step in range(1, recipe.steps + 1):
        rate = recipe.lr * trapezoid(
            step - 1, steps=recipe.steps, warmup_steps=recipe.warmup_steps, decay_fraction=recipe.decay_fraction
        )
        for group in optimiser.param_groups:
            group["lr"] = rate
        value = loss(params, next(batches))
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        optimiser.step()
        if step % recipe.log_every == 0 or step == recipe.steps:
            history.append(evaluate(params, step, rate, time.perf_counter() - start))
            if not history[-1].train_loss < float("inf"):
                raise HusaiError(f"training: the loss is not finite at step {step}; lower training.lr ({recipe.lr})")
            if judge(history[-1]) < best_loss:
                best, best_step, best_loss = snapshot(params), step, judge(history[-1])
            on_evaluation(history[-1])
        on_step(step, params)
    if not history:  # a control that is not trained at all
        history.append(evaluate(params, 0, 0.0, time.perf_counter() - start))
        on_evaluation(history[0])
    return TrainedModel(snapshot(params), best, best_step, tuple(history))
