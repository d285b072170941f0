"""Where SAEs are measured: samples, and what is known of them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from husai.activations import Activations
from husai.analysis.symmetry import Shifts, answer_shifts, shift_maps
from husai.errors import HusaiError
from husai.models import Inputs
from husai.truth.planes import Families, GroundTruth, answer_families, describe, families, find_truth
from husai.truth.synthetic import Circles, Planted


class Answers(NamedTuple):
    """rows: indices of the samples whose answer is in Z_n. values: their answers."""

    rows: Int[Tensor, "rows"]
    values: Int[Tensor, "rows"]
    n: int


@dataclass(frozen=True)
class Hook:
    """What SAEs are trained on and measured against, at a hook of a model or from a synthetic source.

    x: the samples. truth: their true planes; planted: their true atoms (None: there are none to recover). shifts: their
    symmetry. answers: what they are the answer of, where there is truth. families: the functions that codes are read
    against. task: the grid or the walks, if the samples are of a model.
    """

    x: Float[Tensor, "samples d"]
    truth: GroundTruth | None = None
    shifts: Shifts | None = None
    answers: Answers | None = None
    families: Families | None = None
    task: Inputs | None = None
    planted: Planted | None = None

    @classmethod
    def of(cls, activations: Activations) -> "Hook":
        """A hook without any Fourier family has no truth; its stability can still be measured."""
        x, task = activations.x, activations.task
        try:
            truth = find_truth(activations)
        except HusaiError:
            return cls.without_truth(activations)
        answers = Answers(task.group.rows, task.group.s, task.group.n)
        return cls(x, truth, shift_maps(activations, truth), answers, families(task), task)

    @classmethod
    def without_truth(cls, activations: Activations) -> "Hook":
        """A hook where there is nothing to recover; codes can still be read as functions of the grid."""
        return cls(activations.x, families=families(activations.task), task=activations.task)

    @classmethod
    def of_circles(cls, circles: Circles) -> "Hook":
        """Codes are read as functions of the answer alone, since nothing else is known of a sample."""
        shifts = answer_shifts(circles.x, circles.answers, circles.p, circles.truth)
        answers = Answers(torch.arange(len(circles.x)), circles.answers, circles.p)
        return cls(circles.x, circles.truth, shifts, answers, answer_families(circles.answers, circles.p))

    @classmethod
    def of_planted(cls, planted: Planted) -> "Hook":
        return cls(planted.x, planted=planted)

    def describe(self) -> dict[str, Any]:
        """The truth as plain data."""
        return self.planted.describe() if self.planted else describe(self.truth)
