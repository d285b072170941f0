"""The drawn rungs of the ladder as whole experiments: S null dictionaries with their encoders. (docs/method.md §Chance)"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from husai.analysis.nulls import DRAWN_NULLS, sampler
from husai.analysis.rotated import plane_rotated
from husai.analysis.stability import stability
from husai.seeding import generator
from husai.truth.planes import GroundTruth

SCORES = ("pwmcc", "max_cosine", "shared_fraction", "reappearance", "reappear_in_all")  # of a draw, in this order


class Drawn(NamedTuple):
    """Unit atoms and encoder directions of S dictionaries; both are the same where they are tied, as SAEs begin."""

    atoms: list[Float[Tensor, "n d"]]
    encoders: list[Float[Tensor, "n d"]]


Rung = Callable[[torch.Generator], Drawn]


def directions(null: str, x: Float[Tensor, "samples d"], sizes: Sequence[int]) -> Rung:
    """Draws dictionaries with so many atoms each, from samples as `nulls.sampler` does."""
    draw = sampler(null, x)

    def rung(stream: torch.Generator) -> Drawn:
        atoms = [draw(size, stream) for size in sizes]
        return Drawn(atoms, atoms)

    return rung


def turned(
    atoms: Sequence[Float[Tensor, "n d"]], encoders: Sequence[Float[Tensor, "n d"]] | None, truth: GroundTruth
) -> Rung:
    """Turns every dictionary's true planes by angles of its own, and its encoders with them (none: tied)."""
    rows = [torch.cat([own, own if encoders is None else encoders[i]]) for i, own in enumerate(atoms)]

    def rung(stream: torch.Generator) -> Drawn:
        both = [plane_rotated(own, truth, stream).tensor_split(2) for own in rows]
        return Drawn([own for own, _ in both], [own for _, own in both])

    return rung


def rungs(
    x: Float[Tensor, "samples d"],
    atoms: Sequence[Float[Tensor, "n d"]],
    encoders: Sequence[Float[Tensor, "n d"]] | None,
    truth: GroundTruth | None,
) -> dict[str, Rung]:
    """All rungs that need no training, for dictionaries of these samples; `plane_rotated` where their true planes are known."""
    sizes = [len(own) for own in atoms]
    found = {null: directions(null, x, sizes) for null in DRAWN_NULLS}
    return found if truth is None else found | {"plane_rotated": turned(atoms, encoders, truth)}


def drawn(rung: Rung, name: str, draws: int, *, abs: bool) -> Float[np.ndarray, "draws seeds seeds scores"]:
    """`SCORES` of so many draws; the last is one of single dictionaries, repeated along its row. abs: as for `stability`."""
    tables = []
    for r in range(draws):
        one = stability(*rung(generator(f"null-{name}", 0, r)), abs=abs)
        alone = np.repeat(one.everywhere[:, None], len(one.everywhere), axis=1)
        tables.append(np.stack([*(one.known[metric].both for metric in SCORES[:-1]), alone], axis=-1))
    return np.stack(tables)
