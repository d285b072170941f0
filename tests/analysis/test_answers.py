import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from husai.activations import extract
from husai.analysis.answers import AnswerScores, answer_directions, answer_scores
from husai.analysis.nulls import coded_sampler
from husai.analysis.recovery import true_atoms
from husai.config import CirclesConfig, CompiledConfig, TaskConfig
from husai.errors import HusaiError
from husai.seeding import generator
from husai.tasks import Task
from husai.transformer.compiled import compile_model
from husai.truth.planes import find_truth
from husai.truth.synthetic import draw_circles


def scored(codes: list[list[float]], answers: list[int], n: int) -> AnswerScores:
    """Scores of codes, one list an atom; atoms and samples are of no account."""
    count = len(answers)
    atoms = F.normalize(torch.ones(len(codes), 2), dim=1)
    x = torch.arange(2.0 * count).reshape(count, 2)
    return answer_scores(torch.tensor(codes).T, atoms, x, torch.tensor(answers), n)


# --- by hand ---


def test_codes_by_hand():
    # Answers 0 0 1 1. Codes 1 3 0 0: mean 1, variation 0 + 4 + 1 + 1; between answers (means 2, 0) 2·1 + 2·1 = 4.
    # Codes 1 1 1 5: mean 2, variation 12, between (means 1, 3) 4; answer 1 has 6 of 8. Codes 2 4 4 2: means are equal.
    found = scored([[1, 3, 0, 0], [1, 1, 1, 5], [2, 4, 4, 2]], [0, 0, 1, 1], 2)
    assert found.selectivity == pytest.approx([4 / 6, 4 / 12, 0])
    assert found.specificity == pytest.approx([1, 6 / 8, 1 / 2])
    assert found.best_answer.tolist() == [0, 1, 0]


def test_answers_of_unequal_number_by_hand():
    # Answer 0 once, answer 2 thrice, answer 1 never. Mean 1, variation 4 + 1 + 1 + 0; between (means 3 and 1/3)
    # 1·4 + 3·4/9.
    found = scored([[3, 0, 0, 1]], [0, 2, 2, 2], 3)
    assert found.selectivity == pytest.approx([(4 + 12 / 9) / 6])
    assert found.specificity == pytest.approx([3 / 4])


def test_codes_that_do_not_vary_or_do_not_fire_have_no_score():
    found = scored([[2, 2, 2, 2], [0, 0, 0, 0], [0.1, 0.1, 0.1, 0.1]], [0, 0, 1, 1], 2)
    assert np.isnan(found.selectivity).all()
    assert np.isnan(found.specificity).tolist() == [False, True, False]
    assert found.specificity[0] == pytest.approx(0.5)
    assert found.best_answer.tolist() == [0, -1, 0]


def test_overlap_by_hand():
    # Centred answer means point along +e1 and −e1, wherever the data are; the atom at 60° has cosine 1/2 with the first.
    x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 2.0], [-1.0, -2.0]]) + 100
    atoms = torch.tensor([[0.5, 0.75**0.5], [-1.0, 0.0], [0.0, 1.0], [-0.5, 0.75**0.5]])
    found = answer_scores(torch.ones(4, 4), atoms, x, torch.tensor([0, 0, 1, 1]), 2)
    assert found.overlap == pytest.approx([0.5, 1, 0, 0.5], abs=1e-6)
    assert found.nearest_answer.tolist() == [0, 1, -1, 1]


def test_directions_are_unit_or_nothing():
    x = torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 2.0], [4.0, -2.0]]) + 7
    found = answer_directions(x, torch.tensor([0, 1, 2, 2]), 4)  # answer 2 is at the mean, answer 3 does not occur
    assert found.tolist() == [[1, 0], [-1, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("rows", "answers", "message"),
    [
        (3, [0, 1, 1, 0], "3 codes, 4 activations and 4 answers do not belong together"),
        (4, [0, 1, 2, 0], "every sample needs one from 0 to 1"),
        (4, [0, 1, -1, 0], "every sample needs one from 0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(rows, answers, message):
    with pytest.raises(HusaiError, match=message):
        answer_scores(torch.ones(rows, 1), torch.ones(1, 2), torch.ones(4, 2), torch.tensor(answers), 2)


# --- on the grid ---

TASK = Task("add", 23)


def of_codes(*codes: torch.Tensor, task: Task = TASK) -> AnswerScores:
    view = task.group
    stacked = torch.stack(codes, 1).float()[view.rows]
    return answer_scores(stacked, torch.eye(len(codes)), torch.ones(len(stacked), len(codes)), view.s, view.n)


def wave(values: torch.Tensor, k: int) -> torch.Tensor:
    return (2 * math.pi * k * values.double() / 23).cos()


def test_functions_of_the_answer_are_wholly_selective():
    c = TASK.labels
    detector, half_wave, square = (c == 7).double(), wave(c, 3).relu(), (c % 2).double()
    found = of_codes(detector, half_wave, square)
    assert found.selectivity == pytest.approx([1, 1, 1])
    # The half wave's largest of 23 values over their sum; a code that fires for 11 of 23 answers.
    assert found.specificity == pytest.approx([1, 1 / float(wave(torch.arange(23), 3).relu().sum()), 1 / 11], abs=1e-6)
    assert found.best_answer[:2].tolist() == [7, 0]


@pytest.mark.parametrize("values", [TASK.a, TASK.b, (TASK.a - TASK.b) % 23], ids=["a", "b", "difference"])
def test_functions_of_an_operand_or_the_difference_are_not_selective_at_all(values):
    found = of_codes(wave(values, 3).relu(), (values == 5).double())
    assert found.selectivity == pytest.approx([0, 0], abs=1e-9)
    assert found.specificity == pytest.approx([1 / 23, 1 / 23])


def test_permuted_codes_are_as_selective_as_chance():
    # n − 1 of N − 1 dimensions are functions of the answer.
    order = torch.stack([torch.randperm(529, generator=generator("test-answers", i)) for i in range(200)], 1)
    codes = wave(TASK.labels, 3).relu()[order]
    found = of_codes(*codes.T)
    assert found.selectivity.mean() == pytest.approx(22 / 528, abs=0.003)
    assert found.selectivity.max() < 0.1
    assert found.specificity.max() < 0.15


def test_the_scale_of_codes_does_not_matter():
    code = wave(TASK.labels, 3).relu() + 0.3 * wave(TASK.a, 2).relu()
    found = of_codes(code, 1e-4 * code, 1e5 * code)
    for values in (found.selectivity, found.specificity):
        assert values == pytest.approx(np.full(3, values[0]))


def test_products_and_squares_have_answers_too():
    product, squares = Task("mul", 23), Task("squares", 23)
    log = product.group
    code = torch.zeros(529)
    code[log.rows] = (log.s == 9).float()
    assert of_codes(code, task=product).best_answer.tolist() == [9]
    assert of_codes(code, task=product).specificity == pytest.approx([1])
    found = of_codes((squares.labels == 4).double(), torch.ones(529), task=squares)
    assert found.selectivity[0] == pytest.approx(1)
    assert found.best_answer[0] == 4
    # 24 pairs have any other sum of two squares mod 23, one pair has 0
    assert found.specificity == pytest.approx([1, 24 / 529])


# --- at hooks ---


def scores_at(codes: torch.Tensor, atoms: torch.Tensor, x: torch.Tensor, task: Task) -> AnswerScores:
    view = task.group
    return answer_scores(codes[view.rows], atoms, x[view.rows], view.s, view.n)


@pytest.fixture(scope="module")
def clock():
    """Activations of a compiled clock by hook, its task, and one unit atom an answer with codes that detect it."""
    config = CompiledConfig(task=TaskConfig(p=29), kind="clock", keys=(2, 5, 12))
    model, task = compile_model(config).to(torch.float32), Task("add", 29)
    hooks = {hook: extract(model, task, hook) for hook in ("attn_out", "mlp_out", "resid_post")}
    atoms = answer_directions(hooks["mlp_out"].x, task.labels, 29).float()
    return hooks, task, atoms, F.one_hot(task.labels, 29).float()


def test_one_atom_an_answer_is_found_on_a_clock(clock):
    hooks, task, atoms, codes = clock
    for hook in ("mlp_out", "resid_post"):
        found = scores_at(codes, atoms, hooks[hook].x, task)
        for values in (found.selectivity, found.specificity, found.overlap):
            assert values == pytest.approx(np.ones(29), abs=1e-4)
        assert found.best_answer.tolist() == found.nearest_answer.tolist() == list(range(29))
        true = true_atoms(atoms, find_truth(hooks[hook]), found.overlap)
        assert (int(true.plane.sum()), int(true.answer.sum()), int(true.true.sum())) == (0, 29, 29)


def test_axes_of_a_clocks_planes_are_no_answers(clock):
    hooks, task, _, _ = clock
    x = hooks["mlp_out"].x
    truth = find_truth(hooks["mlp_out"])
    axes = torch.cat([sign * subspace.basis.T for subspace in truth.subspaces for sign in (1, -1)]).float()
    found = scores_at(((x - x.mean(0)) @ axes.T).relu(), axes, x, task)
    assert found.selectivity == pytest.approx(np.ones(12), abs=1e-4)  # codes are functions of the answer all the same
    assert found.specificity.max() < 0.15
    assert found.overlap.max() < 0.6  # an answer has a third of its energy in each plane
    true = true_atoms(axes, truth, found.overlap)
    assert (int(true.plane.sum()), int(true.answer.sum()), int(true.true.sum())) == (12, 0, 12)


def test_attention_of_a_clock_holds_no_answers(clock):
    hooks, task, _, _ = clock
    attention = hooks["attn_out"].x
    random = coded_sampler("ambient_relu", attention, 0)(200, generator("test-answers"))
    found = scores_at(random.codes, random.atoms, attention, task)
    assert found.overlap.tolist() == [0] * 200
    assert set(found.nearest_answer.tolist()) == {-1}
    assert found.selectivity.mean() < 0.1


def test_shuffled_answers_are_not_found(clock):
    hooks, task, atoms, codes = clock
    mixed = task.labels[torch.randperm(len(codes), generator=generator("test-answers"))]
    found = answer_scores(codes, atoms, hooks["mlp_out"].x, mixed, 29)
    assert found.selectivity.max() < 0.2
    assert found.specificity.max() < 0.3


def test_circles_have_answers_without_a_grid():
    circles = draw_circles(CirclesConfig(p=23, frequencies=(2, 5, 9), radii=(3, 2, 1.5), repeats=20, noise=0.1))
    atoms = answer_directions(circles.x, circles.answers, 23).float()
    centred = circles.x - circles.x.mean(0)
    codes = torch.zeros(len(centred), 23).scatter_(1, (centred @ atoms.T).argmax(1, keepdim=True), 1)
    found = answer_scores(codes, atoms, circles.x, circles.answers, 23)
    assert found.selectivity.min() > 0.9
    assert found.specificity.min() > 0.9
    assert found.overlap == pytest.approx(np.ones(23), abs=1e-5)


# --- nulls: what is reached without having found anything ---


def null_scores(null: str, model, task: Task, hook: str) -> AnswerScores:
    x = extract(model, task, hook).x
    drawn = coded_sampler(null, x, 1)(128, generator("test-answers"))
    return scores_at(drawn.codes, drawn.atoms, x, task)


def test_random_directions_are_selective_where_the_answer_is_all_there_is(reference):
    model, task = reference("add-p59-0")
    written, read = (null_scores("ambient_relu", model, task, hook) for hook in ("mlp_out", "resid_mid"))
    assert np.nanmean(written.selectivity) > 0.9
    assert np.nanmean(written.specificity) < 0.1
    assert written.overlap.mean() < 0.3
    assert np.nanmean(read.selectivity) < 0.3


def test_data_points_are_answers_where_the_answer_is_all_there_is(reference):
    model, task = reference("add-p59-0")
    found = null_scores("data_points_top_k", model, task, "mlp_out")
    assert found.overlap.mean() > 0.95
    assert np.nanmean(found.specificity) > 0.4


@pytest.mark.parametrize("null", ["ambient_relu", "data_top_k", "data_points_relu"])
def test_a_random_transformer_holds_no_answers(fresh, null):
    task = Task("add", 23)
    found = null_scores(null, fresh(p=23), task, "resid_post")
    assert np.nanmean(found.selectivity) < 0.25
    assert found.overlap.max() < 0.9


def test_signs_of_codes_do_not_count(clock):
    """Every second atom is turned round, and its code with it: the same latents."""
    hooks, task, atoms, codes = clock
    signs = torch.where(torch.arange(29) % 2 == 0, 1.0, -1.0)
    found = scores_at(codes * signs, atoms * signs[:, None], hooks["mlp_out"].x, task)
    assert found.specificity == pytest.approx(np.ones(29), abs=1e-4)
    assert found.overlap == pytest.approx(np.ones(29), abs=1e-4)
    assert found.nearest_answer.tolist() == list(range(29))
    mixed = scores_at(codes - codes.roll(1, 1), atoms, hooks["mlp_out"].x, task)
    assert mixed.specificity == pytest.approx(np.full(29, 0.5), abs=1e-4)
