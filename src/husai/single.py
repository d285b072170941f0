"""One SAE run from a command: train on one hook of a verified model, score, report, save."""

import datetime
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from husai import console
from husai.activations import Activations, extract
from husai.analysis.convergence import doublings, has_converged, is_flat
from husai.analysis.stats import Interval
from husai.config import AnalysisConfig, SAEConfig
from husai.console import say
from husai.errors import HusaiError
from husai.measure import Hook, Measurement, Members, measure
from husai.models import mlp_hooks
from husai.runs import check_gate, load_model, require_free
from husai.sae.dictionary import SAEEnsemble
from husai.sae.estimate import Estimate, estimate
from husai.sae.health import ADVICE, START, STRIDE, Health, assess, dead_advice
from husai.sae.history import StepLog, mean_log, mean_timing
from husai.sae.pairs import Pairs, Samples, split
from husai.sae.train import TrainedSAEs
from husai.seeding import deterministic
from husai.stores import Store, open_store, sample_rows
from husai.tracking import PROJECT, Mode, NoTracker, open_tracker
from husai.workflow import train_sae_run

GOOD, MODERATE = 0.5, 0.3  # verdict bands of fourier_overlap, given that it exceeds its nulls


@dataclass(frozen=True)
class Request:
    """What a command asked for.

    model: may be None if there is a shard_dir, a store that is trained on in place of the model's grid; SAEs are then
    scored on the model, or without one on a sample of the store. epochs: passes over what is trained on, in place of the
    config's steps. resume_from: checkpoints to go on from, beside the run's own. hook: None means resid_post. A transcoder
    reconstructs target_hook from hook, by default what an MLP writes from what it reads, or target_shard_dir from shard_dir.
    """

    model: str | None
    hook: str | None
    layer: int | None
    position: int
    op: str | None
    config: SAEConfig
    out: Path
    allow_unverified: bool
    device: str
    quiet: bool
    epochs: float | None = None
    tracking: Mode = "none"
    project: str = PROJECT
    shard_dir: Path | None = None
    resume_from: Path | None = None
    deterministic: bool = False
    target_hook: str | None = None
    target_shard_dir: Path | None = None


class Source(NamedTuple):
    """What SAEs are trained on (`samples`) and measured at (`hook`), and what the report says of it.

    model: None if it is not known. verified: whether its gate passed; None if there was none.
    """

    samples: Samples
    hook: Hook
    model: str | None
    place: str
    verified: bool | None
    meta: dict[str, Any]


@dataclass(frozen=True)
class Check:
    """One criterion of the report: met, acceptable or missed, with the advice that belongs to missing it."""

    name: str
    value: str
    target: str
    verdict: str
    advice: str = ""


def open_source(request: Request) -> Source:
    """What the request trains on. Raises HusaiError for bad input and GateFailed for a model that is not ground truth."""
    store, target = open_stores(request)
    if request.model is None:
        if store is None:
            raise HusaiError("sae train: needs a MODEL, a store of activations (--shard-dir), or both")
        name, place = store.of.get("model_name"), _named(store)
        about = {"model_name": name, "hook_name": place}
        if target is None:
            return Source(store, Hook(sample_rows(store)), name, place, None, about)
        pairs, hook = Pairs(store, target), Hook(sample_rows(target), source=sample_rows(store))
        return Source(
            pairs, hook, name, f"{place} to {_named(target)}", None, about | {"hook_name_out": _named(target)}
        )
    loaded = load_model(request.model, request.op)
    model, _ = check_gate(loaded, allow_unverified=request.allow_unverified)
    reads, writes = mlp_hooks(model) if request.config.sae.paired else ("resid_post", None)
    reads, writes = request.hook or reads, request.target_hook or writes
    activations = extract(model, loaded.task, reads, layer=request.layer, position=request.position)
    _require_width(store, activations)
    meta = {"model_name": model.name, "hook_name": activations.hook, "task": loaded.task.op, "p": model.p}
    meta |= {"verified": bool(model.verified)}
    samples, verified = activations.x if store is None else store, bool(model.verified)
    if writes is None:
        return Source(samples, Hook.of(activations, model), model.name, activations.hook, verified, meta)
    aim = extract(model, loaded.task, writes, layer=request.layer, position=request.position)
    _require_width(target, aim)
    hook = replace(Hook.of(aim, model), source=activations.x)
    place, meta = f"{activations.hook} to {aim.hook}", meta | {"hook_name_out": aim.hook}
    return Source(Pairs(samples, aim.x if target is None else target), hook, model.name, place, verified, meta)


def open_stores(request: Request) -> tuple[Store | None, Store | None]:
    """Of inputs and of targets. Raises HusaiError unless there is a target where, and only where, one is reconstructed."""
    kind, store, target = request.config.sae, request.shard_dir, request.target_shard_dir
    if not kind.paired and (target is not None or request.target_hook is not None):
        raise HusaiError(f"{kind.architecture}: reconstructs its input; leave out the target, or train a transcoder")
    if kind.paired and (store is None) != (target is None):
        raise HusaiError(
            f"{kind.architecture}: needs stores of inputs and of targets (--shard-dir, --target-shard-dir); one is missing"
        )
    return (None if store is None else open_store(store)), (None if target is None else open_store(target))


def _named(store: Store) -> str:
    return str(store.of.get("hook_name", store.folder))


def _require_width(store: Store | None, activations: Activations) -> None:
    if store is not None and store.d != activations.x.shape[1]:
        raise HusaiError(f"{store.folder}: has width {store.d}; {activations.hook} has {activations.x.shape[1]}")


def recipe_of(request: Request, samples: Samples) -> SAEConfig:
    """The request's config, with epochs as steps."""
    config = request.config
    if request.epochs is None:
        return config
    steps = math.ceil(request.epochs * len(samples) / config.training.batch_size)
    return config.model_copy(update={"training": config.training.model_copy(update={"steps": steps})})


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
    hook, config = source.hook, recipe_of(request, source.samples)
    steps, low = config.training.end, config.training.low_precision

    def warn(text: str) -> None:
        console.err.print(f"husai: {text}", markup=False)

    tracker = open_tracker(
        request.tracking,
        project=request.project,
        name=f"{config.sae.architecture}-{config.sae.d_sae}-{source.model or 'activations'}",
        run=request.out.name,
        config=config.model_dump(mode="json") | {"model": source.model, "hook": source.place},
        folder=request.out.parent,
        warn=warn,
    )
    if config.training.log_statistics and isinstance(tracker, NoTracker):
        warn("training.log_statistics has no tracker to go to; choose one with --track")
    shown = config.training.log_statistics and not isinstance(tracker, NoTracker)
    curve: dict[int, Measurement] = {}
    until_flat = config.training.stop == "converged"
    found: dict[str, Any] = {}

    def look(step: int, ensemble: SAEEnsemble, *, full: bool) -> Measurement:
        members = Members.of(ensemble.dictionaries, hook, full=full)
        return measure(members, hook, AnalysisConfig(), final=False, untrained=curve.get(0))

    def observe(step: int, ensemble: SAEEnsemble) -> bool:
        curve[step] = look(step, ensemble, full=step in (0, steps))
        return until_flat and is_flat({place: point.overall() for place, point in curve.items()}, step)

    with console.progress(request.quiet) as bar:
        line = bar.add_task(f"{len(config.init_seeds)} SAE(s)", total=steps, figures="")
        history: list[StepLog] = []
        state, judged = "", 0

        def on_log(rows: list[StepLog]) -> None:
            nonlocal state, judged
            mean, step = mean_log(rows), rows[0].step
            history.extend(rows)
            tracker.log(mean, step)
            if step >= START * steps and step * STRIDE // steps > judged:
                state, judged = f"{assess(history, config, low_precision=low).line} · ", step * STRIDE // steps
            text = state + "loss {loss:.4g} · L0 {l0:.1f} · EV {explained_variance:.4f} · dead {dead:.1%}".format(
                **mean
            )
            bar.update(line, completed=step, figures=text)
            if not request.quiet:
                bar.console.print(f"epoch {rows[0].epoch:6.1f}  {text}", markup=False)

        def finish(trained: TrainedSAEs, folder: Path) -> dict[str, Any]:
            health, end = assess(trained.history, config, low_precision=low), trained.steps
            if trained.hopeless:
                found.update(mean_log(rows_at(trained)), converged=False, hopeless=trained.hopeless)
                text = given_up(config, source, trained, health)
            else:
                if end != steps:
                    curve[end] = look(end, trained.ensemble, full=True)
                found.update(summarise(curve[end], curve[end // 2]))
                text = report(config, source, found, curve[end], health, end)
                if end == steps < config.training.steps:
                    found["cut_short"] = True
            text += time_lines(mean_timing(trained.history))
            found.update(health=health.verdict, steps=end)
            (folder / "report.md").write_text(text, encoding="utf-8")
            return found

        try:
            trained = train_sae_run(
                source.samples,
                config,
                request.out,
                source.meta,
                on_log=on_log,
                on_statistics=tracker.log_statistics if shown else None,
                stop=observe,
                stop_at=(0, *(doublings(steps) if until_flat else (steps // 2, steps))),
                finish=finish,
                known=source.hook.known,
                device=request.device,
                resume_from=request.resume_from,
                warn=warn,
            )
        finally:
            tracker.finish()
    if trained.hopeless:
        console.err.print(f"husai: training was given up at step {trained.steps}: {trained.hopeless}", markup=False)
    if not request.quiet:
        say((request.out / "report.md").read_text(encoding="utf-8"))
        console.show_health(assess(trained.history, config, low_precision=low))
        say(f"Run folder: {request.out}")
    return found


def rows_at(trained: TrainedSAEs) -> list[StepLog]:
    """The last logged row of every seed."""
    return [row for row in trained.history if row.step == trained.history[-1].step]


def summarise(end: Measurement, middle: Measurement) -> dict[str, Any]:
    """Flat metrics over all seeds, nulls beside, and whether the run has converged."""
    figures = {f"{r.metric}_{r.null}" if r.null else r.metric: r.value for r in end.rows if r.seed is None}
    return {**figures, "converged": has_converged(middle.overall(), end.overall())}


def checks(config: SAEConfig, metrics: dict[str, Any]) -> list[Check]:
    """The report's criteria: L0 near k, EV above .85, dead below 15% (20% acceptable), converged."""
    found = []
    l0, ev, dead = metrics["l0"], metrics["explained_variance"], metrics["dead"]
    if (k := config.sae.fixed_l0) is not None:
        low, high = k * 7 / 8, k * 9 / 8
        verdict = "met" if low <= l0 <= high else "missed"
        found.append(Check("L0", f"{l0:.2f}", f"{low:g} to {high:g}", verdict, "l0 not k"))
    elif not config.sae.fitted:
        share = l0 / config.sae.d_sae
        verdict, advice = ("met", "") if 0.01 <= share <= 0.1 else ("missed", "l0 high" if share > 0.1 else "l0 low")
        found.append(Check("L0", f"{l0:.2f} ({share:.1%} of latents)", "1% to 10% of latents", verdict, advice))
    found.append(Check("explained variance", f"{ev:.4f}", "> 0.85", "met" if ev > 0.85 else "missed", "ev"))
    verdict = "met" if dead < 0.15 else "acceptable" if dead < 0.2 else "missed"
    found.append(Check("dead latents", f"{dead:.1%}", "< 15% (20% acceptable)", verdict, dead_advice(config)))
    converged = "met" if metrics["converged"] else "missed"
    found.append(
        Check("convergence", "flat" if metrics["converged"] else "not converged", "flat", converged, "not converged")
    )
    return found


def overlap_verdict(metrics: dict[str, Any]) -> str:
    """GOOD, MODERATE or POOR by the bands .5 and .3; POOR whatever the value if the untrained SAE reaches it too."""
    value, untrained = metrics["fourier_overlap"], metrics["fourier_overlap_untrained"]
    if value <= untrained:
        return "POOR"
    return "GOOD" if value >= GOOD else "MODERATE" if value >= MODERATE else "POOR"


def length(config: SAEConfig, steps: int) -> str:
    """How long a training was, and whether it was cut short."""
    training = config.training
    if not steps == training.end < training.steps:
        return str(steps)
    return (
        f"{steps} of {training.steps} (**cut short** by training.early_exit; the learning rate had not run its course)"
    )


def time_lines(timing: dict[str, float]) -> str:
    """A report's section on where the time went; nothing where it was not taken."""
    if not timing:
        return ""
    rows = [f"| {name.removeprefix('ms_')} | {value:.2f} |" for name, value in timing.items()]
    return "\n".join(["", "## Time", "", "| part of a step | ms |", "|---|---|", *rows, ""])


def precision_of(config: SAEConfig) -> str:
    """What parameters were kept in and products computed in."""
    kept, computed = config.training.pair
    return f"{kept} parameters, {computed} products"


def head(config: SAEConfig, source: Source, steps: int) -> str:
    """What a report begins with: what was trained, on what, when."""
    kind, (dial, value) = config.sae, config.sae.sparsity
    seeds = ", ".join(f"init {a} / data {b}" for a, b in zip(config.init_seeds, config.data_seeds, strict=True))
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    verified = " (**unverified**: the model fails the gate)" if source.verified is False else ""
    first = split(source.samples)[0]
    store = first if isinstance(first, Store) else None
    trained_on = (
        "the whole grid" if store is None else f"{store.folder} ({len(store)} rows in {len(store.shards)} shards)"
    )
    return f"""# SAE report

- Date: {date}
- Architecture: {kind.architecture}, d_sae {kind.d_sae}, {dial} {value:g}
- Model: {source.model or "not known"}{verified}
- Layer: {source.place}
- Trained on: {trained_on}
- Seed: {seeds}
- Steps: {length(config, steps)}
- Precision: {precision_of(config)}
"""


def health_lines(health: Health) -> str:
    """A report's section on the training's health."""
    rows = [
        f"| {c.name} | {c.shown} | {c.seed} | {c.rule} | {c.band} | {'' if c.band == 'ok' else c.advice} |"
        for c in health.checks
    ]
    return "\n".join(
        [
            "## Health",
            "",
            f"**{health.verdict}**. On training batches; of several seeds, the worst (docs/method.md §Health).",
            "",
            "| check | value | seed | rule | band | advice |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )


def given_up(config: SAEConfig, source: Source, trained: TrainedSAEs, health: Health) -> str:
    """The text of `report.md` for a training that was stopped since it was hopeless."""
    return f"""{head(config, source, trained.steps)}
Training was stopped after {trained.steps} of {config.training.steps} steps: {trained.hopeless} What there is was saved, \
and not scored.

{health_lines(health)}
"""


def report(
    config: SAEConfig,
    source: Source,
    metrics: dict[str, Any],
    end: Measurement,
    health: Health,
    steps: int,
) -> str:
    """The text of `report.md`, after `steps` steps."""
    if "fourier_overlap" in metrics and "fourier_overlap_untrained" not in metrics:
        raise HusaiError("report: the untrained SAE was not measured, so the overlap has no chance level")
    results = checks(config, metrics)
    table = "\n".join(f"| {c.name} | {c.value} | {c.target} | {c.verdict} |" for c in results)
    missed = [check for check in results if check.verdict == "missed"]
    if "fourier_overlap" not in metrics:
        fourier = "There is no Fourier truth to score against here."
    else:
        fourier = _overlap_lines(metrics, end)
        if overlap_verdict(metrics) == "POOR":
            advice = "overlap, gate passed" if source.verified else "overlap"
            missed.append(Check("fourier_overlap", "", "", "missed", advice))
    names = ", ".join(check.name for check in missed)
    observations = f"Missed: {names}." if missed else "Every criterion is met."
    next_steps = (
        "\n".join(f"- {ADVICE[check.advice]}" for check in missed)
        or "- Train more seeds and compare them (`husai sweep`)."
    )
    return f"""{head(config, source, steps)}
## Training Metrics

| criterion | value | target | verdict |
|---|---|---|---|
{table}

{skip_line(metrics)}{health_lines(health)}

## Fourier Validation

{fourier}

## Observations

{observations}

## Next Steps

{next_steps}
"""


def skip_line(metrics: dict[str, Any]) -> str:
    """What a skip connection does by itself, of an SAE or transcoder that has one."""
    if "explained_by_skip" not in metrics:
        return ""
    return (
        f"The skip connection alone explains {metrics['explained_by_skip']:.4f} of the variance; latents are needed for the "
        "rest.\n\n"
    )


def _overlap_lines(metrics: dict[str, Any], end: Measurement) -> str:
    score: Interval = end.value("fourier_overlap")
    plain = end.value("fourier_overlap_unweighted").mean  # as nulls are, which have no codes to weigh atoms by
    names = ("ambient", "untrained", "data", "data_points")
    nulls = ", ".join(f"{name} {metrics[f'fourier_overlap_{name}']:.3f}" for name in names)
    above = [name for name in names if plain > metrics[f"fourier_overlap_{name}"]]
    beyond = "data" in above and "data_points" in above
    reading = "more than" if beyond else "no more than"
    return (
        f"**{overlap_verdict(metrics)}** by the bands of earlier work (GOOD from {GOOD}, MODERATE from {MODERATE}), "
        f"**{'beyond' if beyond else 'not beyond'} chance**: fourier_overlap {score.mean:.3f}, {plain:.3f} with every atom "
        f"alike (chance: {nulls}). The latter exceeds {', '.join(above) or 'no chance level'}, which is {reading} the shape of "
        "the data brings by itself."
    )
