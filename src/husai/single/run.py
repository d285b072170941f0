"""One SAE run from a command: train on one hook of a verified model, score, report, save."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from husai import console
from husai.analysis.convergence import doublings, is_flat
from husai.config import AnalysisConfig, SAEConfig
from husai.console import say
from husai.measure import Measurement, Members, measure
from husai.sae.dictionary import SAEEnsemble
from husai.sae.estimate import Estimate, estimate
from husai.sae.health import START, STRIDE, Health, assess
from husai.sae.history import StepLog, mean_log, mean_timing
from husai.sae.train import TrainedSAEs
from husai.seeding import deterministic
from husai.single.report import given_up, report, summarise, time_lines
from husai.single.source import Request, Source, open_source, recipe_of
from husai.store.folders import require_free
from husai.tracking import Curves, open_tracker
from husai.workflow import train_sae_run


def estimate_single(request: Request) -> Estimate:
    """What `train_single` would take; nothing is written. Raises as it does."""
    with deterministic(request.deterministic):
        source = open_source(request)
        config = recipe_of(request, source.samples)
        return estimate(source.samples, config, known=source.hook.known, device=request.device)


def train_single(request: Request) -> dict[str, Any]:
    """Train, report and save; returns the run's flat metrics.

    Raises HusaiError for bad input and GateFailed for a model that is not ground truth (unless allowed).
    """
    require_free(request.out)
    with deterministic(request.deterministic):
        return _train(request, open_source(request))


def _train(request: Request, source: Source) -> dict[str, Any]:
    config = recipe_of(request, source.samples)
    tracker = open_tracker(
        config.tracking,
        name=f"{config.sae.architecture}-{config.sae.d_sae}-{source.model or 'activations'}",
        run=request.out.name,
        config=config.model_dump(mode="json") | {"model": source.model, "hook": source.place},
        folder=request.out.parent,
        tags=(config.sae.architecture, source.place, source.model),
        every=config.training.log_every,
        warn=console.warn,
    )
    curves = Curves(tracker, config.training)
    if config.training.log_statistics and curves.on_statistics is None:
        console.warn("training.log_statistics has no tracker to go to; choose one with --track")
    with console.progress(request.quiet) as bar, tracker:
        watch = _Watch(request, config, source, curves, bar)
        trained = train_sae_run(
            source.samples,
            config,
            request.out,
            source.meta,
            on_log=watch.on_log,
            on_statistics=curves.on_statistics,
            stop=curves.apart(watch.observe),
            stop_at=watch.stops,
            finish=curves.told(watch.finish),
            known=source.hook.known,
            device=request.device,
            resume_from=request.resume_from,
            warn=console.warn,
        )
        tracker.text("report", (request.out / "report.md").read_text(encoding="utf-8"))
    if trained.hopeless:
        console.warn(f"training was given up at step {trained.steps}: {trained.hopeless}")
    if not request.quiet:
        say((request.out / "report.md").read_text(encoding="utf-8"))
        console.show_health(watch.health(trained.history))
        say(f"Run folder: {request.out}")
    return watch.found


class _Watch:
    """A training as it is looked at: measured at some steps, logged, shown, and reported at the end (`found`)."""

    def __init__(self, request: Request, config: SAEConfig, source: Source, curves: Curves, bar: Progress) -> None:
        self.quiet, self.config, self.source, self.curves, self.bar = request.quiet, config, source, curves, bar
        self.steps, self.until_flat = config.training.end, config.training.stop == "converged"
        self.stops = (0, *(doublings(self.steps) if self.until_flat else (self.steps // 2, self.steps)))
        self.line = bar.add_task(f"{len(config.init_seeds)} SAE(s)", total=self.steps, figures="")
        self.curve: dict[int, Measurement] = {}
        self.history: list[StepLog] = []
        self.found: dict[str, Any] = {}
        self.state, self.judged = "", 0

    def health(self, history: Sequence[StepLog]) -> Health:
        return assess(history, self.config, low_precision=self.config.training.low_precision)

    def look(self, step: int, ensemble: SAEEnsemble, *, full: bool) -> Measurement:
        members = Members.of(ensemble.dictionaries, self.source.hook, full=full)
        untrained = self.curve.get(0)
        self.curve[step] = measure(members, self.source.hook, AnalysisConfig(), final=False, untrained=untrained)
        return self.curve[step]

    def observe(self, step: int, ensemble: SAEEnsemble) -> bool:
        self.look(step, ensemble, full=step in (0, self.steps))
        return self.until_flat and is_flat({place: point.overall() for place, point in self.curve.items()}, step)

    def on_log(self, rows: list[StepLog]) -> None:
        mean, step = mean_log(rows), rows[0].step
        self.history.extend(rows)
        self.curves.on_log(rows)
        if step >= START * self.steps and step * STRIDE // self.steps > self.judged:
            self.state, self.judged = f"{self.health(self.history).line} · ", step * STRIDE // self.steps
        figures = "loss {loss:.4g} · L0 {l0:.1f} · EV {explained_variance:.4f} · dead {dead:.1%}".format(**mean)
        self.bar.update(self.line, completed=step, figures=self.state + figures)
        if not self.quiet:
            self.bar.console.print(f"epoch {rows[0].epoch:6.1f}  {self.state + figures}", markup=False)

    def finish(self, trained: TrainedSAEs, folder: Path) -> dict[str, Any]:
        """Writes report.md into the folder; returns the run's figures."""
        health, end = self.health(trained.history), trained.steps
        if trained.hopeless:
            last = [row for row in trained.history if row.step == trained.history[-1].step]
            self.found.update(mean_log(last), converged=False, hopeless=trained.hopeless)
            text = given_up(self.config, self.source, trained, health)
        else:
            final = self.curve[end] if end == self.steps else self.look(end, trained.ensemble, full=True)
            self.found.update(summarise(final, self.curve[end // 2]))
            text = report(self.config, self.source, self.found, final, health, end)
            if end == self.steps < self.config.training.steps:
                self.found["cut_short"] = True
        self.found.update(health=health.verdict, steps=end)
        (folder / "report.md").write_text(text + time_lines(mean_timing(trained.history)), encoding="utf-8")
        return self.found
