"""Numbers into sentences: which rungs of the ladder an agreement exceeds, and what its symmetry figures mean."""

from typing import NamedTuple

from husai.analysis.stats import Interval

FAIR = ("data", "data_points", "surrogate_trained")  # "stable features" may be claimed only beyond all of these
PLANES = "plane_rotated"  # and, where there are true planes, beyond these planes in any phase
CLOSE = 0.02  # symmetry figures closer than this are called equal
MOVED = 0.5  # shifts must move at least this share of the atoms' energy to tell anything


def stable_rungs(planes: bool) -> tuple[str, ...]:
    """The rungs that a claim of stable features must exceed. planes: whether the samples have true planes."""
    return (*FAIR, PLANES) if planes else FAIR


class Standing(NamedTuple):
    """Names of rungs by where a score stands, lowest rung first: intervals apart (above, below) or overlapping (level).

    Rungs without an interval are in none.
    """

    above: list[str]
    level: list[str]
    below: list[str]


def standing(score: Interval, rungs: dict[str, Interval]) -> Standing:
    """Where `score` stands on its ladder, by intervals that do not overlap."""
    names = sorted((name for name in rungs if rungs[name].high == rungs[name].high), key=lambda name: rungs[name].mean)
    above = [name for name in names if score.low > rungs[name].high]
    below = [name for name in names if score.high < rungs[name].low]
    return Standing(above, [name for name in names if name not in above + below], below)


def rung_sentence(score: Interval, rungs: dict[str, Interval], metric: str = "pwmcc") -> str:
    """Which rungs `score` exceeds, is not told apart from, or falls short of, by intervals that do not overlap."""
    if score.low != score.low:
        return f"{metric} {score.mean:.3f}: fewer than 3 seeds give no interval, so no rung can be said to be exceeded."
    above, level, below = standing(score, rungs)
    names = [*above, *level, *below]

    def listed(chosen: list[str]) -> str:
        return ", ".join(f"{n} ({rungs[n].mean:.3f} [{rungs[n].low:.3f}, {rungs[n].high:.3f}])" for n in chosen)

    untold = [f"{name} ({rungs[name].mean:.3f})" for name in rungs if name not in names]
    alone = " that needs no activations" if set(rungs) == {"ambient"} else " that needs no training"
    kind = " with an interval" if untold else "" if "surrogate_trained" in rungs else alone
    every = f"every rung{kind}: " if len(above) == len(names) else ""
    none = "exceeds no rung" if names else "has no rung with an interval"
    parts = [f"exceeds {every}{', '.join(above)}" if above else none]
    parts += [f"is not told apart from {listed(level)}"] if level else []
    parts += [f"falls short of {listed(below)}"] if below else []
    but = f" ({'no interval for ' if names else ''}{', '.join(untold)})" if untold else ""
    return f"{metric} {score.mean:.3f} [{score.low:.3f}, {score.high:.3f}] {'; '.join(parts)}{but}."


def symmetry_sentence(
    score: float, shifted: float, self_shift: float, aligned: Interval, aligned_null: Interval, moved: float
) -> str:
    """What the symmetry figures say. moved: mean share of the atoms' energy that shifts act on (`shift_support`)."""
    if aligned.low != aligned.low:
        return "Fewer than 3 seeds give no interval, so the symmetry figures are not read."
    if moved < MOVED:
        return f"Shifts move only {moved:.0%} of these atoms' energy, so the symmetry figures say little."
    if aligned.low <= aligned_null.high + CLOSE:
        return "Even the best shift does not bring the seeds together beyond data points."
    if score > shifted + CLOSE:
        return "The seeds share absolute phases: a shifted copy agrees less."
    if self_shift >= score - CLOSE:
        return "The dictionary is nearly closed under the symmetry: it agrees with its own shifts as with other seeds."
    if aligned.mean > max(score, shifted) + CLOSE:
        return "The seeds agree on one dictionary up to the symmetry: the best shift agrees better than none."
    return "A shifted copy agrees as well as the seed itself, and no shift agrees much better."
