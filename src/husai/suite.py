"""Commands that run several steps and tell the user about them: model training and compiling, suites, smoke."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from husai import console
from husai.activations import Activations
from husai.cell import Job
from husai.config import CompiledConfig, Recipe, Subject, SuiteConfig, TrackingConfig, content_hash
from husai.console import say
from husai.errors import HusaiError
from husai.live import View
from husai.making import compile_and_report, train_watched
from husai.measure import Hook
from husai.report.results import SuiteResults
from husai.report.tables import sentences
from husai.report.text import plural
from husai.report.write import write_report
from husai.runs import GateFailed
from husai.store.checksums import DONE
from husai.store.failures import failure_of
from husai.store.files import reason
from husai.store.folders import finished, whole_folder
from husai.store.lease import hold
from husai.store.places import MERGING, lease_path
from husai.sweep.compute import Outcome
from husai.sweep.forecast import forecast
from husai.sweep.run import Events, Tally, sweep
from husai.sweep.tables import Tables
from husai.sweep.truth import write_truth
from husai.sweep.ways import Ways
from husai.tracking import track_results, tracking_of

OUT_OF_TIME = 75  # exit code: nothing is wrong, run it again (EX_TEMPFAIL of sysexits.h)


def _absent(subject: Subject, place: str | None) -> bool:
    """Whether a model must be made before anything can be trained on it."""
    return isinstance(subject.model, Recipe) and place is not None and not finished(Path(place))


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
        state = (
            "finished" if job.cell.run_id in known or finished(place) else "failed" if failure_of(place) else "missing"
        )
        if state == "missing" or (state == "failed" and ways.retry_failed):
            missing.append(job)
        say(f"{state:<8} {job.cell.run_id} {job.title}")
    if missing:
        for line in forecast(missing, results).lines(ways.at_once):
            say(line)
    return 0


def run_suite(suite: SuiteConfig, results: Path, runs: Path, ways: Ways, *, shown: Path | None = None) -> int:
    """Train or compile the suite's models that are recipes, compute the missing cells, write results and report.

    A synthetic source is drawn anew in every cell. shown: what messages call `results`, if that is only a temporary
    place. Returns the exit code: 1 if a model is no ground truth or a cell failed, OUT_OF_TIME if cells are left.
    """
    shown, start = shown or results, time.monotonic()
    places = [model_place(subject, suite.name, runs) for subject in suite.subjects]
    if ways.dry_run:
        return _list_cells(suite, results, runs, ways)
    suite = suite.model_copy(update={"tracking": tracking_of(suite, console.warn)})
    for subject, place in zip(suite.subjects, places, strict=True):
        if _absent(subject, place) and not _made_once(subject, Path(str(place)), ways, suite.tracking):
            return 1
    planned, gates = ways.plan(suite, places, runs)
    names = ", ".join(dict.fromkeys(job.model_name for job in planned))
    cells, seeds = plural(len(planned), "cell"), plural(len(suite.init_seeds), "seed")
    say(f"Suite {suite.name}: {cells} of {seeds} on {names}")
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
    code, files = _concluded(tally, planned, results, shown, time.monotonic() - start)
    if files:
        track_results(suite, files, len(planned), runs, console.warn)
    return code


def _concluded(
    tally: Tally, planned: Sequence[Job], results: Path, shown: Path, seconds: float
) -> tuple[int, list[Path]]:
    """Draw the report of what is there, say how the cells stand, and return the exit code, and the files drawn."""
    for job, why in tally.failed:
        console.fail(f"{job.title}: {why}", 1)
    known = Tables(results).run_ids()
    absent = sum(job.cell.run_id not in known for job in planned)
    figures = f"{len(tally.computed)} computed, {len(tally.finished)} finished before, {len(tally.failed)} failed"
    say(f"Cells: {figures}; {absent} of the suite's {len(planned)} are not in {shown} yet ({seconds:.0f} s)")
    if tally.left:
        say(f"Out of time with {plural(len(tally.left), 'cell')} left; run the same command again to go on")
        return OUT_OF_TIME, []
    files: list[Path] = []
    if absent < len(planned):
        with hold(results / MERGING, about="drawing figures"):
            files = write_report(results, results)
        say(f"{len(files)} tables and figures in {shown}; read summary.md first")
    if tally.failed:
        say("Cells that failed are not tried again unless --retry-failed is given")
    return 1 if tally.failed else 0, files


def _made_once(subject: Subject, place: Path, ways: Ways, tracking: TrackingConfig) -> bool:
    """Make a subject's model, or wait until another sweep on the same store has; whether the suite may go on with it."""
    with hold(lease_path(place), about=f"making {place.name}", wait=float("inf")):
        return not _absent(subject, str(place)) or _make_model(subject, place, ways, tracking)


def model_place(subject: Subject, suite: str, runs: Path) -> str | None:
    """The MODEL of a subject: the one it names, or the run folder its recipe fills; None for a synthetic source."""
    if isinstance(subject.model, Recipe):
        return str(runs / f"{suite}-{subject.name or 'model'}-{content_hash(subject.model)}")
    return subject.model if isinstance(subject.model, str) else None


def _make_model(subject: Subject, place: Path, ways: Ways, tracking: TrackingConfig) -> bool:
    """Write the run folder of a subject's recipe; returns whether its suite may go on with it.

    A declared control is expected to fail the gate: it is made once, and its suite goes on.
    """
    recipe, device = subject.model, ways.device
    assert isinstance(recipe, Recipe)
    if isinstance(recipe, CompiledConfig):
        return compile_and_report(recipe, place) == 0 or ways.allow_unverified
    if recipe.control:
        say(f"A {recipe.control} control: it must fail the gate, and all its results are unverified")
        train_watched(recipe, place, attempts=1, device=device, tracking=tracking)
        return True
    return train_watched(recipe, place, device=device, tracking=tracking) or ways.allow_unverified


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
