"""Commands that run several steps and tell the user about them: model training and compiling, suites, smoke."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from husai import console
from husai.activations import Activations
from husai.cell import Job
from husai.config import CompiledConfig, Recipe, Subject, SuiteConfig, Trainable, content_hash
from husai.console import say
from husai.engines import Engine, EngineName
from husai.engines.processes import Processes
from husai.engines.serial import Serial
from husai.errors import HusaiError
from husai.live import View
from husai.measure import Hook
from husai.models import inputs_of, kind_of
from husai.optimise import Evaluated
from husai.report.results import SuiteResults
from husai.report.tables import sentences
from husai.report.text import plural
from husai.report.write import write_report
from husai.runs import DONE, GateFailed, finished, reason, require_free, whole_folder
from husai.store.failures import failure_of
from husai.store.lease import hold
from husai.sweep.compute import Outcome
from husai.sweep.forecast import forecast
from husai.sweep.plan import plan
from husai.sweep.run import Events, Tally, sweep
from husai.sweep.tables import Tables
from husai.sweep.truth import write_truth
from husai.tracking import PROJECT, Mode, open_tracker
from husai.truth.circuit import GateReport
from husai.workflow import ATTEMPTS, compile_run, train_model


OUT_OF_TIME = 75  # exit code: nothing is wrong, run it again (EX_TEMPFAIL of sysexits.h)


def train_watched(
    recipe: Trainable,
    out: Path,
    *,
    attempts: int = ATTEMPTS,
    device: str = "cpu",
    quiet: bool = False,
    tracking: Mode = "none",
    project: str = PROJECT,
) -> bool:
    """Train with a progress bar and print the gate report of the kept attempt; returns whether it passed."""
    require_free(out)
    task, kind = inputs_of(recipe), kind_of(recipe)
    say(f"Training a {kind} model on {task.op} mod {task.p} ({recipe.training.steps} steps)")
    tracker = open_tracker(
        tracking,
        project=project,
        name=f"{task.op}-p{task.p}",
        config=recipe.model_dump(mode="json"),
        folder=out.parent,
        warn=lambda text: console.err.print(f"husai: {text}", markup=False),
    )
    with console.progress(quiet) as bar:
        line = bar.add_task(kind, total=recipe.training.steps, figures="")

        def on_attempt(attempt: int, tried: Trainable) -> None:
            if attempt:
                say(f"  trying seed {tried.training.init_seed}")
            bar.reset(line, total=tried.training.steps, figures="")

        def on_evaluation(row: Evaluated) -> None:
            bar.update(line, completed=row.step, figures=row.figures)
            tracker.log(asdict(row), row.step)
            if not quiet and (bar.disable or row.step == recipe.training.steps):
                say(f"  step {row.step:>6}  {row.figures}")

        def on_verdict(attempt: int, report: GateReport) -> None:
            if not report.passed:
                say(f"  attempt {attempt + 1}: the gate failed: {report.failures()}")

        try:
            run = train_model(
                recipe,
                out,
                attempts=attempts,
                on_attempt=on_attempt,
                on_evaluation=on_evaluation,
                on_verdict=on_verdict,
                device=device,
            )
        finally:
            tracker.finish()
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


@dataclass(frozen=True)
class Ways:
    """How a suite is computed; results do not depend on it.

    jobs: cells at once. engine: None for worker processes, or none if there is one job. address: of a Ray cluster; cpus, gpus:
    what a cell takes of it. threads: of every cell; None: a fair share of the processors. shard: i and n, to compute every
    n-th cell from the i-th. seconds: after which the sweep stops.
    """

    jobs: int = 1
    engine: EngineName | None = None
    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    threads: int | None = None
    deterministic: bool = False
    device: str = "cpu"
    retry_failed: bool = False
    shard: tuple[int, int] = (1, 1)
    seconds: float | None = None
    allow_unverified: bool = False
    dry_run: bool = False
    tracking: Mode = "none"

    def open(self) -> Engine:
        """Raises HusaiError if the engine cannot be had."""
        if self.engine == "ray":
            from husai.engines.ray import Ray

            return Ray(self.jobs, cpus_each=self.cpus, gpus_each=self.gpus, address=self.address)
        many = self.jobs > 1 if self.engine is None else self.engine == "processes"
        return Processes(self.jobs) if many else Serial()

    def plan(self, suite: SuiteConfig, places: Sequence[str | None], runs: Path) -> tuple[list[Job], dict[str, GateReport]]:
        """All cells of a suite, whatever the shard. Raises as `sweep.plan.plan`."""
        fair = max(1, (os.cpu_count() or 1) // self.jobs)
        return plan(
            suite,
            places,
            runs,
            allow_unverified=self.allow_unverified,
            threads=1 if self.deterministic else self.threads or fair,
            deterministic=self.deterministic,
            device=self.device,
            tracking=self.tracking,
        )

    def share(self, planned: Sequence[Job]) -> Sequence[Job]:
        """The cells of this shard."""
        part, of = self.shard
        return planned[part - 1 :: of]


def _list_cells(suite: SuiteConfig, results: Path, runs: Path, ways: Ways) -> int:
    """Say which cells are finished, and what the others will take.

    Cells of a model that is not there yet have no identity; the model is named instead.
    """
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
    planned, _ = ways.plan(left, [model_place(subject, suite.name, runs) for subject in there], runs)
    known, missing = Tables(results).run_ids(), list[Job]()
    for job in ways.share(planned):
        place = Path(job.folder)
        state = "finished" if job.cell.run_id in known or finished(place) else "failed" if failure_of(place) else "missing"
        if state == "missing" or (state == "failed" and ways.retry_failed):
            missing.append(job)
        say(f"{state:<8} {job.cell.run_id} {job.title}")
    if missing:
        for line in forecast(missing, results).lines(ways.jobs):
            say(line)
    return 0


def run_suite(suite: SuiteConfig, results: Path, runs: Path, ways: Ways = Ways(), *, shown: Path | None = None) -> int:
    """Train or compile the suite's models that are recipes, compute the missing cells, write results and report.

    A synthetic source is drawn anew in every cell. shown: what messages call `results`, if that is only a temporary
    place. Returns the exit code: 1 if a model is no ground truth or a cell failed, OUT_OF_TIME if cells are left.
    """
    shown, start = shown or results, time.monotonic()
    places = [model_place(subject, suite.name, runs) for subject in suite.subjects]
    if ways.dry_run:
        return _list_cells(suite, results, runs, ways)
    for subject, place in zip(suite.subjects, places, strict=True):
        if _absent(subject, place) and not _made_once(subject, Path(str(place)), ways):
            return 1
    planned, gates = ways.plan(suite, places, runs)
    names = ", ".join(dict.fromkeys(job.model_name for job in planned))
    cells, seeds = plural(len(planned), "cell"), plural(len(suite.init_seeds), "seed")
    say(f"Suite {suite.name}: {cells} of {seeds} on {names}")
    with hold(results / ".lease.json", about="writing the truth"):
        write_truth(results, planned, gates)
    ends = None if ways.seconds is None else start + ways.seconds
    with ways.open() as engine, View() as view:

        def on_done(job: Job, outcome: Outcome) -> None:
            view.ended(job, outcome)
            what = {"computed": "done", "failed": f"failed, {outcome.why}"}.get(outcome.state, "finished elsewhere")
            say(f"  [{time.monotonic() - start:5.0f} s] {job.title}: {what} ({view.left} left)")
            metrics = Path(job.folder) / "metrics.json"
            if outcome.state == "computed" and metrics.is_file():
                found = json.loads(metrics.read_text(encoding="utf-8"))
                say(f"           EV {found['explained_variance']:.4f}, L0 {found['l0']:.1f}. {found['verdict']}")

        tally = sweep(
            ways.share(planned),
            results,
            engine,
            retry_failed=ways.retry_failed,
            ends=ends,
            events=Events(view.begin, on_done),
        )
    return _concluded(tally, planned, results, shown, time.monotonic() - start)


def _concluded(tally: Tally, planned: Sequence[Job], results: Path, shown: Path, seconds: float) -> int:
    """Draw the report of what is there, say how the cells stand, and return the exit code."""
    for job, why in tally.failed:
        console.fail(f"{job.title}: {why}", 1)
    known = Tables(results).run_ids()
    absent = sum(job.cell.run_id not in known for job in planned)
    figures = f"{len(tally.computed)} computed, {len(tally.finished)} finished before, {len(tally.failed)} failed"
    say(f"Cells: {figures}; {absent} of the suite's {len(planned)} are not in {shown} yet ({seconds:.0f} s)")
    if tally.left:
        say(f"Out of time with {plural(len(tally.left), 'cell')} left; run the same command again to go on")
        return OUT_OF_TIME
    if absent < len(planned):
        with hold(results / ".lease.json", about="drawing figures"):
            files = write_report(results, results)
        say(f"{len(files)} tables and figures in {shown}; read summary.md first")
    if tally.failed:
        say("Cells that failed are not tried again unless --retry-failed is given")
    return 1 if tally.failed else 0


def _made_once(subject: Subject, place: Path, ways: Ways) -> bool:
    """Make a subject's model, or wait until another sweep on the same store has; whether the suite may go on with it."""
    with hold(place.parent / ".leases" / f"{place.name}.json", about=f"making {place.name}", wait=float("inf")):
        return not _absent(subject, str(place)) or _make_model(subject, place, ways)


def model_place(subject: Subject, suite: str, runs: Path) -> str | None:
    """The MODEL of a subject: the one it names, or the run folder its recipe fills; None for a synthetic source."""
    if isinstance(subject.model, Recipe):
        return str(runs / f"{suite}-{subject.name or 'model'}-{content_hash(subject.model)}")
    return subject.model if isinstance(subject.model, str) else None


def _make_model(subject: Subject, place: Path, ways: Ways) -> bool:
    """Write the run folder of a subject's recipe; returns whether its suite may go on with it.

    A declared control is expected to fail the gate: it is made once, and its suite goes on.
    """
    recipe, how = subject.model, {"device": ways.device, "tracking": ways.tracking}
    assert isinstance(recipe, Recipe)
    if isinstance(recipe, CompiledConfig):
        return compile_and_report(recipe, place) == 0 or ways.allow_unverified
    if recipe.control:
        say(f"A {recipe.control} control: it must fail the gate, and all its results are unverified")
        train_watched(recipe, place, attempts=1, **how)
        return True
    return train_watched(recipe, place, attempts=ATTEMPTS, **how) or ways.allow_unverified


def run_smoke(suite: SuiteConfig, out: Path, *, jobs: int, device: str = "cpu") -> int:
    """The suite from nothing into `out`, which is replaced as a whole at the end."""
    start = time.perf_counter()
    if out.exists() and not (out.is_dir() and ((out / DONE).exists() or not any(out.iterdir()))):
        raise HusaiError(f"{out}: exists and is not an earlier smoke run; choose another folder or remove it")
    with whole_folder(out, replace_existing=True) as folder:
        code = run_suite(suite, folder, folder / "runs", Ways(jobs=jobs, device=device), shown=out)
        if code:
            raise GateFailed("the smoke run ends here, since no transformer passed the gate or a cell failed")
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
