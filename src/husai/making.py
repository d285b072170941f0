"""Models trained or compiled while somebody watches."""

from pathlib import Path

from husai import console
from husai.config import CompiledConfig, TrackingConfig, Trainable
from husai.console import say
from husai.models import inputs_of, kind_of
from husai.optimise import Evaluated
from husai.store.folders import require_free
from husai.tracking import Attempts
from husai.truth.circuit import GateReport
from husai.workflow import ATTEMPTS, compile_run, train_model


def train_watched(
    recipe: Trainable,
    out: Path,
    *,
    attempts: int = ATTEMPTS,
    device: str = "cpu",
    quiet: bool = False,
    tracking: TrackingConfig | None = None,
) -> bool:
    """Train with a progress bar and print the gate report of the kept attempt; returns whether it passed."""
    require_free(out)
    task, kind = inputs_of(recipe), kind_of(recipe)
    say(f"Training a {kind} model on {task.op} mod {task.p} ({recipe.training.steps} steps)")
    tracked = Attempts(tracking or recipe.tracking, f"{task.op}-p{task.p}", out, console.warn)
    with console.progress(quiet) as bar:
        line = bar.add_task(kind, total=recipe.training.steps, figures="")

        def on_attempt(attempt: int, tried: Trainable) -> None:
            tracked.begin(attempt, tried)
            if attempt:
                say(f"  trying seed {tried.training.init_seed}")
            bar.reset(line, total=tried.training.steps, figures="")

        def on_evaluation(row: Evaluated) -> None:
            bar.update(line, completed=row.step, figures=row.figures)
            tracked.log(row)
            if not quiet and (bar.disable or row.step == recipe.training.steps):
                say(f"  step {row.step:>6}  {row.figures}")

        def on_verdict(attempt: int, report: GateReport) -> None:
            tracked.end(report)
            if not report.passed:
                say(f"  attempt {attempt + 1}: the gate failed: {report.failures()}")

        with tracked:
            run = train_model(
                recipe,
                out,
                attempts=attempts,
                on_attempt=on_attempt,
                on_evaluation=on_evaluation,
                on_verdict=on_verdict,
                device=device,
            )
    for text in console.gate_lines(run.report):
        say(text)
    if not run.report.passed:
        console.fail(f"no attempt of {attempts} passed the gate; above is the report of the best one", 1)
    return run.report.passed


def compile_and_report(config: CompiledConfig, out: Path) -> int:
    """Compile a transformer, print its gate report and where it is; 0 if it passed its own variant, else 1."""
    require_free(out)
    report = compile_run(config, out)
    for text in console.gate_lines(report):
        say(text)
    return say_run(out, report.passed)


def say_run(out: Path, passed: bool) -> int:
    """Print where a model is; 0 if it passed the gate, else 1."""
    say(f"Run folder: {out}")
    return 0 if passed else 1
