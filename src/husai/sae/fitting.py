"""Fitting a dictionary that is solved for, looked at on the way as a training is."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from husai.activations import Normaliser
from husai.config import SAEConfig
from husai.errors import HusaiError
from husai.sae.architectures import architecture_of
from husai.sae.baselines import Fitted, Solved
from husai.sae.dictionary import PART, SAEEnsemble, finished
from husai.sae.history import StepLog
from husai.sae.params import Params, init_params
from husai.shards import SAMPLE, Store, fit_normaliser, sample_rows


class Fitter:
    """Solutions of every seed after so many iterations, and what can be said of them.

    Of a store, the rows of `sample_rows` are fitted. Every solver goes through the same iterations again if it is asked
    for more of them, so that looking changes nothing; one that has converged is not asked again.
    """

    def __init__(self, x: Float[Tensor, "samples d_in"] | Store, config: SAEConfig) -> None:
        """Raises HusaiError if x holds NaN or does not vary, or cannot have so many latents."""
        how, made = config.training.normalise, architecture_of(config.sae)
        assert isinstance(made, Fitted)
        self.config, self.architecture = config, made
        self.normaliser = fit_normaliser(x, how) if isinstance(x, Store) else Normaliser.fit(x, how=how)
        held = sample_rows(x, min(SAMPLE, config.training.buffer_rows)) if isinstance(x, Store) else x
        self.samples = self.normaliser(held).cpu()
        made.require(self.samples)
        self.solved: list[Solved] = []
        self.asked = 0

    def params(self, step: int) -> Params:
        """Parameters after `step` iterations; before the first, random directions."""
        if step == 0:
            start = init_params(self.samples.shape[1], self.config.sae.d_sae, self.config.init_seeds)
            return self.architecture.init(start)
        if not self.solved or any(found.iterations >= self.asked for found in self.solved):
            self.solved = [self.architecture.fit(self.samples, seed, step) for seed in self.config.init_seeds]
            self.asked = step
        each = [dict(found.params.items()) for found in self.solved]
        return Params.of({name: torch.cat([one[name] for one in each]) for name in each[0]})

    def ensemble(self, step: int) -> SAEEnsemble:
        """The dictionaries on raw activations. Raises HusaiError if they are not finite."""
        made = finished(self.params(step), self.config, self.normaliser, self.architecture)
        if not all(bool(value.isfinite().all()) for value in made.params):
            raise HusaiError(
                f"{self.config.sae.architecture}: its solution after {step} iterations is not finite; lower sae.d_sae"
            )
        return made

    def log(self, step: int) -> list[StepLog]:
        """One row a seed, over all samples: an iteration sees every one of them."""
        params, variance = self.params(step), float(self.samples.var(0, correction=0).sum())
        rows = []
        for index, seed in enumerate(self.config.init_seeds):
            alone = params.map(lambda value, index=index: value[index : index + 1])
            mse = l0 = peak = 0.0
            fired = torch.zeros(self.config.sae.d_sae, dtype=torch.bool)
            for part in self.samples.split(PART):
                losses = self.architecture.losses(alone, part[None], step=step, dead=~fired[None])
                share, active = len(part) / len(self.samples), losses.codes[0] != 0
                mse += share * float(losses.mse)
                l0 += share * float(active.sum(1).double().mean())
                peak = max(peak, float(losses.codes.abs().max()))
                fired |= active.any(0)
            dead, explained = 1 - float(fired.double().mean()), 1 - mse / variance
            share = l0 / self.config.sae.d_sae
            rows.append(StepLog(step, step, seed, 0.0, mse, mse, 0.0, l0, share, explained, dead, 0.0, peak, 1.0, {}))
        return rows


def fit_saes(
    x: Float[Tensor, "samples d_in"] | Store,
    config: SAEConfig,
    *,
    stop: Callable[[int, SAEEnsemble], bool],
    stop_at: tuple[int, ...],
    on_log: Callable[[list[StepLog]], None],
) -> tuple[SAEEnsemble, int, tuple[StepLog, ...]]:
    """Fit in at most `training.end` iterations: the ensemble, the step it is of, and one row a seed.

    stop, stop_at, on_log: as of `train_saes`, steps being iterations. Raises as `Fitter`.
    """
    fitter, end = Fitter(x, config), config.training.end
    for step in sorted(step for step in stop_at if step <= end):
        if stop(step, fitter.ensemble(step)):
            end = step
            break
    rows = fitter.log(end)
    on_log(rows)
    return fitter.ensemble(end), end, tuple(rows)
