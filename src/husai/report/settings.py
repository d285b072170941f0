"""Which cells stand side by side: the same method at several sources, from dense to sparse; and what is read off each."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from husai.report.results import DIALS, NAMES, CellView

PAIRS = {
    "pwmcc": "pwmcc",
    "max_cosine": "max_cosine",
    "shared_fraction": "shared fraction",
    "reappearance": "reappearance",
    "activation_matching": "activation\nmatching",
    "subspace_stability": "subspace\nstability",
    "functional": "functional\nstability",
}  # every measure of pairs of seeds, with its name in figures


class Place(NamedTuple):
    """Where a cell stands among those of its method. rank: from the densest of its source, hook, architecture and width, 0."""

    architecture: str
    d_sae: int
    rank: int


def sparseness(cell: CellView) -> float:
    """Rises with sparsity within one architecture: λ, or fewer active latents."""
    return cell.sparsity if DIALS.get(cell.sparsity_param) == "λ" else -cell.sparsity


def placed(cells: Sequence[CellView]) -> dict[str, Place]:
    """The place of every cell, by run id."""
    groups: dict[tuple[str, str, str, int], list[CellView]] = defaultdict(list)
    for cell in cells:
        groups[cell.place, cell.control, cell.architecture, cell.d_sae].append(cell)
    return {
        cell.run_id: Place(cell.architecture, cell.d_sae, rank)
        for group in groups.values()
        for rank, cell in enumerate(sorted(group, key=sparseness))
    }


def lines(cells: Sequence[CellView]) -> dict[Place, list[CellView]]:
    """Cells of every source that have the same place, by architecture and width as the cells come, sparsest first."""
    places = placed(cells)
    order = list(dict.fromkeys(place[:2] for place in places.values()))
    found: dict[Place, list[CellView]] = defaultdict(list)
    for place in sorted(set(places.values()), key=lambda place: (order.index(place[:2]), -place.rank)):
        found[place] = [cell for cell in cells if places[cell.run_id] == place]
    return dict(found)


def line_name(cells: Sequence[CellView]) -> str:
    """`TopK 128, k=2`; the dials of several sources one after the other where they differ, `k=2/4`."""
    first = cells[0]
    if first.sparsity_param == "d_sae":
        return first.setting
    values = "/".join(dict.fromkeys(f"{cell.sparsity:g}" for cell in cells))
    dial = DIALS.get(first.sparsity_param, first.sparsity_param)
    return f"{NAMES.get(first.architecture, first.architecture)} {first.d_sae}, {dial}={values}"
