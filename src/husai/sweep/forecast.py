"""What the missing cells of a suite will take, from a few training steps of each kind."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from husai.cell import Job, hook_of
from husai.measure import Hook
from husai.sae.estimate import estimate
from husai.sweep.tables import read_table


@dataclass(frozen=True)
class Forecast:
    """training_seconds: of all missing cells one after the other, scoring not included. cell_seconds: what a finished cell of
    these results took on average, scoring included; None if there is none. peak_bytes: of the largest cell's process."""

    cells: int
    training_seconds: float
    cell_seconds: float | None
    peak_bytes: int

    def lines(self, workers: int) -> list[str]:
        """For people, with so many cells at once."""
        training = f"about {_duration(self.training_seconds / workers)} of training with {workers} at once"
        if self.cell_seconds is None:
            whole = "scoring not included"
        else:
            total = self.cells * self.cell_seconds / workers
            whole = (
                f"with scoring about {_duration(total)}, if they take {self.cell_seconds:.0f} s each as those before"
            )
        memory = f"about {self.peak_bytes / 2**20:.0f} MiB in each of {workers} processes"
        return [f"time    {training}; {whole}", f"memory  {memory}"]


def forecast(missing: Sequence[Job], results: Path) -> Forecast:
    """Ten steps of one cell a kind: its source, hook, architecture, width and batch. Raises HusaiError as training does."""
    hooks: dict[tuple[str, str], Hook] = {}
    steps: dict[tuple[object, ...], tuple[float, float]] = {}
    total, peak = 0.0, 0
    for job in missing:
        config = job.cell.config
        if config.sae.fitted:  # solved for at once: there are no steps to time
            continue
        source = job.model_name.split("/")[0], job.cell.hook
        training = config.training
        kind = (*source, config.sae.architecture, config.sae.d_sae, training.batch_size, len(config.init_seeds))
        if kind not in steps:
            torch.set_num_threads(job.threads)
            if source not in hooks:
                hooks[source] = hook_of(job)
            hook = hooks[source]
            found = estimate(hook.x, config, fresh=hook.fresh, known=hook.known, device=job.device)
            steps[kind] = found.setup_seconds, found.step_seconds
            peak = max(peak, found.peak_bytes)
        setup, each = steps[kind]
        total += setup + training.end * each
    return Forecast(len(missing), total, _mean_cost(results), peak)


def _mean_cost(results: Path) -> float | None:
    path = results / "costs.parquet"
    return float(np.mean(read_table(path)["wall_seconds"])) if path.is_file() else None


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
