"""One cell of a sweep: one SAE config at one hook of one model, all its seeds, trained and measured along the way."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from husai.activations import extract
from husai.analysis.convergence import doublings, has_converged, is_flat
from husai.config import (
    AnalysisConfig,
    CirclesConfig,
    ControlConfig,
    PlantedConfig,
    SAEConfig,
    TrackingConfig,
    content_hash,
)
from husai.errors import HusaiError
from husai.measure import Hook, Measurement, Members, Row, atom_table, measure, verdict
from husai.measure.null_cache import NullCache
from husai.reuse import earlier_seeds, register
from husai.runs import load_model
from husai.sae.dictionary import SAEEnsemble
from husai.sae.history import StepLog, mean_log
from husai.sae.train import TrainedSAEs
from husai.seeding import deterministic
from husai.tracking import Curves, open_tracker
from husai.truth.controls import stand_in
from husai.truth.synthetic import draw_circles, fresh_samples, plant
from husai.workflow import train_sae_run

Say = Callable[..., object]
RECORD_COLUMNS = (
    *("suite", "task", "p", "model", "hook", "tier", "architecture", "d_sae", "sparsity_param", "sparsity"),
    *("init_seed", "data_seed", "model_seed", "init_seed_b", "data_seed_b", "model_seed_b"),
    *("step", "metric", "null", "value", "ci_low", "ci_high", "n", "run_id", "converged", "verified"),
)
INTEGER_COLUMNS = tuple(name for name in RECORD_COLUMNS if "seed" in name)
TRUTHLESS = ("random", "memorised")  # tiers of models that have learned no circuit, so that there is none to recover
LOGGED = ("loss", "explained_variance", "l0")  # of a training batch, told while a cell is computed
TOLD = ("explained_variance", "pwmcc", "gt_mcc")  # of a measurement
SHOWN_ATOMS = 4  # atoms whose tuning map is kept for the figure


@dataclass(frozen=True)
class Cell:
    """What is computed. `run_id` identifies the science: neither suite, folders nor device enter it.

    hook: full name, or the tier of a synthetic source. model_id: hash of the weights, or of the source's config; with
    a control, of that and of the control's config.
    """

    config: SAEConfig
    hook: str
    model_id: str
    analysis: AnalysisConfig

    @cached_property
    def run_id(self) -> str:
        return content_hash(self.config, self.hook, self.model_id, self.analysis)

    @property
    def family(self) -> str:
        """What cells share that train alike and differ in their seeds, or in what is measured, alone."""
        plain = self.config.model_dump(mode="json", exclude={"init_seeds", "data_seeds"})
        return content_hash(plain, self.hook, self.model_id)

    @property
    def title(self) -> str:
        kind, (name, value) = self.config.sae, self.config.sae.sparsity
        return f"{self.hook.removeprefix('blocks.')} {kind.architecture} d_sae={kind.d_sae}" + (
            "" if name == "d_sae" else f" {name}={value:g}"
        )


@dataclass(frozen=True)
class SavedModel:
    """A model on disk: weights file, run folder or reference name, and its operation."""

    path: str
    op: str


@dataclass(frozen=True)
class Job:
    """A cell with all a worker in another process needs. folder: the run's place.

    tier: where the truth comes from, `trained`, `compiled`, `recurrent`, `planted` or `circles`; or what makes it a control,
    `random`, `memorised`, `surrogate` or `permuted`. task, p: operation and modulus; a synthetic source repeats its tier as
    task, and planted atoms, which have no modulus, have p = 0. control: what stands in for the source's samples.
    """

    cell: Cell
    suite: str
    source: SavedModel | PlantedConfig | CirclesConfig
    tier: str
    task: str
    p: int
    model_name: str
    model_seed: int | None
    verified: bool
    folder: str
    threads: int = 1
    deterministic: bool = False
    device: str = "cpu"
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    control: ControlConfig | None = None

    @property
    def title(self) -> str:
        """Model, hook and SAE; of a synthetic source, what the suite calls it."""
        source = self.model_name.split("/")[0]  # without the stand-in
        where = "" if source == self.cell.hook else f"{source} "
        return where + self.cell.title + (f" {self.control.kind}-{self.control.seed}" if self.control else "")


def checkpoints(steps: int, curve: tuple[int, ...]) -> tuple[int, ...]:
    """The steps at which everything is measured: the curve's, half-way (for the convergence flag) and the end."""
    return tuple(sorted({0, steps // 2, steps, *(s for s in curve if s < steps)}))


def hook_of(job: Job) -> Hook:
    """What the job's SAEs are trained on and measured against: drawn anew, or extracted from the model on disk.

    A control's samples stand beside its source's truth, to which they have no relation but their covariance.
    """
    hook = _hook_of_source(job)
    return hook if job.control is None else hook.with_samples(stand_in(hook.x, job.control))


def _hook_of_source(job: Job) -> Hook:
    if isinstance(job.source, PlantedConfig):
        fresh = fresh_samples(job.source) if job.source.streamed else None
        return Hook.of_planted(plant(job.source), fresh)
    if isinstance(job.source, CirclesConfig):
        return Hook.of_circles(draw_circles(job.source))
    loaded = load_model(job.source.path, job.source.op)
    activations = extract(loaded.model, loaded.task, job.cell.hook)
    make = Hook.without_truth if loaded.tier in TRUTHLESS else Hook.of
    return make(activations, loaded.model)


class Course:
    """A cell on its way: what was measured at every step so far, and the SAEs that were measured last."""

    def __init__(self, job: Job, say: Say) -> None:
        self.say = say
        self.job, self.hook, self.steps = job, hook_of(job), job.cell.config.training.end
        self.until_flat = job.cell.config.training.stop == "converged"
        self.cache = NullCache(Path(job.folder).parent / "nulls")
        self.curve: dict[int, Measurement] = {}
        self.latest: Members | None = None

    @property
    def looks(self) -> tuple[int, ...]:
        """The steps at which everything is measured."""
        more = doublings(self.steps) if self.until_flat else ()
        return checkpoints(self.steps, (*self.job.cell.analysis.curve, *more))

    def measure(self, step: int, ensemble: SAEEnsemble, *, final: bool) -> None:
        analysis, start = self.job.cell.analysis, self.curve.get(0)
        full = final or step == 0
        self.latest = Members.of(ensemble.dictionaries, self.hook, full=full, causes=analysis.causes)
        self.curve[step] = measure(self.latest, self.hook, analysis, final=final, untrained=start, cache=self.cache)

    def observe(self, step: int, ensemble: SAEEnsemble) -> bool:
        """Measure and tell; returns whether training may end."""
        self.measure(step, ensemble, final=step == self.steps)
        known = self.curve[step].overall()
        self.say(step=step, of=self.steps, **{name: known[name].mean for name in TOLD if name in known})
        return self.until_flat and is_flat({place: point.overall() for place, point in self.curve.items()}, step)

    def finish(self, trained: TrainedSAEs, folder: Path) -> dict[str, Any]:
        """Write the run's tables and return its metrics. Raises HusaiError for a run that was given up."""
        if trained.hopeless:
            raise HusaiError(f"training: given up after {trained.steps} of {self.steps} steps; {trained.hopeless}")
        if trained.steps != self.steps:
            self.measure(trained.steps, trained.ensemble, final=True)
        job, end, members = self.job, self.curve[trained.steps], self.latest
        assert members is not None
        converged = has_converged(self.curve[trained.steps // 2].overall(), end.overall())
        frames = [records_of(job, step, point.rows, converged) for step, point in self.curve.items()]
        pd.concat(frames, ignore_index=True).to_parquet(folder / "records.parquet", index=False)
        identity = identity_of(job)
        named = {column: identity[column] for column in RECORD_COLUMNS[:10]}
        atoms = atom_table(members, trained.ensemble, self.hook).assign(**named, run_id=job.cell.run_id)
        atoms.to_parquet(folder / "atoms.parquet", index=False)
        arrays = _arrays(trained.ensemble, self.hook, end, members)
        np.savez_compressed(folder / "arrays.npz", allow_pickle=False, **arrays)
        return summary(end, converged)


def run_cell(job: Job, say: Say = lambda **_: None) -> str:
    """Train and measure one cell and write its run folder; returns its run id. Callable in any process.

    say(step=…, of=…, loss=…, …) is told how far it is. Seeds that finished runs beside it have are not trained again.
    """
    torch.set_num_threads(job.threads)
    with deterministic(job.deterministic):
        _run(job, Course(job, say))
    return job.cell.run_id


def _run(job: Job, course: Course) -> None:
    cell, runs = job.cell, Path(job.folder).parent
    register(Path(job.folder), cell.family)
    tracker = open_tracker(
        job.tracking,
        name=f"{job.suite}: {job.title}",
        run=f"{job.suite}/{job.title} {cell.run_id}",
        config=cell.config.model_dump(mode="json")
        | {"model": job.model_name, "hook": cell.hook, "run_id": cell.run_id},
        folder=runs,
        tags=(cell.config.sae.architecture, cell.hook, job.model_name),
        every=cell.config.training.log_every,
        warn=lambda text: sys.stderr.write(f"husai: {text}\n"),
    )
    curves = Curves(tracker, cell.config.training)

    def on_log(rows: list[StepLog]) -> None:
        figures = mean_log(rows)
        course.say(step=rows[0].step, of=course.steps, **{name: figures[name] for name in LOGGED})
        curves.on_log(rows)

    meta = {
        "model_name": job.model_name,
        "hook_name": cell.hook,
        "task": job.task,
        "p": job.p,
        "verified": job.verified,
        "run_id": cell.run_id,
    }
    register(Path(job.folder), cell.family)  # before there is a run, so that none is ever finished without
    with tracker:
        train_sae_run(
            course.hook.x,
            cell.config,
            Path(job.folder),
            meta,
            on_log=on_log,
            on_statistics=curves.on_statistics,
            stop=curves.apart(course.observe),
            stop_at=course.looks,
            finish=curves.told(course.finish),
            fresh=course.hook.fresh,
            known=course.hook.known,
            device=job.device,
            keep_looks=True,
            earlier=earlier_seeds(runs, cell.family, cell.config, course.looks),
        )


def identity_of(job: Job) -> dict[str, Any]:
    """The record columns that are the same in every row of a cell."""
    kind, (name, value) = job.cell.config.sae, job.cell.config.sae.sparsity
    return {
        "suite": job.suite,
        "task": job.task,
        "p": job.p,
        "model": job.model_name,
        "hook": job.cell.hook,
        "tier": job.tier,
        "architecture": kind.architecture,
        "d_sae": kind.d_sae,
        "sparsity_param": name,
        "sparsity": value,
        "model_seed": job.model_seed,
        "run_id": job.cell.run_id,
        "verified": job.verified,
    }


def records_of(job: Job, step: int, rows: list[Row], converged: bool) -> pd.DataFrame:
    """Tidy records of one measurement: one row a number."""
    config, identity = job.cell.config, identity_of(job)

    def seeds(index: int | None, suffix: str) -> dict[str, int | None]:
        known = index is not None
        return {
            f"init_seed{suffix}": config.init_seeds[index] if known else None,
            f"data_seed{suffix}": config.data_seeds[index] if known else None,
            **({f"model_seed{suffix}": job.model_seed if known else None} if suffix else {}),
        }

    lines = [
        {
            **identity,
            **seeds(row.seed, ""),
            **seeds(row.seed_b, "_b"),
            "step": step,
            **row.columns(),
            "converged": converged,
        }
        for row in rows
    ]
    frame = pd.DataFrame(lines, columns=list(RECORD_COLUMNS))
    return frame.astype(dict.fromkeys(INTEGER_COLUMNS, "Int64"))


def summary(end: Measurement, converged: bool) -> dict[str, Any]:
    """The flat `metrics.json` of a cell."""
    figures = {row.metric: row.value for row in end.rows if row.seed is None and not row.null}
    nulls = {f"{row.metric}_{row.null}": row.value for row in end.rows if row.seed is None and row.null}
    sentence = verdict(end) + ("" if converged else " Not converged.") if "pwmcc" in end.matrices else ""
    return {**figures, **nulls, "converged": converged, "verdict": sentence}


def _arrays(ensemble: SAEEnsemble, hook: Hook, end: Measurement, members: Members) -> dict[str, np.ndarray]:
    """Small figure data: the S×S matrices and, of a model, the codes of seed 0's most energetic atoms over (a, b).

    On walks they are means over the samples of each pair.
    """
    matrices = {name: matrix.astype(np.float32) for name, matrix in end.matrices.items()}
    if end.reliability is not None:
        matrices["reliability"] = end.reliability.astype(np.float32)
    task = hook.task
    if task is None:
        return matrices
    energy = members.fits[0].energy
    shown = energy.topk(min(SHOWN_ATOMS, len(energy))).indices
    codes = ensemble.member(0).encode(hook.encoded)[:, shown]
    pair = task.a * task.p + task.b
    counts = pair.bincount(minlength=task.p**2).clamp(min=1)
    maps = torch.zeros(len(shown), task.p**2).index_add_(1, pair, codes.T) / counts
    maps = maps.unflatten(1, (task.p, task.p))
    return {**matrices, "tuning_maps": maps.numpy().astype(np.float16), "tuning_atoms": shown.numpy()}
