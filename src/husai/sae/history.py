"""What a training says of itself as it goes on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StepLog:
    """One row of a training history, per seed and on the training batch (reports use the whole grid instead).

    epoch: passes over the data so far. penalty: sum of `terms`, what is added to mse, by name. active: l0 / d_sae.
    explained_variance: 1 − mse / variance, in the normalised space of training. dead: fraction of latents that have not
    fired for a pass over the data. grad_norm: norm of the seed's gradient before clipping. max_activation: largest code of
    the batch. strength: what the target-L0 controller multiplies the sparsity coefficient by. timing: milliseconds a step of
    each part since the row before, if they are asked for.
    """

    step: int
    epoch: float
    seed: int
    lr: float
    loss: float
    mse: float
    penalty: float
    l0: float
    active: float
    explained_variance: float
    dead: float
    grad_norm: float
    max_activation: float
    strength: float
    terms: Mapping[str, float]
    timing: Mapping[str, float] = field(default_factory=dict)

    @property
    def line(self) -> dict[str, float]:
        """The row of a table: every term in a column of its own."""
        plain = {name: value for name, value in vars(self).items() if name not in ("terms", "timing")}
        return plain | dict(self.terms) | dict(self.timing)


def mean_log(rows: list[StepLog]) -> dict[str, float]:
    """Figures of one step averaged over seeds, for trackers and progress bars; the terms are called loss/…"""
    names = ("loss", "mse", "penalty", "l0", "active", "explained_variance", "dead", "lr", "grad_norm")
    terms = {f"loss/{name}": sum(row.terms[name] for row in rows) / len(rows) for name in rows[0].terms}
    return {name: sum(getattr(row, name) for row in rows) / len(rows) for name in names} | terms | dict(rows[0].timing)


def mean_timing(history: Sequence[StepLog]) -> dict[str, float]:
    """Milliseconds a step of each part over a training, each row weighed by the steps it stands for; else nothing."""
    rows = list({row.step: row.timing for row in history if row.timing}.items())
    found: dict[str, float] = {}
    before = 0
    for step, timing in rows:
        for part, value in timing.items():
            found[part] = found.get(part, 0.0) + value * (step - before) / rows[-1][0]
        before = step
    return found
