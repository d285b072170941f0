"""A suite as jobs: one a cell, with all that a worker elsewhere needs."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from husai.cell import Cell, Job, SavedModel
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
from husai.runs import check_gate, load_model
from husai.truth.circuit import GateReport


def plan(
    suite: SuiteConfig,
    places: Sequence[str | None],
    runs: Path,
    *,
    allow_unverified: bool = False,
    threads: int = 1,
    deterministic: bool = False,
    device: str = "cpu",
) -> tuple[list[Job], dict[str, GateReport]]:
    """All cells of a suite as jobs, and the gate report of every model by the name that results give it.

    places: where the model of each of the suite's subjects is; None for a synthetic source. threads: of every cell, one if
    it is to be deterministic. A recipe that declares itself a
    control needs no permission to fail the gate: its records say so. Raises HusaiError
    for a model, hook or config that does not fit, or a control that passes the gate; GateFailed for a model that is not
    ground truth.
    """
    seeds = {"init_seeds": suite.init_seeds, "data_seeds": suite.data_seeds}
    shared = {"threads": threads, "deterministic": deterministic, "device": device, "tracking": suite.tracking}
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
