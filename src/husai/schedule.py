"""The learning-rate schedule and warm-up of every training loop here."""

from typing import Literal

FINAL_RATE = 0.01  # what an exponential decay ends at


def warmth(step: int, warmup_steps: int) -> float:
    """How far a linear warm-up has come at `step` (0-based): 1 from its last step on, and without one."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def trapezoid(
    step: int,
    *,
    steps: int,
    warmup_steps: int,
    decay_fraction: float,
    decay: Literal["linear", "exponential"] = "linear",
) -> float:
    """Multiplier of the peak rate at `step` (0-based): linear warm-up, flat, then decay to 0 (exponential: to 1%).

    The decay takes the last `decay_fraction` of all `steps`.
    """
    rise = warmth(step, warmup_steps)
    left = min(1.0, (steps - step) / (decay_fraction * steps)) if decay_fraction else 1.0
    return min(rise, left if decay == "linear" else FINAL_RATE ** (1 - left))
