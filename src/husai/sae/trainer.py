"""What changes from step to step in training: S seeds at once, each exactly as it would train alone."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from husai.config import SAEConfig, SAETrainingConfig
from husai.errors import HusaiError
from husai.sae.architecture import Architecture, Step
from husai.sae.architectures import architecture_of
from husai.sae.batches import Fresh
from husai.sae.checkpoint import put_back, snapshot
from husai.sae.dictionary import SAEEnsemble, finished
from husai.sae.guide import Guide, known_of
from husai.sae.history import StepLog
from husai.sae.known import Known
from husai.sae.optimisers import Average, optimiser_of
from husai.sae.pairs import Samples, common_unit, require_fit, side, split
from husai.sae.params import Params
from husai.sae.precision import DTYPES, Computation, Rounding
from husai.sae.resample import resample_dead
from husai.sae.terms import decorrelation_term, steer
from husai.sae.timing import Clock
from husai.schedule import trapezoid
from husai.seeding import generator


def resampling_due(step: int, recipe: SAETrainingConfig) -> bool:
    """Whether dead latents are replaced before update `step` (0-based)."""
    every, until = recipe.resample_every, recipe.resample_until * recipe.steps
    return every is not None and 0 < step < until and step % every == 0


def norm_each(gradients: Params) -> Float[Tensor, "seeds"]:
    """Norm of each seed's gradient."""
    squares = [gradient.flatten(1).pow(2).sum(1) for gradient in gradients]
    return torch.stack(squares).sum(0).sqrt()


def clip_each(gradients: Params, limit: float, kept: float = 1.0) -> Float[Tensor, "seeds"]:
    """Scale each seed's gradient down to norm `limit`, in place, if it exceeds it; returns the norms before.

    kept: a factor that the gradients carry and norms and limit do not.
    """
    norms = norm_each(gradients) / kept
    factor = (limit / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *[1] * (gradient.dim() - 1)))
    return norms


class Trainer:
    """Everything that changes from step to step; `advance` does one.

    kept: names of what a checkpoint must hold; all else follows from the arguments.
    """

    kept = (
        *("step", "params", "optimiser", "average", "strength", "silent", "resampling", "batches", "rounding"),
        "guide",
    )

    def __init__(
        self,
        x: Samples,
        config: SAEConfig,
        *,
        fresh: Fresh | None = None,
        known: Known | None = None,
        device: str = "cpu",
    ) -> None:
        """Raises HusaiError if x holds NaN, does not vary or has fewer samples than a batch, or for a damaged store.

        Also as `known_of`, and if the architecture needs a target and x has none, or the other way about.
        """
        require_fit(x, config, fresh)
        self.config, self.recipe, self.count = config, config.training, len(x)
        if self.count < self.recipe.batch_size:
            raise HusaiError(f"training.batch_size: {self.recipe.batch_size} exceeds the {len(x)} samples there are")
        source, target = split(x)
        told = known_of(source, known, self.recipe, fresh=fresh is not None)
        self.unit = common_unit(x, config)
        self.normaliser, self.samples, self.batches = side(
            source, config, "activations", device, self.unit, fresh, told
        )
        aim = None if target is None else side(target, config, "targets", device, self.unit)
        self.aim, self.targets = aim, self.samples if aim is None else aim.samples
        self.architecture: Architecture[Any] = architecture_of(config.sae).in_units(self.unit)
        self.variance = float(self.targets.var(0, correction=0).sum())
        self.architecture.begin(self.samples, config.init_seeds)
        d_in, d_target = self.samples.shape[1], None if aim is None else aim.samples.shape[1]
        start = self.architecture.start(d_in, config.init_seeds, d_target=d_target)
        self.params = start.map(lambda value: value.to(device).requires_grad_())
        self.computation = Computation(self.architecture, self.recipe, device)
        low = self.recipe.dtype != "fp32"
        self.rounding = Rounding(self.params, DTYPES[self.recipe.pair[0]]) if low else None
        self.guide = None
        if told is not None:
            self.guide = Guide(config, self.architecture, told, device, unit=self.unit, kept=self.computation.kept)
        moved = [*self.params, *(self.guide.leaves if self.guide else ())]
        self.optimiser = optimiser_of(moved, self.recipe, self.computation.kept)
        self.average = Average(self.params, self.recipe.ema_decay) if self.recipe.ema_decay else None
        self.strength = torch.ones(len(config.init_seeds), device=device)
        self.grad_norm = torch.zeros(len(config.init_seeds), device=device)
        seeds = zip(config.init_seeds, config.data_seeds, strict=True)
        self.resampling = [generator("sae-resample", *pair) for pair in seeds]
        self.silent = torch.zeros(len(config.init_seeds), config.sae.d_sae, dtype=torch.long, device=device)
        self.dead_steps = getattr(config.sae, "dead_steps", self.recipe.steps + 1)
        self.clock = Clock(device, on=self.recipe.log_timing)
        self.step = 0

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs to go on as if nothing had happened: plain values and tensors."""
        return {name: snapshot(getattr(self, name)) for name in self.kept}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken, by a trainer of the same arguments."""
        for name in self.kept:
            setattr(self, name, put_back(getattr(self, name), state[name]))
        if self.aim is not None:  # its rows are drawn in the same order
            put_back(self.aim.batches, state["batches"])

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
        self.clock.lap(None)
        if resampling_due(self.step, self.recipe):
            where = (self.params, self.optimiser, self.samples, self.architecture, self.resampling)
            replaced = resample_dead(*where, targets=self.targets)
            self.silent[replaced] = 0
            if self.average is not None:
                self.average.restart(self.params, replaced)
            if self.guide is not None:
                self.guide.restart(replaced, self.optimiser)
            if self.rounding is not None:
                self.rounding.restart(self.params, replaced)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        self.clock.lap("update")
        x, dead = self.batches.at(self.step), self.silent >= self.dead_steps
        target = None if self.aim is None else self.aim.batches.at(self.step)
        self.clock.lap("data")
        if self.recipe.target_l0 is not None:
            self.architecture.strength = self.strength
        given: dict[str, Any] = {} if self.guide is None else {"extra": self.guide.extra(self.batches.beside())}
        made = self.computation.gradients(self.params, x, step=self.step, dead=dead, target=target, **given)
        self.clock.lap("gradients")
        done = self._update(self._with_terms(made))
        self.silent = torch.where(done.fired, 0, self.silent + 1)
        self.step += 1
        if self.average is not None:
            self.average.update(self.params)
        if self.recipe.target_l0 is not None and self.step > self.config.warmup:
            l0 = done.l0.to(self.strength)
            self.strength = steer(self.strength, l0, target=self.recipe.target_l0, rate=self.recipe.target_l0_rate)
        self.clock.lap("update")
        return done

    def _with_terms(self, done: Step) -> Step:
        """With the loss terms that the recipe adds to the architecture's own, and gradients of what is trained."""
        if self.recipe.decorrelation:
            term = decorrelation_term(self.params.W_dec, self.recipe.decorrelation * self.unit**2)
            gradients = done.gradients.replace(W_dec=done.gradients.W_dec + term.W_dec * self.computation.kept)
            done = done._replace(gradients=gradients, terms={**done.terms, "decorrelation": term.value})
        return done._replace(gradients=self.architecture.pulled(self.params, done.gradients))

    def _update(self, done: Step) -> Step:
        """With unit-norm decoders, gradients along the rows are dropped, and norms restored when they are due."""
        unit, gradients, W_dec = self.config.sae.decoder_norm == "unit", done.gradients, self.params.W_dec
        every, limit, kept = self.recipe.decoder_norm_every, self.recipe.clip_norm, self.computation.kept
        with torch.no_grad():
            if unit:
                rows = W_dec if every == 1 else F.normalize(W_dec, dim=-1)
                gradients.W_dec.sub_((gradients.W_dec * rows).sum(-1, keepdim=True) * rows)
            self.grad_norm = norm_each(gradients) / kept if limit is None else clip_each(gradients, limit, kept)
            for value, gradient in zip(self.params, gradients, strict=True):
                value.grad = gradient.contiguous()  # fused Adam takes them in the order of memory, whatever the strides
            self.optimiser.step()
            if self.rounding is not None:
                self.rounding.give_back(self.params)
            if unit and (self.step + 1) % every == 0:
                W_dec.div_(W_dec.norm(dim=-1, keepdim=True).clamp(min=1e-12))
            self.architecture.settle(self.params, done.seen)
            if self.rounding is not None:
                self.rounding.round(self.params)
        return done

    def ensemble(self) -> SAEEnsemble:
        """The SAEs as they are now, on raw activations. Raises HusaiError if their weights are not finite."""
        averaged = self.average is not None and self.step > 0
        now = self.params
        if self.average is not None and averaged:
            now = self.architecture.averaged(self.average.value(), now)
        raw = now.map(lambda value: value.detach().cpu().clone())
        off_norm = averaged or self.recipe.decoder_norm_every > 1 or self.rounding is not None
        if self.config.sae.decoder_norm == "unit" and off_norm:
            raw = raw.replace(W_dec=F.normalize(raw.W_dec, dim=-1))
        aim = None if self.aim is None else self.aim.normaliser
        made = finished(raw, self.config, self.normaliser, self.architecture, aim)
        if not all(bool(value.isfinite().all()) for value in made.params):
            raise self.diverged("weights are")
        return made

    def log(self, done: Step, rate: float) -> list[StepLog]:
        """One row a seed of the step just done. Raises HusaiError if a loss is not finite.

        Losses and codes are in the units of normalised samples, or where those are raw, of raw ones.
        """
        epoch = self.step * self.recipe.batch_size / self.count
        dead = (self.silent >= self.batches.per_epoch).double().mean(-1)
        penalty = sum(done.terms.values(), torch.zeros_like(done.mse))
        explained = 1 - done.mse / self.variance
        losses = [value / self.unit**2 for value in (done.mse + penalty, done.mse, penalty, *done.terms.values())]
        columns = (*losses[:3], done.l0, done.l0 / self.config.sae.d_sae, explained, dead)
        columns += (self.grad_norm, done.peak / self.unit, self.strength, *losses[3:])
        per_seed = torch.stack([column.detach().double().cpu() for column in columns], dim=1).tolist()
        rows, timing = [], self.clock.read()
        for seed, row in zip(self.config.init_seeds, per_seed, strict=True):
            terms = dict(zip(done.terms, row[10:], strict=True))
            rows.append(StepLog(self.step, epoch, seed, rate, *row[:10], terms=terms, timing=timing))
        if not all(row.loss < float("inf") for row in rows):
            raise self.diverged("loss is")
        if not all(row.grad_norm < float("inf") for row in rows):
            raise self.diverged("gradient is")
        return rows

    def diverged(self, what: str) -> HusaiError:
        low = f", or compute in fp32 instead of {self.recipe.pair[1]}" if self.recipe.low_precision else ""
        return HusaiError(
            f"training: the {what} not finite at step {self.step}; halve training.lr ({self.recipe.lr}) or set "
            f"training.clip_norm{low}"
        )
