"""The report of one run: criteria, health, chance, and what to do next."""

import datetime
from dataclasses import dataclass
from typing import Any

from husai.analysis.convergence import has_converged
from husai.analysis.stats import Interval
from husai.config import SAEConfig
from husai.errors import HusaiError
from husai.measure import Measurement, verdict
from husai.sae.health import ADVICE, Health, dead_advice
from husai.sae.pairs import split
from husai.sae.train import TrainedSAEs
from husai.shards import Store
from husai.single.source import Source

ROUNDING = 1e-4  # shares that differ by less are equal
GOOD, MODERATE = 0.5, 0.3  # verdict bands of fourier_overlap, given that it exceeds its nulls


@dataclass(frozen=True)
class Check:
    """One criterion of the report: met, acceptable or missed, with the advice that belongs to missing it."""

    name: str
    value: str
    target: str
    verdict: str
    advice: str = ""


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
    sizes = f"d_sae {kind.d_sae}" + ("" if dial == "d_sae" else f", {dial} {value:g}")
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
- Architecture: {kind.architecture}, {sizes}
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
    further = (
        "Compare them with others (`husai compare`)." if len(config.init_seeds) > 1 else "Train more seeds (`--seeds`)."
    )
    next_steps = "\n".join(f"- {ADVICE[check.advice]}" for check in missed) or f"- {further}"
    return f"""{head(config, source, steps)}
## Training Metrics

| criterion | value | target | verdict |
|---|---|---|---|
{table}

{skip_line(metrics)}{health_lines(health)}

## Fourier Validation

{fourier}

## Agreement

{agreement_lines(end)}

## Observations

{observations}

## Next Steps

{next_steps}
"""


def agreement_lines(end: Measurement) -> str:
    """What the seeds share, beside chance."""
    if "pwmcc" not in end.matrices:
        return "One SAE cannot agree with itself; train several (`--seeds`)."
    return f"{verdict(end)} Each rung of chance is drawn a few times only; a suite (`husai sweep`) takes more draws."


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
    above = [name for name in names if plain > metrics[f"fourier_overlap_{name}"] + ROUNDING]
    beyond = "data" in above and "data_points" in above
    reading = "more than" if beyond else "no more than"
    return (
        f"**{overlap_verdict(metrics)}** by the bands of earlier work (GOOD from {GOOD}, MODERATE from {MODERATE}), "
        f"**{'beyond' if beyond else 'not beyond'} chance**: fourier_overlap {score.mean:.3f}, {plain:.3f} with every atom "
        f"alike (chance: {nulls}). The latter exceeds {', '.join(above) or 'no chance level'}, which is {reading} the shape of "
        "the data brings by itself."
    )
