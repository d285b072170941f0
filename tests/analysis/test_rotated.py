import math

import pytest
import torch
import torch.nn.functional as F

from husai.analysis.matching import pwmcc
from husai.analysis.rotated import plane_rotated
from husai.truth.planes import GroundTruth, Subspace

AXES = torch.eye(6)


def truth_of(*bases):
    return GroundTruth("here", tuple(Subspace(k + 1, ("sum",), basis, 0.5) for k, basis in enumerate(bases)), (), 0.0)


PLANES = truth_of(AXES[:, :2], AXES[:, 2:4])


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def test_atoms_keep_their_length_and_what_they_have_in_and_outside_every_plane():
    atoms = F.normalize(torch.randn(40, 6, generator=stream()), dim=1)
    turned = plane_rotated(atoms, PLANES, stream(1))
    torch.testing.assert_close(turned[:, 4:], atoms[:, 4:])
    for plane in (slice(0, 2), slice(2, 4)):
        torch.testing.assert_close(turned[:, plane].norm(dim=1), atoms[:, plane].norm(dim=1))
        before, after = (torch.atan2(x[:, plane][:, 1], x[:, plane][:, 0]) for x in (atoms, turned))
        angles = (after - before).remainder(2 * math.pi)
        torch.testing.assert_close(angles, angles[:1].expand(40), atol=1e-4, rtol=0)
    angle = [
        float(torch.atan2(turned[0, i + 1], turned[0, i]) - torch.atan2(atoms[0, i + 1], atoms[0, i])) for i in (0, 2)
    ]
    assert abs(math.sin((angle[0] - angle[1]) / 2)) > 0.01, "each plane has an angle of its own"


def test_angles_are_uniform_and_lines_are_flipped_half_of_the_time():
    line = truth_of(AXES[:, :1])
    signs = torch.stack([plane_rotated(AXES[:1], line, stream(seed))[0, 0] for seed in range(400)])
    assert signs.abs().eq(1).all()
    assert float(signs.mean()) == pytest.approx(0, abs=0.15)
    plane = truth_of(AXES[:, :2])
    found = torch.stack([plane_rotated(AXES[:1], plane, stream(seed))[0, :2] for seed in range(400)])
    torch.testing.assert_close(found.mean(0), torch.zeros(2), atol=0.12, rtol=0)
    assert float((found[:, 0] * found[:, 1] > 0).float().mean()) == pytest.approx(0.5, abs=0.08)


def test_what_two_planes_share_is_turned_once():
    """The same plane twice: its joint coordinates are halves, each turned by its own angle, and stay bounded."""
    twice = truth_of(AXES[:, :2], AXES[:, :2])
    atoms = F.normalize(torch.randn(20, 6, generator=stream()), dim=1)
    turned = plane_rotated(atoms, twice, stream(1))
    assert turned.isfinite().all()
    torch.testing.assert_close(turned.norm(dim=1), torch.ones(20))


def signed_axes(phase):
    """Atoms that hold both planes at phases tied together, 12 a dictionary: answers."""
    t = torch.arange(12) * 2 * math.pi / 12 + phase
    zero = torch.zeros(12)
    return F.normalize(torch.stack([t.cos(), t.sin(), (5 * t).cos(), (5 * t).sin(), zero, zero], dim=1), dim=1)


def test_dictionaries_that_share_phases_agree_less_once_planes_are_turned():
    """Positive control: the same answers. Each atom holds both planes, so independent angles tear it apart."""
    atoms = signed_axes(0.0)
    levels = [pwmcc(atoms, plane_rotated(atoms, PLANES, stream(seed))) for seed in range(30)]
    assert pwmcc(atoms, atoms) == pytest.approx(1)
    assert sum(levels) / 30 < 0.9


def test_dictionaries_that_share_planes_alone_agree_as_well_turned():
    """Negative control: atoms at random phases of single planes have no phases to lose."""

    def drawn(seed):
        t = torch.rand(60, generator=stream(seed)) * 2 * math.pi
        one = torch.stack([t.cos(), t.sin()], dim=1)
        atoms = torch.zeros(60, 6)
        atoms[:30, :2], atoms[30:, 2:4] = one[:30], one[30:]
        return atoms

    scores = [pwmcc(drawn(2 * s), drawn(2 * s + 1)) for s in range(200)]
    levels = [pwmcc(drawn(2 * s), plane_rotated(drawn(2 * s + 1), PLANES, stream(s))) for s in range(200)]
    assert sum(levels) / 200 == pytest.approx(sum(scores) / 200, abs=0.01)
