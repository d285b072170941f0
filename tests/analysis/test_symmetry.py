import numpy as np
import pytest
import torch
import torch.nn.functional as F

from husai.analysis.matching import pwmcc
from husai.analysis.symmetry import EXACT_ATOMS, aligned, shift_maps, shifted
from husai.seeding import generator
from husai.truth.planes import find_truth

P = 23


@pytest.fixture(scope="module")
def shifts(circles):
    return shift_maps(circles.activations, circles.truth)


def moved(shifts, atoms: torch.Tensor, delta: int) -> torch.Tensor:
    """S_Δ of unit atoms, read off coordinate by coordinate."""
    return torch.from_numpy(shifts.similarity(torch.eye(atoms.shape[1]), atoms)(delta)).T


def in_planes(circles, n: int, seed: int = 0) -> torch.Tensor:
    """Random unit directions in the span of all planes."""
    basis = torch.cat(list(circles.planes.values()), 1).float()
    return F.normalize(torch.randn(n, basis.shape[1], generator=generator("test-symmetry", seed)), dim=1) @ basis.T


def test_the_operators_cover_every_shift_of_the_answer(circles, shifts):
    assert len(shifts.maps) == P
    assert shifts.basis.shape == (32, 6)


def test_no_shift_is_the_identity(circles, shifts, directions):
    for atoms in (in_planes(circles, 20), directions(20, 32)):
        torch.testing.assert_close(moved(shifts, atoms, 0), atoms, rtol=0, atol=1e-5)


@pytest.mark.parametrize("op", ["add", "sub", "mul", "div"])
def test_a_shift_maps_each_answer_mean_to_the_shifted_answers_mean(plant_circles, op):
    planted = plant_circles(op)
    shifts = shift_maps(planted.activations, planted.truth)
    means = F.normalize(planted.means, dim=1)
    assert len(shifts.maps) == len(means)
    for delta in (1, 5, len(means) - 1):
        cosines = (moved(shifts, means, delta) * means.roll(-delta, 0)).sum(1)
        assert float(cosines.min()) > 1 - 1e-6


def test_shifts_add_up(circles, shifts):
    atoms = in_planes(circles, 20)
    for first, second in ((1, 1), (3, 9), (20, 17)):
        both = moved(shifts, moved(shifts, atoms, first), second)
        torch.testing.assert_close(both, moved(shifts, atoms, (first + second) % P), rtol=0, atol=1e-4)


def test_shifts_rotate_each_plane_by_its_own_frequency(circles, shifts):
    for k, plane in circles.planes.items():
        cosine, sine = plane.float().T
        angle = 2 * np.pi * k * 4 / P
        turned = moved(shifts, cosine[None], 4)[0]
        torch.testing.assert_close(turned, np.cos(angle) * cosine + np.sin(angle) * sine, rtol=0, atol=1e-4)


def test_atoms_outside_the_truth_stay(circles, shifts, directions):
    basis = circles.truth.union.float()
    outside = directions(20, 32)
    outside = F.normalize(outside - outside @ basis @ basis.T, dim=1)
    for delta in (1, 11):
        torch.testing.assert_close(moved(shifts, outside, delta), outside, rtol=0, atol=1e-5)


def test_an_atom_half_outside_keeps_its_outer_half(circles, shifts):
    inside = circles.planes[2][:, 0].float()
    outside = F.normalize(torch.linalg.svd(circles.truth.union.float()).U[:, -1], dim=0)
    half = F.normalize(inside + outside, dim=0)
    found = moved(shifts, half[None], 7)[0]
    assert float(found @ outside) == pytest.approx(0.5**0.5, abs=1e-4)
    assert float(found @ inside) == pytest.approx(0.5**0.5 * np.cos(2 * np.pi * 2 * 7 / P), abs=1e-4)
    assert float(found.norm()) == pytest.approx(1, abs=1e-5)


def test_a_hook_that_does_not_carry_the_answer_has_no_shifts(plant_circles):
    planted = plant_circles(variable="u")  # functions of a alone
    assert {subspace.variables for subspace in planted.truth.subspaces} == {("a",)}
    assert shift_maps(planted.activations, find_truth(planted.activations)) is None


# --- scores ---


def test_all_answer_means_form_a_closed_dictionary(circles, shifts):
    means = F.normalize(circles.means, dim=1)
    assert shifted(means, means, shifts, list(range(1, P))) == pytest.approx(1, abs=1e-5)


def test_a_few_random_directions_are_not_closed(circles, shifts):
    atoms = in_planes(circles, 6)
    assert shifted(atoms, atoms, shifts, list(range(1, P))) < 0.8


def test_shifted_averages_over_the_shifts(circles, shifts):
    first, second = in_planes(circles, 6, 0), in_planes(circles, 6, 1)
    by_hand = [pwmcc(first, moved(shifts, second, delta)) for delta in (2, 3, 8)]
    assert shifted(first, second, shifts, [2, 3, 8]) == pytest.approx(np.mean(by_hand), abs=1e-5)


def test_a_shifted_copy_is_found_by_alignment_only(circles, shifts):
    first = in_planes(circles, 6)
    copy = moved(shifts, first, 5)
    assert aligned(first, copy, shifts, list(range(P))) == pytest.approx(1, abs=1e-4)
    assert aligned(first, copy, shifts, [P - 5]) == pytest.approx(1, abs=1e-4)  # the shift that undoes it
    assert pwmcc(first, copy) < 0.8
    assert aligned(first, copy, shifts, [d for d in range(P) if d != P - 5]) < 0.9


def test_aligned_is_at_least_the_unshifted_score(circles, shifts, directions):
    for seed in range(5):
        first, second = in_planes(circles, 10, seed), directions(12, 32, seed)
        assert aligned(first, second, shifts, list(range(P))) >= pwmcc(first, second) - 1e-6


def test_a_shifted_copy_of_a_wide_dictionary_is_found_from_the_shortlist(circles, shifts):
    first = in_planes(circles, EXACT_ATOMS + 10)
    copy = moved(shifts, first, 5)[torch.randperm(len(first), generator=generator("test-wide"))]
    assert aligned(first, copy, shifts, list(range(P))) == pytest.approx(1, abs=1e-4)
    assert pwmcc(first, copy) < 0.95


def test_the_shortlist_is_made_for_the_smaller_dictionary(circles, shifts):
    # The wide dictionary holds a shifted copy of the small one, and 240 decoys: one atom under four other shifts, which
    # would win if the wide one's atoms were asked where they are matched best.
    few = in_planes(circles, 30)
    decoys = [moved(shifts, few[:1], delta).repeat(60, 1) for delta in (3, 8, 13, 18)]
    wide = torch.cat([moved(shifts, few, 5), *decoys])
    assert len(wide) > EXACT_ATOMS
    assert aligned(few, wide, shifts, list(range(P))) == pytest.approx(1, abs=1e-4)
    assert aligned(wide, few, shifts, list(range(P))) == pytest.approx(1, abs=1e-4)
