"""The one training loop: S seeds at once, each exactly as it would train alone. It knows no metric."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from husai.config import SAEConfig
from husai.sae.architecture import Step
from husai.sae.batches import Fresh
from husai.sae.checkpoint import Checkpoints
from husai.sae.dictionary import SAEEnsemble
from husai.sae.fitting import fit_saes
from husai.sae.health import STRIDE, hopeless
from husai.sae.history import StepLog
from husai.sae.known import Known
from husai.sae.pairs import Samples, require_fit, split
from husai.sae.statistics import Statistic, statistics
from husai.sae.trainer import Trainer

Stop = Callable[[int, SAEEnsemble], bool]


@dataclass(frozen=True)
class TrainedSAEs:
    """The ensemble after `steps` steps, and its history. hopeless: why training was given up, or nothing."""

    ensemble: SAEEnsemble
    steps: int
    history: tuple[StepLog, ...]
    hopeless: str = ""


@dataclass
class _Course:
    """A training on its way: who does the steps, who is told of them and when, and what there was to tell.

    interval: steps between rows. judged: at which of the `STRIDE` live judgements it is.
    """

    trainer: Trainer
    interval: int
    stop: Stop
    on_log: Callable[[list[StepLog]], None]
    on_statistics: Callable[[dict[str, Statistic], int], object] | None
    checkpoints: Checkpoints | None
    history: list[StepLog] = field(default_factory=list)
    judged: int = 0

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one; who watches is told again what there was before it."""
        resumed = self.checkpoints.load() if self.checkpoints is not None else None
        if resumed is None:
            return
        self.trainer.restore(resumed.state)
        self.judged = self._stride()
        self.history = [StepLog(**row) for row in resumed.state["history"]]
        for step in sorted({row.step for row in self.history}):
            self.on_log([row for row in self.history if row.step == step])
        shape = self.trainer.ensemble()  # its config is the one that folded weights are read by
        for step, params in resumed.seen:
            self._look(step, replace(shape, params=params))

    def run(self, stop_at: tuple[int, ...]) -> TrainedSAEs:
        """Train to the end, or until `stop` says so or there is no hope."""
        trainer, last = self.trainer, self.trainer.recipe.end
        for step in range(trainer.step, last):
            if step in stop_at and self._look(step, trainer.ensemble()):
                return self._ended(step)
            rate = trainer.rate()
            done = trainer.advance()
            if trainer.step % self.interval == 0 or trainer.step == last:
                self._log(done, rate)
                if reason := self._judge():
                    return self._ended(trainer.step, reason)
            self._save()
        end = self._ended(last)
        if last in stop_at:
            self.stop(last, end.ensemble)
        return end

    def _ended(self, steps: int, reason: str = "") -> TrainedSAEs:
        return TrainedSAEs(self.trainer.ensemble(), steps, tuple(self.history), reason)

    def _look(self, step: int, ensemble: SAEEnsemble) -> bool:
        """Whether `stop` ends the training; what it is shown is kept for a resumed run."""
        if self.checkpoints is not None:
            self.checkpoints.keep_seen(step, ensemble.params)
        return self.stop(step, ensemble)

    def _log(self, done: Step, rate: float) -> None:
        """Rows of the step just done, and statistics where they are wanted."""
        trainer = self.trainer
        rows = trainer.log(done, rate)
        self.history.extend(rows)
        self.on_log(rows)
        if self.on_statistics is not None:
            self.on_statistics(statistics(trainer.params, trainer.computation.kept), trainer.step)
        trainer.clock.lap("logging")

    def _stride(self) -> int:
        return self.trainer.step * STRIDE // self.trainer.recipe.steps

    def _judge(self) -> str:
        """Why training is hopeless, if it is; asked `STRIDE` times a training at the most."""
        if self.trainer.recipe.stop == "fixed" or self._stride() <= self.judged:
            return ""
        self.judged = self._stride()
        return hopeless(self.history, self.trainer.config)

    def _save(self) -> None:
        """A checkpoint, if one is due and the end is not reached."""
        trainer, checkpoints = self.trainer, self.checkpoints
        if checkpoints is not None and checkpoints.due(trainer.step) and trainer.step < trainer.recipe.end:
            checkpoints.save(trainer.step, trainer.state() | {"history": [vars(row) for row in self.history]})


def train_saes(
    x: Samples,
    config: SAEConfig,
    *,
    stop: Stop = lambda _step, _ensemble: False,
    stop_at: tuple[int, ...] = (),
    on_log: Callable[[list[StepLog]], None] = lambda _: None,
    on_statistics: Callable[[dict[str, Statistic], int], object] | None = None,
    log_every: int | None = None,
    fresh: Fresh | None = None,
    known: Known | None = None,
    device: str = "cpu",
    checkpoints: Checkpoints | None = None,
) -> TrainedSAEs:
    """Train one SAE a seed on raw activations x (normalised inside, which is folded back into the result).

    A transcoder takes `Pairs` of inputs and targets, each with a normaliser of its own, and batches draw the same rows.

    fresh(count, generator) draws further samples like x, on which every step then trains instead; x still says how samples
    are centred and scaled, what a pass is, and which latents are dead. A Store is streamed; which of its latents are dead
    is judged on the rows of `sample_rows`. known: labels and order of the samples, which training.probe and
    training.temporal need; those of a store are read from its columns.

    checkpoints: where the run is kept as it goes on; if one is there, training starts from it, after `on_log` and `stop`
    have been given again what they saw before. (docs/method.md §Checkpoints)

    stop(step, ensemble) is called at the steps in `stop_at` (0 is before the first update) and ends training by
    returning True. on_log gets one StepLog a seed every `log_every` steps (default: `training.log_every`, or once an epoch;
    0: never) and at the end, and on_statistics, where given and unless that is 0, what `statistics` says and the step.
    A dictionary that scikit-learn solves for (`sae.baselines`) takes x alone, steps being iterations, and no checkpoints.
    Training ends after `training.steps`, or `early_exit` of them; unless `training.stop` is fixed, also once it is
    `hopeless`, which the result then says. Raises HusaiError
    if x holds NaN, does not vary or has fewer samples than a batch, or if the loss or the weights turn non-finite.
    """
    if config.sae.fitted:
        require_fit(x, config, fresh)
        if checkpoints is not None:
            checkpoints.require_none(f"{config.sae.architecture} is fitted at once")
        return TrainedSAEs(*fit_saes(split(x)[0], config, stop=stop, stop_at=stop_at, on_log=on_log))
    trainer = Trainer(x, config, fresh=fresh, known=known, device=device)
    every = config.training.log_every if log_every is None else log_every
    interval = (every or config.training.end) if every is not None else trainer.batches.per_epoch
    course = _Course(trainer, interval, stop, on_log, None if every == 0 else on_statistics, checkpoints)
    course.resume()
    return course.run(stop_at)


def untrained(
    x: Samples, config: SAEConfig, *, fresh: Fresh | None = None, known: Known | None = None, device: str = "cpu"
) -> SAEEnsemble:
    """The SAEs before the first step. Raises HusaiError as `train_saes`."""
    return Trainer(x, config, fresh=fresh, known=known, device=device).ensemble()
