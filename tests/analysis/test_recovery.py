import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from husai.analysis.recovery import best_subspace, decoder_overlap, fourier_overlap, tuning
from husai.seeding import generator
from husai.tasks import Task
from husai.truth.planes import families

TASK = Task("add", 23)
OVERLAPS = [fourier_overlap, decoder_overlap]


@pytest.fixture(scope="module")
def inside(circles):
    """The cosine's direction of every plane."""
    return torch.stack([plane[:, 0] for plane in circles.planes.values()]).float()


@pytest.fixture(scope="module")
def outside(circles):
    """Directions orthogonal to every plane."""
    return torch.linalg.svd(circles.truth.union.float()).U[:, 6:].T


# --- overlap with the true subspaces ---


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_atoms_inside_a_plane_overlap_fully(circles, inside, overlap):
    assert overlap(inside, circles.truth) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_orthogonal_atoms_do_not_overlap(circles, outside, overlap):
    assert overlap(outside, circles.truth) == pytest.approx(0, abs=1e-5)


def test_an_atom_halfway_has_half_its_energy_inside(circles, inside, outside):
    half = F.normalize(inside[:1] + outside[:1], dim=1)
    assert fourier_overlap(half, circles.truth) == pytest.approx(0.5, abs=1e-5)


def test_random_directions_overlap_by_the_share_of_dimensions(circles, directions):
    assert fourier_overlap(directions(4000, 32), circles.truth) == pytest.approx(6 / 32, abs=0.005)


def test_an_atom_across_two_planes_is_whole_in_the_union_and_half_in_each(circles, inside):
    across = F.normalize(inside[:1] + inside[1:2], dim=1)
    assert fourier_overlap(across, circles.truth) == pytest.approx(1, abs=1e-5)
    assert decoder_overlap(across, circles.truth) == pytest.approx(0.5, abs=1e-5)


def test_random_directions_inside_three_planes_reach_eleven_eighteenths_in_the_best(circles):
    # the energies in three planes are uniform on the simplex; the largest is (1 + 1/2 + 1/3)/3 on average
    basis = torch.cat(list(circles.planes.values()), 1).float()
    atoms = F.normalize(torch.randn(20_000, 6, generator=generator("test-recovery")), dim=1) @ basis.T
    assert decoder_overlap(atoms, circles.truth) == pytest.approx(11 / 18, abs=0.005)


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("k", [2, 5, 9])
def test_a_rotation_within_a_plane_changes_nothing(circles, directions, overlap, k):
    plane = circles.planes[k].float()
    turn = torch.tensor([[math.cos(1.1), -math.sin(1.1)], [math.sin(1.1), math.cos(1.1)]])
    rotation = torch.eye(32) + plane @ (turn - torch.eye(2)) @ plane.T
    atoms = directions(50, 32)
    assert (atoms @ rotation - atoms).abs().max() > 0.1
    assert overlap(atoms @ rotation, circles.truth) == pytest.approx(overlap(atoms, circles.truth), abs=1e-5)


def test_one_subspace_never_holds_more_than_their_union(circles, directions):
    for seed in range(20):
        atom = directions(1, 32, seed)
        assert decoder_overlap(atom, circles.truth) <= fourier_overlap(atom, circles.truth) + 1e-9


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_the_mean_is_weighted(circles, inside, outside, overlap):
    atoms = torch.stack([inside[0], outside[0]])
    assert overlap(atoms, circles.truth) == pytest.approx(0.5, abs=1e-5)
    assert overlap(atoms, circles.truth, torch.tensor([3.0, 1.0])) == pytest.approx(0.75, abs=1e-5)
    assert overlap(atoms, circles.truth, torch.tensor([0.0, 8.0])) == pytest.approx(0, abs=1e-5)


def test_best_subspace_names_the_plane(circles, inside):
    shares, where = best_subspace(inside, circles.truth)
    assert [circles.truth.subspaces[i].label for i in where.tolist()] == ["sum k=2", "sum k=5", "sum k=9"]
    torch.testing.assert_close(shares.float(), torch.ones(3))


# --- what codes are tuned to ---


def wave(values: torch.Tensor, k: int, n: int = 23, phase: float = 0.0) -> torch.Tensor:
    return (2 * math.pi * k * values.double() / n - phase).cos()


A, B, C = TASK.a, TASK.b, TASK.labels
DIFFERENCE = (A - B) % 23


def tuned(*codes: torch.Tensor, task: Task = TASK):
    return tuning(torch.stack(codes, 1), families(task))


@pytest.mark.parametrize("phase", [0.0, 0.7, 2.0, 3.0, -2.5, -0.1])
@pytest.mark.parametrize(("label", "values"), [("a", A), ("b", B), ("sum", C), ("difference", DIFFERENCE)])
def test_a_wave_is_labelled_with_its_variable_frequency_and_phase(label, values, phase):
    found = tuned(2 * wave(values, 3, phase=phase) + 5)
    assert found.label == [label]
    assert found.k.tolist() == [3]
    assert found.purity == pytest.approx([1])
    assert found.frequency_purity == pytest.approx([1])
    assert found.phase == pytest.approx([phase])
    assert found.mixed == pytest.approx([0], abs=1e-9)


@pytest.mark.parametrize("k", [1, 5, 11])
def test_every_frequency_is_told_apart(k):
    found = tuned(wave(C, k), wave(A, k))
    assert found.k.tolist() == [k, k]
    assert found.label == ["sum", "a"]


def test_shares_of_families_and_mixed_sum_to_one():
    # energies: 2² · ½ = 2 for sum 3, ½ for a 5; the product of waves in a and b of unequal frequencies has (√2)² · ¼ = ½
    # and is in no family
    found = tuned(2 * wave(C, 3) + wave(A, 5) + 2**0.5 * wave(A, 3) * wave(B, 5))
    assert found.label == ["sum"]
    assert found.purity == pytest.approx([2 / 3])
    assert found.mixed == pytest.approx([1 / 6])  # the remaining 1/6 is a's
    assert found.frequency_purity == pytest.approx([2 / 3])


def test_frequency_purity_pools_the_variables_of_one_frequency():
    found = tuned(wave(C, 3) + wave(A, 3) + wave(DIFFERENCE, 3) + wave(B, 4) + 0.1 * wave(C, 3))
    total = 1.21 + 3
    assert found.purity == pytest.approx([1.21 / total])
    assert found.frequency_purity == pytest.approx([3.21 / total])


def test_a_product_of_equal_frequencies_is_half_sum_and_half_difference():
    # cos u · cos v = ½ cos(u + v) + ½ cos(u − v)
    found = tuned(wave(A, 4) * wave(B, 4) + 0.01 * wave(C, 4))
    assert found.label == ["sum"]
    assert found.purity == pytest.approx([0.5], abs=0.02)
    assert found.frequency_purity == pytest.approx([1])


def test_purity_falls_with_how_narrowly_a_code_fires():
    # A half-wave has 1/8 of its variance 1/4 − 1/π² in its own frequency. A detector of one answer spreads evenly over
    # all (p − 1)/2 frequencies.
    found = tuned(wave(C, 3), wave(C, 3).relu(), (C == 7).double())
    assert found.purity == pytest.approx([1, (1 / 8) / (1 / 4 - 1 / math.pi**2), 2 / 22], abs=0.005)
    assert found.mixed == pytest.approx([0, 0, 0], abs=1e-9)


def test_silent_atoms_are_labelled_dead():
    found = tuned(torch.zeros(529), wave(C, 3))
    assert found.label == ["dead", "sum"]
    assert found.k.tolist() == [0, 3]
    for column in (found.purity, found.frequency_purity, found.phase, found.mixed):
        assert np.isnan(column).tolist() == [True, False]


@pytest.mark.parametrize("value", [2.0, 0.1, 1e6 / 3])
def test_constant_codes_carry_nothing_and_are_labelled_dead_too(value):
    found = tuning(torch.full((529, 1), value), families(TASK))  # in float32 the mean is off by a rounding
    assert found.label == ["dead"]
    assert np.isnan(found.purity).all()


def test_a_small_wave_on_a_large_constant_is_still_seen():
    found = tuned(wave(C, 3) + 1000)
    assert found.label == ["sum"]
    assert found.purity == pytest.approx([1])


def test_codes_of_permuted_rows_are_mixed():
    # Families are 11 frequencies × 4 variables × 2 = 88 of the 528 dimensions of centred codes.
    order = torch.stack([torch.randperm(529, generator=generator("test-recovery", i)) for i in range(200)], 1)
    found = tuning(wave(C, 3)[order], families(TASK))
    assert found.mixed.mean() == pytest.approx(1 - 88 / 528, abs=0.01)
    assert found.purity.max() < 0.1


def test_the_scale_of_codes_does_not_matter():
    code = (wave(C, 3) + 0.3 * wave(A, 5)).relu()
    found = tuned(code, 1e-3 * code, 1e4 * code)
    assert found.purity == pytest.approx(np.full(3, found.purity[0]))
    assert found.phase == pytest.approx(np.full(3, found.phase[0]), abs=1e-6)


def test_multiplication_is_tuned_over_discrete_logarithms():
    task = Task("mul", 23)
    view = task.group
    assert view.n == 22
    code = torch.zeros(529, 4, dtype=torch.float64)
    code[view.rows] = torch.stack(
        [wave(view.s, 3, 22, 0.7), wave(view.u, 5, 22), wave(view.s, 11, 22), -wave(view.s, 11, 22)], 1
    )
    code = torch.cat([code, (task.a == 0).double()[:, None]], 1)
    found = tuning(code, families(task))
    assert found.label == ["sum", "a", "sum", "sum", "zero"]
    assert found.k.tolist() == [3, 5, 11, 11, 0]
    assert found.purity == pytest.approx(np.ones(5))
    assert np.abs(found.phase[:4]) == pytest.approx([0.7, 0, 0, math.pi])  # a Nyquist wave is up or down
    assert found.phase[0] == pytest.approx(0.7)


def test_a_nyquist_wave_has_no_sine_to_take_a_phase_from():
    task = Task("mul", 23)
    view = task.group
    code = torch.zeros(529, 1, dtype=torch.float64)
    code[view.rows, 0] = wave(view.u, 11, 22) + 0.5 * wave(view.v, 11, 22)
    found = tuning(code, families(task))
    assert (found.label, found.k.tolist()) == (["a"], [11])
    assert found.purity == pytest.approx([0.8])
    assert found.phase == pytest.approx([0], abs=1e-9)


def test_subtraction_calls_its_answer_the_sum():
    task = Task("sub", 23)
    found = tuning(torch.stack([wave(task.labels, 3, phase=0.7), wave((task.a + task.b) % 23, 3)], 1), families(task))
    assert found.label == ["sum", "difference"]
    assert found.phase[0] == pytest.approx(0.7)
