import math

import pytest
import torch

from husai.activations import Activations, extract
from husai.errors import HusaiError
from husai.tasks import OPS, Task
from husai.truth.fourier import characters
from husai.truth.planes import families, find_truth, span


def coordinates(task):
    u, v, n = task.a, task.b, task.p  # of addition
    return {"a": u, "b": v, "sum": (u + v) % n, "difference": (u - v) % n}


def orthonormal(d, columns, seed=0):
    random = torch.randn(d, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(random).Q


def circle(task, variable, k):
    """cos and sin of w_k·variable over the grid of addition."""
    return characters(k, coordinates(task)[variable], task.p)


def truth_of(x, task):
    return find_truth(Activations(x, task, "planted", "planted"))


def principal_cosines(first, second):
    return torch.linalg.svdvals(first.double().T @ second.double())


# --- families


@pytest.mark.parametrize(
    ("op", "columns"),
    # add, sub: 4 variables × 12. mul: Z_12 has 5 planes a variable and the Nyquist line, which sum and difference
    # share: 4 × 10 + 3, and three indicators of a zero. div has no b = 0, so one indicator.
    [("add", 48), ("sub", 48), ("mul", 46), ("div", 44)],
)
def test_families_are_orthonormal_and_mean_free(op, columns):
    basis = families(Task(op, 13)).basis
    assert basis.shape[1] == columns
    torch.testing.assert_close(basis.T @ basis, torch.eye(columns, dtype=torch.float64), atol=1e-12, rtol=0)
    assert float(basis.sum(0).abs().max()) < 1e-10


def test_families_of_squares_are_orthonormal_within_and_overlap_between():
    family = families(Task("squares", 13))
    gram = family.basis.T @ family.basis
    same = family.owner[:, None] == family.owner[None]
    eye = torch.eye(len(gram), dtype=torch.float64)
    torch.testing.assert_close(gram[same], eye[same], atol=1e-12, rtol=0)
    assert float(gram[~same].abs().max()) > 0.01


def test_names_of_the_families_at_p_5():
    names = families(Task("add", 5)).names
    assert names == tuple((variable, k) for k in (1, 2) for variable in ("a", "b", "sum", "difference"))
    assert families(Task("mul", 5)).names == (
        *((variable, 1) for variable in ("a", "b", "sum", "difference")),
        *((variable, 2) for variable in ("a", "b", "sum")),
        ("zero", 0),
    )


def test_first_column_of_a_family_is_its_cosine():
    task = Task("add", 7)
    family = families(task)
    for index, (variable, k) in enumerate(family.names):
        cosine, sine = (family.basis[:, family.owner == index] * math.sqrt(49 / 2)).T
        expected = circle(task, variable, k)
        torch.testing.assert_close(cosine, expected[:, 0], atol=1e-12, rtol=0)
        torch.testing.assert_close(sine, expected[:, 1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("op", ["add", "sub", "mul", "div"])
def test_energy_of_what_families_span_is_conserved_and_the_mean_does_not_count(op):
    family = families(Task(op, 13))
    random = torch.Generator().manual_seed(0)
    weights = torch.randn(family.basis.shape[1], 5, dtype=torch.float64, generator=random)
    values = family.basis @ weights
    coefficients = family.coefficients(values + 7)
    torch.testing.assert_close(coefficients, weights, atol=1e-10, rtol=0)
    torch.testing.assert_close(family.energy(coefficients).sum(0), values.pow(2).sum(0))
    alone = torch.zeros_like(weights)
    alone[family.owner == 3] = weights[family.owner == 3]
    energy = family.energy(family.coefficients(family.basis @ alone)).sum(1)
    assert float(energy[3]) == pytest.approx(float(alone.pow(2).sum()))
    assert float(energy.sum() - energy[3]) < 1e-10


@pytest.mark.parametrize("op", ["sub", "mul", "div"])
def test_the_answer_lives_in_the_sum_families(op):
    task = Task(op, 13)
    family, view = families(task), task.group
    one_hot = torch.nn.functional.one_hot(task.labels, 13).double()
    one_hot = one_hot - one_hot.mean(0)
    energy = family.energy(family.coefficients(one_hot)).sum(1)
    of_answer = [i for i, (variable, _) in enumerate(family.names) if variable in ("sum", "zero")]
    assert float(energy[of_answer].sum()) == pytest.approx(float(one_hot.pow(2).sum()))
    assert view.n == (13 if op == "sub" else 12)


# --- planted truths


def test_planted_planes_are_found_with_their_shares():
    # Four planes with radii 4, 3, 2, 1 in orthogonal planes of R^20: shares 16, 9, 4, 1 of 30.
    task, frame = Task("add", 13), orthonormal(20, 8)
    planted = {("sum", 3): 4.0, ("a", 1): 3.0, ("difference", 6): 2.0, ("b", 1): 1.0}
    planes = {family: frame[:, 2 * i : 2 * i + 2] for i, family in enumerate(planted)}
    x = sum(r * circle(task, *family) @ planes[family].T for family, r in planted.items()) + torch.arange(20)
    truth = truth_of(x, task)
    assert [(s.k, s.variables) for s in truth.subspaces] == [(k, (variable,)) for variable, k in planted]
    assert [s.share for s in truth.subspaces] == pytest.approx([16 / 30, 9 / 30, 4 / 30, 1 / 30])
    assert [s.label for s in truth.subspaces] == ["sum k=3", "a k=1", "difference k=6", "b k=1"]
    for subspace, plane in zip(truth.subspaces, planes.values(), strict=True):
        assert subspace.basis.shape == (20, 2)
        assert float(principal_cosines(subspace.basis, plane).min()) > 1 - 1e-6
    assert truth.unexplained == pytest.approx(0, abs=1e-12)
    assert truth.union.shape == (20, 8)
    assert truth.share_of("sum") == pytest.approx(16 / 30)
    assert truth.answer_span is not None
    assert float(principal_cosines(truth.answer_span, planes["sum", 3]).min()) > 1 - 1e-6


def test_shares_and_the_unexplained_rest_sum_to_one():
    task = Task("add", 13)
    noise = torch.randn(169, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    truth = truth_of(3 * circle(task, "sum", 2) @ orthonormal(20, 2).T + noise, task)
    # Signal 9 against noise 20 a row; the 48 family columns catch 48/168 of the noise.
    assert truth.subspaces[0].label == "sum k=2"
    assert truth.unexplained == pytest.approx(20 / 29 * 120 / 168, abs=0.03)
    assert sum(share for *_, share in truth.shares) + truth.unexplained == pytest.approx(1)
    assert len(truth.shares) == 24
    assert [share for *_, share in truth.shares] == sorted((share for *_, share in truth.shares), reverse=True)


@pytest.mark.parametrize(("share", "found"), [(0.009, 1), (0.011, 2)])
def test_a_family_counts_from_one_per_cent_on(share, found):
    task, frame = Task("add", 13), orthonormal(6, 4)
    x = math.sqrt(1 - share) * circle(task, "sum", 2) @ frame[:, :2].T
    x = x + math.sqrt(share) * circle(task, "a", 5) @ frame[:, 2:].T
    truth = truth_of(x, task)
    assert len(truth.subspaces) == found
    assert truth.share_of("a") == pytest.approx(share)
    assert truth.unexplained == pytest.approx(0, abs=1e-12)


def test_a_and_b_in_one_plane_are_one_truth():
    task, plane = Task("add", 13), orthonormal(8, 2)
    truth = truth_of((2 * circle(task, "a", 4) + circle(task, "b", 4)) @ plane.T, task)
    (subspace,) = truth.subspaces
    assert subspace.label == "a/b k=4"
    assert subspace.share == pytest.approx(1)
    assert float(principal_cosines(subspace.basis, plane).min()) > 1 - 1e-6
    assert truth.share_of("a") == pytest.approx(0.8)
    assert truth.answer_span is None


def test_planes_of_two_frequencies_are_two_truths_even_if_they_coincide():
    task, plane = Task("add", 13), orthonormal(8, 2)
    truth = truth_of((2 * circle(task, "a", 4) + circle(task, "b", 5)) @ plane.T, task)
    assert [s.label for s in truth.subspaces] == ["a k=4", "b k=5"]
    assert truth.union.shape == (8, 2)


@pytest.mark.parametrize(("cosine", "labels"), [(0.96, ["a/b k=4"]), (0.94, ["a k=4", "b k=4"])])
def test_planes_merge_above_a_principal_cosine_of_95_per_cent(cosine, labels):
    # The two planes share one direction and differ by an angle in the other.
    task, frame = Task("add", 13), torch.eye(4, dtype=torch.float64)
    tilted = torch.stack([frame[0], cosine * frame[1] + math.sqrt(1 - cosine**2) * frame[2]])
    truth = truth_of(1.5 * circle(task, "a", 4) @ frame[:2] + circle(task, "b", 4) @ tilted, task)
    assert [s.label for s in truth.subspaces] == labels
    if len(labels) == 1:  # the merged plane lies between them, nearer the larger share
        assert truth.subspaces[0].basis.shape == (4, 2)
        assert float(principal_cosines(truth.subspaces[0].basis, frame[:, :2]).min()) > 0.99


def test_all_four_variables_may_share_a_plane_in_fixed_order():
    task, plane = Task("add", 13), orthonormal(8, 2)
    x = sum(r * circle(task, v, 4) for v, r in [("difference", 4), ("sum", 3), ("b", 2), ("a", 1)]) @ plane.T
    assert truth_of(x, task).subspaces[0].variables == ("a", "b", "sum", "difference")


@pytest.mark.parametrize(("ratio", "dim"), [(0.0, 1), (0.04, 1), (0.06, 2)])
def test_a_second_direction_counts_from_five_per_cent_of_the_first(ratio, dim):
    task, frame = Task("add", 13), orthonormal(8, 2)
    wave = circle(task, "difference", 3)
    (subspace,) = truth_of(wave[:, :1] @ frame[:, :1].T + ratio * wave[:, 1:] @ frame[:, 1:].T, task).subspaces
    assert subspace.basis.shape == (8, dim)
    assert abs(float(subspace.basis[:, 0] @ frame[:, 0])) > 1 - 1e-6


def test_rotated_activations_have_rotated_planes_and_the_same_shares():
    task, turn = Task("add", 13), orthonormal(8, 8, seed=3)
    x = circle(task, "a", 2) @ orthonormal(8, 2).T + 0.7 * circle(task, "sum", 5) @ orthonormal(8, 2, seed=2).T
    plain, turned = truth_of(x, task), truth_of(x @ turn, task)
    assert [s.share for s in plain.subspaces] == pytest.approx([s.share for s in turned.subspaces])
    for before, after in zip(plain.subspaces, turned.subspaces, strict=True):
        assert float(principal_cosines(turn.T @ before.basis, after.basis).min()) > 1 - 1e-6


def test_a_code_of_zeros_has_a_family_of_its_own():
    task = Task("mul", 13)
    x = torch.stack([(task.a == 0).double(), (task.b == 0).double()], dim=1)
    (subspace,) = truth_of(x, task).subspaces
    assert subspace.label == "zero k=0"
    assert subspace.share == pytest.approx(1)
    assert subspace.basis.shape == (2, 2)


def test_the_nyquist_frequency_of_a_product_is_a_line_called_sum():
    task = Task("mul", 13)
    view = task.group
    x = torch.zeros(169, 3, dtype=torch.float64)
    x[view.rows, 1] = characters(6, view.s, 12)[:, 0]
    (subspace,) = truth_of(x, task).subspaces
    assert (subspace.label, subspace.basis.shape) == ("sum k=6", (3, 1))


def test_division_is_a_sum_and_the_product_its_difference():
    # v is −log b, so that log(a/b) = u + v and log(a·b) = u − v.
    task = Task("div", 13)
    view = task.group
    x = torch.zeros(156, 4, dtype=torch.float64)
    x[view.rows, :2] = 2 * characters(1, view.token_coordinate[task.labels[view.rows]], 12)
    x[view.rows, 2:] = characters(1, view.token_coordinate[task.a[view.rows] * task.b[view.rows] % 13], 12)
    assert [s.label for s in truth_of(x, task).subspaces] == ["sum k=1", "difference k=1"]


def squares(p):
    """The task, its coordinates, and a function that draws (cos, sin) of w_k times a variable."""
    task = Task("squares", p)
    view = task.group
    values = {"a": view.u, "b": view.v, "sum": view.s, "difference": (view.u - view.v) % p}
    return task, values, lambda variable, k: characters(k, values[variable], p)


def everything(family):
    return torch.ones(len(family.names), dtype=torch.bool)


@pytest.mark.parametrize("p", [13, 23, 59])
def test_planted_planes_of_squares_are_found_and_nothing_else(p):
    # Energies 9, 4 and 1 of 14; characters of squares have about that norm and overlap a little.
    task, _, wave = squares(p)
    frame = orthonormal(16, 6)
    planted = {("a", 1): 3.0, ("sum", 2): 2.0, ("b", 2): 1.0}
    planes = {name: frame[:, 2 * i : 2 * i + 2] for i, name in enumerate(planted)}
    x = sum(r * wave(*name) @ planes[name].T for name, r in planted.items())
    truth = truth_of(x, task)
    assert [(s.variables, s.k) for s in truth.subspaces] == [((variable,), k) for variable, k in planted]
    assert [s.share for s in truth.subspaces] == pytest.approx([9 / 14, 4 / 14, 1 / 14], abs=0.015)
    for subspace, plane in zip(truth.subspaces, planes.values(), strict=True):
        assert float(principal_cosines(subspace.basis, plane).min()) > 1 - 1e-9
    assert truth.unexplained == pytest.approx(0, abs=1e-9)
    family = families(task)  # by themselves, many more families explain 1% each
    alone = family.energy(family.coefficients(x)).sum(1) / (x - x.mean(0)).square().sum()
    assert int((alone >= 0.01).sum()) > 10
    assert float(alone.sum()) > 1.5


@pytest.mark.parametrize("p", [5, 7, 13, 23])
def test_shares_of_squares_sum_to_what_all_families_explain(p):
    task = Task("squares", p)
    x = torch.randn(p * p, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x - x.mean(0)
    family, truth = families(task), truth_of(x, task)
    fitted = family.basis @ torch.linalg.lstsq(family.basis, x, driver="gelsd").solution
    explained = float(fitted.square().sum() / x.square().sum())
    assert sum(share for *_, share in truth.shares) == pytest.approx(explained)
    assert truth.unexplained == pytest.approx(1 - explained)
    assert float(family.joint_energy(family.coefficients(x), everything(family)).sum()) == pytest.approx(
        explained * float(x.square().sum())
    )
    assert min(share for *_, share in truth.shares) >= 0
    # of p² − 1 dimensions, functions of a² and of b² have (p − 1)/2 each, of the sum and the difference p − 1 each
    if p > 7:
        assert explained == pytest.approx(3 * (p - 1) / (p * p - 1), abs=0.05)


def test_the_largest_share_of_squares_is_what_its_family_explains_by_itself():
    task, _, _ = squares(13)
    x = torch.randn(169, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    family = families(task)
    alone = family.energy(family.coefficients(x)).sum(1) / (x - x.mean(0)).square().sum()
    name, k, share = truth_of(x, task).shares[0]
    assert share == pytest.approx(float(alone.max()))
    assert family.names[int(alone.argmax())] == (name, k)


def test_no_attribution_to_frequencies_of_a_square_is_unique():
    # mod 5, a² is 0, 1 or 4. cos w_1 and cos w_2 of it take two values, one at 0 and one elsewhere; sin w_1 and sin w_2 are 0,
    # something and its negative. So both frequencies are the same functions, and either may be said to hold them.
    family = families(Task("squares", 5))
    first, second = (family.columns("a", k) for k in (1, 2))
    assert float(principal_cosines(first, second).min()) == pytest.approx(1)
    # In general they are p − 1 functions in (p − 1)/2 dimensions.
    for p in (5, 13, 23):
        family = families(Task("squares", p))
        every = torch.cat([family.columns("a", k) for k in range(1, p // 2 + 1)], dim=1)
        assert every.shape[1] == p - 1
        assert int(torch.linalg.matrix_rank(every, rtol=1e-9)) == (p - 1) // 2


def test_energies_of_joint_fits_are_plain_sums_where_families_do_not_overlap():
    task = Task("add", 13)
    family = families(task)
    coefficients = family.coefficients(torch.randn(169, 3, generator=torch.Generator().manual_seed(0)))
    some = torch.arange(len(family.names)) % 3 == 0
    torch.testing.assert_close(
        family.joint_energy(coefficients, some), family.energy(coefficients)[some].sum(0), rtol=1e-12, atol=0
    )
    assert family.orthogonal
    assert not families(Task("squares", 13)).orthogonal


def test_a_family_that_does_not_exist_is_named():
    family = families(Task("add", 13))
    assert family.columns("sum", 6).shape == (169, 2)
    with pytest.raises(HusaiError, match="family: there is none of zero at k=0; allowed are frequencies of a, b, sum"):
        family.columns("zero", 0)


def test_noise_has_no_truth():
    # Each of the 60 families of p = 31 has 2 of 960 dimensions, so about 0.2% of white noise.
    noise = torch.randn(961, 10, generator=torch.Generator().manual_seed(0))
    with pytest.raises(HusaiError, match="hook planted: no Fourier family holds 1% of its variance"):
        truth_of(noise, Task("add", 31))


@pytest.mark.parametrize("value", [0.0, 3.0, 0.1])
def test_constant_activations_have_no_truth(value):
    with pytest.raises(HusaiError, match=r"hook planted: .*no truth"):
        truth_of(torch.full((169, 4), value), Task("add", 13))


def test_span_by_hand():
    e = torch.eye(4, dtype=torch.float64)
    assert span([e[:, :2], e[:, 1:3]]).shape == (4, 3)
    torch.testing.assert_close(span([e[:, :1], e[:, :1]]).abs(), e[:, :1])


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_its_answer_as_truth(op):
    task = Task(op, 7)
    one_hot = torch.nn.functional.one_hot(task.labels, 7).float()
    truth = truth_of(one_hot, task)
    assert truth.answer_span is not None
    assert truth.subspaces[0].variables in (("sum",), ("zero",))


# --- reference models


@pytest.fixture(scope="module")
def truths(reference):
    model, task = reference("add-p59-0")
    return {hook: find_truth(extract(model, task, hook)) for hook in ("attn_out", "mlp_post", "mlp_out", "resid_post")}


KEYS = {15, 16, 26}


def test_attention_carries_a_and_b_in_shared_planes(truths):
    truth = truths["attn_out"]
    assert truth.share_of("a") + truth.share_of("b") >= 0.8
    strongest = truth.subspaces[:3]
    assert {s.k for s in strongest} == KEYS
    assert {s.variables for s in strongest} == {("a", "b")}
    assert all(s.basis.shape == (128, 2) for s in strongest)


def test_mlp_writes_the_sum(truths):
    truth = truths["mlp_out"]
    assert truth.share_of("sum") >= 0.95
    assert {s.k for s in truth.subspaces if "sum" in s.variables} == KEYS
    assert truth.union.shape[1] <= 12


def test_mlp_neurons_carry_both(truths):
    truth = truths["mlp_post"]
    assert truth.share_of("a") + truth.share_of("b") >= 0.6
    assert 0.1 <= truth.share_of("sum") <= 0.3


def test_residual_stream_ends_with_the_sum(truths):
    assert truths["resid_post"].share_of("sum") >= 0.85


@pytest.mark.parametrize("hook", ["attn_out", "mlp_post", "mlp_out", "resid_post"])
def test_truth_of_a_trained_model_is_consistent(truths, hook):
    truth = truths[hook]
    assert sum(share for *_, share in truth.shares) + truth.unexplained == pytest.approx(1)
    assert sum(s.share for s in truth.subspaces) <= 1 - truth.unexplained + 1e-9
    assert {s.k for s in truth.subspaces} >= KEYS
    union = truth.union
    torch.testing.assert_close(union.T @ union, torch.eye(union.shape[1], dtype=torch.float64), atol=1e-9, rtol=0)


def test_untrained_residual_stream_says_nothing_of_the_sum(fresh):
    model = fresh(p=13)
    truth = find_truth(extract(model, Task("add", 13), "resid_post"))
    assert truth.share_of("sum") < 0.3
