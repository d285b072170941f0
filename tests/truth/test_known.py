"""The planes written down from the construction of compiled models, against the planes found in their activations."""

import math

import pytest
import torch

from husai.activations import Activations, extract
from husai.config import CompiledConfig, TaskConfig
from husai.tasks import Task
from husai.transformer.compiled import compile_model
from husai.transformer.model import resolve_hook
from husai.truth.known import known_planes
from husai.truth.planes import find_truth

HOOKS = ("attn_out", "resid_mid", "mlp_post", "mlp_out", "resid_post")
CIRCUITS = [
    ("clock", "add", 13, (1,)),
    ("clock", "add", 29, (2, 5, 12)),
    ("clock", "add", 29, (2, 4, 8)),  # keys that are each other's doubles
    ("clock", "sub", 23, (2, 6)),
    ("clock", "mul", 13, (1, 4)),  # Z_12, where 3·4 = 0
    ("clock", "mul", 29, (1, 3, 9)),
    ("clock", "div", 29, (1, 3, 7)),  # Z_28, where 2·7 is the Nyquist frequency
    ("pizza", "add", 29, (8, 9, 12)),
    ("pizza", "add", 29, (3, 6, 12)),
    ("pizza", "sub", 29, (8, 9, 12)),
]


def written(kind, op, p, keys, **fields):
    return CompiledConfig(task=TaskConfig(op=op, p=p), kind=kind, keys=keys, **fields)


def activations(config, model, hook):
    """The grid at a hook in float64 (`extract` rounds to float32)."""
    task, full = Task(config.task.op, config.task.p), resolve_hook(model.params, hook)
    seen = {}
    model.run(task.tokens("abe"), lambda name, value: seen.setdefault(name, value))
    return Activations(seen[full][:, -1], task, full, "compiled")


def agreement(found, known):
    """Least principal cosine of a found subspace with the leading directions of the known planes it is said to merge."""
    planes = {(plane.variable, plane.k): plane for plane in known}
    parts = [planes[variable, found.k] for variable in found.variables]
    weighted = torch.cat([part.basis * math.sqrt(part.variance) for part in parts], dim=1)
    basis = torch.linalg.svd(weighted, full_matrices=False).U[:, : max(part.basis.shape[1] for part in parts)]
    assert basis.shape == found.basis.shape, found.label
    return float(torch.linalg.svdvals(basis.T @ found.basis).min())


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(("kind", "op", "p", "keys"), CIRCUITS)
def test_known_planes_are_the_planes_that_are_found(kind, op, p, keys, hook):
    config = written(kind, op, p, keys)
    model = compile_model(config)
    x = activations(config, model, hook)
    truth, known = find_truth(x), known_planes(config, model)[hook]
    for subspace in truth.subspaces:
        assert agreement(subspace, known) > 1 - 1e-6, subspace.label
    total = float((x.x - x.x.mean(0)).square().sum()) / len(x.x)
    shares = {(variable, k): share for variable, k, share in truth.shares}
    for plane in known:
        assert plane.variance / total == pytest.approx(shares.pop((plane.variable, plane.k)), abs=1e-10)
    assert max(shares.values(), default=0) < 1e-10  # nothing is there that is not known


def test_found_in_what_is_stored_too():
    config = written("clock", "add", 29, (2, 5, 12))
    exact = compile_model(config)
    stored = exact.to(torch.float32)
    for hook, known in known_planes(config, exact).items():
        for subspace in find_truth(extract(stored, Task("add", 29), hook)).subspaces:
            assert agreement(subspace, known) > 1 - 1e-6, (hook, subspace.label)


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"rotate": False}, {"keys": (5, 2, 12)}], ids=["seed", "rotation", "order of keys"]
)
def test_planes_of_another_model_are_not_these(other):
    config = written("clock", "add", 29, (2, 5, 12))
    model, wrong = (
        compile_model(config),
        written(**{"kind": "clock", "op": "add", "p": 29, "keys": (2, 5, 12), **other}),
    )
    for hook in HOOKS:
        if hook == "mlp_post" and "keys" not in other:
            continue  # neurons are not rotated
        known = known_planes(wrong, compile_model(wrong))[hook]
        worst = min(agreement(subspace, known) for subspace in find_truth(activations(config, model, hook)).subspaces)
        assert worst < 0.9, hook


def test_shares_of_a_clock_by_hand():
    # Of one key's 12 neurons: x² and x|x| have variance 5/4 and 9/4. The product has 1/2 of it as sum and as difference,
    # squares 1/8 each at 2k; x|x| has 2γ² = 128/9π² times a cosine of u and of v.
    config = written("clock", "add", 59, (3, 11, 17))
    known = known_planes(config, compile_model(config))
    ground = (128 / (9 * math.pi**2)) ** 2 / 2
    total = 5 / 4 + 9 / 4
    found = {(plane.variable, plane.k): plane for plane in known["mlp_post"]}
    whole = 3 * 6 * total / 2  # 3 keys, 6 squares, each split over two neurons
    for name, part, dim in [("a", ground, 2), ("b", ground, 2), ("sum", 0.5, 2), ("difference", 0.5, 1)]:
        for k in (3, 11, 17):
            assert found[name, k].variance / whole == pytest.approx(part / total / 3, abs=1e-4), name
            assert found[name, k].basis.shape[1] == dim
    assert found["a", 6].variance / whole == pytest.approx(1 / 8 / total / 3, abs=1e-4)
    assert [(plane.variable, plane.variance) for plane in known["mlp_out"]] == [("sum", pytest.approx(1))] * 3
    assert [plane.variance for plane in known["resid_post"]] == [pytest.approx(1)] * 9


def test_where_planes_coincide():
    clock, pizza = written("clock", "add", 29, (2, 5, 12)), written("pizza", "add", 29, (8, 9, 12))

    def cosines(config, hook, *names):
        known = {(plane.variable, plane.k): plane.basis for plane in known_planes(config, compile_model(config))[hook]}
        first, second = (known[name] for name in names)
        return torch.linalg.svdvals(first.T @ second).tolist()

    assert cosines(clock, "attn_out", ("a", 2), ("b", 2)) == pytest.approx([0, 0], abs=1e-9)
    assert cosines(clock, "mlp_post", ("a", 2), ("b", 2)) == pytest.approx([0, 0], abs=1e-3)
    assert cosines(clock, "mlp_post", ("a", 10), ("b", 10)) == pytest.approx([1, 1], abs=1e-4)
    for hook in ("attn_out", "mlp_post"):
        assert cosines(pizza, hook, ("a", 8), ("b", 8)) == pytest.approx([1, 1])
    # 2·8 = 16 is frequency 13 of Z_29: the answer plane of key 8 also holds operands at twice its frequency.
    assert cosines(pizza, "mlp_out", ("sum", 8), ("a", 13)) == pytest.approx([1, 1])
    assert cosines(pizza, "mlp_out", ("sum", 8), ("sum", 9)) == pytest.approx([0, 0], abs=1e-9)
