"""Numbers and tables as text, alike in every report."""

from husai.analysis.stats import Interval
from husai.report.results import CellView


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


def named(cell: CellView) -> list[str]:
    return [cell.place, cell.label + ("" if cell.converged else " *")]


def has(cell: CellView, metric: str, null: str = "") -> bool:
    """Whether the metric, or a null of it, was computed."""
    value = cell.value(metric, null).mean
    return value == value
