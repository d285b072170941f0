"""Trained and compiled models: found by what a user calls them, opened with what they are read on, and let through the gate."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from husai.config import CompiledConfig, ModelConfig, Recipe, RecurrentConfig, load_recipe
from husai.errors import HusaiError
from husai.models import Inputs, Model, inputs_of, load_weights
from husai.recurrent.model import Recurrent
from husai.resources import reference_dir, reference_names
from husai.store.checksums import require_intact
from husai.store.folders import finished
from husai.tasks import Task
from husai.truth.circuit import GateReport, verify
from husai.truth.variants import Variant

WEIGHT_FILES = ("model", "transformer_best", "transformer_final", "recurrent_best", "recurrent_final")


class GateFailed(Exception):
    """A model that should be ground truth fails the gate; the message names the failed conditions and by how much."""


def write_gate(path: Path, report: GateReport) -> None:
    path.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")


class LoadedModel(NamedTuple):
    """A model with what it is read on: the grid of its task, or its walks.

    ignored: names of tensors in the file that the model has no use for. config: what it was trained or compiled with, if
    it comes from a run folder.
    """

    model: Model
    task: Inputs
    ignored: tuple[str, ...] = ()
    config: Recipe | None = None

    @property
    def variant(self) -> Variant:
        """The variant of the gate this model has to pass: `plain`, unless it was compiled to be another circuit."""
        return self.config.variant if isinstance(self.config, CompiledConfig) else "plain"

    @property
    def tier(self) -> str:
        """Where its truth comes from, `compiled`, `trained` or `recurrent`; or the control it is, `random` or `memorised`."""
        if isinstance(self.config, CompiledConfig):
            return "compiled"
        kind = "recurrent" if isinstance(self.model, Recurrent) else "trained"
        return (self.config and self.config.control) or kind

    @property
    def seed(self) -> int | None:
        """Seed of the initial weights, or of the compiled model's rotation and noise; None if it is not known."""
        if isinstance(self.config, ModelConfig | RecurrentConfig):
            return self.config.training.init_seed
        return None if self.config is None else self.config.seed


def load_model(reference: str | Path, op: str | None = None) -> LoadedModel:
    """The model that `reference` means, with its task.

    A MODEL is a reference name (`add-p113-0`), a run folder or a weights file. The op comes from the folder's config,
    or is `op` (default add) for a bare file of a transformer. Raises HusaiError if nothing is found, it cannot be read
    or does not match its checksum, or `op` is not the model's.
    """
    if not str(reference):
        raise HusaiError("model: the name is empty; give a reference name, a run folder or a weights file")
    path = Path(reference)
    if not path.exists() and (reference_dir() / str(reference)).is_dir():
        path = reference_dir() / str(reference)
    if not path.exists():
        raise HusaiError(
            f"model {reference}: no such file or folder, and no reference model of that name; "
            f"reference models are {', '.join(reference_names())}"
        )
    name = path.stem if path.is_file() else path.resolve().name
    weights = path
    if path.is_dir():
        present = [file for name in WEIGHT_FILES if (file := path / f"{name}.safetensors").is_file()]
        if not present:
            raise HusaiError(f"{path}: holds no model weights ({', '.join(WEIGHT_FILES)}, each .safetensors)")
        weights = present[0]
    require_intact(weights, weights.parent / "config.yaml")
    model, ignored = load_weights(weights)
    beside = weights.parent / "config.yaml"  # a stranger's config beside a bare weights file says nothing
    config = load_recipe(beside) if beside.is_file() and (path.is_dir() or finished(weights.parent)) else None
    if isinstance(model, Recurrent):
        if op not in (None, "add"):
            raise HusaiError(f"model {reference}: is a recurrent network, which computes a running sum (add), not {op}")
        return LoadedModel(replace(model, name=name), model.walks, ignored, config)
    known = inputs_of(config).op if config else None
    task = Task(op or known or "add", model.p)
    if known not in (None, task.op):
        raise HusaiError(f"model {reference}: its config.yaml says that it computes {known}, not {task.op}")
    return LoadedModel(replace(model, name=name), task, ignored, config)


def check_gate(loaded: LoadedModel, *, allow_unverified: bool = False) -> tuple[Model, GateReport]:
    """The model marked with the gate's verdict, measured now, in the variant its config names.

    Raises GateFailed unless it passes or is allowed not to.
    """
    model, report = loaded.model, verify(loaded.model, loaded.task, variant=loaded.variant)
    if not report.passed and not allow_unverified:
        raise GateFailed(
            f"model {model.name} is not ground truth: {report.failures()}; "
            "pass --allow-unverified to go on with every result marked unverified"
        )
    return replace(model, verified=report.passed), report
