"""Seeded training of a transformer on a modular task."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from husai.config import ModelConfig
from husai.errors import HusaiError
from husai.optimise import TrainedModel, cross_entropy, optimise
from husai.seeding import generator
from husai.tasks import Task
from husai.transformer.model import Params, Transformer, init_params, last_logits


@dataclass(frozen=True)
class Evaluation:
    """One row of a training history.

    step, epoch: optimiser steps and whole passes over the training pairs done so far.
    train_loss, test_loss: mean cross-entropy in nats, float64. test_accuracy counts all held-out pairs;
    mirror_free_accuracy only those whose mirror (b, a) is held out too (nan if there are none).
    """

    step: int
    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    mirror_free_accuracy: float
    seconds: float

    @property
    def figures(self) -> str:
        """The losses and accuracies as one line."""
        return (
            f"train loss {self.train_loss:.2e} acc {self.train_accuracy:.3f} · "
            f"test loss {self.test_loss:.2e} acc {self.test_accuracy:.3f} (mirror-free {self.mirror_free_accuracy:.3f})"
        )


class _Data(NamedTuple):
    """The whole grid with its split; `mirror_free` marks the test rows whose mirror is not in training."""

    tokens: Tensor
    labels: Tensor
    train: Tensor
    test: Tensor
    mirror_free: Tensor


def _prepare(task: Task, config: ModelConfig, device: str) -> _Data:
    recipe, split = config.training, generator("model-split", config.training.split_seed)
    train, test = task.split(recipe.frac_train, generator=split)
    if len(train) == 0:
        raise HusaiError(f"training.frac_train: {recipe.frac_train} leaves no pair to train on")
    labels = task.labels
    if recipe.shuffle_labels:
        labels = labels[torch.randperm(len(labels), generator=split)]
    mirror_free = torch.isin(test, task.mirror_free(train, test))
    tokens = task.tokens(config.transformer.layout)
    return _Data(*(value.to(device) for value in (tokens, labels, train, test, mirror_free)))


def _score(params: Params, tokens: Tensor, labels: Tensor, p: int) -> tuple[Tensor, Tensor]:
    """Loss, and whether each row is right."""
    with torch.no_grad():
        logits = torch.cat([last_logits(params, part) for part in tokens.split(4096)])
    return cross_entropy(logits, labels), logits[:, :p].argmax(-1) == labels


def _evaluate(params: Params, data: _Data, p: int, step: int, epoch: int, rate: float, seconds: float) -> Evaluation:
    train_loss, train_right = _score(params, data.tokens[data.train], data.labels[data.train], p)
    test_loss, test_right = _score(params, data.tokens[data.test], data.labels[data.test], p)
    return Evaluation(
        step=step,
        epoch=epoch,
        lr=rate,
        train_loss=float(train_loss),
        train_accuracy=float(train_right.double().mean()),
        test_loss=float(test_loss),
        test_accuracy=float(test_right.double().mean()),
        mirror_free_accuracy=float(test_right[data.mirror_free].double().mean()),
        seconds=seconds,
    )


def _batches(train: Tensor, batch_size: int | None, order: torch.Generator) -> Iterator[Tensor]:
    """Batches without end, in shuffled epochs; the ragged end of an epoch is left out."""
    if batch_size is None or batch_size >= len(train):
        while True:
            yield train
    whole = len(train) // batch_size * batch_size
    while True:
        yield from train[torch.randperm(len(train), generator=order)][:whole].split(batch_size)


def train_transformer(
    config: ModelConfig,
    *,
    on_evaluation: Callable[[Evaluation], None] = lambda _: None,
    on_checkpoint: Callable[[str, Transformer], None] = lambda _name, _model: None,
    device: str = "cpu",
) -> TrainedModel[Transformer, Evaluation]:
    """Train from scratch; every random choice comes from the config's seeds.

    on_evaluation: called every `log_every` steps and at the end, for progress bars and trackers.
    on_checkpoint: called with `epoch_<N>` and the model every `checkpoint_epochs` passes over the training pairs.
    Raises HusaiError if the loss stops being finite.
    """
    recipe, task = config.training, Task(config.task.op, config.task.p)
    layout = config.transformer.layout
    stream = generator("model-init", recipe.init_seed)
    params = init_params(config.transformer, task.p, generator=stream, pos_scale=recipe.pos_scale)
    data = _prepare(task, config, device)
    size = recipe.batch_size
    per_epoch = 1 if size is None else max(1, len(data.train) // size)

    def snapshot(params: Params) -> Transformer:
        return Transformer({name: value.detach().cpu().clone() for name, value in params.items()}, layout, task.p)

    def loss(params: Params, batch: Tensor) -> Tensor:
        return cross_entropy(last_logits(params, data.tokens[batch]), data.labels[batch])

    def evaluate(params: Params, step: int, rate: float, seconds: float) -> Evaluation:
        return _evaluate(params, data, task.p, step, step // per_epoch, rate, seconds)

    def on_step(step: int, params: Params) -> None:
        epoch, unfinished = divmod(step, per_epoch)
        if recipe.checkpoint_epochs and not unfinished and epoch % recipe.checkpoint_epochs == 0:
            on_checkpoint(f"epoch_{epoch}", snapshot(params))

    return optimise(
        {name: value.to(device) for name, value in params.items()},
        recipe,
        _batches(data.train, size, generator("model-batches", recipe.batch_seed)),
        loss=loss,
        evaluate=evaluate,
        snapshot=snapshot,
        on_evaluation=on_evaluation,
        on_step=on_step,
    )
