import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from husai.activations import Activations, extract
from husai.analysis.answers import answer_scores
from husai.analysis.fit import evaluate_fit
from husai.analysis.nulls import coded_sampler
from husai.analysis.recovery import decoder_overlap, fourier_overlap, tuning
from husai.analysis.subspaces import Aggregate, SubspaceRecovery, above, probe_r2, span_cos2, subspace_recovery
from husai.analysis.symmetry import shift_maps
from husai.config import CirclesConfig, CompiledConfig, TaskConfig
from husai.errors import HusaiError
from husai.sae.dictionary import Dictionary
from husai.seeding import generator
from husai.tasks import Task
from husai.transformer.compiled import compile_model
from husai.truth.fourier import characters
from husai.truth.planes import GroundTruth, Subspace, answer_families, families, find_truth
from husai.truth.synthetic import draw_circles

E = torch.eye(4, dtype=torch.float64)
PLANE = E[:, :2]


def signed_axes(bases: list[Tensor]) -> Tensor:
    """Both directions of every basis vector of every subspace, as rows."""
    return torch.cat([sign * basis.T for basis in bases for sign in (1, -1)]).float()


def projections(x: Tensor, atoms: Tensor) -> Tensor:
    return ((x - x.mean(0)) @ atoms.T).relu()


# --- the span of weighted atoms, by hand ---


@pytest.mark.parametrize("degrees", [0, 10, 18, 19, 60, 90])
def test_the_least_cosine_is_that_of_the_tilted_direction(degrees):
    angle = math.radians(degrees)
    tilted = math.cos(angle) * E[1] + math.sin(angle) * E[2]
    assert span_cos2(torch.stack([2 * E[0], tilted]), PLANE) == pytest.approx(math.cos(angle) ** 2)


def test_heavy_atoms_decide_where_the_span_lies():
    assert span_cos2(torch.stack([3 * E[0], 2 * E[1], E[2]]), PLANE) == pytest.approx(1)
    assert span_cos2(torch.stack([3 * E[0], E[1], 2 * E[2]]), PLANE) == pytest.approx(0)


def test_one_atom_spans_a_line_only():
    assert span_cos2(E[:1], PLANE) == 0
    assert span_cos2(E[:1], E[:, :1]) == pytest.approx(1)
    assert span_cos2(E[:0], E[:, :1]) == 0
    assert span_cos2(0 * E[:3], PLANE) == 0


@pytest.mark.parametrize(("degrees", "spans"), [(180.0, False), (179.9, False), (175.0, False), (173.0, True)])
def test_opposite_atoms_span_a_line_however_they_are_rounded(degrees, spans):
    # Two unit atoms have singular values √2·cos and √2·sin of half the angle off the line: 5% of each other at 5.7°.
    angle = math.radians(degrees)
    pair = torch.stack([E[0], math.cos(angle) * E[0] + math.sin(angle) * E[1]]).float().double()
    assert span_cos2(pair, PLANE) == pytest.approx(1 if spans else 0, abs=1e-6)


# --- prediction from few codes, by hand ---


def orthonormal(rows: int, columns: int) -> Tensor:
    """Centred orthonormal columns."""
    random = torch.randn(rows, columns, dtype=torch.float64, generator=generator("test-subspaces"))
    return torch.linalg.qr(random - random.mean(0)).Q


def test_r2_by_hand():
    q = orthonormal(50, 6)
    cosine, sine = q[:, :1], q[:, 1:2]
    plane = q[:, :2]
    assert probe_r2(torch.cat([5 * cosine, -sine], 1), [plane, cosine, sine]) == pytest.approx([1, 1, 1])
    assert probe_r2(cosine, [plane, cosine, sine]) == pytest.approx([0.5, 1, 0])
    assert probe_r2(3 * cosine + 4 * q[:, 2:3], [plane, cosine]) == pytest.approx([9 / 50, 9 / 25])
    assert probe_r2(q[:, 3:], [plane]) == pytest.approx([0], abs=1e-12)


def test_at_most_four_codes_predict_and_copies_count_once():
    q = orthonormal(50, 6)
    target = q @ torch.tensor([6.0, 5, 4, 3, 2, 1], dtype=torch.float64)[:, None]
    expected = (36 + 25 + 16 + 9) / 91
    assert probe_r2(q, [target]) == pytest.approx([expected])
    assert probe_r2(q.repeat(1, 3), [target]) == pytest.approx([expected])
    assert probe_r2(q[:, :2].repeat(1, 3), [target]) == pytest.approx([61 / 91])
    assert probe_r2(torch.cat([0 * q, q], 1), [target]) == pytest.approx([expected])


def test_each_chosen_code_is_the_one_that_helps_most_and_is_fitted_with_the_others():
    random = torch.randn(60, 12, dtype=torch.float64, generator=generator("test-subspaces", 1))
    codes, target = random[:, :10] @ torch.randn(10, 10, dtype=torch.float64, generator=generator("x")), random[:, 8:]
    codes, target = codes - codes.mean(0), target - target.mean(0)

    def fitted(chosen: list[int]) -> float:
        part = codes[:, chosen]
        left = target - part @ torch.linalg.lstsq(part, target).solution
        return float(1 - left.square().sum() / target.square().sum())

    chosen: list[int] = []
    for _ in range(4):
        chosen.append(max((i for i in range(10) if i not in chosen), key=lambda i: fitted([*chosen, i])))
    assert probe_r2(codes, [target, target]) == pytest.approx([fitted(chosen)] * 2)


# --- dictionaries against planted circles ---


def recovered(circles, atoms: Tensor, codes: Tensor | None = None) -> SubspaceRecovery:
    x = circles.activations.x
    codes = projections(x, atoms) if codes is None else codes
    return subspace_recovery(codes, atoms, circles.truth, families(circles.activations.task))


def test_signed_axes_recover_every_plane(circles):
    found = recovered(circles, signed_axes([subspace.basis for subspace in circles.truth.subspaces]))
    assert found.label == ("sum k=2", "sum k=5", "sum k=9")
    assert found.assigned.tolist() == [4, 4, 4]
    assert found.cos2 == pytest.approx(np.ones(3), abs=1e-5)
    assert found.recovered.all()
    assert found.r2 == pytest.approx(np.ones(3), abs=1e-5)
    assert set(found.needed.tolist()) <= {2, 3}
    assert found.aggregate == pytest.approx(Aggregate(1, 1, 1), abs=1e-5)


def test_needed_counts_atoms_in_the_order_of_what_they_contribute(circles):
    # In the plane of k = 2 the two heaviest atoms are opposite, so that the third is needed; in that of k = 5 they are not.
    # In that of k = 9 there are four, of which only the last is not along one line.
    (c2, s2), (c5, s5), (c9, s9) = (plane.T.float() for plane in circles.planes.values())
    atoms = torch.stack([s2, c2, -c2, c5, s5, -c9, c9, c9, s9])
    sd = torch.tensor([1.0, 3, 2, 1, 1, 5, 4, 3, 1])
    codes = torch.randn(529, 9, generator=generator("test-subspaces"))
    codes = 7 + (codes - codes.mean(0)) / codes.std(0) * sd
    assert recovered(circles, atoms, codes).needed.tolist() == [3, 2, 4]
    assert recovered(circles, atoms[:-1], codes[:, :-1]).cos2 == pytest.approx([1, 1, 0], abs=1e-5)
    assert np.isnan(recovered(circles, atoms[:-1], codes[:, :-1]).needed).tolist() == [False, False, True]


def test_no_more_than_32_atoms_are_tried(circles):
    c2, s2 = circles.planes[2].T.float()
    atoms = torch.cat([c2.repeat(32, 1), s2[None]])
    codes = torch.randn(529, 33, generator=generator("test-subspaces"))
    codes = (codes - codes.mean(0)) / codes.std(0)
    codes[:, -1] *= 0.9  # the last in order
    found = recovered(circles, atoms, codes)
    assert found.recovered.tolist() == [True, False, False]
    assert np.isnan(found.needed).all()
    assert recovered(circles, atoms[1:], codes[:, 1:]).needed[0] == 32


def test_atoms_go_to_the_subspace_that_holds_most_of_their_energy(circles):
    # What leans towards k = 5 by 60% does not count for k = 2, and spoils the span of k = 5.
    (c2, s2), (c5, s5), _ = (plane.T.float() for plane in circles.planes.values())
    atoms = torch.stack([c2, s2, c5, 0.4**0.5 * s2 + 0.6**0.5 * s5])
    found = recovered(circles, atoms)
    assert found.assigned.tolist() == [2, 2, 0]
    assert found.cos2 == pytest.approx([1, 0.6, 0], abs=1e-5)
    assert found.recovered.tolist() == [True, False, False]


def test_equal_energies_go_to_the_first_subspace_whatever_rounding_says(circles):
    (c2, _), (c5, _), (c9, _) = (plane.T.float() for plane in circles.planes.values())
    turns = torch.tensor([1.0, 1 - 3e-7, 1 + 3e-7])
    atoms = torch.stack([F.normalize(c9 + c5 + turn * c2, dim=0) for turn in turns])
    codes = torch.rand(529, 3, generator=generator("test-subspaces"))
    assert recovered(circles, atoms, codes).assigned.tolist() == [3, 0, 0]
    assert recovered(circles, F.normalize(atoms + 0.01 * c9, dim=1), codes).assigned.tolist() == [0, 0, 3]


def test_the_intercept_and_the_scale_of_all_codes_do_not_matter(circles):
    atoms = signed_axes([subspace.basis for subspace in circles.truth.subspaces])
    codes = projections(circles.activations.x, atoms)
    plain, moved = (recovered(circles, atoms, c) for c in (codes, 8 * codes + 3))
    assert moved.cos2 == pytest.approx(plain.cos2)
    assert moved.r2 == pytest.approx(plain.r2)
    assert moved.needed.tolist() == plain.needed.tolist()


def test_dead_latents_carry_no_weight(circles, directions):
    atoms = signed_axes([subspace.basis for subspace in circles.truth.subspaces])
    codes = projections(circles.activations.x, atoms)
    dead = directions(20, 32)
    found = recovered(circles, torch.cat([dead, atoms]), torch.cat([torch.zeros(529, 20), codes], 1))
    assert found.recovered.all()
    assert found.r2 == pytest.approx(np.ones(3), abs=1e-5)
    nothing = recovered(circles, dead, torch.zeros(529, 20))
    assert nothing.aggregate == (0, 0, 0)


def test_random_directions_recover_no_plane(circles, directions):
    for seed in range(5):
        found = recovered(circles, directions(30, 32, seed))
        assert not found.recovered.any()
        assert found.aggregate.cos2 < 0.5


def test_one_atom_an_answer_is_another_truth(circles):
    # All answers have 9/15.25 of their energy in the widest circle, and none is assigned to the others.
    atoms = F.normalize(circles.means, dim=1)
    found = recovered(circles, atoms, F.one_hot(circles.answers, 23).float())
    assert found.assigned.tolist() == [23, 0, 0]
    assert found.recovered.tolist() == [True, False, False]
    assert found.r2.max() < 0.4  # four answers of 23


def test_permuted_codes_predict_nothing_though_the_atoms_are_right(circles):
    atoms = signed_axes([subspace.basis for subspace in circles.truth.subspaces])
    codes = projections(circles.activations.x, atoms)
    order = torch.randperm(529, generator=generator("test-subspaces"))
    found = recovered(circles, atoms, codes[order])
    assert found.recovered.all()
    assert found.r2.max() < 0.05


def test_circles_without_a_grid():
    circles = draw_circles(CirclesConfig(p=23, frequencies=(2, 5), radii=(2, 1), repeats=5, noise=0.01))
    atoms = signed_axes([subspace.basis for subspace in circles.truth.subspaces])
    found = subspace_recovery(
        projections(circles.x, atoms), atoms, circles.truth, answer_families(circles.answers, circles.p)
    )
    assert found.aggregate == pytest.approx(Aggregate(1, 1, 1), abs=0.01)


def test_a_one_dimensional_truth_needs_one_atom():
    task = Task("add", 13)
    x = characters(3, task.a - task.b, 13)[:, :1] * E[:1] + characters(2, task.a + task.b, 13) @ E[1:3]
    truth = find_truth(Activations(x, task, "planted", "planted"))
    atoms = torch.stack([E[1], E[2], -E[0]]).float()
    found = subspace_recovery(projections(x.float(), atoms), atoms, truth, families(task))
    assert found.label == ("sum k=2", "difference k=3")
    assert found.assigned.tolist() == [2, 1]
    assert found.needed.tolist() == [2, 1]
    assert found.cos2 == pytest.approx([1, 1])


def test_codes_of_a_shared_plane_predict_half_of_both_variables():
    # x = wave of a + wave of b in one plane. Its axes give cos w a + cos w b, of which cos w a is half the variance.
    task = Task("add", 13)
    x = (characters(3, task.a, 13) + characters(3, task.b, 13)) @ E[:2]
    truth = find_truth(Activations(x, task, "planted", "planted"))
    atoms = signed_axes([E[:, :2]])
    found = subspace_recovery(projections(x.float(), atoms), atoms, truth, families(task))
    assert found.label == ("a/b k=3",)
    assert found.recovered.all()
    assert found.r2 == pytest.approx([0.5], abs=1e-6)


def test_what_does_not_belong_together_is_refused(circles):
    atoms = circles.planes[2].T.float()
    with pytest.raises(HusaiError, match="codes: 4 samples, but the families are of 529"):
        recovered(circles, atoms, torch.ones(4, 2))
    other = GroundTruth("hook", (Subspace(0, ("zero",), circles.planes[2], 1.0),), (), 0.0)
    with pytest.raises(HusaiError, match="there is none of zero at k=0"):
        subspace_recovery(torch.ones(529, 2), atoms, other, families(Task("add", 23)))


# --- nulls ---


def test_data_points_are_at_their_own_level_and_axes_above_it(circles):
    x = circles.activations.x
    draw = coded_sampler("data_points_relu", x, 0)

    def drawn(purpose: str) -> list[SubspaceRecovery]:
        null = [draw(12, generator(purpose, index)) for index in range(8)]
        return [recovered(circles, atoms, codes) for atoms, codes in null]

    nulls = drawn("test-null")
    for one in drawn("test-observed"):
        assert above(one, nulls).cos2 == pytest.approx(0, abs=0.15)
    axes = above(recovered(circles, signed_axes([s.basis for s in circles.truth.subspaces])), nulls)
    assert min(axes) > 0.2
    assert above(nulls[0], nulls[:1]) == (0, 0, 0)


def test_large_dictionaries_recover_the_widest_circle_by_chance(circles):
    # which is why the score is never read alone
    atoms, codes = coded_sampler("data_points_relu", circles.activations.x, 0)(300, generator("test"))
    assert recovered(circles, atoms, codes).recovered.tolist() == [True, False, False]


# --- hooks of transformers ---


@pytest.fixture(scope="module")
def written():
    """(activations, truth) of a compiled model at a hook."""

    def at(kind: str, keys: tuple[int, ...], hook: str) -> tuple[Activations, GroundTruth]:
        config = CompiledConfig(task=TaskConfig(p=29), kind=kind, keys=keys)
        activations = extract(compile_model(config).to(torch.float32), Task("add", 29), hook)
        return activations, find_truth(activations)

    return at


@pytest.mark.parametrize("hook", ["resid_mid", "mlp_out", "resid_post"])
def test_axes_recover_all_planes_of_a_compiled_clock_and_random_directions_none(written, directions, hook):
    activations, truth = written("clock", (2, 5, 12), hook)
    family = families(activations.task)
    atoms = signed_axes([subspace.basis for subspace in truth.subspaces])
    found = subspace_recovery(projections(activations.x, atoms), atoms, truth, family)
    assert found.aggregate == pytest.approx(Aggregate(1, 1, 1), abs=1e-4)
    random = directions(len(atoms), 128)
    nothing = subspace_recovery(projections(activations.x, random), random, truth, family)
    assert nothing.aggregate.recovered == 0
    assert nothing.aggregate.cos2 < 0.2


def test_planes_of_two_frequencies_that_coincide_share_their_atoms(written):
    # In a pizza the plane of the answer's frequency 8 is that of the operands at 2·8, which is 13 in Z_29.
    activations, truth = written("pizza", (8, 9, 12), "mlp_out")
    labels = [subspace.label for subspace in truth.subspaces]
    assert {"sum k=8", "a/b k=13"} <= set(labels)
    atoms = signed_axes([subspace.basis for subspace in truth.subspaces if subspace.variables == ("sum",)])
    found = subspace_recovery(projections(activations.x, atoms), atoms, truth, families(activations.task))
    assert found.recovered.all()
    assert found.assigned.tolist() == [4] * len(labels)


def test_a_random_transformer_is_not_recovered_by_random_directions(fresh, directions):
    activations = extract(fresh(p=23), Task("add", 23), "resid_post")
    truth, family = find_truth(activations), families(activations.task)
    atoms = directions(64, 16)
    found = subspace_recovery(projections(activations.x, atoms), atoms, truth, family)
    assert found.aggregate.recovered == 0
    points = coded_sampler("data_points_top_k", activations.x, 2)(64, generator("test"))
    assert subspace_recovery(points.codes, points.atoms, truth, family).aggregate.recovered < 0.2


# --- what must and what must not depend on the position of atoms ---


def rotation(circles, angles: dict[int, float]) -> Tensor:
    """Turns each plane by its angle, acting on rows."""
    turn = torch.eye(32, dtype=torch.float64)
    for k, angle in angles.items():
        plane = circles.planes[k]
        ring = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]).double()
        turn = turn + plane @ (ring - torch.eye(2)) @ plane.T
    return turn


def same(first: SubspaceRecovery, second: SubspaceRecovery) -> None:
    assert first.assigned.tolist() == second.assigned.tolist()
    assert first.recovered.tolist() == second.recovered.tolist()
    assert first.cos2 == pytest.approx(second.cos2, abs=1e-5)
    assert first.r2 == pytest.approx(second.r2, abs=1e-5)


ANGLE = st.floats(-math.pi, math.pi)


@settings(max_examples=25, deadline=None)
@given(angles=st.tuples(ANGLE, ANGLE, ANGLE), seed=st.integers(0, 1000))
def test_turning_atoms_within_planes_changes_no_subspace_score(circles, angles, seed):
    # Codes are as they were: the encoder sees what it saw.
    atoms = F.normalize(torch.randn(40, 32, generator=generator("turn", seed)), dim=1)
    codes = projections(circles.activations.x, atoms)
    turned = (atoms.double() @ rotation(circles, dict(zip((2, 5, 9), angles, strict=True)))).float()
    same(recovered(circles, atoms, codes), recovered(circles, turned, codes))
    for overlap in (fourier_overlap, decoder_overlap):
        assert overlap(turned, circles.truth) == pytest.approx(overlap(atoms, circles.truth), abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(steps=st.tuples(*[st.integers(1, 22)] * 3))
def test_turning_encoder_and_decoder_along_circles_changes_phases_and_nothing_else(circles, steps):
    # Each plane by a different shift of the answer, and atoms that read one plane each.
    turn = rotation(circles, {k: 2 * math.pi * k * step / 23 for k, step in zip((2, 5, 9), steps, strict=True)})
    atoms = signed_axes([subspace.basis for subspace in circles.truth.subspaces])
    turned = (atoms.double() @ turn).float()
    x, family = circles.activations.x, families(circles.activations.task)
    same(recovered(circles, atoms), recovered(circles, turned))
    before, after = (tuning(projections(x, a), family) for a in (atoms, turned))
    assert before.label == after.label
    assert before.k.tolist() == after.k.tolist()
    assert before.purity == pytest.approx(after.purity, abs=1e-5)
    expected = 2 * np.pi * before.k * np.repeat(steps, 4) / 23
    assert np.cos(after.phase - before.phase - expected) == pytest.approx(np.ones(12), abs=1e-5)
    scores = [answer_scores(projections(x, a), a, x, circles.answers, 23) for a in (atoms, turned)]
    assert not np.array_equal(scores[0].best_answer, scores[1].best_answer)


def test_turning_planes_apart_undoes_answers_but_not_planes(circles):
    x, atoms = circles.activations.x, F.normalize(circles.means, dim=1)
    codes = F.one_hot(circles.answers, 23).float()
    turned = (atoms.double() @ rotation(circles, {2: 1.0, 5: -2.0})).float()
    same(recovered(circles, atoms, codes), recovered(circles, turned, codes))
    before, after = (answer_scores(codes, a, x, circles.answers, 23).overlap for a in (atoms, turned))
    assert before == pytest.approx(np.ones(23), abs=1e-5)
    assert after.max() < 0.9


class Linear(NamedTuple):
    """A dictionary on centred activations, f = ReLU(x·W_enc + b), x̂ = f·W_dec."""

    mean: Tensor
    W_enc: Tensor
    b: Tensor
    W_dec: Tensor

    def moved(self, encoder: Tensor, decoder: Tensor) -> "Linear":
        """Maps of rows, applied to the directions that it reads and those that it writes."""
        return Linear(self.mean, encoder.T @ self.W_enc, self.b, self.W_dec @ decoder)

    @property
    def dictionary(self) -> Dictionary:
        return Dictionary(
            self.W_dec,
            lambda x: ((x - self.mean) @ self.W_enc + self.b).relu(),
            lambda codes: codes @ self.W_dec + self.mean,
        )


@pytest.fixture(scope="module")
def shifted_clock(written) -> tuple[Activations, GroundTruth, Linear, Callable[[int], Tensor]]:
    """A compiled clock's `mlp_out`, a dictionary there of answers, axes and random directions, and S_Δ of rows."""
    activations, truth = written("clock", (2, 5, 12), "mlp_out")
    x = activations.x
    shifts = shift_maps(activations, truth)
    assert shifts is not None
    axes = signed_axes([subspace.basis for subspace in truth.subspaces[:2]])
    random = F.normalize(torch.randn(12, 128, generator=generator("test-shift")), dim=1)
    atoms = torch.cat([axes, F.normalize((x - x.mean(0))[:6], dim=1), random])
    linear = Linear(x.mean(0), 0.7 * atoms.T, -0.1 * torch.rand(len(atoms), generator=generator("test-bias")), atoms)

    def operator(delta: int) -> Tensor:
        basis = shifts.basis
        return torch.eye(128) + basis @ (shifts.maps[delta] - torch.eye(basis.shape[1])) @ basis.T

    return activations, truth, linear, operator


@pytest.mark.parametrize("delta", [1, 7, 28])
def test_a_joint_shift_of_encoder_and_decoder_changes_neither_truth_nor_fit(shifted_clock, delta):
    activations, truth, linear, operator = shifted_clock
    x, view, family = activations.x, activations.task.group, families(activations.task)
    shift = operator(delta)
    torch.testing.assert_close(shift @ shift.T, torch.eye(128), rtol=0, atol=1e-5)
    pairs = (view.v == 0).nonzero()[:, 0]  # answers 0, 1, 2, … in order
    centred = x[pairs] - x.mean(0)
    torch.testing.assert_close(centred @ shift, centred.roll(-delta, 0), rtol=0, atol=1e-4)

    def everything(one: Linear):
        codes, atoms = one.dictionary.encode(x), one.dictionary.atoms
        answers = answer_scores(codes, atoms, x, view.s, view.n)
        return evaluate_fit(one.dictionary, x, codes), subspace_recovery(codes, atoms, truth, family), answers, atoms

    before, after = everything(linear), everything(linear.moved(shift, shift))
    assert float((after[3] - before[3]).abs().max()) > 0.1
    assert after[0].explained_variance == pytest.approx(before[0].explained_variance, abs=1e-5)
    assert after[0].l0 == pytest.approx(before[0].l0, abs=1e-3)
    same(before[1], after[1])
    for name in ("selectivity", "specificity", "overlap"):
        assert getattr(after[2], name) == pytest.approx(getattr(before[2], name), abs=1e-4), name
    for overlap in (fourier_overlap, decoder_overlap):
        assert overlap(after[3], truth) == pytest.approx(overlap(before[3], truth), abs=1e-5)
    answers = slice(8, 14)  # the data points move from answer to answer
    moved = (before[2].nearest_answer[answers] + delta) % 29
    assert after[2].nearest_answer[answers].tolist() == moved.tolist()


def test_a_shift_of_the_encoder_alone_costs_fit(shifted_clock):
    activations, _, linear, operator = shifted_clock
    x = activations.x
    before = evaluate_fit(linear.dictionary, x).explained_variance
    after = evaluate_fit(linear.moved(operator(7), torch.eye(128)).dictionary, x).explained_variance
    assert after < before - 0.3
