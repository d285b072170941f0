"""The one training loop: S seeds at once, each exactly as it would train alone. It knows no metric."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from husai.activations import Normaliser
from husai.config import SAEConfig, SAETrainingConfig
from husai.errors import HusaiError
from husai.sae.architectures import architecture_of
from husai.sae.base import Losses, Params, SAEEnsemble, finish, init_params
from husai.sae.resample import resample_dead
from husai.schedule import trapezoid
from husai.seeding import generator

Stop = Callable[[int, SAEEnsemble], bool]
Fresh = Callable[[int, torch.Generator], Float[Tensor, "count d_in"]]


@dataclass(frozen=True)
class StepLog:
    """One row of a training history, per seed and on the training batch (reports use the whole grid instead).

    epoch: passes over the data so far. explained_variance: 1 − mse / d_in, since inputs have mean squared norm d_in.
    dead: fraction of latents that have not fired for a pass over the data.
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


class Batches:
    """Endless batches of normalised samples, one shuffled pass after another; each seed has its own order.

    The ragged end is left out. fresh: where given, each batch is drawn anew instead, (count, generator) → raw samples.
    """

    def __init__(
        self,
        samples: Float[Tensor, "samples d_in"],
        batch_size: int,
        data_seeds: tuple[int, ...],
        normaliser: Normaliser,
        fresh: Fresh | None = None,
    ) -> None:
        self.samples, self.batch_size, self.normaliser, self.fresh = samples, batch_size, normaliser, fresh
        self.generators = [generator("sae-data", seed) for seed in data_seeds]
        self.per_epoch = len(samples) // batch_size
        self.orders: Tensor = torch.empty(0)

    def at(self, step: int) -> Float[Tensor, "seeds batch d_in"]:
        """The batch at `step`; steps must be asked for in order."""
        if self.fresh is not None:
            drawn = torch.stack([self.fresh(self.batch_size, g) for g in self.generators])
            return self.normaliser(drawn).to(self.samples.device)
        place = step % self.per_epoch
        if place == 0:
            self.orders = torch.stack([torch.randperm(len(self.samples), generator=g) for g in self.generators])
        rows: Int[Tensor, "seeds batch"] = self.orders[:, place * self.batch_size : (place + 1) * self.batch_size]
        return self.samples[rows.to(self.samples.device)]


def clip_each(gradients: Params, limit: float) -> None:
    """Scale each seed's gradient down to norm `limit`, in place, if it exceeds it."""
    squares = [gradient.flatten(1).pow(2).sum(1) for gradient in gradients]
    factor = (limit / (torch.stack(squares).sum(0).sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *[1] * (gradient.dim() - 1)))


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
    kind, recipe = config.sae, config.training
    if len(x) < recipe.batch_size:
        raise HusaiError(f"training.batch_size: {recipe.batch_size} exceeds the {len(x)} samples there are")
    normaliser = Normaliser.fit(x)
    architecture = architecture_of(kind)
    samples = normaliser(x).to(device)
    params = init_params(x.shape[1], kind.d_sae, config.init_seeds).map(lambda v: v.to(device).requires_grad_())
    optimiser = torch.optim.Adam(list(params), lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), fused=True)
    batches = Batches(samples, recipe.batch_size, config.data_seeds, normaliser, fresh)
    resampling = [generator("sae-resample", *pair) for pair in zip(config.init_seeds, config.data_seeds, strict=True)]
    interval = log_every or batches.per_epoch
    silent = torch.zeros(len(config.init_seeds), kind.d_sae, dtype=torch.long, device=device)
    dead_steps = getattr(kind, "dead_steps", recipe.steps + 1)
    history: list[StepLog] = []

    def diverged(what: str, step: int) -> HusaiError:
        return HusaiError(
            f"training: the {what} not finite at step {step}; halve training.lr ({recipe.lr}) or set training.clip_norm"
        )

    def ensemble(step: int) -> SAEEnsemble:
        weights = finish(params.map(lambda value: value.detach().cpu().clone()), normaliser)
        if not all(bool(value.isfinite().all()) for value in weights):
            raise diverged("weights are", step)
        return SAEEnsemble(weights, kind, config.init_seeds, config.data_seeds)

    for step in range(recipe.steps):
        if step in stop_at and stop(step, ensemble(step)):
            return TrainedSAEs(ensemble(step), step, tuple(history))
        if resampling_due(step, recipe):
            silent[resample_dead(params, optimiser, samples, architecture, kind, resampling)] = 0
        rate = recipe.lr * trapezoid(
            step,
            steps=recipe.steps,
            warmup_steps=recipe.warmup_steps,
            decay_fraction=recipe.decay_fraction,
            decay=recipe.decay,
        )
        for group in optimiser.param_groups:
            group["lr"] = rate
        losses = architecture.losses(params, batches.at(step), kind, step=step, dead=silent >= dead_steps)
        optimiser.zero_grad(set_to_none=True)
        losses.total.sum().backward()
        _update(params, optimiser, kind.decoder_norm == "unit", recipe.clip_norm)
        silent = torch.where((losses.codes > 0).any(1), 0, silent + 1)
        if (step + 1) % interval == 0 or step + 1 == recipe.steps:
            epoch = (step + 1) * recipe.batch_size / len(samples)
            rows = _log(step + 1, epoch, rate, losses, silent >= batches.per_epoch, config.init_seeds, x.shape[1])
            history.extend(rows)
            on_log(rows)
            if not all(row.loss < float("inf") for row in rows):
                raise diverged("loss is", step + 1)
    final = ensemble(recipe.steps)
    if recipe.steps in stop_at:
        stop(recipe.steps, final)
    return TrainedSAEs(final, recipe.steps, tuple(history))


def _update(params: Params, optimiser: torch.optim.Optimizer, unit_norm: bool, clip_norm: float | None) -> None:
    """One optimiser step. With unit-norm decoders, gradients along the rows are dropped and norms restored."""
    with torch.no_grad():
        gradients = Params(*(value.grad for value in params))  # pyright: ignore[reportArgumentType]
        if unit_norm:
            gradients.W_dec.sub_((gradients.W_dec * params.W_dec).sum(-1, keepdim=True) * params.W_dec)
        if clip_norm is not None:
            clip_each(gradients, clip_norm)
        optimiser.step()
        if unit_norm:
            params.W_dec.div_(params.W_dec.norm(dim=-1, keepdim=True).clamp(min=1e-12))


def _log(
    step: int, epoch: float, rate: float, losses: Losses, dead: Tensor, seeds: tuple[int, ...], d_in: int
) -> list[StepLog]:
    l0 = (losses.codes > 0).sum(-1).double().mean(-1)
    columns = (losses.total, losses.mse, losses.penalty, l0, 1 - losses.mse / d_in, dead.double().mean(-1))
    per_seed = torch.stack([column.detach().double().cpu() for column in columns], dim=1).tolist()
    return [StepLog(step, epoch, seed, rate, *row) for seed, row in zip(seeds, per_seed, strict=True)]
