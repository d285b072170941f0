"""Run folders: written whole or not at all, with everything needed to trust and repeat them.

A run folder holds `config.yaml` (replays it), weights, `metrics.json`, `history.csv`, `provenance.json` and, written
last, `DONE`. It is built in a temporary folder beside its place and renamed into it.
"""

import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError

from husai.config import CompiledConfig, Config, ModelConfig, Recipe, RecurrentConfig, load_recipe
from husai.errors import HusaiError
from husai.models import Inputs, Model, inputs_of, load_weights
from husai.recurrent.model import Recurrent
from husai.resources import in_checkout, reference_dir, reference_names
from husai.tasks import Task
from husai.truth.circuit import GateReport, verify
from husai.truth.variants import Variant

DONE = "DONE"
WEIGHT_FILES = ("model", "transformer_best", "transformer_final", "recurrent_best", "recurrent_final")


class GateFailed(Exception):
    """A model that should be ground truth fails the gate; the message names the failed conditions and by how much."""


def require_free(place: Path) -> None:
    """Raises HusaiError unless a run folder can be made at `place`: nothing is there, or an empty folder."""
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        what = "already holds a finished run" if (place / DONE).exists() else "exists and is not an empty folder"
        raise HusaiError(f"{place}: {what}; choose another folder or remove it first")


@contextmanager
def whole_folder(place: Path, *, replace_existing: bool = False) -> Iterator[Path]:
    """A fresh folder to fill; on success it gets `DONE` and becomes `place`, on any failure nothing remains.

    Raises HusaiError if `place` already holds a finished run (unless `replace_existing`), holds foreign files, or
    cannot be written (also when the disk fills up meanwhile).
    """
    if not replace_existing:
        require_free(place)
    temporary: Path | None = None
    created = [folder for folder in place.parents if not folder.exists()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
        os.chmod(temporary, 0o755)
        yield temporary
        (temporary / DONE).write_text("")
        _sync(temporary)
        if place.exists():
            shutil.rmtree(place)
        temporary.rename(place)
    except (OSError, SafetensorError) as error:
        raise HusaiError(f"{place}: cannot be written ({reason(error)})") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if not place.exists():
            _remove_empty(created)


def _remove_empty(folders: list[Path]) -> None:
    """Remove the folders, innermost first, as long as they are empty."""
    for folder in folders:
        if not folder.is_dir() or any(folder.iterdir()):
            return
        folder.rmdir()


def _sync(folder: Path) -> None:
    """Flush every file to disk, readable for all, before the rename makes it visible."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            with path.open("rb") as handle:
                os.fsync(handle.fileno())


def reason(error: Exception) -> str:
    """Why a file operation failed, in words."""
    return error.strerror or str(error) if isinstance(error, OSError) else " ".join(str(error).split())


def write_atomic(path: Path, text: str) -> None:
    """Replace a file's text in one step. Raises HusaiError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise HusaiError(f"{path}: cannot be written ({reason(error)})") from None


def finished(place: Path) -> bool:
    """Whether `place` holds a finished run."""
    return (place / DONE).is_file()


def provenance(**extra: object) -> dict[str, object]:
    """Versions, commit, hardware and time; what never enters results but explains them."""
    packages = ("husai", "torch", "numpy", "scipy", "sae-lens", "transformer-lens")
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "git_commit": _git_commit(),
        "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **extra,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the checkout this package runs from; None for an installed package, whatever holds its folder."""
    if not in_checkout():
        return None
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def write_record(folder: Path, config: Config, metrics: dict[str, Any], **extra: object) -> None:
    """`config.yaml`, `metrics.json` and `provenance.json` of a run."""
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    finite = {name: None if value != value else value for name, value in metrics.items()}  # JSON knows no NaN
    (folder / "metrics.json").write_text(json.dumps(finite, indent=2) + "\n", encoding="utf-8")
    (folder / "provenance.json").write_text(json.dumps(provenance(**extra), indent=2) + "\n", encoding="utf-8")


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
    or is `op` (default add) for a bare file of a transformer. Raises HusaiError if nothing is found, it cannot be read,
    or `op` is not the model's.
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
