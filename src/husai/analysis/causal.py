"""Does the model follow a dictionary: its answers once atoms are removed, or turned. (docs/method.md §Causal scores)

Everything here takes n atoms of length 1 and their codes, what each atom contributes to every sample of a site.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from husai.analysis.recovery import Tuning
from husai.analysis.site import Site
from husai.analysis.subspaces import leading_span
from husai.analysis.symmetry import spaced
from husai.models import Inputs
from husai.tasks import GroupView
from husai.truth.fourier import characters, get_fourier_basis
from husai.truth.planes import GroundTruth, Subspace, coincide

FEW_SHIFTS = 16  # shifts tried where the rest of the model has to be run for each
FEW_ROWS = 256  # samples on which single atoms are removed where the rest of the model has to be run for each
TIE = 1e-3  # logits closer than this, in nats, are equal but for rounding
PRESENT = 0.01  # a frequency counts as part of the logits from this share of their energy at all keys on


class TurningPlane(NamedTuple):
    """A subspace that turns by w_k a step. basis: (d, dim), orthonormal. waves: cosine and sine it is oriented by.

    At the Nyquist frequency both have one column, and a step changes the sign.
    """

    k: int
    variables: tuple[str, ...]
    basis: Float[Tensor, "d dim"]
    waves: Float[Tensor, "rows dim"]


class Turning(NamedTuple):
    """True planes that carry the answer, over the rows of the task's group.

    moves: answers that one step is worth. still: true subspaces elsewhere, which stay as they are.
    """

    planes: tuple[TurningPlane, ...]
    moves: int
    still: tuple[Subspace, ...]

    @property
    def keys(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(plane.k for plane in self.planes))


def turnings(truth: GroundTruth, task: Inputs) -> list[Turning]:
    """The planes of the sum, where a step moves the answer by 1, and those of the operands, where both move it by 2.

    Operands count only if every key has the same ones, since else no step moves the answer alike in all planes.
    """
    view = task.group
    coordinates = dict(zip(task.variables, (view.u, view.v), strict=True))

    def planes_of(variables: dict[str, Int[Tensor, "rows"]]) -> list[TurningPlane]:
        found = []
        for subspace in truth.subspaces:
            named = [
                characters(subspace.k, variables[name], view.n) for name in subspace.variables if name in variables
            ]
            if named and subspace.basis.shape[1] == named[0].shape[1]:
                found.append(TurningPlane(subspace.k, subspace.variables, subspace.basis, torch.stack(named).sum(0)))
        return found

    sums, operands = planes_of({"sum": view.s}), planes_of(coordinates)
    turned: dict[int, frozenset[str]] = {}
    for plane in operands:
        turned[plane.k] = turned.get(plane.k, frozenset()) | (coordinates.keys() & set(plane.variables))
    alike = set(turned.values())
    found = [(sums, 1)] if sums else []
    found += [(operands, len(alike.pop()))] if len(alike) == 1 else []
    return [Turning(tuple(planes), moves, _others(truth, planes)) for planes, moves in found]


def _others(truth: GroundTruth, planes: list[TurningPlane]) -> tuple[Subspace, ...]:
    """Subspaces that coincide with none of the planes, even at another frequency, as the waves of a pizza's squares do."""
    return tuple(s for s in truth.subspaces if not any(_same(s.basis, plane.basis) for plane in planes))


def _same(first: Float[Tensor, "d _"], second: Float[Tensor, "d _"]) -> bool:
    return first.shape == second.shape and coincide(first, second)


def rotation_of_truth(turning: Turning, site: Site, view: GroupView) -> float:
    """`rotation` of the true planes themselves: whether the model follows them at this hook."""
    still = [subspace.basis for subspace in turning.still]
    return _followed([(plane, plane.basis) for plane in turning.planes], still, turning.moves, site, view)


def rotation(
    codes: Float[Tensor, "samples n"],
    atoms: Float[Tensor, "n d"],
    tuned: Tuning,
    turning: Turning,
    site: Site,
    view: GroupView,
) -> float:
    """Fraction of inputs and shifts Δ ≠ 0 whose answer moves as it should once the dictionary's planes are turned by w_k Δ.

    A dictionary's plane is the span of the atoms tuned to a true plane's variables and frequency: the two leading
    directions, weighted by how much their codes vary. Without two of them that plane is left as it is.
    """
    weighted = atoms.double() * codes.double().std(0, correction=0)[:, None]
    labels = np.array(tuned.label)

    def plane_tuned_to(true: TurningPlane | Subspace) -> Float[Tensor, "d dim"] | None:
        own = weighted[torch.from_numpy(np.isin(labels, true.variables) & (tuned.k == true.k))]
        return leading_span(own, true.basis.shape[1])

    found = [(plane, basis) for plane in turning.planes if (basis := plane_tuned_to(plane)) is not None]
    still = [basis for subspace in turning.still if (basis := plane_tuned_to(subspace)) is not None]
    return _followed(found, still, turning.moves, site, view)


def _followed(
    planes: list[tuple[TurningPlane, Float[Tensor, "d dim"]]],
    still: list[Float[Tensor, "d dim"]],
    moves: int,
    site: Site,
    view: GroupView,
) -> float:
    """The fraction, with each basis first turned within its plane to follow its cosine and sine as well as it can.

    Activations are split over all planes jointly, the ones that stay still included: the sum over planes that comes closest
    to them. Else what lies in two overlapping planes would be turned twice, or with a plane that it is no part of.
    """
    if not planes:
        return 0.0
    here = site.among(view.rows)
    centred = here.x.double() - here.x.double().mean(0)
    sizes = [basis.shape[1] for _, basis in planes]
    joint = centred @ torch.linalg.pinv(torch.cat([*(basis for _, basis in planes), *still], dim=1)).T
    amounts, directions = [], []
    for (plane, basis), own in zip(planes, joint[:, : sum(sizes)].split(sizes, dim=1), strict=True):
        left, _, right = torch.linalg.svd(own.T @ plane.waves)
        amounts.append(own @ left @ right)
        directions.append((basis @ left @ right).T)
    shifts = spaced(1, view.n, view.n if site.readout is not None else FEW_SHIFTS)
    followed = 0
    for shift in shifts:
        turned = [
            own @ _turn(plane.k, shift, view.n)[: own.shape[1], : own.shape[1]] - own
            for (plane, _), own in zip(planes, amounts, strict=True)
        ]
        answers = here.after(torch.cat(turned, dim=1), torch.cat(directions)).argmax(1)
        followed += int((answers == view.answer_tokens[(view.s + moves * shift) % view.n]).sum())
    return followed / (len(shifts) * len(view.rows))


def _turn(k: int, shift: int, n: int) -> Float[Tensor, "2 2"]:
    """Row coordinates (cos θ, sin θ) to those of θ + w_k·shift; its corner ±1 at the Nyquist frequency."""
    angle = 2 * math.pi * k * shift / n
    return torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], dtype=torch.float64)


class Ablation(NamedTuple):
    """Of removing the variation of all atoms of one frequency, averaged over the keys that the logits hold.

    removed: share of the logits' energy at that frequency that is gone. others: mean relative change of the other keys'.
    """

    removed: float
    others: float

    @property
    def selective(self) -> float:
        """removed − others: 1 if removing a frequency's atoms removes this frequency and leaves the others alone."""
        return self.removed - self.others


def ablation(
    codes: Float[Tensor, "samples n"],
    atoms: Float[Tensor, "n d"],
    frequencies: Int[np.ndarray, "n"],
    keys: tuple[int, ...],
    site: Site,
    view: GroupView,
) -> Ablation:
    """What removing Σ (f_i − f̄_i)·atom_i over the atoms tuned to each key does to the logits' waves over the answers.

    frequencies: of each atom. A dictionary's error stays where it is.
    """
    here, codes = site.among(view.rows), codes[view.rows]
    varying = codes - codes.mean(0)
    waves = [characters(k, torch.arange(view.n), view.n) for k in keys]

    def energies(logits: Float[Tensor, "rows p"]) -> Float[np.ndarray, "keys"]:
        ordered = logits[:, view.answer_tokens].double()
        return np.array([float((ordered @ wave).square().sum()) for wave in waves])

    base = energies(here.logits)
    present = base >= PRESENT * base.sum()
    removed, others = [], []
    for i in present.nonzero()[0]:
        own = torch.from_numpy(frequencies == keys[i])
        left = energies(here.after(-varying[:, own], atoms[own])) / base.clip(min=1e-300)
        removed.append(1 - left[i])
        rest = present & (np.arange(len(keys)) != i)
        others.append(np.abs(left[rest] - 1).mean() if rest.any() else 0.0)
    return Ablation(float(np.mean(removed)), float(np.mean(others)))


class Splice(NamedTuple):
    """Of the model run on reconstructions. accuracy: a tie counts as wrong. ce: cross-entropy in nats.

    recovered: 1 less the share that reconstruction costs of what replacing every activation by their mean costs.
    """

    accuracy: float
    ce: float
    recovered: float


def splice(reconstruction: Float[Tensor, "samples d"], labels: Int[Tensor, "samples"], site: Site) -> Splice:
    """Accuracy and cross-entropy over all samples, with the reconstruction in the place of the activations."""
    everything = torch.eye(site.x.shape[1])

    def loss(logits: Tensor) -> float:
        return float(F.cross_entropy(logits.double(), labels))

    logits = site.after(reconstruction - site.x, everything)
    blank = loss(site.after(site.x.mean(0) - site.x, everything))
    spliced = loss(logits)
    gain = blank - loss(site.logits)
    recovered = (blank - spliced) / gain if gain > 0 else float("nan")
    right = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf).max(1).values
    return Splice(float((right > others + TIE).double().mean()), spliced, recovered)


class Effects(NamedTuple):
    """What removing each atom's variation changes most. frequency: of the logits' waves over the answers.

    answer: whose logit falls most where the atom contributes most, as a coordinate of the group.
    """

    frequency: Int[np.ndarray, "n"]
    answer: Int[np.ndarray, "n"]

    def confirm(
        self, tuned: Tuning, nearest: Int[np.ndarray, "n"]
    ) -> tuple[Bool[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
        """Whether it is the frequency the atom is tuned to, and whether it is the answer it points at."""
        return self.frequency == tuned.k, self.answer == nearest


def effects(codes: Float[Tensor, "samples n"], atoms: Float[Tensor, "n d"], site: Site, view: GroupView) -> Effects:
    """The effects of single atoms: exact where logits are linear in the activations, else from evenly spaced samples."""
    if site.readout is not None:
        profile = atoms.float() @ site.readout[:, view.answer_tokens]
        return Effects(_loudest(profile[:, None], view.n).numpy(), profile.argmax(1).numpy())
    rows = view.rows[spaced(0, len(view.rows), FEW_ROWS)]
    here, varying = site.among(rows), (codes - codes[view.rows].mean(0))[rows].float()
    frequency, answer = [], []
    for i in range(len(atoms)):
        change = (here.logits - here.after(-varying[:, i : i + 1], atoms[i : i + 1]))[:, view.answer_tokens]
        frequency.append(_loudest(change, view.n))
        answer.append((varying[:, i] @ (change - change.mean(1, keepdim=True))).argmax())
    return Effects(torch.stack(frequency).numpy(), torch.stack(answer).numpy())


def _loudest(changes: Float[Tensor, "*batch rows n"], n: int) -> Int[Tensor, "*batch"]:
    """The frequency that holds most energy in some changes of the answers' logits."""
    power = (changes.double() @ get_fourier_basis(n)[1:].T).square().sum(-2)
    if n % 2 == 0:
        power = torch.cat([power, torch.zeros_like(power[..., :1])], dim=-1)
    return power.unflatten(-1, (-1, 2)).sum(-1).argmax(-1) + 1
