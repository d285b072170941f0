"""Seeded training of a recurrent network on the running sum mod p."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from husai.config import RecurrentConfig
from husai.optimise import TrainedModel, cross_entropy, optimise
from husai.recurrent.model import READOUT, Params, Recurrent, hidden, init_params
from husai.recurrent.walks import Walks
from husai.seeding import generator


@dataclass(frozen=True)
class WalkEvaluation:
    """One row of a training history: mean cross-entropy in nats, float64, and accuracy over all times, 0 included.

    train: on the batch of this step, after it. test: on the fixed walks.
    """

    step: int
    lr: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float

    @property
    def figures(self) -> str:
        """The losses and accuracies as one line."""
        return (
            f"train loss {self.train_loss:.2e} acc {self.train_accuracy:.3f} · "
            f"test loss {self.test_loss:.2e} acc {self.test_accuracy:.3f}"
        )


def train_recurrent(
    config: RecurrentConfig,
    *,
    on_evaluation: Callable[[WalkEvaluation], None] = lambda _: None,
    device: str = "cpu",
) -> TrainedModel[Recurrent, WalkEvaluation]:
    """Train from scratch on walks drawn anew for every step; every random choice comes from the config's seeds.

    on_evaluation: called every `log_every` steps and at the end, for progress bars and trackers. Raises HusaiError for a
    modulus that is not allowed, or if the loss stops being finite.
    """
    recipe, cell, p = config.training, config.recurrent.cell, config.p
    fixed = Walks(p, config.walks)
    params = init_params(config.recurrent, p, generator=generator("recurrent-init", recipe.init_seed))
    batch: list[Tensor] = []

    def loss(params: Params, inputs: Tensor) -> Tensor:
        batch[:] = [inputs]
        return cross_entropy(logits_of(params, inputs).flatten(0, 1), (inputs.cumsum(1) % p).flatten())

    def logits_of(params: Params, inputs: Tensor) -> Tensor:
        return hidden(params, inputs, cell) @ params[READOUT]

    def score(params: Params, inputs: Tensor) -> tuple[float, float]:
        with torch.no_grad():
            logits, states = logits_of(params, inputs).flatten(0, 1), (inputs.cumsum(1) % p).flatten()
            return float(cross_entropy(logits, states)), float((logits.argmax(-1) == states).double().mean())

    def evaluate(params: Params, step: int, rate: float, seconds: float) -> WalkEvaluation:
        train, test = score(params, batch[0]), score(params, fixed.inputs.to(device))
        return WalkEvaluation(step, rate, *train, *test, seconds)

    def snapshot(params: Params) -> Recurrent:
        return Recurrent({name: value.detach().cpu().clone() for name, value in params.items()}, cell, fixed)

    return optimise(
        {name: value.to(device) for name, value in params.items()},
        recipe,
        _batches(config, device),
        loss=loss,
        evaluate=evaluate,
        snapshot=snapshot,
        on_evaluation=on_evaluation,
    )


def _batches(config: RecurrentConfig, device: str) -> Iterator[Int[Tensor, "walks time"]]:
    """Walks of independent, uniform inputs, without end."""
    stream = generator("recurrent-batches", config.training.batch_seed)
    shape = (config.training.batch_size, config.walks.length + 1)
    while True:
        yield torch.randint(config.p, shape, generator=stream).to(device)
