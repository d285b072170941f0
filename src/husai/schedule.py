"""The learning-rate schedule of every training loop here."""


def trapezoid(step: int, *, steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """Multiplier of the peak rate at `step` (0-based): linear warm-up, flat, then linear decay to 0.

    The decay takes the last `decay_fraction` of all `steps`.
    """
    rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    fall = min(1.0, (steps - step) / (decay_fraction * steps)) if decay_fraction else 1.0
    return min(rise, fall)
