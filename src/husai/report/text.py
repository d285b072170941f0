"""How numbers, counts and tables are written."""

from husai.analysis.stats import Interval


def number(value: float, digits: int = 3) -> str:
    return "–" if value != value else f"{value:.{digits}f}"


def interval(value: Interval, digits: int = 3) -> str:
    if value.low != value.low:
        return number(value.mean, digits)
    return f"{number(value.mean, digits)} [{number(value.low, digits)}, {number(value.high, digits)}]"


def plural(count: int, noun: str) -> str:
    """Such as `1 cell`, `2 cells`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"
