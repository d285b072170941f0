"""What a reader must know before comparing the cells of a suite. (docs/method.md §Convergence)"""

from husai.analysis.verdict import CLOSE
from husai.report.results import CellView, SuiteResults
from husai.report.settings import PAIRS

MOST = 0.8  # share of the cells that must have converged; below, tables are headed unconverged


def caveats(results: SuiteResults) -> list[str]:
    """Sentences; none if all cells have converged, no SAEs share a seed, and no agreement was there before training."""
    return [
        *_convergence(results.cells),
        *_twins(results),
        *_shared_seeds(results.cells),
        *_initialisation(results.cells),
    ]


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
    mixed = [place for place, found in _by_place(cells).items() if 0 < _share(found) < 1]
    where = f" ({', '.join(mixed)})" if mixed and len(_by_place(cells)) > 1 else ""
    reached = f"a score with an asterisk and one without were reached at different convergence{where}"
    return [f"{counted}: {reached}; do not compare them."]


def _by_place(cells: list[CellView]) -> dict[str, list[CellView]]:
    places = dict.fromkeys(cell.place for cell in cells)
    return {place: [cell for cell in cells if cell.place == place] for place in places}


def _twins(results: SuiteResults) -> list[str]:
    """Cells held against a surrogate's that stands elsewhere in training."""
    unequal = [
        f"{cell.place}, {cell.label} ({'its surrogate' if cell.converged else 'the cell itself'} has not)"
        for cell in results.cells
        if (twin := results.surrogate_of(cell)) is not None and twin.converged != cell.converged
    ]
    if not unequal:
        return []
    start = (
        "Of a cell and the surrogate it is held against only one has converged, so that training stands between them"
    )
    return [f"{start}: {'; '.join(unequal)}."]


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
    """Cells whose SAEs agree before their first step beyond the null of random directions, by any measure that has one."""
    alike = [f"{cell.place}, {cell.label} ({found})" for cell in cells if (found := ", ".join(_before_training(cell)))]
    if not alike:
        return []
    start = "Seeds agree before any training beyond random directions (score vs chance), so that a shared start explains part"
    return [f"{start}: {'; '.join(alike)}."]


def _before_training(cell: CellView) -> list[str]:
    """`pwmcc 0.600 vs 0.210`, for every measure that exceeds its null at step 0, intervals apart."""
    said = []
    for metric in PAIRS:
        start = cell.value(metric, step=0)
        for null, chance in cell.nulls(metric, step=0).items():
            if null.startswith("ambient") and start.mean > chance.mean + CLOSE and start.low > chance.high:
                said.append(f"{metric} {start.mean:.3f} vs {chance.mean:.3f}")
                break
    return said
