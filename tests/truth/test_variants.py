import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from husai.config import CompiledConfig, TaskConfig
from husai.errors import HusaiError
from husai.tasks import Task
from husai.transformer.compiled import compile_model
from husai.truth import variants
from husai.truth.circuit import verify
from husai.truth.variants import distance_irrelevance, gradient_symmetricity, pizza_fve


def compiled(kind, op="add", p=29, keys=(8, 9, 12)):
    return compile_model(CompiledConfig(task=TaskConfig(op=op, p=p), kind=kind, keys=keys)), Task(op, p)


def offsets(view):
    return view.s[:, None] - torch.arange(view.n)[None]


def wave(k, x, n):
    return torch.cos(2 * math.pi * k * (x.double() % n) / n)


def logits_of(task, keys, strength):
    """Σ_k strength(w_k(u − v)/2)·cos w_k(s − c)."""
    view = task.group
    half = math.pi / view.n * (view.u - view.v).double()
    return sum(strength(k * half)[:, None] * wave(k, offsets(view), view.n) for k in keys)


# --- fve of the variant


@pytest.mark.parametrize("op", ["add", "sub"])
def test_an_exact_pizza_passes_its_own_variant_only(op):
    model, task = compiled("pizza", op)
    plain, pizza = verify(model, task), verify(model, task, variant="pizza")
    assert plain.failed_conditions == ("fve",)
    assert (plain.variant, plain.fve_variant) == ("plain", None)
    assert pizza.passed, pizza.failures()
    assert pizza.variant == "pizza"
    assert pizza.fve == plain.fve == pytest.approx(2 / 3, abs=1e-6)
    assert pizza.fve_variant == pytest.approx(1, abs=1e-9)
    assert [c.name for c in pizza.conditions] == [c.name.replace("fve", "fve_variant") for c in plain.conditions]
    assert {"variant", "fve", "fve_variant", "gradient_symmetricity", "distance_irrelevance"} <= set(pizza.to_json())


def test_a_clock_is_in_the_form_of_both_variants():
    model, task = compiled("clock")
    assert verify(model, task).passed
    assert verify(model, task, variant="pizza").passed


@pytest.mark.parametrize("name", ["add-p59-0"])
def test_a_trained_reference_is_no_pizza(reference, name):
    model, task = reference(name)
    report = verify(model, task, variant="pizza")
    assert report.failed_conditions == ("fve_variant",)
    assert report.fve <= report.fve_variant < 0.999
    assert f"fve_variant {report.fve_variant:.6g} >= 0.999 (misses by" in report.failures()


def test_a_pizza_of_absolute_cosines_needs_more_regressors():
    # |cos δ| = 2/π + (4/π)(cos 2δ/3 − cos 4δ/15 + …): with mean square 1/2, the first two terms explain .9928.
    task = Task("add", 29)
    found = pizza_fve(logits_of(task, (8, 9, 12), lambda x: x.cos().abs()), task.group, (8, 9, 12))
    assert found == pytest.approx(2 * ((2 / math.pi) ** 2 + (4 / (3 * math.pi)) ** 2 / 2), abs=2e-3)
    assert found < 0.995


def test_cosines_of_the_double_distance_are_not_in_the_form():
    task = Task("add", 29)
    found = pizza_fve(logits_of(task, (8, 9, 12), lambda x: 1 + (4 * x).cos()), task.group, (8, 9, 12))
    assert found == pytest.approx(2 / 3)


@pytest.mark.parametrize(("op", "keys"), [("add", (2, 3)), ("mul", (1, 5)), ("div", (2, 6)), ("squares", (1, 4))])
def test_fve_of_the_variant_by_brute_force(op, keys):
    task = Task(op, 13)  # mul and div: Z_12, whose Nyquist frequency is 6
    view = task.group
    noise = torch.randn(len(view.rows), view.n, generator=torch.Generator().manual_seed(0)).double()
    logits = noise + logits_of(task, keys, lambda x: 1 + x.cos() ** 2)
    centred = (logits - logits.mean(1, keepdim=True)).numpy()
    design = []
    for k in keys:
        plain = wave(k, offsets(view), view.n)
        design.append(plain)
        if 2 * k != view.n:
            design.append(plain * wave(k, view.u - view.v, view.n)[:, None])
    columns = np.stack([part.numpy().ravel() for part in design], axis=1)
    fitted = columns @ np.linalg.lstsq(columns, centred.ravel(), rcond=None)[0]
    expected = 1 - np.sum((centred.ravel() - fitted) ** 2) / np.sum(centred**2)
    assert pizza_fve(logits, view, keys) == pytest.approx(expected, rel=1e-9)


def test_no_keys_and_no_variance_explain_nothing():
    task = Task("add", 13)
    assert pizza_fve(torch.zeros(169, 13).double(), task.group, (1,)) == 0
    assert pizza_fve(logits_of(task, (1,), torch.ones_like), task.group, ()) == 0


def test_an_unknown_variant_is_refused():
    model, task = compiled("clock")
    with pytest.raises(HusaiError, match="variant: 'calzone' is unknown; allowed are plain, pizza"):
        verify(model, task, variant="calzone")


# --- gradient symmetricity


def test_gradients_of_a_pizza_are_symmetric():
    assert gradient_symmetricity(*compiled("pizza")) == pytest.approx(1, abs=1e-9)


def test_gradients_of_a_clock_are_not(monkeypatch):
    # The gradients by E_a and E_b are those of a product: their cosine is the mean over keys of cos w_k(u − v).
    monkeypatch.setattr(variants, "TRIPLES", 4000)
    assert gradient_symmetricity(*compiled("clock")) == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("layout", ["abe", "husai"])
def test_gradients_by_hand(fresh, layout):
    """One neuronless model: the logit is linear in what one head takes from a and b in equal parts."""
    model = fresh(layout, 13)
    silent = {name: torch.zeros_like(value) for name, value in model.params.items() if "W_K" in name or "mlp.W" in name}
    silent |= {name: torch.zeros_like(value) for name, value in model.params.items() if "b_K" in name}
    uniform = replace(model, params=model.params | silent)
    if layout == "abe":  # no LayerNorm: the same linear map on both
        assert gradient_symmetricity(uniform, Task("add", 13)) == pytest.approx(1, abs=1e-6)
    assert gradient_symmetricity(model, Task("add", 13)) < 0.99


def test_gradients_are_the_same_twice(reference):
    model, task = reference("add-p59-0")
    assert gradient_symmetricity(model, task) == gradient_symmetricity(model, task)


# --- distance irrelevance


def table(task, right):
    """Logits with `right` on the answer and 0 elsewhere."""
    view = task.group
    return torch.zeros(len(view.s), view.n).double().scatter(1, view.s[:, None], right.double()[:, None])


@pytest.mark.parametrize("op", ["add", "sub", "mul"])
def test_distance_irrelevance_by_hand(op):
    task = Task(op, 13)
    view = task.group
    of_distance = wave(1, view.u - view.v, view.n)
    of_sum = wave(1, view.s, view.n)
    assert distance_irrelevance(table(task, 10 + of_distance), view) == pytest.approx(0, abs=1e-9)
    if op != "mul":  # where s and u − v have the same parity, s still varies as much at every u − v
        assert distance_irrelevance(table(task, 10 + of_sum), view) == pytest.approx(1)
    half = distance_irrelevance(table(task, 10 + 3 * of_distance + 4 * of_sum), view)
    assert half == pytest.approx(4 / 5)


def test_distance_irrelevance_of_circuits(reference):
    pizza, clock = verify(*compiled("pizza")), verify(*compiled("clock"))
    assert pizza.distance_irrelevance == pytest.approx(0, abs=1e-9)
    assert clock.distance_irrelevance is None  # the right logit is the same for all pairs
    trained = verify(*reference("add-p59-0"))
    assert trained.distance_irrelevance > 0.7
    assert trained.gradient_symmetricity < 0.5


def test_a_dead_model_has_neither(fresh):
    model = fresh(p=11)
    dead = replace(model, params={name: torch.zeros_like(value) for name, value in model.params.items()})
    report = verify(dead, Task("add", 11), variant="pizza")
    assert (report.fve_variant, report.gradient_symmetricity, report.distance_irrelevance) == (0, 0, None)
