"""Activations of a model at one hook: the whole grid of a transformer, the walks of a recurrent network."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from husai.errors import HusaiError
from husai.models import Inputs, Model, require_inputs, resolve_hook
from husai.recurrent.model import Recurrent
from husai.recurrent.walks import Walks
from husai.tasks import Task

NORM_FLOOR = 1e-6  # of a sample, where each is scaled by its own
Normalisation = Literal["scalar", "feature", "constant_norm", "none"]


LARGEST = 1e15  # beyond it, sums of squares leave float32


def ordinary(x: Tensor) -> Bool[Tensor, "..."]:
    """Where numbers can be computed with: not NaN, and within ±LARGEST."""
    return (x <= LARGEST) & (x >= -LARGEST)


def require_ordinary(x: Float[Tensor, "samples d"], where: object) -> None:
    """Raises HusaiError, naming the first row, if activations hold NaN, infinity or numbers beyond LARGEST."""
    bad = (~ordinary(x).all(1)).nonzero()
    if len(bad):
        what = "a number beyond 1e15" if bool(x[bad[0]].isfinite().all()) else "NaN or infinity"
        raise HusaiError(f"{where}: row {int(bad[0])} holds {what} ({len(bad)} such rows)")


@dataclass(frozen=True)
class Activations:
    """Activations x: (pairs, d), float32, one row a row of `task`, read at one position (of walks: in time order).

    hook: full name of the hook point. model: the model's name. verified: whether its gate was passed. position: where
    in the input, counted from its end if negative; the model's answer is read at −1.
    """

    x: Float[Tensor, "pairs d"]
    task: Inputs
    hook: str
    model: str
    verified: bool | None = None
    position: int = -1


class Rescaled(NamedTuple):
    """Samples of norm √d, and what each was divided by."""

    x: Float[Tensor, "*samples d"]
    size: Float[Tensor, "*samples 1"]


def rescale(x: Float[Tensor, "*samples d"]) -> Rescaled:
    """Every sample divided by its norm/√d. Norms below 1e-6 count as 1e-6, so that a zero vector stays one."""
    size = x.norm(dim=-1, keepdim=True).clamp(min=NORM_FLOOR) / math.sqrt(x.shape[-1])
    return Rescaled(x / size, size)


@dataclass(frozen=True)
class Normaliser:
    """x ↦ (x − mean)·scale, the space in which SAEs are trained; scale is one number, or one a coordinate.

    each: whether every sample is then given norm √d, as `rescale` does.
    """

    mean: Float[Tensor, "d"]
    scale: float | Float[Tensor, "d"]
    each: bool = False

    @classmethod
    def fit(
        cls, x: Float[Tensor, "samples d"], where: str = "activations", how: Normalisation = "scalar"
    ) -> "Normaliser":
        """scalar: centred, mean squared norm d. feature: centred, every coordinate of variance 1. constant_norm: every
        sample of norm √d. none: as they are.

        Raises HusaiError as `require_ordinary`, or if the activations do not vary. A coordinate whose
        deviation is below 1e-6 of the largest is scaled as if it were that.
        """
        require_ordinary(x, where)
        mean = x.mean(0)
        return cls.of(mean, x.std(0, correction=0), float((x - mean).pow(2).sum(1).mean().sqrt()), where, how)

    @classmethod
    def of(
        cls, mean: Float[Tensor, "d"], deviation: Float[Tensor, "d"], size: float, where: str, how: Normalisation
    ) -> "Normaliser":
        """From moments: mean and deviation of every coordinate, and size, the root of the summed variances."""
        if size <= 1e-6 * max(1.0, float(mean.norm())):
            raise HusaiError(f"{where}: do not vary over the samples, so there is nothing to learn")
        if how in ("none", "constant_norm"):
            return cls(torch.zeros_like(mean), 1.0, each=how == "constant_norm")
        if how == "feature":
            return cls(mean, 1 / deviation.clamp(min=1e-6 * float(deviation.max())))
        return cls(mean, math.sqrt(len(mean)) / size)

    @property
    def idle(self) -> bool:
        """Whether it leaves samples as they are."""
        one = bool((self.scale == 1.0).all()) if isinstance(self.scale, Tensor) else self.scale == 1.0
        return one and not self.each and not bool(self.mean.any())

    def __call__(self, x: Float[Tensor, "*samples d"]) -> Float[Tensor, "*samples d"]:
        moved = (x - self.mean) * self.scale
        return rescale(moved).x if self.each else moved


def extract(
    model: Model, task: Inputs, hook: str, *, layer: int | None = None, position: int = -1, batch: int = 4096
) -> Activations:
    """Activations of the whole grid at `hook` (short or full name) and `position`.

    Heads are flattened: q, k, v, z give heads·d_head columns; attn_scores and pattern give heads·positions, read at the
    query position. A recurrent network is read at `hidden` after every step; its samples have one position. Raises
    HusaiError for an unknown hook, layer or position, or a task that is not the model's.
    """
    require_inputs(model, task)
    full = resolve_hook(model, hook, layer)
    if isinstance(model, Recurrent):
        assert isinstance(task, Walks)
        if position != -1:
            raise HusaiError(f"position: {position} does not exist; a recurrent network is read after every step")
        return Activations(model.samples(task).float(), task, full, model.name, model.verified)
    assert isinstance(task, Task)
    tokens = task.tokens(model.layout)
    if not -tokens.shape[1] <= position < tokens.shape[1]:
        raise HusaiError(f"position: {position} does not exist; the input has positions 0 to {tokens.shape[1] - 1}")
    rows: list[Tensor] = []

    def keep(name: str, value: Tensor) -> Tensor:
        if name == full:
            at = value[:, :, position] if name.endswith(("attn_scores", "pattern")) else value[:, position]
            rows.append(at.flatten(1))
        return value

    with torch.no_grad():
        for part in tokens.split(batch):
            model.run(part, keep)
    x = torch.cat(rows).float()
    if not bool(x.isfinite().all()):
        raise HusaiError(f"hook {full}: position {position} holds masked entries; read it at the last position")
    return Activations(x, task, full, model.name, model.verified, position)
