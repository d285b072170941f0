"""What a control's p-value means, corrected for how many there are."""

from typing import NamedTuple

import numpy as np

from husai.analysis.stats import (
    holm,
)
from husai.controls import kinds
from husai.controls.kinds import ALPHA, Control, Kind, Test
from husai.report.text import interval, markdown


class Verdict(NamedTuple):
    """A control with its corrected p. holds: it came out as it must."""

    control: Control
    p_holm: float
    holds: bool

    @property
    def words(self) -> str:
        if self.control.kind == "negative":
            return "at its null" if self.holds else "**NOT at its null**"
        return "found" if self.holds else "**MISSED**"

    def line(self) -> dict[str, object]:
        """One line of `controls.csv`."""
        plain = self.control._asdict()
        value, level = plain.pop("value"), plain.pop("level")
        figures = dict(zip(("value", "ci_low", "ci_high"), value, strict=True))
        figures |= dict(zip(("null_value", "null_low", "null_high"), level, strict=True))
        return plain | figures | {"p_holm": self.p_holm, "holds": self.holds}


def judged(controls: list[Control]) -> list[Verdict]:
    """p corrected by Holm's method, among the negative controls of one kind of test and among the positive ones.

    A negative control holds if it is not rejected; a positive one if it is, and lies above its null. Raises ValueError if
    there are so many that counting cannot reject any.
    """
    found = []
    for family in dict.fromkeys(_family(control) for control in controls):
        own = [control for control in controls if _family(control) == family]
        if any(c.test == "counted" for c in own) and len(own) > ALPHA * (kinds.DRAWS + 1):
            raise ValueError(
                f"{len(own)} controls need more than {kinds.DRAWS} draws for one of them to be able to fail"
            )
        for control, p in zip(own, holm(np.array([c.p for c in own])).tolist(), strict=True):
            above = control.value.mean > control.level.mean
            found.append(Verdict(control, p, (p <= ALPHA and above) if control.kind == "positive" else p > ALPHA))
    return found


def _family(control: Control) -> tuple[Kind, Test | None]:
    return control.kind, control.test if control.kind == "negative" else None


def control_table(verdicts: list[Verdict]) -> str:
    header = ["question", "source", "score", "value", "null", "value of the null", "p", "p (Holm)", "verdict"]
    lines = [
        [
            *(c.question, c.source, c.score, interval(c.value), c.null, interval(c.level), f"{c.p:.2g}"),
            f"{verdict.p_holm:.2g}",
            verdict.words,
        ]
        for verdict in verdicts
        for c in [verdict.control]
    ]
    return markdown(header, lines)
