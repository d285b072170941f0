import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from husai.analysis.ideal import polygon, signed_axes
from husai.analysis.matching import pwmcc
from husai.analysis.nulls import coded_sampler
from husai.analysis.subspace_stability import span_stability, spread, subspace_stability
from husai.analysis.subspaces import subspace_recovery
from husai.errors import HusaiError
from husai.seeding import generator
from husai.truth.planes import GroundTruth, Subspace, families

E = torch.eye(8)
EVEN = torch.ones(2)


def truth_of(*planes: tuple[int, ...]) -> GroundTruth:
    """Subspaces spanned by axes, at frequencies of their own."""
    subspaces = [Subspace(k, ("sum",), E[list(axes)].T.double(), 0.1) for k, axes in enumerate(planes, start=1)]
    return GroundTruth("by hand", tuple(subspaces), (), 0.0)


PLANE, TWO = truth_of((0, 1)), truth_of((0, 1), (2, 3))


def tilted(degrees: float) -> torch.Tensor:
    """e1, and e2 turned out of the plane."""
    angle = math.radians(degrees)
    return torch.stack([E[0], math.cos(angle) * E[1] + math.sin(angle) * E[4]])


# --- by hand ---


@pytest.mark.parametrize("degrees", [0, 10, 30, 44])
def test_a_tilted_plane_counts_by_the_squared_cosine_of_its_angle(degrees):
    found = span_stability([EVEN, EVEN], [tilted(0), tilted(degrees)], PLANE)
    assert found.matrix[0, 1] == found.matrix[1, 0] == pytest.approx(math.cos(math.radians(degrees)) ** 2, abs=1e-6)


def test_spans_are_compared_with_each_other_and_not_with_the_truth():
    same = span_stability([EVEN, EVEN], [tilted(30), tilted(30)], PLANE)
    assert same.matrix[0, 1] == pytest.approx(1)
    apart = span_stability([EVEN, EVEN], [tilted(30), tilted(-30)], PLANE)
    assert apart.matrix[0, 1] == pytest.approx(0.25, abs=1e-6)  # cos² of 60°


def test_atoms_that_vary_most_decide_where_a_span_lies():
    atoms = torch.cat([E[:2], F.normalize(E[1:2] + 0.9 * E[4:5], dim=1)])
    loud = [torch.tensor(weights) for weights in ([1.0, 1.0, 0.0], [3.0, 0.0, 1.0])]
    assert span_stability(loud, [atoms, atoms], PLANE).matrix[0, 1] == pytest.approx(1 / 1.81, abs=1e-6)


def test_one_value_a_subspace_and_the_score_is_their_mean():
    first, second = torch.cat([tilted(0), E[2:4]]), torch.cat([tilted(60), E[2:4]])
    third = torch.cat([tilted(0), F.normalize(E[2:3] + E[5:6], dim=1), E[3:4]])
    found = span_stability([torch.ones(4)] * 3, [first, second, third], TWO)
    # atoms that are 45° off still have most of their energy in the plane; so has one that is 60° off
    assert found.matrix[0, 1] == pytest.approx((0.25 + 1) / 2, abs=1e-6)
    assert found.matrix[0, 2] == pytest.approx((1 + 0.5) / 2, abs=1e-6)
    assert found.matrix[1, 2] == pytest.approx((0.25 + 0.5) / 2, abs=1e-6)
    assert [own.round(6).tolist() for own in found.atoms] == [[0.625, 0.75], [0.25, 0.75], [0.625, 0.5]]
    assert found.interval.mean == pytest.approx((0.625 + 0.75 + 0.375) / 3, abs=1e-6)
    assert found.matched == {}
    assert np.diag(found.matrix).tolist() == [1, 1, 1]


@pytest.mark.parametrize("atoms", [E[:1], torch.stack([E[0], -E[0]]), torch.stack([E[0], E[2]])])
def test_a_subspace_that_is_not_spanned_counts_as_zero(atoms):
    found = span_stability([EVEN, torch.ones(len(atoms))], [tilted(0), atoms], PLANE)
    # the last one's e3 belongs to the only subspace that there is, so that its span is another plane
    assert found.matrix[0, 1] == pytest.approx(0, abs=1e-12)
    assert found.atoms[0].tolist() == pytest.approx([0], abs=1e-12)


def test_a_silent_atom_spans_nothing():
    assert span_stability([EVEN, torch.tensor([1.0, 0.0])], [tilted(0), tilted(0)], PLANE).matrix[0, 1] == 0


def test_lines_count_too():
    line = truth_of((0,))
    atoms = [E[:1], -E[:1], F.normalize(E[:1] + E[1:2], dim=1)]
    found = span_stability([torch.ones(1)] * 3, atoms, line)
    assert found.matrix[0].tolist() == pytest.approx([1, 1, 0.5])


def test_subspaces_that_coincide_share_their_atoms():
    twice = truth_of((0, 1), (0, 1))
    assert span_stability([EVEN, EVEN], [tilted(0), tilted(30)], twice).atoms[0].tolist() == pytest.approx([0.75] * 2)


# --- dictionaries with codes ---


def test_the_same_planes_cut_in_other_ways_are_the_same(circles):
    x, bases = circles.activations.x, [subspace.basis for subspace in circles.truth.subspaces]
    mean = x.mean(0)
    cuts = [
        signed_axes(bases, mean),
        signed_axes(bases, mean, [math.pi / 4] * 3),
        polygon(bases, mean, 4, [0.2] * 3),
        polygon(bases, mean, 8, [0.1] * 3),
    ]
    atoms, codes = [cut.atoms for cut in cuts], [cut.encode(x) for cut in cuts]
    found = subspace_stability(codes, atoms, circles.truth)
    assert found.matrix == pytest.approx(np.ones((4, 4)), abs=1e-5)
    assert [own.tolist() for own in found.atoms] == [pytest.approx([1, 1, 1], abs=1e-5)] * 4
    assert pwmcc(atoms[0], atoms[1]) == pytest.approx(math.cos(math.pi / 4), abs=1e-5)
    by_spread = span_stability([spread(own) for own in codes], atoms, circles.truth)
    assert np.array_equal(by_spread.matrix, found.matrix)


def test_the_spans_are_those_of_subspace_recovery(circles):
    """Against a dictionary of the truth itself, the score is what recovery says of the other."""
    x, truth = circles.activations.x, circles.truth
    exact = signed_axes([subspace.basis for subspace in truth.subspaces], x.mean(0))
    drawn = coded_sampler("data_relu", x, 3)(40, generator("test-subspace-stability"))
    found = subspace_stability([exact.encode(x), drawn.codes], [exact.atoms, drawn.atoms], truth)
    recovered = subspace_recovery(drawn.codes, drawn.atoms, truth, families(circles.activations.task))
    assert found.atoms[0] == pytest.approx(recovered.cos2, abs=1e-5)
    assert recovered.cos2.max() > recovered.cos2.min() + 0.01


def test_random_dictionaries_share_planes_the_more_atoms_they_have(circles):
    """The trap: where data fill few dimensions, many random atoms span the same planes."""

    def chance(null: str, n: int) -> float:
        streams = [generator(f"test-chance-{null}", seed) for seed in range(3)]
        drawn = [coded_sampler(null, circles.activations.x, 3)(n, stream) for stream in streams]
        return subspace_stability(
            [own.codes for own in drawn], [own.atoms for own in drawn], circles.truth
        ).interval.mean

    assert chance("ambient_relu", 32) < 0.25
    points = [chance("data_points_relu", n) for n in (8, 64, 512)]
    assert all(fewer < more for fewer, more in pairwise(points))


def test_bad_input_is_refused():
    with pytest.raises(HusaiError, match="without live atoms"):
        span_stability([EVEN, EVEN[:0]], [E[:2], E[:0]], PLANE)
    with pytest.raises(HusaiError, match="width"):
        span_stability([EVEN, EVEN], [E[:2], E[:2, :4]], PLANE)
    with pytest.raises(HusaiError, match="3 latents, but the dictionary has 2 atoms"):
        span_stability([EVEN, torch.ones(3)], [E[:2], E[:2]], PLANE)
