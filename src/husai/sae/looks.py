"""SAEs as they were whenever their run was measured, kept with it: who adds seeds later trains only those.

A seed trains alike whoever trains beside it (docs/sweeps.md §Adding seeds), so that seeds of several runs are one run's.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from husai.config import SAEConfig
from husai.sae.dictionary import SAEEnsemble
from husai.sae.history import StepLog
from husai.sae.params import Params
from husai.sae.train import Stop, TrainedSAEs
from husai.shards import write_tensors

FOLDER, HISTORY = "looks", "history.json"
Pair = tuple[int, int]  # an init seed and a data seed


def keep_look(run: Path, step: int, ensemble: SAEEnsemble) -> None:
    """Write all seeds as they are at `step` into a run folder. Raises HusaiError if it cannot be written."""
    write_tensors(_look(run, step), {name: value.contiguous() for name, value in ensemble.params.items()})


def keep_history(run: Path, history: tuple[StepLog, ...]) -> None:
    """Write the rows that belong to the looks."""
    (run / FOLDER).mkdir(exist_ok=True)
    (run / FOLDER / HISTORY).write_text(json.dumps([vars(row) for row in history]), encoding="utf-8")


def looks_of(run: Path) -> set[int]:
    """The steps at which a run's SAEs were kept."""
    return {int(path.stem.rpartition("-")[2]) for path in (run / FOLDER).glob("step-*.safetensors")}


def _look(run: Path, step: int) -> Path:
    return run / FOLDER / f"step-{step:09d}.safetensors"


@dataclass(frozen=True)
class Earlier:
    """Seeds that finished runs have, each with its run folder and its place in it."""

    places: Mapping[Pair, tuple[Path, int]]

    @property
    def runs(self) -> list[str]:
        """Names of the run folders."""
        return sorted({folder.name for folder, _ in self.places.values()})

    def at(self, step: int) -> dict[Pair, dict[str, Tensor]]:
        """Parameters of every seed by name, as they were at `step`."""
        files = {folder: load_file(_look(folder, step)) for folder, _ in self.places.values()}
        return {
            pair: {name: value[index] for name, value in files[folder].items()}
            for pair, (folder, index) in self.places.items()
        }

    def histories(self) -> dict[Pair, list[StepLog]]:
        """Every seed's rows."""
        found: dict[Pair, list[StepLog]] = {}
        for pair, (folder, index) in self.places.items():
            rows = [StepLog(**row) for row in json.loads((folder / FOLDER / HISTORY).read_text(encoding="utf-8"))]
            found[pair] = rows[index :: sum(row.step == rows[0].step for row in rows)]
        return found


def complete(
    config: SAEConfig,
    earlier: Earlier,
    train: Callable[[SAEConfig, Stop], TrainedSAEs],
    begin: Callable[[SAEConfig], SAEEnsemble],
    *,
    stop: Stop,
    stop_at: tuple[int, ...],
) -> TrainedSAEs:
    """Train the seeds of `config` that `earlier` has not, and show `stop` all of them at the steps `stop_at`.

    train(config, stop): as `train_saes`. begin(config): untrained SAEs, of which the form is taken if no seed is missing. The
    training must be one that ends after a fixed number of steps.
    """
    pairs = list(zip(config.init_seeds, config.data_seeds, strict=True))
    new = [pair for pair in pairs if pair not in earlier.places]

    def whole(step: int, ensemble: SAEEnsemble) -> SAEEnsemble:
        known = earlier.at(step)
        for index, pair in enumerate(new):
            known[pair] = {name: value[index] for name, value in ensemble.params.items()}
        stacked = {name: torch.stack([known[pair][name] for pair in pairs]) for name, _ in ensemble.params.items()}
        seeds = {"init_seeds": config.init_seeds, "data_seeds": config.data_seeds}
        return replace(ensemble, params=Params.of(stacked), **seeds)

    rows, end = earlier.histories(), config.training.end
    if new:
        trained = train(_of_seeds(config, new), lambda step, ensemble: stop(step, whole(step, ensemble)))
        last = whole(trained.steps, trained.ensemble)
        rows |= {pair: list(trained.history[index :: len(new)]) for index, pair in enumerate(new)}
    else:
        form = begin(_of_seeds(config, pairs[:1]))
        for step in sorted(stop_at):
            stop(step, whole(step, form))
        last = whole(end, form)
    history = tuple(row for at_step in zip(*(rows[pair] for pair in pairs), strict=True) for row in at_step)
    return TrainedSAEs(last, end, history)


def _of_seeds(config: SAEConfig, pairs: list[Pair]) -> SAEConfig:
    inits, orders = zip(*pairs, strict=True)
    return config.model_copy(update={"init_seeds": inits, "data_seeds": orders})
