"""Commands that run several steps and tell the user about them: model training and compiling, suites, smoke."""

import json
import time
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from husai import console
from husai.activations import Activations
from husai.cell import Job
from husai.config import CompiledConfig, Recipe, Subject, SuiteConfig, TrackingConfig, Trainable, content_hash
from husai.console import say
from husai.errors import HusaiError
from husai.measure import Hook
from husai.models import inputs_of, kind_of
from husai.optimise import Evaluated
from husai.report.results import SuiteResults
from husai.report.tables import sentences
from husai.report.text import plural
from husai.report.write import write_report
from husai.runs import DONE, GateFailed, finished, reason, require_free, whole_folder
from husai.sweep import plan, recorded_ids, sweep, write_truth
from husai.tracking import Attempts, track_results, tracking_of
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


def _absent(subject: Subject, place: str | None) -> bool:
    """Whether a model must be made before anything can be trained on it."""
    return isinstance(subject.model, Recipe) and place is not None and not finished(Path(place))


def _list_cells(suite: SuiteConfig, results: Path, runs: Path, *, allow_unverified: bool) -> int:
    """Say which cells are finished. Cells of a model that is not there yet have no identity; the model is named instead."""
    there: list[Subject] = []
    for subject in suite.subjects:
        place = model_place(subject, suite.name, runs)
        if _absent(subject, place):
            how = "compiled" if isinstance(subject.model, CompiledConfig) else "trained"
            say(f"missing  {place}: the model would be {how} first")
        else:
            there.append(subject)
    if not there:
        return 0
    left = suite.model_copy(update={"model": None, "hooks": (), "models": tuple(there)})
    places = [model_place(subject, suite.name, runs) for subject in there]
    planned, _ = plan(left, places, runs, allow_unverified=allow_unverified)
    known = recorded_ids(results)
    for job in planned:
        done = job.cell.run_id in known or finished(Path(job.folder))
        say(f"{'finished' if done else 'missing '} {job.cell.run_id} {job.title}")
    return 0


def run_suite(
    suite: SuiteConfig,
    results: Path,
    runs: Path,
    *,
    jobs: int,
    device: str = "cpu",
    allow_unverified: bool = False,
    dry_run: bool = False,
    shown: Path | None = None,
) -> int:
    """Train or compile the suite's models that are recipes, compute the missing cells, write results and report.

    A synthetic source is drawn anew in every cell. shown: what messages call `results`, if that is only a temporary
    place.
    """
    shown = shown or results
    start = time.perf_counter()
    places = [model_place(subject, suite.name, runs) for subject in suite.subjects]
    if dry_run:
        return _list_cells(suite, results, runs, allow_unverified=allow_unverified)
    suite = suite.model_copy(update={"tracking": tracking_of(suite, console.warn)})
    for subject, place in zip(suite.subjects, places, strict=True):
        if _absent(subject, place) and not _make_model(
            subject, Path(str(place)), allow_unverified, device, suite.tracking
        ):
            return 1
    planned, gates = plan(suite, places, runs, allow_unverified=allow_unverified, jobs=jobs, device=device)
    names = ", ".join(dict.fromkeys(job.model_name for job in planned))
    cells, seeds = plural(len(planned), "cell"), plural(len(suite.init_seeds), "seed")
    say(f"Suite {suite.name}: {cells} of {seeds} on {names}")

    def on_done(job: Job, computed: bool, left: int) -> None:
        what = f"done ({left} left)" if computed else "finished before"
        say(f"  [{time.perf_counter() - start:5.0f} s] {job.title}: {what}")
        metrics = Path(job.folder) / "metrics.json"
        if computed and metrics.is_file():
            found = json.loads(metrics.read_text(encoding="utf-8"))
            say(f"           EV {found['explained_variance']:.4f}, L0 {found['l0']:.1f}. {found['verdict']}")

    write_truth(results, planned, gates)
    sweep(planned, results, jobs=jobs, on_done=on_done)
    files = write_report(results, results)
    track_results(suite, files, len(planned), runs, console.warn)
    say(f"{len(files)} tables and figures in {shown} after {time.perf_counter() - start:.0f} s; read summary.md first")
    return 0


def model_place(subject: Subject, suite: str, runs: Path) -> str | None:
    """The MODEL of a subject: the one it names, or the run folder its recipe fills; None for a synthetic source."""
    if isinstance(subject.model, Recipe):
        return str(runs / f"{suite}-{subject.name or 'model'}-{content_hash(subject.model)}")
    return subject.model if isinstance(subject.model, str) else None


def _make_model(subject: Subject, place: Path, allow_unverified: bool, device: str, tracking: TrackingConfig) -> bool:
    """Write the run folder of a subject's recipe; returns whether its suite may go on with it.

    A declared control is expected to fail the gate: it is made once, and its suite goes on.
    """
    recipe = subject.model
    assert isinstance(recipe, Recipe)
    if isinstance(recipe, CompiledConfig):
        return compile_and_report(recipe, place) == 0 or allow_unverified
    if recipe.control:
        say(f"A {recipe.control} control: it must fail the gate, and all its results are unverified")
        train_watched(recipe, place, attempts=1, device=device, tracking=tracking)
        return True
    return train_watched(recipe, place, attempts=ATTEMPTS, device=device, tracking=tracking) or allow_unverified


def run_smoke(suite: SuiteConfig, out: Path, *, jobs: int, device: str = "cpu") -> int:
    """The suite from nothing into `out`, which is replaced as a whole at the end."""
    start = time.perf_counter()
    if out.exists() and not (out.is_dir() and ((out / DONE).exists() or not any(out.iterdir()))):
        raise HusaiError(f"{out}: exists and is not an earlier smoke run; choose another folder or remove it")
    with whole_folder(out, replace_existing=True) as folder:
        code = run_suite(suite, folder, folder / "runs", jobs=jobs, device=device, shown=out)
        if code:
            raise GateFailed("the smoke run ends here, since no transformer passed the gate")
    say()
    for cell in SuiteResults.load(out).cells:
        say(f"{cell.short_hook}, {cell.label}{'' if cell.converged else ' (not converged)'}")
        for sentence in sentences(cell):
            say(f"  {sentence}")
    say(f"Smoke run finished in {time.perf_counter() - start:.0f} s. Read {out}/summary.md and {out}/figures/.")
    return 0


def save_activations(activations: Activations, path: Path) -> None:
    """x with its a, b and label columns as safetensors. Raises HusaiError if the file cannot be written.

    The name must end in .safetensors.
    """
    if path.suffix != ".safetensors":
        raise HusaiError(f"{path}: activations are written as .safetensors; give the file that ending")
    task = activations.task
    tensors = {"x": activations.x, "a": task.a, "b": task.b, "label": task.labels}
    metadata = {"hook_name": activations.hook, "model_name": activations.model, "op": task.op, "p": str(task.p)}
    metadata["verified"] = str(activations.verified)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata=metadata)
    except Exception as error:  # safetensors wraps disk errors in its own class
        path.unlink(missing_ok=True)
        raise HusaiError(f"{path}: cannot be written ({reason(error)})") from None


def describe_hook(activations: Activations) -> dict[str, Any]:
    """The true subspaces of a hook as plain data; an empty list if there is no truth."""
    named = {"hook": activations.hook, "verified": activations.verified, "shape": list(activations.x.shape)}
    return named | Hook.of(activations).describe()
