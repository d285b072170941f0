"""Whole jobs: train a model until it is a verified circuit, or compile one; train SAEs. Each fills a run folder."""

import csv
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from husai.config import CompiledConfig, SAEConfig, Trainable, content_hash
from husai.models import Model, inputs_of, kind_of, save_weights, train
from husai.optimise import Evaluated, TrainedModel
from husai.runs import write_gate
from husai.sae.batches import Fresh
from husai.sae.checkpoint import Checkpoints, source_folder
from husai.sae.dictionary import SAEEnsemble
from husai.sae.health import assess
from husai.sae.history import StepLog
from husai.sae.known import Known
from husai.sae.looks import Earlier, complete, keep_history, keep_look
from husai.sae.pairs import Pairs, Samples
from husai.sae.statistics import Statistic
from husai.sae.train import Stop, TrainedSAEs, train_saes, untrained
from husai.sae.weights import save_sae
from husai.shards import Store
from husai.store.folders import require_free, whole_folder
from husai.store.places import checkpoint_folder
from husai.store.provenance import write_record
from husai.transformer.compiled import compile_model
from husai.truth.circuit import GateReport, verify

ATTEMPTS = 3
EARLIER = "earlier"  # in checkpoints


@dataclass(frozen=True)
class ModelRun:
    """A trained model, its gate report, and the config (with its seeds) of the attempt that was kept."""

    model: Model
    report: GateReport
    config: Trainable


def train_model(
    config: Trainable,
    out: Path,
    *,
    attempts: int = ATTEMPTS,
    on_attempt: Callable[[int, Trainable], None] = lambda _n, _config: None,
    on_evaluation: Callable[[Evaluated], None] = lambda _: None,
    on_verdict: Callable[[int, GateReport], None] = lambda _n, _report: None,
    device: str = "cpu",
) -> ModelRun:
    """Train, verify, and try up to two more seeds if the gate fails; write the run folder of the best attempt.

    The folder gets `transformer_best` (lowest held-out loss; this one is verified), `transformer_final` and, if asked,
    `transformer_epoch_<N>` as safetensors (of a recurrent network, `recurrent_best` and `recurrent_final`), and
    `gate.json`. If no attempt passes, the one with the highest fve is kept and its report says so. Raises HusaiError if
    the folder cannot be written.
    """
    start = time.perf_counter()
    task = inputs_of(config)
    with whole_folder(out) as folder:
        best: tuple[ModelRun, TrainedModel[Any, Any], dict[str, Model]] | None = None
        attempt = 0
        for attempt in range(attempts):
            tried = config if attempt == 0 else config.with_seed(config.training.init_seed + attempt)
            on_attempt(attempt, tried)
            checkpoints: dict[str, Model] = {}
            trained = train(tried, on_evaluation=on_evaluation, on_checkpoint=checkpoints.__setitem__, device=device)
            report = verify(trained.best, task)
            on_verdict(attempt, report)
            model = replace(trained.best, name=out.name, verified=report.passed)
            run = ModelRun(model, report, tried)
            if best is None or report.passed or report.fve > best[0].report.fve:
                best = run, trained, checkpoints
            if report.passed:
                break
        assert best is not None, "attempts is at least 1"
        run, trained, checkpoints = best
        for name, model in {"best": trained.best, "final": trained.final, **checkpoints}.items():
            save_weights(model, folder / f"{kind_of(config)}_{name}.safetensors")
        last = trained.history[-1]
        metrics: dict[str, Any] = {**asdict(last), "best_step": trained.best_step, "passed": run.report.passed}
        write_record(folder, run.config, metrics, wall_seconds=time.perf_counter() - start, attempts=attempt + 1)
        write_gate(folder / "gate.json", run.report)
        write_history(folder / "history.csv", trained.history)
    return run


def compile_run(config: CompiledConfig, out: Path) -> GateReport:
    """Write the run folder of a compiled transformer; the gate, in the circuit's own variant, judges what is stored.

    Raises HusaiError for a circuit that cannot be written down, or if the folder cannot be written.
    """
    start = time.perf_counter()
    with whole_folder(out) as folder:
        model = compile_model(config).to(torch.float32)
        report = verify(model, inputs_of(config), variant=config.variant)
        save_weights(model, folder / "model.safetensors")
        metrics = {"accuracy": report.accuracy, "fve": report.fve, "passed": report.passed}
        write_record(folder, config, metrics, wall_seconds=time.perf_counter() - start)
        write_gate(folder / "gate.json", report)
    return report


def write_history(path: Path, rows: tuple[Evaluated, ...] | tuple[StepLog, ...]) -> None:
    """One CSV line a row."""
    lines = [row.line if isinstance(row, StepLog) else asdict(row) for row in rows]
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(dict.fromkeys(name for line in lines for name in line)))
        writer.writeheader()
        writer.writerows(lines)


def train_sae_run(
    x: Samples,
    config: SAEConfig,
    out: Path,
    meta: dict[str, Any],
    *,
    on_log: Callable[[list[StepLog]], None] = lambda _: None,
    on_statistics: Callable[[dict[str, Statistic], int], object] | None = None,
    stop: Stop = lambda _step, _ensemble: False,
    stop_at: tuple[int, ...] = (),
    finish: Callable[[TrainedSAEs, Path], dict[str, Any]],
    fresh: Fresh | None = None,
    known: Known | None = None,
    device: str = "cpu",
    resume_from: Path | None = None,
    warn: Callable[[str], object] = lambda _: None,
    keep_looks: bool = False,
    earlier: Earlier | None = None,
) -> TrainedSAEs:
    """Train S SAEs on activations x (fresh, known: see `train_saes`) and write their run folder.

    With one seed the folder itself is the SAELens folder; with more, each seed is one in `seed-<init>-<data>/`.
    finish(trained, folder) computes the run's metrics and may add files. meta goes into every SAE's metadata. keep_looks:
    whether the SAEs at `stop_at` are kept with the run, for runs of more seeds; earlier: seeds that need no training.

    With training.checkpoint_every, checkpoints are kept in `<out>.checkpoints` until the run is finished; a run that finds
    some there, or in `resume_from`, goes on from the last whole one. warn is told of damaged ones. Raises HusaiError if
    they are of another run.
    """
    start = time.perf_counter()
    require_free(out)
    checkpoints = Checkpoints(
        checkpoint_folder(out),
        {**config.model_dump(mode="json"), "activations": _describe(x, fresh is not None) | meta, **_reused(earlier)},
        every=config.training.checkpoint_every,
        source=None if resume_from is None else source_folder(resume_from),
        warn=warn,
    )
    if resume_from is None:
        checkpoints.drop_unless_same(EARLIER)
    with whole_folder(out) as folder:

        def look(step: int, ensemble: SAEEnsemble) -> bool:
            if keep_looks:
                keep_look(folder, step, ensemble)
            return stop(step, ensemble)

        def train_those(config: SAEConfig, stop: Stop) -> TrainedSAEs:
            told = {"on_log": on_log, "on_statistics": on_statistics, "checkpoints": checkpoints}
            given = {"fresh": fresh, "known": known, "device": device}
            return train_saes(x, config, stop=stop, stop_at=stop_at, **told, **given)

        if earlier is None:
            trained = train_those(config, look)
        else:
            begin = partial(untrained, x, fresh=fresh, known=known, device=device)
            trained = complete(config, earlier, train_those, begin, stop=look, stop_at=stop_at)
            meta = {**meta, "seeds_of": earlier.runs}
        if keep_looks:
            keep_history(folder, trained.history)
        save_ensemble(trained, config, folder, meta)
        metrics = finish(trained, folder)
        write_record(folder, config, metrics, wall_seconds=time.perf_counter() - start, **meta)
        write_history(folder / "history.csv", trained.history)
        health = assess(trained.history, config, low_precision=config.training.low_precision).to_json()
        (folder / "health.json").write_text(json.dumps(health, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    checkpoints.remove()
    return trained


def _reused(earlier: Earlier | None) -> dict[str, Any]:
    """Which seeds are not trained; a run resumes only without the same."""
    return {} if earlier is None else {EARLIER: sorted(map(list, earlier.places))}


def _describe(x: Samples, fresh: bool) -> dict[str, Any]:
    """What tells activations from others when a run resumes; a store by its index, others by size and first rows."""
    if isinstance(x, Pairs):
        return {**_describe(x.x, fresh), "target": _describe(x.target, fresh)}
    if isinstance(x, Store):
        return {"rows": len(x), "d": x.d, "shards": content_hash([(s.path.name, s.rows, s.sha256) for s in x.shards])}
    first = content_hash(x[:64].double().cpu().tolist())
    return {"rows": x.shape[0], "d": x.shape[1], "first_rows": first, "fresh": fresh}


def save_ensemble(trained: TrainedSAEs, config: SAEConfig, folder: Path, meta: dict[str, Any]) -> list[Path]:
    """SAELens folders of all seeds; returns where they are."""
    ensemble = trained.ensemble
    places = []
    for index, seeds in enumerate(zip(config.init_seeds, config.data_seeds, strict=True)):
        place = folder if len(ensemble) == 1 else folder / "seed-{}-{}".format(*seeds)
        save_sae(ensemble, index, place, {**meta, "steps": trained.steps})
        places.append(place)
    return places
