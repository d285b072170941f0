"""Everything that one dictionary's atoms and codes say of the truth, read alike from SAEs and from null dictionaries."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from husai.analysis.answers import AnswerScores, answer_scores
from husai.analysis.causal import effects
from husai.analysis.recovery import TrueAtoms, Tuning, true_atoms, tuning
from husai.analysis.subspaces import SubspaceRecovery, subspace_recovery
from husai.measure.hook import Hook

FIGURES = (
    *("purity", "frequency_purity", "answer_selectivity", "answer_specificity", "answer_overlap"),
    *("true_plane", "true_answer", "true_atoms", "subspace_recovered", "subspace_cos2", "subspace_r2"),
)


class Reading(NamedTuple):
    """What applies at the hook; None where there is nothing to read it against."""

    tuned: Tuning | None
    answers: AnswerScores | None
    true: TrueAtoms | None
    subspaces: SubspaceRecovery | None

    @property
    def figures(self) -> dict[str, float]:
        """One number a score: means over atoms, or over true subspaces."""
        found: dict[str, float] = {}
        if self.tuned is not None:
            found |= {name: _mean(getattr(self.tuned, name)) for name in ("purity", "frequency_purity")}
        if self.answers is not None:
            names = ("selectivity", "specificity", "overlap")
            found |= {f"answer_{name}": _mean(getattr(self.answers, name)) for name in names}
        if self.true is not None:
            found |= {f"true_{name}": _mean(getattr(self.true, name)) for name in ("plane", "answer")}
            found["true_atoms"] = _mean(self.true.true)
        if self.subspaces is not None:
            found |= {f"subspace_{name}": value for name, value in self.subspaces.aggregate._asdict().items()}
        return found

    @property
    def columns(self) -> dict[str, Any]:
        """One value an atom, for the atom table."""
        found: dict[str, Any] = {} if self.tuned is None else self.tuned._asdict()
        if self.answers is not None:
            names = ("selectivity", "specificity", "overlap", "best", "nearest")
            found |= {f"answer_{name}": value for name, value in zip(names, self.answers, strict=True)}
        if self.true is not None:
            found["true_plane"], found["true_answer"] = self.true.plane, self.true.answer
        return found


def _mean(values: np.ndarray) -> float:
    """Mean over the atoms that have a value; nan if none has."""
    known = values[~np.isnan(values.astype(float))]
    return float(known.mean()) if len(known) else float("nan")


def read(codes: Float[Tensor, "samples n"], atoms: Float[Tensor, "n d"], hook: Hook, *, full: bool = True) -> Reading:
    """Read n unit atoms and their codes, in units of such atoms, of all of the hook's samples; unless `full`, tuning alone."""
    truth, families, answers = hook.truth, hook.families, hook.answers
    tuned = None if families is None or not len(atoms) else tuning(codes, families)
    scores = true = subspaces = None
    if not full or not len(atoms):
        return Reading(tuned, scores, true, subspaces)
    if answers is not None:
        scores = answer_scores(codes[answers.rows], atoms, hook.x[answers.rows], answers.values, answers.n)
    if truth is not None and scores is not None:
        confirmed = None
        if tuned is not None and hook.genuine is not None and hook.task is not None:
            found = effects(codes, atoms, hook.genuine, hook.task.group)
            confirmed = found.confirm(tuned, scores.nearest_answer)
        true = true_atoms(atoms, truth, scores.overlap, confirmed)
    if truth is not None and families is not None:
        subspaces = subspace_recovery(codes, atoms, truth, families)
    return Reading(tuned, scores, true, subspaces)
