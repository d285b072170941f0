"""Seeded training of a transformer on a modular task."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from husai.config import ModelConfig
from husai.errors import HusaiError
from husai.schedule import trapezoid
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


@dataclass(frozen=True)
class TrainedModel:
    """Final and best weights (lowest held-out loss; with shuffled labels, which can only be memorised, lowest training loss)

    with the history that led there.
    """

    final: Transformer
    best: Transformer
    best_step: int
    history: tuple[Evaluation, ...]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in float64: float32 rounding of tiny losses causes spikes late in training."""
    return F.cross_entropy(logits.double(), labels)


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


def _batches(train: Tensor, batch_size: int | None, order: torch.Generator) -> Tensor:
    """One epoch of batches; the ragged end of a shuffled epoch is left out."""
    if batch_size is None or batch_size >= len(train):
        return train[None]
    shuffled = train[torch.randperm(len(train), generator=order)]
    whole = len(train) // batch_size * batch_size
    return shuffled[:whole].reshape(-1, batch_size)


def train_transformer(
    config: ModelConfig,
    *,
    on_evaluation: Callable[[Evaluation], None] = lambda _: None,
    on_checkpoint: Callable[[str, Transformer], None] = lambda _name, _model: None,
    device: str = "cpu",
) -> TrainedModel:
    """Train from scratch; every random choice comes from the config's seeds.

    on_evaluation: called every `log_every` steps and at the end, for progress bars and trackers.
    on_checkpoint: called with `epoch_<N>` and the model every `checkpoint_epochs` passes over the training pairs.
    Raises HusaiError if the loss stops being finite.
    """
    recipe, task = config.training, Task(config.task.op, config.task.p)
    layout = config.transformer.layout
    params = init_params(config.transformer, task.p, generator=generator("model-init", recipe.init_seed))
    params = {name: value.to(device).requires_grad_() for name, value in params.items()}
    data = _prepare(task, config, device)
    order = generator("model-batches", recipe.batch_seed)
    optimiser = torch.optim.AdamW(
        list(params.values()), lr=recipe.lr, weight_decay=recipe.weight_decay, betas=(0.9, recipe.beta2), fused=True
    )

    def snapshot() -> Transformer:
        return Transformer({name: value.detach().cpu().clone() for name, value in params.items()}, layout, task.p)

    history: list[Evaluation] = []
    best, best_step, best_loss = snapshot(), 0, float("inf")
    start, step = time.perf_counter(), 0
    while step < recipe.steps:
        batches = _batches(data.train, recipe.batch_size, order)
        for batch in batches:
            rate = recipe.lr * trapezoid(
                step, steps=recipe.steps, warmup_steps=recipe.warmup_steps, decay_fraction=recipe.decay_fraction
            )
            for group in optimiser.param_groups:
                group["lr"] = rate
            loss = cross_entropy(last_logits(params, data.tokens[batch]), data.labels[batch])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            step += 1
            if step % recipe.log_every == 0 or step == recipe.steps:
                spent = time.perf_counter() - start
                history.append(_evaluate(params, data, task.p, step, step // len(batches), rate, spent))
                if not history[-1].train_loss < float("inf"):
                    raise HusaiError(
                        f"training: the loss is not finite at step {step}; lower training.lr ({recipe.lr})"
                    )
                judged = history[-1].train_loss if recipe.shuffle_labels else history[-1].test_loss
                if judged < best_loss:
                    best, best_step, best_loss = snapshot(), step, judged
                on_evaluation(history[-1])
            if step == recipe.steps:
                break
        epoch, unfinished = divmod(step, len(batches))
        if recipe.checkpoint_epochs and not unfinished and epoch % recipe.checkpoint_epochs == 0:
            on_checkpoint(f"epoch_{epoch}", snapshot())
    if not history:  # a control that is not trained at all
        history.append(_evaluate(params, data, task.p, 0, 0, 0.0, time.perf_counter() - start))
        on_evaluation(history[0])
    return TrainedModel(snapshot(), best, best_step, tuple(history))
