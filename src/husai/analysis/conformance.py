"""Golden cases of agreement, against which anyone's measure can be run. (docs/method.md §Conformance)

A case is two small dictionaries whose scores can be worked out by hand. A measure that is called "MCC" or "mean max cosine"
may be signed or not, one-to-one or not, and may or may not drop dead atoms: what it gives here says which.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from husai.analysis.matching import max_cosine, pwmcc
from husai.analysis.stability import stability
from husai.errors import HusaiError

Measure = Callable[[Tensor, Tensor], float]
TOLERANCE = 1e-5


class Case(NamedTuple):
    """Decoder rows A (n_A, d) and B (n_B, d) as they might come from a file. asks: what the case tells apart."""

    name: str
    asks: str
    A: Float[Tensor, "n_A d_A"]
    B: Float[Tensor, "n_B d_B"]


def live(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n_live d"]:
    """Unit rows of the atoms that are not 0. Raises HusaiError for NaN or infinity."""
    bad = (~rows.isfinite().all(1)).nonzero()
    if len(bad):
        raise HusaiError(f"row {int(bad[0])} of a dictionary holds NaN or infinity")
    return F.normalize(rows[rows.norm(dim=1) > 0].float(), dim=1)


DEFINITIONS: dict[str, Measure] = {
    "pwmcc": lambda A, B: pwmcc(live(A), live(B)),
    "pwmcc, absolute": lambda A, B: pwmcc(live(A), live(B), abs=True),
    "max_cosine": lambda A, B: max_cosine(live(A), live(B)),
    "reappearance": lambda A, B: stability([live(A), live(B)]).reappearance.interval.mean,
}


def cases() -> list[Case]:
    """All of them; axes are e1 … e4."""
    axes, turn = torch.eye(4), 0.5**0.5
    greedy = torch.tensor([[0.6, 0.5, 0.39**0.5, 0], [0.5, 0, 0, 0.75**0.5]])
    turned = torch.tensor([[turn, turn, 0, 0], [-turn, turn, 0, 0]])
    nan = torch.where(axes == axes[1], torch.nan, axes)
    dead = torch.cat([axes[:2], torch.zeros(2, 4)])
    lengths = torch.tensor([1.0, 2, 3, 4])[:, None]
    return [
        Case("identical", "is it 1?", axes, axes),
        Case("permuted", "does order matter?", axes, axes[[2, 0, 3, 1]]),
        Case("flipped", "does an atom's sign matter?", axes, -axes),
        Case("flipped, one atom each", "the same where no other partner is left", axes[:1], -axes[:1]),
        Case("scaled", "does an atom's length matter?", axes, lengths * axes),
        Case("duplicates", "may many atoms share one partner?", axes[[0, 0, 0, 0]], axes),
        Case("dead atoms", "do rows of zeros count?", dead, dead),
        Case("unequal numbers", "do atoms without a partner count?", axes, axes[:2]),
        Case("greedy", "is the matching the best one, or greedy?", axes[:2], greedy),
        Case("turned plane", "is the same plane with other axes the same?", axes[:2], turned),
        Case("orthogonal", "is it 0 if nothing is shared?", axes[:2], axes[2:]),
        Case("NaN", "is a damaged dictionary refused?", axes, nan),
        Case("all dead", "is an empty dictionary refused?", axes, torch.zeros(2, 4)),
        Case("other width", "are dictionaries of other inputs refused?", axes, torch.eye(3)),
    ]


class Outcome(NamedTuple):
    """What a measure makes of a case: its value, or the error it raised."""

    value: float
    error: str = ""

    @property
    def shown(self) -> str:
        return (self.error and f"refused ({self.error})") or f"{self.value:.3f}"

    def agrees(self, other: "Outcome") -> bool:
        if self.error or other.error:
            return bool(self.error and other.error)
        return abs(self.value - other.value) <= TOLERANCE


def outcome(measure: Measure, case: Case) -> Outcome:
    """Whatever a measure raises counts as a refusal; what is no number, as nan."""
    try:
        return Outcome(float(np.asarray(torch.as_tensor(measure(case.A.clone(), case.B.clone())))))
    except HusaiError as error:
        return Outcome(float("nan"), str(error))
    except Exception as error:  # a stranger's code may raise anything
        return Outcome(float("nan"), error.__class__.__name__)


class Report(NamedTuple):
    """A measure beside every definition, case by case."""

    cases: list[Case]
    found: list[Outcome]
    expected: dict[str, list[Outcome]]

    @property
    def differing(self) -> dict[str, list[str]]:
        """Names of the cases in which it is not like a definition."""
        return {
            name: [
                case.name
                for case, own, other in zip(self.cases, self.found, outcomes, strict=True)
                if not own.agrees(other)
            ]
            for name, outcomes in self.expected.items()
        }

    @property
    def nearest(self) -> str:
        """The definition it differs from least."""
        return min(self.differing, key=lambda name: len(self.differing[name]))

    @property
    def conforms(self) -> bool:
        return not self.differing[self.nearest]

    @property
    def sentence(self) -> str:
        name, cases = self.nearest, self.differing[self.nearest]
        if not cases:
            return f"It is `{name}` in all {len(self.cases)} cases."
        return (
            f"It is nearest to `{name}`, and differs from it in {len(cases)} of {len(self.cases)}: {', '.join(cases)}."
        )


def conformance(measure: Measure) -> Report:
    """measure(A, B): decoder rows (n_A, d) and (n_B, d), as tensors, to a number."""
    every = cases()
    expected = {name: [outcome(own, case) for case in every] for name, own in DEFINITIONS.items()}
    return Report(every, [outcome(measure, case) for case in every], expected)
