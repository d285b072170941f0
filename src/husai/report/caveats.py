"""What a reader must know before comparing the cells of a suite. (docs/method.md §Convergence)"""

from husai.analysis.verdict import CLOSE
from husai.report.results import CellView, SuiteResults

MOST = 0.8  # share of the cells that must have converged; below, tables are headed unconverged


def caveats(results: SuiteResults) -> list[str]:
    """Sentences; none if all cells have converged, no SAEs share a seed, and no agreement was there before training."""
    return [*_convergence(results.cells), *_shared_seeds(results.cells), *_initialisation(results.cells)]


def heading(cells: list[CellView]) -> str:
    """What tables are marked with."""
    return "" if _share(cells) >= MOST else " (unconverged)"


def _share(cells: list[CellView]) -> float:
    return sum(cell.converged for cell in cells) / len(cells)


def _convergence(cells: list[CellView]) -> list[str]:
    moving = [cell for cell in cells if not cell.converged]
    if not moving:
        return []
    counted = f"{len(moving)} of {len(cells)} cells have not converged (*)"
    if len(moving) == len(cells):
        return [f"{counted}: their scores say where training stood, not where it leads."]
    return [
        f"{counted}: a score with an asterisk and one without were reached at different convergence; do not compare them."
    ]


def _shared_seeds(cells: list[CellView]) -> list[str]:
    """Cells in which some SAEs have an init or a data seed in common."""
    sharing = [
        cell for cell in cells if any(len(set(seeds)) < len(seeds) for seeds in zip(*cell.seed_pairs, strict=True))
    ]
    if not sharing:
        return []
    return [
        f"In {len(sharing)} of {len(cells)} cells SAEs share init seeds or data orders. They are no independent draws, which "
        "is what the intervals over seeds take them for, of single SAEs and of pairs alike: those are too narrow. Where seeds "
        "are crossed, read the sources of variance."
    ]


def _initialisation(cells: list[CellView]) -> list[str]:
    """Cells whose SAEs agree before their first step beyond random directions."""
    alike = [
        f"{cell.place}, {cell.label} ({start.mean:.3f}, random directions {chance.mean:.3f})"
        for cell in cells
        for start, chance in [(cell.value("pwmcc", step=0), cell.value("pwmcc", "ambient", step=0))]
        if start.mean > chance.mean + CLOSE and start.low > chance.high
    ]
    if not alike:
        return []
    start = "Seeds agree before any training beyond random directions, so that a shared start explains part of it"
    return [f"{start}: {'; '.join(alike)}."]
