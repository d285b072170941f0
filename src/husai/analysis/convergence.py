"""Has training ended where it was going? One rule, for suites and single runs. (docs/method.md §Convergence)"""

from collections.abc import Mapping

from husai.analysis.stats import Interval

# Largest movement over the last doubling of steps that counts as none. n_live is relative to its final value.
TOLERANCES = {
    "explained_variance": 0.002,
    "pwmcc": 0.005,
    "fourier_overlap_unweighted": 0.01,
    "gt_mcc": 0.005,
    "n_live": 0.05,
}


def movements(half_way: Mapping[str, Interval], end: Mapping[str, Interval]) -> dict[str, float]:
    """How far each figure moved from half-way to the end of training, for the figures that both have."""
    shared = [name for name in TOLERANCES if name in half_way and name in end]
    moved = {name: abs(end[name].mean - half_way[name].mean) for name in shared}
    if "n_live" in moved:
        moved["n_live"] /= max(end["n_live"].mean, 1.0)
    return moved


def doublings(steps: int, times: int = 4) -> tuple[int, ...]:
    """The steps at which a run that may stop early is looked at: `steps`, half of it, and so on, in rising order."""
    return tuple(sorted({steps >> time for time in range(times + 1)} - {0}))


def is_flat(curve: Mapping[int, Mapping[str, Interval]], step: int) -> bool:
    """Whether the run has converged at `step`, given what was measured there and at half of it."""
    return step > 1 and step // 2 in curve and has_converged(curve[step // 2], curve[step])


def has_converged(half_way: Mapping[str, Interval], end: Mapping[str, Interval]) -> bool:
    """Whether fit, agreement, recovery and number of live atoms were all flat over the last doubling of steps."""
    return all(change < TOLERANCES[name] for name, change in movements(half_way, end).items())
