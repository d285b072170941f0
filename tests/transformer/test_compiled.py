"""Compiled models against formulas, written out here a second time, and against TransformerLens."""

import math
from dataclasses import replace

import pytest
import torch

from husai.config import CompiledConfig, TaskConfig
from husai.errors import HusaiError
from husai.tasks import Task
from husai.transformer.compiled import analytic_logits, compile_model, logit_scale, margin, slots
from husai.transformer.model import forward
from husai.transformer.weights import to_transformer_lens, weights_hash
from husai.truth.circuit import verify

CIRCUITS = [
    ("clock", "add", 13, (1,)),
    ("clock", "add", 29, (2, 5, 12)),
    ("clock", "sub", 23, (2, 9)),
    ("clock", "mul", 23, (1, 4)),
    ("clock", "div", 29, (1, 3, 9)),
    ("clock", "add", 59, (3, 11, 17)),
    ("pizza", "add", 13, (3,)),
    ("pizza", "add", 29, (8, 9, 12)),
    ("pizza", "sub", 29, (8, 9, 12)),
]
P113 = (14, 35, 41, 42, 52)


def written(kind="clock", op="add", p=29, keys=(2, 5, 12), **fields):
    return CompiledConfig(task=TaskConfig(op=op, p=p), kind=kind, keys=keys, **fields)


def task_of(config):
    return Task(config.task.op, config.task.p)


def refusal(config) -> str:
    with pytest.raises(HusaiError) as caught:
        compile_model(config)
    return str(caught.value)


def by_hand(kind, op, p, keys, scale):
    """The logits pair by pair and answer by answer; discrete logarithms by trial."""
    product = op in ("mul", "div")
    n = p - 1 if product else p
    root = next(g for g in range(2, p) if len({pow(g, e, p) for e in range(p - 1)}) == p - 1)
    log = {pow(root, e, p): e for e in range(p - 1)} if product else {x: x for x in range(p)}
    sign = -1 if op in ("sub", "div") else 1
    rows = []
    for a in range(p):
        for b in range(1 if op == "div" else 0, p):
            row = [0.0] * p
            if a in log and b in log:
                u, v = log[a], sign * log[b]
                for c, t in log.items():
                    for w in (2 * math.pi * k / n for k in keys):
                        damping = math.cos(w * (u - v) / 2) ** 2 if kind == "pizza" else 1
                        row[c] += scale * damping * math.cos(w * (u + v - t))
            else:
                row[0] = 30.0 * ((a == 0) + (b == 0)) ** 2
            rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(("kind", "op", "p", "keys"), CIRCUITS)
def test_logits_are_the_formula(kind, op, p, keys):
    config = written(kind, op, p, keys)
    model, formula = compile_model(config), analytic_logits(config)
    torch.testing.assert_close(formula, by_hand(kind, op, p, keys, logit_scale(config)), atol=1e-9, rtol=0)
    assert float((model.logits(task_of(config)) - formula).abs().max()) < 1e-9


@pytest.mark.parametrize(("kind", "op", "p", "keys"), CIRCUITS)
def test_every_pair_is_right_by_the_margin_zeros_included(kind, op, p, keys):
    config = written(kind, op, p, keys)
    task, logits = task_of(config), compile_model(config).logits(task_of(config))
    right = logits.gather(1, task.labels[:, None])[:, 0]
    others = logits.scatter(1, task.labels[:, None], -math.inf).max(1).values
    assert float((right - others)[task.group.rows].min()) == pytest.approx(30, rel=0.05)
    assert float((right - others).min()) >= 28.5  # where the second best is the answer 0 of a product


@pytest.mark.parametrize(("kind", "op", "p", "keys"), CIRCUITS)
def test_the_stored_model_passes_the_gate_of_its_kind(kind, op, p, keys):
    config = written(kind, op, p, keys)
    report = verify(compile_model(config).to(torch.float32), task_of(config), variant=config.variant)
    assert report.passed, report.failures()
    assert report.key_frequencies == report.key_frequencies_logits == report.key_frequencies_embedding == keys
    assert report.key_share == pytest.approx(1, abs=1e-9)
    assert (report.fve_variant if kind == "pizza" else report.fve) == pytest.approx(1, abs=1e-9)
    assert report.neuron_purity == 1


@pytest.mark.parametrize(("kind", "fve"), [("clock", 1), ("pizza", 2 / 3)])
def test_p_113(kind, fve):
    config = written(kind, "add", 113, P113)
    model = compile_model(config).to(torch.float32)
    report = verify(model, task_of(config), variant=config.variant)
    assert report.passed, report.failures()
    assert report.fve == pytest.approx(fve, abs=1e-6)
    assert model.params["embed.W_E"].shape == (114, 128)
    assert model.params["blocks.0.mlp.W_in"].shape == (128, 512)


def test_the_clock_computes_the_cosine_of_the_answer_to_1e_13():
    config = written(p=113, keys=P113, rotate=False)
    task, seen = task_of(config), {}
    compile_model(config).run(task.tokens("abe"), lambda name, value: seen.setdefault(name, value))
    written_out = seen["blocks.0.hook_mlp_out"][:, -1, slots(config).answer]
    angles = 2 * math.pi / 113 * (task.labels[:, None] * torch.tensor(P113) % 113).double()
    expected = torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(1)
    assert float((written_out - expected).abs().max()) < 1e-13


@pytest.mark.parametrize(("kind", "pattern"), [("clock", [[1, 0, 0], [0, 1, 0]]), ("pizza", [[1 / 3, 1 / 3, 1 / 3]])])
def test_attention_is_fixed(kind, pattern):
    config, seen = written(kind, keys=(8, 9, 12)), {}
    compile_model(config).run(task_of(config).tokens("abe"), lambda name, value: seen.setdefault(name, value))
    found = seen["blocks.0.attn.hook_pattern"][:, :, -1]
    expected = torch.tensor(pattern, dtype=torch.float64).expand_as(found)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


# --- controls that must fail


def test_relu_in_place_of_relu2_is_another_model():
    config = written()
    model = compile_model(config)
    # The gate need not notice: |x| in place of x² is a circuit too, though not the one written down.
    relu = replace(model, act="relu")
    assert verify(relu, task_of(config)).fve < 0.99
    assert float((relu.logits(task_of(config)) - analytic_logits(config)).abs().max()) > 1
    assert weights_hash(replace(model, act="relu")) != weights_hash(model)


@pytest.mark.parametrize(("made", "asked"), [("add", "sub"), ("sub", "add")])
@pytest.mark.parametrize("kind", ["clock", "pizza"])
def test_the_wrong_sign_of_b_fails(kind, made, asked):
    config = written(kind, made, keys=(8, 9, 12))
    report = verify(compile_model(config), Task(asked, 29), variant=config.variant)
    assert {"accuracy", "fve_variant" if kind == "pizza" else "fve"} <= set(report.failed_conditions)


def test_a_readout_of_other_keys_or_permuted_answers_fails():
    config = written()
    model, other = compile_model(config), compile_model(written(keys=(2, 5, 11)))
    shuffled = model.params["unembed.W_U"][:, torch.randperm(29, generator=torch.Generator().manual_seed(0))]
    for w_u in (other.params["unembed.W_U"], shuffled):
        changed = replace(model, params=model.params | {"unembed.W_U": w_u})
        assert {"accuracy", "fve"} <= set(verify(changed, task_of(config)).failed_conditions)


def test_noise_is_relative_and_fails_the_gate_when_it_is_large():
    exact = compile_model(written())
    for noise, passes in [(0.01, True), (1.0, False)]:
        config = written(noise=noise)
        model = compile_model(config)
        for name, value in exact.params.items():
            change = (model.params[name] - value).square().mean() / value.square().mean()
            assert math.sqrt(float(change)) == pytest.approx(noise, rel=0.2), name
        report = verify(model, task_of(config))
        assert report.passed == passes, report.failures()
        assert report.fve < 1 - 1e-5


def test_more_keys_than_an_eighth_of_the_frequencies_are_no_sparse_circuit():
    config = written(p=13, keys=(1, 5))
    assert verify(compile_model(config), task_of(config)).failed_conditions == ("sparse_circuit",)


# --- rotation and seeds


def test_rotation_changes_the_basis_and_nothing_else():
    config = written()
    turned, straight = compile_model(config), compile_model(written(rotate=False))
    torch.testing.assert_close(turned.logits(task_of(config)), straight.logits(task_of(config)), atol=1e-10, rtol=0)
    for model, dimensions in [(turned, 128), (straight, 12)]:
        w_o = model.params["blocks.0.attn.W_O"].flatten(0, 1)
        assert int((w_o.abs().sum(0) > 1e-12).sum()) == dimensions
        assert int((w_o.norm(dim=0) > 0.9).sum()) == (0 if model is turned else 12)


@pytest.mark.parametrize(("rotate", "noise"), [(True, 0.0), (False, 0.1)])
def test_the_seed_sets_rotation_and_noise(rotate, noise):
    first, again, other = (compile_model(written(rotate=rotate, noise=noise, seed=seed)) for seed in (0, 0, 1))
    assert weights_hash(first) == weights_hash(again)
    assert weights_hash(first) != weights_hash(other)


def test_without_rotation_and_noise_the_seed_means_nothing():
    models = [compile_model(written(rotate=False, seed=seed)) for seed in (0, 1)]
    assert weights_hash(models[0]) == weights_hash(models[1])


# --- TransformerLens


@pytest.mark.parametrize(("kind", "op", "p", "keys"), [c for c in CIRCUITS if c[2] < 29])
def test_transformer_lens_runs_it_with_equal_logits_and_hooks(kind, op, p, keys):
    config = written(kind, op, p, keys, noise=0.01)
    model, tokens, ours = compile_model(config), task_of(config).tokens("abe"), {}
    logits = model.run(tokens, lambda name, value: ours.setdefault(name, value))
    hooked = to_transformer_lens(model)
    assert hooked.cfg.act_fn == "relu2"
    with torch.no_grad():
        their_logits, theirs = hooked.run_with_cache(tokens)
    torch.testing.assert_close(logits, their_logits, atol=1e-9, rtol=1e-12)
    torch.testing.assert_close(model.logits(task_of(config)), their_logits[:, -1], atol=1e-9, rtol=1e-12)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-10, rtol=1e-12)
    as_relu = forward(model.params, tokens)
    assert float((as_relu - their_logits).abs().max()) > 1


# --- sizes and keys


@pytest.mark.parametrize(
    ("kind", "op", "p", "keys", "d_model", "d_mlp"),
    [
        ("clock", "add", 29, (2, 5, 12), 27, 36),  # 4 slots of 6, 3 marks; 3 keys × 6 squares × 2 neurons
        ("pizza", "add", 29, (8, 9, 12), 21, 18),  # 3 slots of 6, 3 marks; 3 keys × 3 squares × 2 neurons
        ("clock", "mul", 23, (1, 4), 23, 25),  # 4 slots of 5, 3 marks; 2 × 12 + 1 neurons
    ],
)
def test_the_least_widths_suffice_and_one_less_is_refused(kind, op, p, keys, d_model, d_mlp):
    config = written(kind, op, p, keys, d_model=d_model, d_mlp=d_mlp)
    model = compile_model(config)
    assert model.params["blocks.0.mlp.W_in"].shape == (d_model, d_mlp)
    assert verify(model.to(torch.float32), task_of(config), variant=config.variant).passed
    named = f"a {kind} of {len(keys)} keys needs"
    assert refusal(written(kind, op, p, keys, d_model=d_model - 1)) == (
        f"d_model: {d_model - 1} is too small; {named} {d_model}"
    )
    assert refusal(written(kind, op, p, keys, d_mlp=d_mlp - 1)) == f"d_mlp: {d_mlp - 1} is too small; {named} {d_mlp}"


def test_widths_grow_where_the_usual_ones_do_not_suffice():
    model = compile_model(written(p=113, keys=tuple(range(1, 45))))
    assert model.params["blocks.0.mlp.W_in"].shape == (8 * 44 + 3, 12 * 44)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keys": (2, 5, 2)}, "keys: 2 is listed twice; allowed are distinct frequencies from 1 to 14"),
        ({"keys": (2, 27)}, "keys: 27 is not a frequency of Z_29 for add mod 29 (it is the same frequency as 2); "),
        ({"keys": (2, 29)}, "keys: 29 is not a frequency of Z_29 for add mod 29; allowed are distinct"),
        ({"keys": tuple(range(1, 16))}, "keys: 15 is not a frequency of Z_29"),
        ({"op": "mul", "keys": (3, 14)}, "keys: 14 is the Nyquist frequency of Z_28, which is no plane; "),
        ({"op": "mul", "keys": (2, 6)}, "keys: 2, 6 cannot tell all answers of a clock mod 29 apart"),
        ({"kind": "pizza", "keys": (1,)}, "keys: 1 cannot tell all answers of a pizza mod 29 apart (margin 7e-05"),
        ({"kind": "pizza", "op": "mul"}, "op: a pizza cannot compute mul: in Z_28, of even order, no keys tell"),
        ({"op": "squares"}, "op: a clock cannot compute squares; allowed are add, sub, mul, div"),
        ({"p": 21}, "p: 21 is not allowed"),
    ],
)
def test_circuits_that_do_not_exist_are_refused(fields, message):
    assert refusal(written(**fields)).startswith(message)


@pytest.mark.parametrize(
    "fields", [{"keys": ()}, {"kind": "watch"}, {"noise": -0.1}, {"noise": math.nan}, {"d_mlp": 0}]
)
def test_configs_that_mean_nothing_are_refused(fields):
    plain = {"task": {"op": "add", "p": 29}, "kind": "clock", "keys": (2,), **fields}
    with pytest.raises(HusaiError, match=f"here: '{next(iter(fields))}"):
        CompiledConfig.parse(plain, "here")


def test_margins_by_hand():
    # Z_6, key 1: the nearest answers are 60° away, 1 − cos 60° = 1/2. Keys 1 and 2: offset 3 gains 2 + 0, offset 1 1/2 + 3/2.
    assert margin("clock", (1,), 6) == pytest.approx(0.5)
    assert margin("clock", (1, 2), 6) == pytest.approx(2)
    # Z_5: u − v = 2 or 3 damps key 1 to cos²72° and the nearest answers are 72° away.
    degree = math.pi / 180
    assert margin("pizza", (1,), 5) == pytest.approx(math.cos(72 * degree) ** 2 * (1 - math.cos(72 * degree)))


@pytest.mark.parametrize("n", [12, 16, 22, 28])
def test_no_pizza_exists_in_a_group_of_even_order(n):
    every_key = tuple(range(1, n // 2))
    assert margin("pizza", every_key, n) < 1e-12
    assert margin("clock", every_key, n) > 1
