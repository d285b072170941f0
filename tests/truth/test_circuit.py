"""The gate on models whose logits are known by construction, on references, and on controls that must fail."""

import json
import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from husai.errors import HusaiError
from husai.recurrent.model import Recurrent
from husai.resources import reference_dir, reference_names
from husai.tasks import OPS, Task
from husai.transformer.model import EXTRA_TOKENS, N_TOKENS, Transformer
from husai.transformer.train import train_transformer
from husai.truth.circuit import verify
from husai.truth.fourier import get_fourier_basis


def wave(n, k, offset):
    return torch.cos(2 * math.pi * k * (offset.double() % n) / n)


def circuit(task, amplitudes, answer=None):
    """Logits Σ_k A_k cos(w_k(answer − c)) in the op's group; rows and the column of a zero product are one-hot-like."""
    view = task.group
    answer = view.s if answer is None else answer
    offset = answer[:, None] - torch.arange(view.n)[None]
    table = torch.zeros(len(task.a), task.p, dtype=torch.float64)
    if view.n < task.p:
        table[:, 0] = 100.0
        table[view.rows, 0] = -100.0
    table[view.rows[:, None], view.answer_tokens[None]] = sum(
        A * wave(view.n, k, offset) for k, A in amplitudes.items()
    )
    return table


def table_model(task, table, layers=1, silent=None):
    """A transformer whose logits are exactly `table` (pairs, p): it looks every pair up.

    Head 0 copies a, head 1 copies b, and one neuron a pair fires 1 where it sees both. `silent` rows of logits belong
    to neurons that never fire. With two layers the second does nothing.
    """
    p, layout = task.p, "abe" if layers == 1 else "husai"
    tokens, positions = p + EXTRA_TOKENS[layout], N_TOKENS[layout]
    where = {"abe": (0, 1), "husai": (1, 3)}[layout]
    at_a, at_b, at_logits = (tokens + positions + i * p for i in range(3))
    d = tokens + positions + 3 * p
    silent = torch.zeros(0, p) if silent is None else silent
    neurons = len(task.a) + len(silent)
    zeros = {"dtype": torch.float64}
    params = {"embed.W_E": torch.eye(tokens, d, **zeros), "pos_embed.W_pos": torch.zeros(positions, d, **zeros)}
    params["pos_embed.W_pos"][:, tokens : tokens + positions] = torch.eye(positions)
    for layer in range(layers):
        block = f"blocks.{layer}"
        shapes = {"Q": (2, d, p), "K": (2, d, p), "V": (2, d, p), "O": (2, p, d)}
        params |= {f"{block}.attn.W_{letter}": torch.zeros(shape, **zeros) for letter, shape in shapes.items()}
        params |= {
            f"{block}.mlp.W_in": torch.zeros(d, neurons, **zeros),
            f"{block}.mlp.W_out": torch.zeros(neurons, d, **zeros),
        }
    params["blocks.0.attn.W_Q"][:, tokens + positions - 1, 0] = 100 * p**0.5
    for head, (position, slot) in enumerate(zip(where, (at_a, at_b), strict=True)):
        params["blocks.0.attn.W_K"][head, tokens + position, 0] = 1
        params["blocks.0.attn.W_V"][head, :p] = torch.eye(p)
        params["blocks.0.attn.W_O"][head, :, slot : slot + p] = torch.eye(p)
    pair = torch.arange(len(task.a))
    params["blocks.0.mlp.W_in"][at_a + task.a, pair] = 1
    params["blocks.0.mlp.W_in"][at_b + task.b, pair] = 1
    params["blocks.0.mlp.b_in"] = torch.full((neurons,), -1.0, **zeros)
    params["blocks.0.mlp.W_out"][:, at_logits : at_logits + p] = torch.cat([table, silent.double()])
    params["unembed.W_U"] = torch.zeros(d, p, **zeros)
    params["unembed.W_U"][at_logits : at_logits + p] = torch.eye(p)
    return Transformer(params, layout, p, name="table")


def judge(op, p, table, **kwargs):
    task = Task(op, p)
    return verify(table_model(task, table, **kwargs), task)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("op", OPS)
def test_table_model_has_the_logits_it_was_given(op, layers):
    task = Task(op, 7)
    table = torch.randn(len(task.a), 7, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(table_model(task, table, layers).logits(task), table, atol=1e-12, rtol=0)


# --- exact circuits pass, with every number known


@pytest.mark.parametrize("keys", [(1,), (2, 5), (1, 3, 14)])
@pytest.mark.parametrize("op", OPS)
def test_exact_circuit_of_every_op_passes(op, keys):
    task = Task(op, 29)  # mul and div: Z_28, whose Nyquist frequency is 14
    report = judge(op, 29, circuit(task, dict.fromkeys(keys, 20.0)))
    assert report.passed, report.failures()
    assert report.failures() == ""
    assert (report.key_rule, report.variant) == ("W_L", "plain")
    assert report.key_frequencies == report.key_frequencies_logits == keys
    assert report.accuracy == 1
    assert report.fve == pytest.approx(1, abs=1e-12)
    assert report.key_share == pytest.approx(1, abs=1e-12)
    assert report.restricted_loss == pytest.approx(report.base_loss, rel=1e-9, abs=1e-14)
    if op != "squares":  # whose characters have a mean, which stays behind
        assert report.excluded_loss == pytest.approx(math.log(task.group.n), abs=1e-12)


def test_the_nyquist_frequency_alone_is_not_accurate():
    # (−1)^s separates only even from odd answers: 8 of 16 share the largest logit.
    report = judge("mul", 17, circuit(Task("mul", 17), {8: 20.0}))
    assert report.key_frequencies == (8,)
    assert report.failed_conditions == ("accuracy",)


@pytest.mark.parametrize(("op", "other"), [("add", "sub"), ("sub", "add"), ("mul", "div")])
def test_a_circuit_of_another_op_is_not_this_ops_truth(op, other):
    task = Task(other, 17)
    table = circuit(task, {1: 20.0, 3: 20.0})
    if other == "div":  # the grid of mul has rows with b = 0 as well
        padded = torch.zeros(17, 17, 17, dtype=torch.float64)
        padded[:, 1:] = table.reshape(17, 16, 17)
        table = padded.reshape(289, 17)
    report = judge(op, 17, table)
    assert {"accuracy", "fve"} <= set(report.failed_conditions)
    assert report.fve < 0.2


def test_spectra_of_an_exact_circuit_by_hand():
    report = judge("add", 17, circuit(Task("add", 17), {2: 20.0, 5: 10.0}))
    norm = 17 * math.sqrt(17 / 2)  # of 289 neurons, each a cosine over 17 answers
    assert report.spectrum_W_L == pytest.approx([0, 20 * norm, 0, 0, 10 * norm, 0, 0, 0], abs=1e-9)
    assert report.spectrum_logits == pytest.approx([0, 20, 0, 0, 10, 0, 0, 0], abs=1e-9)
    assert report.spectrum_W_E == pytest.approx([math.sqrt(2)] * 8)  # one-hot embeddings
    assert report.key_frequencies_embedding == (1, 2, 3, 4, 5, 6, 7, 8)


def test_losses_of_an_exact_circuit_by_hand():
    report = judge("add", 17, circuit(Task("add", 17), {1: 2.0, 4: 3.0}))
    logits = [2 * math.cos(2 * math.pi * c / 17) + 3 * math.cos(2 * math.pi * 4 * c / 17) for c in range(17)]
    assert report.base_loss == pytest.approx(math.log(sum(map(math.exp, logits))) - logits[0])


@pytest.mark.parametrize(("ratio", "keys"), [(0.24, (1, 3)), (0.26, (1, 3, 5))])
def test_w_l_rule_takes_norms_above_a_quarter_of_the_largest(ratio, keys):
    report = judge("add", 29, circuit(Task("add", 29), {1: 20.0, 3: 20.0, 5: 20 * ratio}))
    assert report.key_frequencies == keys
    assert report.key_frequencies_logits == (1, 3, 5)


@pytest.mark.parametrize(("ratio", "keys"), [(0.09, (1,)), (0.11, (1, 5))])
def test_logits_rule_takes_coefficients_above_a_tenth_of_the_largest(ratio, keys):
    report = judge("add", 17, circuit(Task("add", 17), {1: 20.0, 5: 20 * ratio}), layers=2)
    assert report.key_rule == "logits"
    assert report.key_frequencies == keys
    assert report.key_share == pytest.approx(1 / (1 + ratio**2) if keys == (1,) else 1)


# --- each condition, failed by a model made to fail it


def test_one_wrong_pair_in_289_fails_accuracy():
    task = Task("add", 17)
    answer = task.group.s.clone()
    answer[0] = 1  # 0 + 0 = 1
    report = judge("add", 17, circuit(task, {1: 20.0, 3: 20.0}, answer))
    assert report.failed_conditions == ("accuracy",)
    assert report.accuracy == pytest.approx(288 / 289)
    assert report.failures() == "accuracy 0.99654 >= 1 (misses by 0.00346)"


@pytest.mark.parametrize("op", ["mul", "div"])
def test_accuracy_counts_the_rows_with_a_zero(op):
    task = Task(op, 17)
    table = circuit(task, {1: 20.0, 3: 20.0})
    table[int(((task.a == 0) & (task.b == 5)).nonzero()), 0] = -1.0
    report = judge(op, 17, table)
    assert report.failed_conditions == ("accuracy",)
    assert report.accuracy == pytest.approx(1 - 1 / len(task.a))


def test_silent_neurons_of_other_frequencies_fail_key_share():
    # Six silent neurons with a fifth of a key's norm each: share 2 / (2 + 6·0.04) = 0.893.
    task, t = Task("add", 17), torch.arange(17)
    silent = torch.stack([0.2 * 17 * 20.0 * wave(17, k, t) for k in (2, 4, 5, 6, 7, 8)])
    report = judge("add", 17, circuit(task, {1: 20.0, 3: 20.0}), silent=silent)
    assert report.failed_conditions == ("key_share",)
    assert report.key_share == pytest.approx(2 / 2.24)
    assert report.failures() == "key_share 0.892857 >= 0.95 (misses by 0.0571)"


def test_logits_beside_the_circuit_fail_fve():
    # Half as strong a wave in 2a − c: of the key's frequency, but no function of the sum. fve = 1 / (1 + 0.25).
    task = Task("add", 17)
    table = circuit(task, {2: 20.0}) + circuit(task, {2: 10.0}, 2 * task.a)
    report = judge("add", 17, table)
    assert "fve" in report.failed_conditions
    assert "key_share" not in report.failed_conditions
    assert report.fve == pytest.approx(0.8)
    assert "fve 0.8 >= 0.95 (misses by 0.15)" in report.failures()


def test_random_noise_beside_the_circuit_fails_fve():
    task = Task("add", 17)
    noise = 10 * torch.randn(289, 17, generator=torch.Generator().manual_seed(0)).double()
    report = judge("add", 17, circuit(task, {1: 20.0, 3: 20.0}) + noise)
    # Signal variance 400, noise variance 100.
    assert report.fve == pytest.approx(0.8, abs=0.03)
    assert "fve" in report.failed_conditions


def test_a_hidden_frequency_fails_restricted_and_excluded():
    # A third wave, a fifth as strong, is no key but helps: without it the loss rises, and alone it beats chance.
    report = judge("add", 17, circuit(Task("add", 17), {1: 4.0, 3: 4.0, 5: 0.8}))
    assert report.key_frequencies == (1, 3)
    assert report.failed_conditions == ("restricted_loss", "excluded_loss")
    assert report.fve == pytest.approx(2 / 2.04)

    def loss(amplitudes):
        logits = [sum(A * math.cos(2 * math.pi * k * c / 17) for k, A in amplitudes.items()) for c in range(17)]
        return math.log(sum(map(math.exp, logits))) - logits[0]

    assert report.base_loss == pytest.approx(loss({1: 4.0, 3: 4.0, 5: 0.8}))
    assert report.restricted_loss == pytest.approx(loss({1: 4.0, 3: 4.0}))
    assert report.excluded_loss == pytest.approx(loss({5: 0.8}))
    assert report.excluded_loss < math.log(17)


def test_excluded_loss_just_below_chance_fails():
    # A small wave of amplitude A, all that is left without the keys, has loss ln 17 − A; the slack is 1e-5.
    task = Task("add", 17)
    for amplitude, fails in [(2e-5, True), (5e-6, False)]:
        report = judge("add", 17, circuit(task, {1: 20.0, 3: 20.0, 5: amplitude}))
        assert report.excluded_loss - math.log(17) == pytest.approx(-amplitude, rel=1e-3)
        assert ("excluded_loss" in report.failed_conditions) == fails


@pytest.mark.parametrize("layers", [1, 2])
def test_a_lookup_table_is_no_sparse_circuit(layers):
    # 30 on the answer and 0 elsewhere: exact, but every frequency is a key, by either rule.
    task = Task("add", 17)
    table = 30 * torch.nn.functional.one_hot(task.labels, 17).double()
    report = judge("add", 17, table, layers=layers)
    assert report.accuracy == 1
    assert report.key_frequencies == (1, 2, 3, 4, 5, 6, 7, 8)
    assert report.failed_conditions == ("sparse_circuit",)
    assert report.failures() == "sparse_circuit 8 <= 2 (misses by 6)"


@pytest.mark.parametrize("layers", [1, 2])
def test_a_sparse_circuit_has_at_most_an_eighth_of_the_frequencies(layers):
    two = judge("add", 17, circuit(Task("add", 17), {4: 20.0, 5: 20.0}), layers=layers)
    assert two.passed
    assert "sparse_circuit 2 <= 2" in [str(condition) for condition in two.conditions]
    three = judge("add", 17, circuit(Task("add", 17), {4: 20.0, 5: 20.0, 7: 20.0}), layers=layers)
    assert three.failed_conditions == ("sparse_circuit",)


def test_two_layers_are_judged_by_their_logits():
    report = judge("add", 17, circuit(Task("add", 17), {4: 20.0}), layers=2)
    assert report.passed
    assert report.key_rule == "logits"
    assert report.key_share == pytest.approx(1)
    assert report.spectrum_W_L is None


def test_memorised_random_labels_fail():
    task = Task("add", 17)
    random = torch.randint(17, (289,), generator=torch.Generator().manual_seed(0))
    report = judge("add", 17, 30 * torch.nn.functional.one_hot(random, 17).double())
    assert {"accuracy", "fve"} <= set(report.failed_conditions)
    assert report.accuracy == pytest.approx(float((random == task.labels).double().mean()))
    assert report.fve < 0.05


# --- the same numbers, computed another way


def brute_force(logits, labels, p, keys):
    """restricted, excluded and fve of addition, with explicit grid functions and least squares."""
    a, b = np.divmod(np.arange(p * p), p)
    part = np.zeros_like(logits)
    for w in (2 * math.pi * k / p for k in keys):
        for f in (
            np.cos(w * a) * np.cos(w * b) - np.sin(w * a) * np.sin(w * b),
            np.sin(w * a) * np.cos(w * b) + np.cos(w * a) * np.sin(w * b),
        ):
            unit = f / np.linalg.norm(f)
            part += np.outer(unit, unit @ logits)

    def loss(values):
        return float(np.mean(np.log(np.exp(values).sum(1)) - values[np.arange(p * p), labels]))

    centred = (logits - logits.mean(1, keepdims=True)).ravel()
    offset = (a + b)[:, None] - np.arange(p)[None]
    design = np.stack([np.cos(2 * math.pi * k * offset / p).ravel() for k in keys], axis=1)
    fitted = design @ np.linalg.lstsq(design, centred, rcond=None)[0]
    fve = 1 - np.sum((centred - fitted) ** 2) / np.sum(centred**2)
    return loss(part + logits.mean(0)), loss(logits - part), fve


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_restricted_excluded_and_fve_by_brute_force(seed, layers):
    task = Task("add", 7)
    noise = torch.randn(49, 7, generator=torch.Generator().manual_seed(seed)).double()
    table = circuit(task, {1: 5.0, 2: 4.0}) + noise + torch.arange(7)
    report = judge("add", 7, table, layers=layers)
    restricted, excluded, fve = brute_force(table.numpy(), task.labels.numpy(), 7, report.key_frequencies)
    assert report.restricted_loss == pytest.approx(restricted, rel=1e-9)
    assert report.excluded_loss == pytest.approx(excluded, rel=1e-9)
    assert report.fve == pytest.approx(fve, rel=1e-9)


@pytest.mark.parametrize("op", ["add", "mul"])
def test_logits_beyond_the_p_answers_do_not_count(op):
    # Foreign models often have one logit a token, "=" included.
    task = Task(op, 17)
    model = table_model(task, circuit(task, {1: 20.0, 3: 20.0}))
    w_u = model.params["unembed.W_U"]
    wide = replace(model, params=model.params | {"unembed.W_U": torch.cat([w_u, 50 * torch.ones(len(w_u), 2)], dim=1)})
    assert verify(wide, task) == verify(model, task)


@pytest.mark.parametrize("op", ["add", "sub", "squares"])
def test_verdict_does_not_depend_on_a_constant_per_row(op):
    # Cross-entropy and row-centred logits see no shift of a whole row.
    task = Task(op, 7)
    table = circuit(task, {1: 5.0, 2: 4.0})
    first = judge(op, 7, table)
    shifted = judge(op, 7, table + torch.full((49, 1), 3.0))
    for name in ("base_loss", "restricted_loss", "excluded_loss", "fve", "key_share"):
        assert getattr(shifted, name) == pytest.approx(getattr(first, name), rel=1e-9)


def test_neuron_purity_by_hand():
    # On the slots of a and b: two neurons of one frequency each, one of two frequencies, one that never varies.
    task, t = Task("add", 13), torch.arange(13)
    model = table_model(task, torch.zeros(169, 13))
    params, d = dict(model.params), len(model.params["unembed.W_U"])
    slots = torch.zeros(d, 4, dtype=torch.float64)
    for slot in (17, 30):  # after 14 tokens and 3 positions, 13 places each
        slots[slot : slot + 13, 0] = wave(13, 1, t)
        slots[slot : slot + 13, 1] = wave(13, 4, t)
        slots[slot : slot + 13, 2] = wave(13, 1, t) + wave(13, 4, t)
    params["blocks.0.mlp.W_in"] = slots
    params["blocks.0.mlp.b_in"] = torch.full((4,), 10.0, dtype=torch.float64)  # far above zero: the ReLU does nothing
    params["blocks.0.mlp.W_out"] = torch.zeros(4, d, dtype=torch.float64)
    assert verify(replace(model, params=params), task).neuron_purity == pytest.approx(2 / 3)


# --- reference models


@pytest.fixture(scope="module")
def judged(reference):
    reports = {}

    def of(name):
        if name not in reports:
            reports[name] = verify(*reference(name))
        return reports[name]

    return of


def test_there_are_references_of_two_ops_and_two_moduli():
    assert {"add-p113-0", "add-p113-1", "add-p113-2", "mul-p113-0", "add-p59-0"} <= set(reference_names())


@pytest.mark.parametrize("name", reference_names())
def test_reference_verifies_again(name, reference, judged):
    model, task = reference(name)
    report = judged(name)
    what = model.cell if isinstance(model, Recurrent) else task.op
    assert name.rsplit("-", 1)[0] == f"{what}-p{task.p}"
    assert report.passed, report.failures()
    recorded = json.loads((reference_dir() / name / "gate.json").read_text())
    assert recorded["passed"] is True
    assert [text.split()[0] for text in recorded["conditions"]] == [condition.name for condition in report.conditions]
    assert list(report.key_frequencies) == recorded["key_frequencies"]
    for key in ("accuracy", "key_share", "fve", "excluded_loss", "neuron_purity"):
        assert getattr(report, key) == pytest.approx(recorded[key], rel=1e-6), key
    for key in ("base_loss", "restricted_loss"):
        assert getattr(report, key) == pytest.approx(recorded[key], rel=1e-3), key
    assert (reference_dir() / name / "model.safetensors").stat().st_size < 2_000_000
    assert isinstance(model, Recurrent) or model.layout == "abe"


def test_references_of_addition_share_at_most_half_their_keys(judged):
    names = [name for name in reference_names() if name.startswith("add-p113-")]
    assert len(names) >= 3
    for first, second in combinations(names, 2):
        keys = [set(judged(name).key_frequencies) for name in (first, second)]
        assert len(keys[0] & keys[1]) <= min(map(len, keys)) / 2, (first, second)


def test_report_is_plain_data_with_the_promised_keys(judged):
    plain = judged("add-p59-0").to_json()
    assert json.loads(json.dumps(plain))["passed"] is True
    promised = (
        "accuracy key_frequencies key_share fve base_loss restricted_loss excluded_loss neuron_purity variant passed"
    )
    assert {*promised.split(), "failed_conditions"} <= set(plain)
    assert plain["failed_conditions"] == []
    assert plain["conditions"][0] == "accuracy 1 >= 1"


def altered(model, **params):
    return replace(model, params=model.params | {name.replace("__", "."): value for name, value in params.items()})


def scale_key(model, k, factor):
    """W_U with its component at frequency k scaled."""
    plane = get_fourier_basis(model.p)[2 * k - 1 : 2 * k + 1]
    w_u = model.params["unembed.W_U"].double()
    return altered(model, unembed__W_U=(w_u - (1 - factor) * w_u @ plane.T @ plane).float())


@pytest.mark.parametrize("index", range(3))
def test_reference_without_one_of_its_keys_fails(reference, judged, index):
    model, task = reference("add-p59-0")
    keys = judged("add-p59-0").key_frequencies
    report = verify(scale_key(model, keys[index], 0), task)
    assert report.key_frequencies == tuple(k for k in keys if k != keys[index])
    assert "accuracy" in report.failed_conditions


def test_reference_with_one_key_too_weak_to_count_fails_restricted(reference, judged):
    model, task = reference("add-p59-0")
    weak = judged("add-p59-0").key_frequencies[1]
    report = verify(scale_key(model, weak, 0.2), task)
    assert weak not in report.key_frequencies
    assert "restricted_loss" in report.failed_conditions
    assert report.restricted_loss > 10 * report.base_loss


def test_reference_with_noise_in_w_out_fails_fve(reference):
    model, task = reference("add-p59-0")
    w_out = model.params["blocks.0.mlp.W_out"]
    noise = torch.randn(w_out.shape, generator=torch.Generator().manual_seed(0)) * w_out.std()
    report = verify(replace(model, params=model.params | {"blocks.0.mlp.W_out": w_out + 5 * noise}), task)
    assert "fve" in report.failed_conditions
    assert f"fve {report.fve:.6g} >= 0.95 (misses by {0.95 - report.fve:.3g})" in report.failures()


# --- untrained and memorising models


@pytest.mark.parametrize("layout", ["abe", "husai"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("p", [5, 13])
def test_random_weights_fail_accuracy_for_every_op(fresh, op, layout, p):
    report = verify(fresh(layout, p), Task(op, p))
    assert not report.passed
    assert {"accuracy", "fve"} <= set(report.failed_conditions)
    assert report.accuracy < 0.6
    assert report.key_rule == ("W_L" if layout == "abe" else "logits")
    numbers = (report.key_share, report.fve, report.base_loss, report.restricted_loss, report.excluded_loss)
    assert all(math.isfinite(number) for number in numbers)
    assert len(report.spectrum_logits) == Task(op, p).group.n // 2


def test_a_model_that_memorises_its_training_pairs_fails_accuracy(recipe):
    config = recipe(p=23, frac_train=0.3, batch_size=None, steps=400, lr=1e-2, weight_decay=0.0, log_every=400)
    run = train_transformer(config)
    assert run.history[-1].train_accuracy == 1
    assert run.history[-1].mirror_free_accuracy < 0.2
    report = verify(run.final, Task("add", 23))
    assert {"accuracy", "fve"} <= set(report.failed_conditions)
    assert report.accuracy < 0.6


def test_a_model_that_memorises_the_whole_table_fails_fve(recipe):
    config = recipe(p=23, frac_train=0.999, batch_size=None, steps=600, lr=1e-2, weight_decay=0.0, log_every=600)
    report = verify(train_transformer(config).final, Task("add", 23))
    assert report.accuracy == 1
    assert {"fve", "sparse_circuit"} <= set(report.failed_conditions)


def test_a_model_trained_on_shuffled_labels_fails_accuracy(recipe):
    training = {"shuffle_labels": True, "frac_train": 0.9, "weight_decay": 0.0}
    config = recipe(p=23, batch_size=None, steps=600, lr=1e-2, log_every=600, **training)
    run = train_transformer(config)
    assert run.history[-1].train_accuracy > 0.9  # of the shuffled labels
    report = verify(run.final, Task("add", 23))
    assert {"accuracy", "fve"} <= set(report.failed_conditions)
    assert report.accuracy < 0.15


@pytest.mark.parametrize("silenced", [("blocks.0.mlp.W_out",), ("blocks.0.mlp.W_out", "unembed.W_U"), "all"])
def test_a_dead_model_fails_and_does_not_crash(fresh, silenced):
    model = fresh()
    dead = {
        name: torch.zeros_like(value) for name, value in model.params.items() if silenced == "all" or name in silenced
    }
    report = verify(replace(model, params=model.params | dead), Task("add", 11))
    assert report.key_frequencies == ()
    assert {"accuracy", "key_share", "fve"} <= set(report.failed_conditions)
    assert (report.key_share, report.fve) == (0, 0)


def test_another_modulus_is_refused(fresh):
    with pytest.raises(HusaiError, match="model fresh: its modulus is 11, the task's is 13"):
        verify(fresh(p=11), Task("add", 13))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(fresh, bad):
    model = fresh()
    broken = model.params["blocks.0.mlp.W_in"].clone()
    broken[3, 4] = bad
    with pytest.raises(HusaiError, match="weights hold NaN or infinity"):
        verify(replace(model, params=model.params | {"blocks.0.mlp.W_in": broken}), Task("add", 11))
