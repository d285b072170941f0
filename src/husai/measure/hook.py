"""What is measured: SAEs encoded once, at a hook whose truth is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from husai.activations import Activations
from husai.analysis.fit import Fit, evaluate_fit
from husai.analysis.matching import Matching
from husai.analysis.planted import FiringRecovery, firing_recovery, match_true
from husai.analysis.recovery import Tuning, tuning
from husai.analysis.symmetry import Shifts, answer_shifts, shift_maps
from husai.errors import HusaiError
from husai.models import Inputs
from husai.sae.base import Dictionary
from husai.truth.planes import Families, GroundTruth, answer_families, describe, families, find_truth
from husai.truth.synthetic import Circles, Planted


@dataclass(frozen=True)
class Hook:
    """What SAEs are trained on and measured against, at a hook of a model or from a synthetic source.

    x: the samples. truth: their true planes; planted: their true atoms (None: there are none to recover). shifts: their
    symmetry. families: the functions that codes are read against. task: the grid or the walks,
    if the samples are of a model.
    """

    x: Float[Tensor, "samples d"]
    truth: GroundTruth | None = None
    shifts: Shifts | None = None
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
            return cls(x, families=families(task), task=task)
        return cls(x, truth, shift_maps(activations, truth), families(task), task)

    @classmethod
    def of_circles(cls, circles: Circles) -> "Hook":
        """Codes are read as functions of the answer alone, since nothing else is known of a sample."""
        shifts = answer_shifts(circles.x, circles.answers, circles.p, circles.truth)
        return cls(circles.x, circles.truth, shifts, answer_families(circles.answers, circles.p))

    @classmethod
    def of_planted(cls, planted: Planted) -> "Hook":
        return cls(planted.x, planted=planted)

    def describe(self) -> dict[str, Any]:
        """The truth as plain data."""
        return self.planted.describe() if self.planted else describe(self.truth)


@dataclass(frozen=True)
class Members:
    """Dictionaries encoded once: fit and live unit atoms of every seed; tuning or recovery, where the hook allows them.

    matchings: of true atoms with live ones. firings: how the matched latents fire.
    """

    fits: list[Fit]
    atoms: list[Float[Tensor, "n_live d"]]
    tunings: list[Tuning]
    matchings: list[Matching]
    firings: list[FiringRecovery]

    @classmethod
    def of(cls, dictionaries: Sequence[Dictionary], hook: Hook) -> "Members":
        found = cls([], [], [], [], [])
        for dictionary in dictionaries:
            codes = dictionary.encode(hook.x)
            fit = evaluate_fit(dictionary, hook.x, codes)
            found.fits.append(fit)
            found.atoms.append(dictionary.atoms[fit.live])
            if hook.families is not None:
                found.tunings.append(tuning(codes, hook.families))
            if hook.planted is not None and fit.live.any():
                matching = match_true(found.atoms[-1], hook.planted.atoms)
                found.matchings.append(matching)
                found.firings.append(firing_recovery(codes[:, fit.live] > 0, hook.planted.codes > 0, matching))
        return found

    @property
    def n_live(self) -> tuple[int, ...]:
        return tuple(len(atoms) for atoms in self.atoms)
