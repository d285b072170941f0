"""Where SAEs are measured: samples, and what is known of them."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from husai.activations import Activations
from husai.analysis.causal import Turning, rotation_of_truth, turnings
from husai.analysis.site import Site
from husai.analysis.symmetry import Shifts, answer_shifts, shift_maps
from husai.errors import HusaiError
from husai.models import Inputs, Model
from husai.sae.batches import Fresh
from husai.sae.known import Known
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
    against. task: the grid or the walks, if the samples are of a model. site: the rest of that model. turning: the true
    planes that it follows, and rotation_true: how far it does. fresh: further samples, where SAEs train on no fixed ones.
    source: what dictionaries encode, row by row, where it is not x but x is what they reconstruct (transcoders). stands_in:
    whether x are other samples than the truth is of.
    """

    x: Float[Tensor, "samples d"]
    truth: GroundTruth | None = None
    shifts: Shifts | None = None
    answers: Answers | None = None
    families: Families | None = None
    task: Inputs | None = None
    planted: Planted | None = None
    site: Site | None = None
    turning: Turning | None = None
    rotation_true: float = float("nan")
    fresh: Fresh | None = None
    source: Float[Tensor, "samples d_in"] | None = None
    stands_in: bool = False

    @property
    def encoded(self) -> Float[Tensor, "samples d_in"]:
        """What dictionaries encode: the samples, or what transcoders make them from."""
        return self.x if self.source is None else self.source

    @classmethod
    def of(cls, activations: Activations, model: Model | None = None) -> "Hook":
        """A hook without any Fourier family has no truth; its stability can still be measured.

        model: the one that was read; without it, nothing causal is asked.
        """
        x, task = activations.x, activations.task
        try:
            truth = find_truth(activations)
        except HusaiError:
            return cls.without_truth(activations, model)
        answers = Answers(task.group.rows, task.group.s, task.group.n)
        hook = cls(x, truth, shift_maps(activations, truth), answers, families(task), task)
        if model is None:
            return hook
        site = Site.of(activations, model)
        followed = [(rotation_of_truth(turning, site, task.group), turning) for turning in turnings(truth, task)]
        best, turning = max(followed, key=lambda pair: pair[0], default=(float("nan"), None))
        return replace(hook, site=site, turning=turning, rotation_true=best)

    @classmethod
    def without_truth(cls, activations: Activations, model: Model | None = None) -> "Hook":
        """A hook where there is nothing to recover; codes can still be read as functions of the grid."""
        site = Site.of(activations, model) if model else None
        return cls(activations.x, families=families(activations.task), task=activations.task, site=site)

    @classmethod
    def of_circles(cls, circles: Circles) -> "Hook":
        """Codes are read as functions of the answer alone, since nothing else is known of a sample."""
        shifts = answer_shifts(circles.x, circles.answers, circles.p, circles.truth)
        answers = Answers(torch.arange(len(circles.x)), circles.answers, circles.p)
        return cls(circles.x, circles.truth, shifts, answers, answer_families(circles.answers, circles.p))

    @classmethod
    def of_planted(cls, planted: Planted, fresh: Fresh | None = None) -> "Hook":
        return cls(planted.x, planted=planted, fresh=fresh)

    @property
    def known(self) -> Known:
        """Labels of the samples and their order in time: a task's answers, a circle's, or the strongest planted atom.

        Of samples that stand in for others nothing is known.
        """
        if self.stands_in:
            return Known()
        if self.task is not None:
            return Known.of(self.task)
        if self.planted is not None:
            return Known(self.planted.codes.argmax(1))
        whole = self.answers is not None and len(self.answers.rows) == len(self.x)
        return Known(self.answers.values if self.answers is not None and whole else None)

    @property
    def genuine(self) -> Site | None:
        """The rest of the model, if the samples are what it was given."""
        return self.site if self.site is not None and self.site.x is self.x else None

    def with_samples(self, x: Float[Tensor, "samples d"]) -> "Hook":
        """Other samples beside the same truth; the rest of the model keeps the ones it was given."""
        return replace(self, x=x, fresh=None, stands_in=True)

    def describe(self) -> dict[str, Any]:
        """The truth as plain data."""
        return self.planted.describe() if self.planted else describe(self.truth)
