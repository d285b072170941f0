"""How unlikely a score is under a null of which there are too few draws to count. (docs/method.md §Chance)"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import skewtest
from scipy.stats import t as student

from husai.analysis.stats import monte_carlo_p

MIN_FIT_DRAWS = 30  # with fewer, skewness is not seen often enough
COUNTABLE = 10  # draws that reach the score from which counting is exact enough
HEAVIEST = 5  # degrees of freedom of the tail: never lighter than Student's t of five
SKEWED = 0.05  # level of the test for a right skew, which would make the tail too light


class TailP(NamedTuple):
    """A one-sided p-value, and how it was found. why: the reason that draws were counted; '' of a fit."""

    p: float
    how: Literal["counted", "fitted"]
    why: str = ""


def z_score(observed: float, draws: Float[np.ndarray, "draws"]) -> float:
    """(observed − mean) / standard deviation of the draws; nan where they do not vary."""
    spread = _spread(draws)
    return float((observed - np.mean(draws)) / spread) if spread > 0 else float("nan")


def tail_p(observed: float, draws: Float[np.ndarray, "draws"]) -> TailP:
    """P(a further draw ≥ observed): counted where that says enough, otherwise from a fitted tail.

    The tail is Student's t for (observed − mean) / (sd · √(1 + 1/R)), which is exact for normal draws with R − 1 degrees of
    freedom; with five at most, heavier than that. Counted (`monte_carlo_p`) if at least 10 draws reach the score, there are
    fewer than 30, they do not vary, or they lean to the right (D'Agostino's test of skewness, one-sided at .05).
    """
    draws = np.asarray(draws, dtype=float)
    if why := _reason_to_count(observed, draws):
        return TailP(monte_carlo_p(observed, draws), "counted", why)
    count = len(draws)
    steps = z_score(observed, draws) / np.sqrt(1 + 1 / count)
    return TailP(float(student.sf(steps, min(HEAVIEST, count - 1))), "fitted")


def _reason_to_count(observed: float, draws: Float[np.ndarray, "draws"]) -> str:
    if (draws >= observed).sum() >= COUNTABLE:
        return "enough draws reach the score"
    if len(draws) < MIN_FIT_DRAWS:
        return f"fewer than {MIN_FIT_DRAWS} draws"
    if _spread(draws) == 0:
        return "the draws do not vary"
    leans = skewtest(draws, alternative="greater").pvalue < SKEWED
    return "the draws lean to the right" if leans else ""


def _spread(draws: Float[np.ndarray, "draws"]) -> float:
    """Standard deviation, 0 where it is no more than rounding."""
    draws = np.asarray(draws, dtype=float)
    return float(draws.std(ddof=1)) if np.ptp(draws) > 1e-12 * max(1.0, float(np.abs(draws).max())) else 0.0
