import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from husai.activations import extract
from husai.analysis.causal import ablation, effects, rotation, rotation_of_truth, splice, turnings
from husai.analysis.ideal import answer_atoms, by_projection, polygon, signed_axes
from husai.analysis.nulls import PURSUED_NULLS, coded_sampler, pursue
from husai.analysis.recovery import tuning
from husai.config import CompiledConfig, TaskConfig
from husai.measure import Hook
from husai.sae.dictionary import Dictionary
from husai.seeding import generator
from husai.tasks import Task
from husai.transformer.compiled import compile_model

KEYS = (1, 8, 12)
HOOKS = ("attn_out", "resid_mid", "mlp_post", "mlp_out", "resid_post")


def hook_of(
    kind: str = "clock", op: str = "add", hook: str = "mlp_out", keys=KEYS, p: int = 29, noise: float = 0.0
) -> Hook:
    config = CompiledConfig(kind=kind, task=TaskConfig(op=op, p=p), keys=keys, noise=noise)
    model = compile_model(config).to(torch.float32)
    return Hook.of(extract(model, Task(op, p), hook), model)


@pytest.fixture(scope="module")
def clock() -> Hook:
    return hook_of()


def bases(hook: Hook) -> list[torch.Tensor]:
    return [subspace.basis for subspace in hook.truth.subspaces]


def codes_of(dictionary: Dictionary, hook: Hook) -> torch.Tensor:
    return dictionary.encode(hook.x)


def turned(dictionary: Dictionary, hook: Hook) -> float:
    codes = codes_of(dictionary, hook)
    return rotation(codes, dictionary.atoms, tuning(codes, hook.families), hook.turning, hook.site, hook.task.group)


def removed(dictionary: Dictionary, hook: Hook, frequencies=None):
    codes = codes_of(dictionary, hook)
    labels = tuning(codes, hook.families).k if frequencies is None else frequencies
    return ablation(codes, dictionary.atoms, labels, hook.turning.keys, hook.site, hook.task.group)


# --- the true planes ---


CIRCUITS = [("clock", op) for op in ("add", "sub", "mul", "div")] + [("pizza", op) for op in ("add", "sub")]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(("kind", "op"), CIRCUITS)
def test_a_compiled_model_follows_its_true_planes(kind, op, hook):
    found = hook_of(kind, op, hook, keys=(1, 3, 8) if op in ("mul", "div") else KEYS)
    assert found.rotation_true == 1
    assert found.turning.moves == (2 if hook in ("attn_out", "resid_mid") else 1)


@pytest.mark.parametrize("name", ["add-p113-0", "mul-p113-0", "squares-p113-0"])
def test_a_trained_model_follows_its_true_planes(reference, name):
    model, task = reference(name)
    hook = Hook.of(extract(model, task, "mlp_out"), model)
    assert hook.rotation_true > 0.999


def test_planes_that_overlap_are_turned_together(reference):
    model, task = reference("add-p113-0")
    hook = Hook.of(extract(model, task, "mlp_out"), model)
    joint = torch.cat(bases(hook), 1)
    assert (joint.T @ joint - torch.eye(joint.shape[1])).abs().max() > 0.1


def test_a_recurrent_network_follows_its_true_planes(rotating):
    # its planes of the sum overlap with those of the state before, which must stay where they are
    model = rotating()
    hook = Hook.of(extract(model, model.walks, "hidden"), model)
    assert hook.turning.moves == 1
    assert hook.rotation_true > 0.999
    alone = hook.turning._replace(still=())
    assert rotation_of_truth(alone, hook.site, hook.task.group) < 0.5


def test_no_model_follows_planes_that_are_not_there(clock):
    others = torch.linalg.qr(torch.randn(128, 6, generator=generator("test-causal"), dtype=torch.float64)).Q.split(2, 1)
    false = clock.turning._replace(
        planes=tuple(plane._replace(basis=basis) for plane, basis in zip(clock.turning.planes, others, strict=True))
    )
    assert rotation_of_truth(false, clock.site, clock.task.group) < 0.1
    # nor planes of other frequencies
    keys = [plane.k for plane in clock.turning.planes]
    swapped = zip(clock.turning.planes, keys[1:] + keys[:1], strict=True)
    false = clock.turning._replace(planes=tuple(plane._replace(k=k) for plane, k in swapped))
    assert rotation_of_truth(false, clock.site, clock.task.group) < 0.1


def test_one_operand_alone_moves_the_answer_by_one(clock):
    alone = replace(clock.truth, subspaces=tuple(replace(s, variables=("a",)) for s in clock.truth.subspaces))
    (turning,) = turnings(alone, clock.task)
    assert turning.moves == 1


def test_operands_that_differ_between_keys_turn_nothing(clock):
    task, (first, second, third) = clock.task, clock.truth.subspaces
    mixed = replace(
        clock.truth,
        subspaces=(
            replace(first, variables=("a",)),
            replace(second, variables=("b",)),
            replace(third, variables=("a",)),
        ),
    )
    assert turnings(mixed, task) == []


# --- dictionaries ---


def test_ideal_dictionaries_are_followed(clock):
    mean = clock.x.mean(0)
    for dictionary in (signed_axes(bases(clock), mean), polygon(bases(clock), mean, 3), polygon(bases(clock), mean, 8)):
        assert turned(dictionary, clock) == 1
    answers = answer_atoms(clock.x, clock.answers.values, 29)
    assert turned(answers, clock) < 0.1


def test_a_turn_of_all_atoms_within_a_plane_changes_nothing(clock):
    mean = clock.x.mean(0)
    for phases in ([0.0, 0.0, 0.0], [0.3, 1.0, 2.0]):
        dictionary = signed_axes(bases(clock), mean, phases)
        assert turned(dictionary, clock) == 1
        assert removed(dictionary, clock) == pytest.approx((1, 0), abs=1e-5)


def test_one_plane_missed_is_one_too_few(clock):
    mean = clock.x.mean(0)
    dictionary = signed_axes(bases(clock)[:2], mean)
    assert turned(dictionary, clock) < 0.6
    assert removed(dictionary, clock).removed == pytest.approx(2 / 3, abs=1e-4)


def test_random_dictionaries_are_not_followed(clock):
    for null in PURSUED_NULLS:
        drawn = coded_sampler(null, clock.x, 3)(12, generator("test-causal"))
        tuned = tuning(drawn.codes, clock.families)
        assert rotation(drawn.codes, drawn.atoms, tuned, clock.turning, clock.site, clock.task.group) < 0.3


def test_ablation_knows_which_frequency_went(clock):
    dictionary = signed_axes(bases(clock), clock.x.mean(0))
    labels = tuning(codes_of(dictionary, clock), clock.families).k
    assert removed(dictionary, clock) == pytest.approx((1, 0), abs=1e-5)
    others = {k: KEYS[(i + 1) % 3] for i, k in enumerate(KEYS)}
    wrong = removed(dictionary, clock, np.array([others[k] for k in labels]))
    assert wrong == pytest.approx((0, 0.5), abs=1e-5)
    assert wrong.selective < 0
    assert removed(dictionary, clock, np.zeros(12, dtype=int)) == pytest.approx((0, 0), abs=1e-6)


def test_a_frequency_that_the_logits_do_not_hold_does_not_count(clock):
    dictionary = signed_axes(bases(clock), clock.x.mean(0))
    codes, view = codes_of(dictionary, clock), clock.task.group
    labels = tuning(codes, clock.families).k
    found = ablation(codes, dictionary.atoms, labels, (*clock.turning.keys, 5), clock.site, view)
    assert found == pytest.approx((1, 0), abs=1e-5)


def test_keys_that_gain_do_not_make_up_for_keys_that_lose(clock):
    # taking out the atoms called 1 halves frequency 8 and doubles the amplitude of frequency 12
    axes = signed_axes(bases(clock), clock.x.mean(0))
    codes, labels = codes_of(axes, clock), tuning(codes_of(axes, clock), clock.families).k
    first, second = (torch.from_numpy(labels == k) for k in (8, 12))
    amounts = torch.cat([codes[:, first] * (1 - 0.5**0.5), codes[:, second] * -(2**0.5 - 1)], dim=1)
    atoms = torch.cat([axes.atoms[first], axes.atoms[second]])
    called = np.full(len(atoms), 1)
    found = ablation(amounts, atoms, called, (1, 8, 12), clock.site, clock.task.group)
    # of key 1 the neighbours lose half and gain one whole: (.5 + 1) / 2; nothing is called 8 or 12
    assert found.others == pytest.approx(0.75 / 3, abs=1e-4)


def test_atoms_that_hardly_fire_do_not_turn_a_plane(clock):
    axes = signed_axes(bases(clock), clock.x.mean(0))
    codes = codes_of(axes, clock)
    junk = F.normalize(torch.randn(codes.shape[1], 128, generator=generator("test-causal")), dim=1)
    both, faint = torch.cat([axes.atoms, junk]), torch.cat([codes, 1e-3 * codes], dim=1)
    tuned = tuning(faint, clock.families)
    assert rotation(faint, both, tuned, clock.turning, clock.site, clock.task.group) == 1
    loud = torch.cat([codes, 3 * codes], dim=1)
    assert rotation(loud, both, tuned, clock.turning, clock.site, clock.task.group) < 0.9


def test_an_even_cover_of_the_planes_is_followed_whatever_it_learned(clock):
    """Why rotation stands beside dictionaries with dense codes, and beside SAEs trained on a surrogate."""
    dense = coded_sampler("data_relu", clock.x, 3)(400, generator("test-causal"))
    tuned = tuning(dense.codes, clock.families)
    assert rotation(dense.codes, dense.atoms, tuned, clock.turning, clock.site, clock.task.group) > 0.8


def test_before_the_mlp_the_same_holds():
    hook = hook_of(hook="resid_mid")
    dictionary = signed_axes(bases(hook), hook.x.mean(0))
    assert turned(dictionary, hook) == 1
    assert removed(dictionary, hook) == pytest.approx((1, 0), abs=1e-4)


# --- reconstructions ---


def test_splicing():
    clock = hook_of(hook="resid_post")
    labels, x = clock.task.labels, clock.x
    assert x.mean(0).norm() > 0.1 * x.norm(dim=1).mean()  # so that the mean is not 0
    perfect = splice(x, labels, clock.site)
    assert perfect.accuracy == 1
    assert perfect.recovered == pytest.approx(1)
    mean = splice(x.mean(0).expand_as(x), labels, clock.site)
    assert mean.accuracy == 0  # a tie of all answers, whatever rounding says
    assert mean.ce == pytest.approx(math.log(29), abs=1e-3)
    assert mean.recovered == pytest.approx(0, abs=1e-6)
    order = torch.randperm(len(x), generator=generator("test-causal"))
    wrong = splice(x[order], labels, clock.site)
    assert wrong.accuracy < 0.1
    assert wrong.recovered < 0


# --- single atoms ---


@pytest.mark.parametrize("hook", ["mlp_out", "resid_mid"])
def test_removing_an_axis_changes_its_frequency(hook):
    found = hook_of(hook=hook)
    dictionary = signed_axes(bases(found), found.x.mean(0))
    codes = codes_of(dictionary, found)
    labels = tuning(codes, found.families)
    seen = effects(codes, dictionary.atoms, found.site, found.task.group)
    assert seen.frequency.tolist() == labels.k.tolist()
    shuffled = dictionary.atoms.roll(4, 0)
    assert (effects(codes, shuffled, found.site, found.task.group).frequency != labels.k).all()


@pytest.mark.parametrize("op", ["add", "mul"])
def test_removing_an_answer_atom_lowers_its_answer(op):
    hook = hook_of(op=op, keys=KEYS if op == "add" else (1, 3, 8))
    view = hook.task.group
    dictionary = answer_atoms(hook.x[view.rows], view.s, view.n)
    codes = codes_of(dictionary, hook)
    assert effects(codes, dictionary.atoms, hook.site, view).answer.tolist() == list(range(view.n))


# --- pursuit ---


def test_pursuit_by_hand():
    atoms = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.6, 0.8, 0]])
    x = torch.tensor([[3.0, 4, 0], [2, 0, 5], [-1, -1, -1]])
    torch.testing.assert_close(pursue(x, atoms, 1), torch.tensor([[0, 0, 5.0], [2, 0, 0], [0, 0, 0]]))
    twice = pursue(torch.tensor([[2.0, 1, 0]]), atoms, 2)
    torch.testing.assert_close(twice, torch.tensor([[2.0, 1, 0]]))


def test_pursuit_reconstructs_from_atoms_that_hold_the_data(directions):
    atoms = directions(64, 8)
    x = F.normalize(torch.randn(200, 8, generator=generator("test-causal")), dim=1)
    errors = [float((x - pursue(x, atoms, steps) @ atoms).square().sum()) for steps in (1, 2, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05 * len(x)
    assert (pursue(x, atoms, 8) > 0).sum(1).max() <= 8


def test_by_projection_gives_unit_atoms():
    dictionary = by_projection(torch.tensor([[3.0, 0], [0, 0.5]]), torch.ones(2), torch.relu, "name")
    torch.testing.assert_close(dictionary.W_dec, torch.eye(2))
    torch.testing.assert_close(dictionary.encode(torch.tensor([[3.0, 0]])), torch.tensor([[2.0, 0]]))
