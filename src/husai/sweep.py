"""A suite → cells → missing cells → results tables.

A cell is finished if its run folder says so or its id stands in the suite's committed records. Every finished cell goes
into the tables at once, so an interrupted sweep continues where it stopped, on this machine or another.
"""

import itertools
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pandas as pd

from husai.cell import Cell, Job, SavedModel, hook_of, run_cell
from husai.config import (
    CirclesSource,
    ControlConfig,
    PlantedSource,
    SAEConfig,
    Subject,
    SuiteConfig,
    Trainable,
    content_hash,
)
from husai.errors import HusaiError
from husai.models import resolve_hook, weights_hash
from husai.runs import check_gate, finished, load_model, reason, write_atomic
from husai.truth.circuit import GateReport


def plan(
    suite: SuiteConfig,
    places: Sequence[str | None],
    runs: Path,
    *,
    allow_unverified: bool = False,
    jobs: int = 1,
    device: str = "cpu",
) -> tuple[list[Job], dict[str, GateReport]]:
    """All cells of a suite as jobs, and the gate report of every model by the name that results give it.

    places: where the model of each of the suite's subjects is; None for a synthetic source. A recipe that declares itself a
    control needs no permission to fail the gate: its records say so. Raises HusaiError
    for a model, hook or config that does not fit, or a control that passes the gate; GateFailed for a model that is not
    ground truth.
    """
    seeds = {"init_seeds": suite.init_seeds, "data_seeds": suite.data_seeds}
    shared = {"threads": max(1, (os.cpu_count() or 1) // jobs), "device": device, "tracking": suite.tracking}
    planned: list[Job] = []
    gates: dict[str, GateReport] = {}
    for subject, place in zip(suite.subjects, places, strict=True):
        name = subject.name or f"{suite.name}-model"
        if place is None:
            hooks, identity, same = _synthetic(subject, name)
        else:
            hooks, identity, same, report = _of_model(subject, name, place, allow_unverified=allow_unverified)
            gates[same["model_name"]] = report
        for hook, entry, control in itertools.product(hooks, subject.entries, (None, *subject.controls)):
            config = SAEConfig.parse({"sae": entry.sae, "training": entry.training, **seeds}, f"suite {suite.name}")
            samples = identity if control is None else content_hash(identity, control)
            cell = Cell(config, hook, samples, suite.analysis)
            named = same if control is None else same | _control_fields(control, same["model_name"])
            planned.append(Job(cell, suite.name, folder=str(runs / cell.run_id), **shared, **named))
    return planned, gates


def _of_model(
    subject: Subject, name: str, place: str, *, allow_unverified: bool
) -> tuple[list[str], str, dict[str, Any], GateReport]:
    """The hooks, the identity and the job fields of a model, and its gate report."""
    loaded = load_model(place)
    declared = subject.model.control if isinstance(subject.model, Trainable) else None
    permitted = allow_unverified or declared is not None
    model, report = check_gate(loaded, allow_unverified=permitted)
    if declared and report.passed:
        raise HusaiError(f"model {model.name}: is declared a {declared} control, yet passes the gate")
    same = {
        "source": SavedModel(place, loaded.task.op),
        "tier": loaded.tier,
        "task": loaded.task.op,
        "p": loaded.task.p,
        "model_name": subject.name or (model.name if isinstance(subject.model, str) else name),
        "model_seed": loaded.seed,
        "verified": report.passed,
    }
    return [resolve_hook(model, hook) for hook in subject.hooks], weights_hash(model), same, report


def _control_fields(control: ControlConfig, model_name: str) -> dict[str, Any]:
    """The job fields in which a control differs from what it stands in for."""
    return {
        "control": control,
        "tier": control.kind,
        "model_name": f"{model_name}/{control.kind}-{control.seed}",
    }


def _synthetic(subject: Subject, name: str) -> tuple[list[str], str, dict[str, Any]]:
    """The hook's name, the identity and the job fields of a synthetic source, which is true by construction."""
    if isinstance(subject.model, PlantedSource):
        source, tier, p = subject.model.planted, "planted", 0
    else:
        assert isinstance(subject.model, CirclesSource), subject.model
        source, tier, p = subject.model.circles, "circles", subject.model.circles.p
    same = {
        "source": source,
        "tier": tier,
        "task": tier,
        "p": p,
        "model_name": name,
        "model_seed": source.seed,
        "verified": True,
    }
    return [tier], content_hash(source), same


def sweep(
    planned: list[Job],
    results: Path,
    *,
    jobs: int = 1,
    on_done: Callable[[Job, bool, int], None] = lambda _job, _computed, _left: None,
) -> None:
    """Compute the missing cells and bring the tables up to date after each.

    on_done(job, computed, left) is called for every cell, `computed` False if it was finished before. Raises HusaiError
    if the tables cannot be written.
    """
    known = recorded_ids(results)
    missing = []
    for job in planned:
        if job.cell.run_id in known:
            on_done(job, False, len(planned))
        elif finished(Path(job.folder)):
            collect(results, job)
            on_done(job, False, len(planned))
        else:
            missing.append(job)
    failed: list[str] = []
    for left, (job, trouble) in zip(range(len(missing) - 1, -1, -1), _compute(missing, jobs), strict=True):
        if trouble:
            failed.append(f"{job.title}: {trouble}")
            continue
        collect(results, job)
        on_done(job, True, left)
    if failed:
        raise HusaiError(f"{len(failed)} of {len(planned)} cells failed, the others are kept; {'; '.join(failed)}")


def _compute(missing: list[Job], jobs: int) -> Iterator[tuple[Job, str]]:
    """Run jobs here or in worker processes; yields each as it ends, with what went wrong or ''.

    Leaves no process and no temporary folder behind.
    """
    if jobs == 1 or len(missing) <= 1:
        for job in missing:
            yield job, _trouble(lambda job=job: run_cell(job))
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_ignore_interrupts)
    try:
        waiting: dict[Future[str], Job] = {pool.submit(run_cell, job): job for job in missing}
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), _trouble(future.result)
    finally:
        workers = list((getattr(pool, "_processes", None) or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()
            worker.join()
        for job in missing:
            folder = Path(job.folder)
            for leftover in folder.parent.glob(f".{folder.name}.*"):
                shutil.rmtree(leftover, ignore_errors=True)


def _trouble(work: Callable[[], object]) -> str:
    """Why a cell could not be computed, or ''. One bad cell does not end a sweep."""
    try:
        work()
    except HusaiError as error:
        return str(error)
    except BrokenProcessPool:
        return "its worker process died, as for want of memory; fewer --jobs may help"
    return ""


def _ignore_interrupts() -> None:
    """Ctrl-C reaches the whole process group; only the parent answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def recorded_ids(results: Path) -> set[str]:
    """Run ids in the suite's records. Raises HusaiError if the file is there but cannot be read."""
    path = results / "records.parquet"
    if not path.is_file():
        return set()
    return set(read_table(path)["run_id"])


def read_table(path: Path) -> pd.DataFrame:
    """A results table. Raises HusaiError if it is missing or damaged."""
    try:
        return pd.read_parquet(path)
    except FileNotFoundError:
        raise HusaiError(f"{path}: no such results table") from None
    except (OSError, ValueError) as error:
        raise HusaiError(f"{path}: is not a readable Parquet table ({error.__class__.__name__})") from None


def collect(results: Path, job: Job) -> None:
    """Add one finished cell to `records`, `atoms`, `costs` and `arrays/`, each replaced in one step; records go last."""
    folder, run_id = Path(job.folder), job.cell.run_id
    try:
        (results / "arrays").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "arrays.npz", results / "arrays" / f"{run_id}.npz")
        spent = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        cost = {
            "run_id": run_id,
            "wall_seconds": spent["wall_seconds"],
            "precision": "/".join(job.cell.config.training.pair),
            **spent["hardware"],
            "finished": spent["finished"],
        }
        _append(results / "costs.parquet", pd.DataFrame([cost]))
        _append(results / "atoms.parquet", pd.read_parquet(folder / "atoms.parquet").assign(suite=job.suite))
        _append(results / "records.parquet", pd.read_parquet(folder / "records.parquet").assign(suite=job.suite))
    except OSError as error:
        raise HusaiError(f"{results}: cannot be written ({reason(error)})") from None


def _append(path: Path, rows: pd.DataFrame) -> None:
    """Rows of one run into a table, in an order that depends on its content alone."""
    if path.is_file():
        old = read_table(path)
        kept: Any = old[~old["run_id"].isin(rows["run_id"])]
        rows = pd.concat([kept, rows], ignore_index=True)
    order = [column for column in rows.columns if column not in ("value", "ci_low", "ci_high")]
    rows = rows.sort_values(order, kind="stable", ignore_index=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    rows.to_parquet(temporary, index=False)
    temporary.replace(path)


def write_truth(results: Path, planned: list[Job], gates: dict[str, GateReport]) -> None:
    """What belongs to a suite as a whole: its cells, its models' gate reports, and the truth at their hooks.

    `cells.json` lists the run ids of the suite as it stands; tables may hold cells of earlier versions besides.
    `gate.json` has a report for every model (none for a synthetic source), `truth.json` the hooks of every model and source.
    Since ids name model and hooks, files written for the same ids stay as they are.
    """
    cells = json.dumps([job.cell.run_id for job in planned], indent=2) + "\n"
    files = [results / name for name in ("cells.json", "gate.json", "truth.json")]
    if all(file.is_file() for file in files) and files[0].read_text(encoding="utf-8") == cells:
        return
    truth: dict[str, dict[str, Any]] = {}
    for (model, hook), job in {(job.model_name, job.cell.hook): job for job in planned}.items():
        truth.setdefault(model, {})[hook] = hook_of(job).describe()
    gate = {name: report.to_json() for name, report in gates.items()}
    write_atomic(results / "gate.json", json.dumps(gate, indent=2) + "\n")
    write_atomic(results / "truth.json", json.dumps(truth, indent=2) + "\n")
    write_atomic(results / "cells.json", cells)
