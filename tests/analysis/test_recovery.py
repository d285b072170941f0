import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from husai.activations import extract
from husai.analysis.nulls import coded_sampler
from husai.analysis.recovery import best_subspace, decoder_overlap, fourier_overlap, true_atoms, tuning
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


# --- true atoms ---


def test_an_atom_is_true_by_its_plane_or_by_its_answer(circles, inside, outside):
    def leaning(share: float) -> torch.Tensor:
        return share**0.5 * inside[0] + (1 - share) ** 0.5 * outside[0]

    across = F.normalize(inside[0] + inside[1], dim=0)
    atoms = torch.stack([inside[0], leaning(0.91), leaning(0.89), across, across, outside[0], outside[0]])
    found = true_atoms(atoms, circles.truth, np.array([0.2, 0.0, 0.0, 0.91, 0.89, -1.0, 0.99]))
    assert found.plane.tolist() == [True, True, False, False, False, False, False]
    assert found.answer.tolist() == [False, False, False, True, False, False, True]
    assert found.true.tolist() == [True, True, False, True, False, False, True]


def test_an_atom_whose_ablation_does_something_else_is_not_true(circles, inside):
    as_label, as_answer = np.array([True, False, False]), np.array([False, True, False])
    found = true_atoms(inside, circles.truth, np.array([0.0, 0.0, 1.0]), (as_label, as_answer))
    assert found.plane.tolist() == [True, True, True]
    assert found.true.tolist() == [True, False, False]
    found = true_atoms(inside, circles.truth, np.array([0.0, 1.0, 0.0]), (as_label, as_answer))
    assert found.true.tolist() == [True, True, False]


def test_answers_make_no_atom_true_where_the_truth_does_not_hold_them(plant_circles, directions):
    operand = plant_circles(variable="u")
    found = true_atoms(directions(5, 32), operand.truth, np.ones(5))
    assert not found.answer.any()
    assert not found.true.any()


def test_random_directions_are_not_true(circles, directions):
    atoms = directions(200, 32)
    means = F.normalize(circles.means, dim=1)
    assert not true_atoms(atoms, circles.truth, (atoms @ means.T).max(1).values.numpy()).true.any()


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


# --- Parseval: the same shares from a 2-D Fourier transform ---


def fourier_shares(table: torch.Tensor) -> tuple[dict[tuple[str, int], torch.Tensor], torch.Tensor]:
    """Energy of codes (atoms, u, v) on Z_n × Z_n by family, and their whole centred energy."""
    n = table.shape[1]
    power = torch.fft.fft2(table.double()).abs().square() / n**2
    power[:, 0, 0] = 0
    found = {}
    for k in range(1, n // 2 + 1):
        for variable, (i, j) in {"a": (k, 0), "b": (0, k), "sum": (k, k), "difference": (k, -k)}.items():
            twins = {(i % n, j % n), (-i % n, -j % n)}
            if variable == "difference" and 2 * k == n:
                continue
            found[variable, k] = sum(power[:, q, r] for q, r in twins)
    return found, power.sum((1, 2))


@pytest.mark.parametrize("op", ["add", "sub", "mul", "div"])
def test_shares_are_those_of_a_two_dimensional_fourier_transform(op):
    task = Task(op, 13)
    view, atoms = task.group, 60
    random = generator("test-fft")
    table = torch.randn(atoms, view.n, view.n, generator=random).relu()
    steps = torch.arange(view.n)
    for i in range(atoms // 2):  # half of them lean towards a family, so that every label occurs
        name, k = families(task).names[i % 20]
        values = {
            "a": steps[:, None],
            "b": steps[None],
            "sum": steps[:, None] + steps,
            "difference": steps[:, None] - steps,
        }
        table[i] += 2 * wave(values[name], k, view.n, phase=0.1 * i).float()
    codes = torch.zeros(len(task.a), atoms)
    codes[view.rows] = table[:, view.u, view.v].T
    found = tuning(codes, families(task))
    energy, centred = fourier_shares(table)
    total = (codes.double() - codes.double().mean(0)).square().sum(0)
    shares = torch.stack(list(energy.values())) / total
    zeros = (total - centred) / total  # what a code has because it is 0 on rows with a zero
    assert (float(zeros.abs().max()) < 1e-9) == (op in ("add", "sub"))
    best = shares.argmax(0)
    names = [list(energy)[i] for i in best.tolist()]
    clear = (shares.max(0).values > zeros).numpy()
    assert clear[: atoms // 2].all()
    assert [(v, k) for v, k, ok in zip(found.label, found.k.tolist(), clear, strict=True) if ok] == [
        name for name, ok in zip(names, clear, strict=True) if ok
    ]
    assert {name for name, _ in names} == {"a", "b", "sum", "difference"}
    assert found.purity[clear] == pytest.approx(shares.max(0).values.numpy()[clear])
    assert found.mixed == pytest.approx((1 - shares.sum(0) - zeros).numpy(), abs=1e-9)
    pooled = torch.stack(
        [sum(shares[i] for i, (_, q) in enumerate(energy) if q == k) for k in range(1, view.n // 2 + 1)]
    )
    assert found.frequency_purity == pytest.approx(torch.maximum(pooled.max(0).values, zeros).numpy())


# --- squares, whose families overlap ---


@pytest.mark.parametrize("p", [13, 23])
@pytest.mark.parametrize("phase", [0.7, 3.0, -2.0])
def test_waves_of_squares_are_told_with_their_exact_phases(p, phase):
    task = Task("squares", p)
    view = task.group
    values = {"a": view.u, "b": view.v, "sum": view.s, "difference": (view.u - view.v) % p}
    found = tuned(*(wave(y, 2, p, phase) for y in values.values()), task=task)
    assert found.label == list(values)
    assert found.k.tolist() == [2] * 4
    assert found.purity == pytest.approx(np.ones(4))
    assert found.frequency_purity == pytest.approx(np.ones(4))
    assert found.phase == pytest.approx([phase] * 4)
    assert found.mixed == pytest.approx(np.zeros(4), abs=1e-9)


def test_mixtures_of_squares_are_split_by_joint_fits():
    task = Task("squares", 23)
    view, family = task.group, families(task)
    codes = torch.stack(
        [wave(view.u, 3) + wave(view.s, 3), wave(view.u, 3) * wave(view.v, 5), wave(view.u, 3).relu()], 1
    )
    found = tuning(codes, family)
    centred = codes - codes.mean(0)
    left = centred - family.basis @ torch.linalg.lstsq(family.basis, centred, driver="gelsd").solution
    assert found.mixed == pytest.approx((left.square().sum(0) / centred.square().sum(0)).numpy(), abs=1e-9)
    assert found.mixed[[0, 2]] == pytest.approx([0, 0], abs=1e-9)
    assert found.mixed[1] > 0.5
    assert found.frequency_purity[0] == pytest.approx(1)  # two variables of one frequency
    assert found.purity[0] < 0.8


def test_random_codes_of_squares_are_mixed_as_far_as_dimensions_go():
    # families of squares span 3(p − 1) of p² − 1 dimensions
    found = tuning(torch.randn(529, 200, generator=generator("test-squares")), families(Task("squares", 23)))
    assert found.mixed.mean() == pytest.approx(1 - 66 / 528, abs=0.01)
    assert found.mixed.min() > 0


# --- what random codes reach at a real hook ---


def mean_purity(null: str, x: torch.Tensor, task: Task) -> float:
    codes = coded_sampler(null, x, 2)(128, generator("test-purity")).codes
    return float(np.nanmean(tuning(codes, families(task)).purity))


@pytest.mark.parametrize(("null", "mlp_out", "resid_mid"), [("ambient_relu", 0.58, 0.22), ("data_top_k", 0.035, 0.02)])
def test_purity_of_random_codes_at_a_reference_model(reference, null, mlp_out, resid_mid):
    model, task = reference("add-p113-0")
    assert mean_purity(null, extract(model, task, "mlp_out").x, task) == pytest.approx(mlp_out, rel=0.1)
    assert mean_purity(null, extract(model, task, "resid_mid").x, task) == pytest.approx(resid_mid, rel=0.1)
