"""The one training loop: S seeds at once, each exactly as it would train alone. It knows no metric."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from husai.activations import Normaliser
from husai.config import SAEConfig, SAETrainingConfig
from husai.errors import HusaiError
from husai.sae.architecture import Architecture, Step
from husai.sae.architectures import architecture_of
from husai.sae.batches import Batches, Fresh
from husai.sae.dictionary import SAEEnsemble, finish
from husai.sae.params import Params, init_params
from husai.sae.resample import resample_dead
from husai.schedule import trapezoid
from husai.seeding import generator

Stop = Callable[[int, SAEEnsemble], bool]


@dataclass(frozen=True)
class StepLog:
    """One row of a training history, per seed and on the training batch (reports use the whole grid instead).

    epoch: passes over the data so far. penalty: sum of `terms`, what is added to mse, by name. explained_variance:
    1 − mse / d_in, since inputs have mean squared norm d_in. dead: fraction of latents that have not fired for a pass over
    the data.
    """

    step: int
    epoch: float
    seed: int
    lr: float
    loss: float
    mse: float
    penalty: float
    l0: float
    explained_variance: float
    dead: float
    terms: Mapping[str, float]

    @property
    def line(self) -> dict[str, float]:
        """The row of a table: every term in a column of its own."""
        plain = {name: value for name, value in vars(self).items() if name != "terms"}
        return plain | dict(self.terms)


def mean_log(rows: list[StepLog]) -> dict[str, float]:
    """Figures of one step averaged over seeds, for trackers and progress bars."""
    names = ("loss", "mse", "penalty", "l0", "explained_variance", "dead", "lr")
    return {name: sum(getattr(row, name) for row in rows) / len(rows) for name in names}


@dataclass(frozen=True)
class TrainedSAEs:
    """The ensemble after `steps` steps, and its history."""

    ensemble: SAEEnsemble
    steps: int
    history: tuple[StepLog, ...]


def resampling_due(step: int, recipe: SAETrainingConfig) -> bool:
    """Whether dead latents are replaced before update `step` (0-based)."""
    every, until = recipe.resample_every, recipe.resample_until * recipe.steps
    return every is not None and 0 < step < until and step % every == 0


def clip_each(gradients: Params, limit: float) -> None:
    """Scale each seed's gradient down to norm `limit`, in place, if it exceeds it."""
    squares = [gradient.flatten(1).pow(2).sum(1) for gradient in gradients]
    factor = (limit / (torch.stack(squares).sum(0).sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *[1] * (gradient.dim() - 1)))


class Trainer:
    """Everything that changes from step to step; `advance` does one."""

    def __init__(
        self, x: Float[Tensor, "samples d_in"], config: SAEConfig, *, fresh: Fresh | None = None, device: str = "cpu"
    ) -> None:
        """Raises HusaiError if x holds NaN, does not vary or has fewer samples than a batch."""
        self.config, self.recipe = config, config.training
        if len(x) < self.recipe.batch_size:
            raise HusaiError(f"training.batch_size: {self.recipe.batch_size} exceeds the {len(x)} samples there are")
        self.normaliser = Normaliser.fit(x)
        self.architecture: Architecture[Any] = architecture_of(config.sae)
        self.samples = self.normaliser(x).to(device)
        start = self.architecture.init(init_params(x.shape[1], config.sae.d_sae, config.init_seeds))
        self.params = start.map(lambda value: value.to(device).requires_grad_())
        betas = (self.recipe.beta1, self.recipe.beta2)
        self.optimiser = torch.optim.Adam(list(self.params), lr=self.recipe.lr, betas=betas, fused=True)
        self.batches = Batches(self.samples, self.recipe.batch_size, config.data_seeds, self.normaliser, fresh)
        seeds = zip(config.init_seeds, config.data_seeds, strict=True)
        self.resampling = [generator("sae-resample", *pair) for pair in seeds]
        self.silent = torch.zeros(len(config.init_seeds), config.sae.d_sae, dtype=torch.long, device=device)
        self.dead_steps = getattr(config.sae, "dead_steps", self.recipe.steps + 1)
        self.step = 0

    def rate(self) -> float:
        """The learning rate of the next step."""
        shape = trapezoid(
            self.step,
            steps=self.recipe.steps,
            warmup_steps=self.recipe.warmup_steps,
            decay_fraction=self.recipe.decay_fraction,
            decay=self.recipe.decay,
        )
        return self.recipe.lr * shape

    def advance(self) -> Step:
        """One update. Gradients are those of each seed alone."""
        if resampling_due(self.step, self.recipe):
            where = (self.params, self.optimiser, self.samples, self.architecture, self.resampling)
            self.silent[resample_dead(*where)] = 0
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        x, dead = self.batches.at(self.step), self.silent >= self.dead_steps
        done = self._update(self.architecture.gradients(self.params, x, step=self.step, dead=dead))
        self.silent = torch.where(done.fired, 0, self.silent + 1)
        self.step += 1
        return done

    def _update(self, done: Step) -> Step:
        """With unit-norm decoders, gradients along the rows are dropped and norms restored."""
        unit, gradients, W_dec = self.config.sae.decoder_norm == "unit", done.gradients, self.params.W_dec
        with torch.no_grad():
            if unit:
                gradients.W_dec.sub_((gradients.W_dec * W_dec).sum(-1, keepdim=True) * W_dec)
            if self.recipe.clip_norm is not None:
                clip_each(gradients, self.recipe.clip_norm)
            for value, gradient in zip(self.params, gradients, strict=True):
                value.grad = gradient
            self.optimiser.step()
            if unit:
                W_dec.div_(W_dec.norm(dim=-1, keepdim=True).clamp(min=1e-12))
            self.architecture.settle(self.params, done.seen)
        return done

    def ensemble(self) -> SAEEnsemble:
        """The SAEs as they are now, on raw activations. Raises HusaiError if their weights are not finite."""
        raw = self.params.map(lambda value: value.detach().cpu().clone())
        weights = finish(raw, self.normaliser, self.architecture.scaled, self.architecture.rescaled)
        if not all(bool(value.isfinite().all()) for value in weights):
            raise self.diverged("weights are")
        return SAEEnsemble(weights, self.config.sae, self.config.init_seeds, self.config.data_seeds)

    def log(self, done: Step, rate: float) -> list[StepLog]:
        """One row a seed of the step just done. Raises HusaiError if a loss is not finite."""
        epoch = self.step * self.recipe.batch_size / len(self.samples)
        dead = (self.silent >= self.batches.per_epoch).double().mean(-1)
        penalty = sum(done.terms.values(), torch.zeros_like(done.mse))
        explained = 1 - done.mse / self.samples.shape[1]
        columns = (done.mse + penalty, done.mse, penalty, done.l0, explained, dead, *done.terms.values())
        per_seed = torch.stack([column.detach().double().cpu() for column in columns], dim=1).tolist()
        rows = []
        for seed, row in zip(self.config.init_seeds, per_seed, strict=True):
            terms = dict(zip(done.terms, row[6:], strict=True))
            rows.append(StepLog(self.step, epoch, seed, rate, *row[:6], terms=terms))
        if not all(row.loss < float("inf") for row in rows):
            raise self.diverged("loss is")
        return rows

    def diverged(self, what: str) -> HusaiError:
        return HusaiError(
            f"training: the {what} not finite at step {self.step}; halve training.lr ({self.recipe.lr}) or set "
            "training.clip_norm"
        )


def train_saes(
    x: Float[Tensor, "samples d_in"],
    config: SAEConfig,
    *,
    stop: Stop = lambda _step, _ensemble: False,
    stop_at: tuple[int, ...] = (),
    on_log: Callable[[list[StepLog]], None] = lambda _: None,
    log_every: int | None = None,
    fresh: Fresh | None = None,
    device: str = "cpu",
) -> TrainedSAEs:
    """Train one SAE a seed on raw activations x (centred and scaled inside, folded back into the result).

    fresh(count, generator) draws further samples like x, on which every step then trains instead; x still says how samples
    are centred and scaled, what a pass is, and which latents are dead.

    stop(step, ensemble) is called at the steps in `stop_at` (0 is before the first update) and ends training by
    returning True. on_log gets one StepLog a seed every `log_every` steps (default: once an epoch) and at the end.
    Raises HusaiError if x holds NaN, does not vary or has fewer samples than a batch, or if the loss or the weights turn
    non-finite.
    """
    trainer = Trainer(x, config, fresh=fresh, device=device)
    interval, last = log_every or trainer.batches.per_epoch, config.training.steps
    history: list[StepLog] = []
    for step in range(last):
        if step in stop_at and stop(step, trainer.ensemble()):
            return TrainedSAEs(trainer.ensemble(), step, tuple(history))
        rate = trainer.rate()
        done = trainer.advance()
        if trainer.step % interval == 0 or trainer.step == last:
            rows = trainer.log(done, rate)
            history.extend(rows)
            on_log(rows)
    final = trainer.ensemble()
    if last in stop_at:
        stop(last, final)
    return TrainedSAEs(final, last, tuple(history))
