"""Training in less than fp32: what is cast, what is scaled, and that the outcome is that of fp32."""

import shutil

import pytest
import torch
from torch import Tensor

from husai.config import (
    SAE_CONFIGS,
    JumpReLUConfig,
    ReLUConfig,
    SAEConfig,
    SAETrainingConfig,
    TopKConfig,
)
from husai.config.precision import PAIRS
from husai.errors import HusaiError
from husai.sae.architectures import architecture_of
from husai.sae.checkpoint import Checkpoints
from husai.sae.pairs import Pairs
from husai.sae.params import Params
from husai.sae.precision import Computation, Rounding, WideProducts, unit_of
from husai.sae.train import train_saes
from husai.sae.trainer import Trainer
from husai.workflow import train_sae_run

LOW = [pair for pair in PAIRS if pair != ("fp32", "fp32")]
NAMES = ["/".join(pair) for pair in LOW]
KINDS = {
    "topk": TopKConfig(d_sae=64, k=4, k_aux=16),  # at the planted 3, whether an atom is found is chance worth .01 of EV
    "relu": ReLUConfig(d_sae=64, l1_coefficient=0.5, l1_warmup_steps=20),
    "jumprelu": JumpReLUConfig(d_sae=64, l0_coefficient=0.3, l0_warmup_steps=20),
}


def recipe(pair=("fp32", "fp32"), kind="topk", *, seeds=(0,), **training) -> SAEConfig:
    quick = {"steps": 300, "batch_size": 256, "lr": 3e-3, "warmup_steps": 10, "adam_trick": pair[1] == "fp16"}
    given = SAETrainingConfig(dtype=pair[0], lower_dtype=pair[1], **{**quick, **training})
    return SAEConfig(sae=KINDS[kind], training=given, init_seeds=seeds, data_seeds=seeds)


def fit(trained, x, seed=0) -> tuple[float, float]:
    """Explained variance and L0 over all samples."""
    member = trained.ensemble.member(seed)
    codes = member.encode(x)
    left = (member.decode(codes) - x).square().sum() / (x - x.mean(0)).square().sum()
    return 1 - float(left), float((codes != 0).sum(1).double().mean())


@pytest.fixture(scope="module")
def reference(planted):
    """What fp32 reaches, by architecture."""
    return {kind: fit(train_saes(planted.x, recipe(kind=kind)), planted.x) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pair", LOW, ids=NAMES)
def test_every_pair_ends_where_fp32_does(planted, reference, pair, kind):
    trained = train_saes(planted.x, recipe(pair, kind))
    ev, l0 = fit(trained, planted.x)
    assert reference[kind][0] > 0.8
    assert abs(ev - reference[kind][0]) < 0.005
    assert abs(l0 / reference[kind][1] - 1) < 0.02
    assert all(torch.tensor(list(row.line.values())).isfinite().all() for row in trained.history)
    assert all(value.isfinite().all() for value in trained.ensemble.params)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"lower_dtype": "fp64"},
            r"fp32/fp64 is not supported; allowed are fp32/fp32, fp32/bf16, fp32/fp16, fp16/fp16, bf",
        ),
        ({"dtype": "bf16", "lower_dtype": "fp16"}, "bf16/fp16 is not supported"),
        ({"dtype": "fp16", "lower_dtype": "fp32"}, "fp16/fp32 is not supported"),
        ({"dtype": "int8"}, "int8/int8 is not supported"),
        ({"lower_dtype": "fp16"}, "fp32/fp16 needs scaled gradients"),
        ({"dtype": "fp16"}, "fp16/fp16 needs scaled gradients"),
        ({"log_every": 0, "stop": "hopeless"}, "judges by the history's rows"),
    ],
)
def test_other_pairs_are_refused_with_those_that_are_allowed(given, message):
    with pytest.raises(HusaiError, match=message):
        SAETrainingConfig.parse(given)


def test_names_and_defaults_leave_run_ids_alone():
    same = SAETrainingConfig(dtype="float32", lower_dtype="fp32")
    assert same == SAETrainingConfig()
    assert (
        same.model_dump()
        .keys()
        .isdisjoint({"dtype", "lower_dtype", "adam_trick", "compile", "early_exit", "log_every"})
    )
    assert SAETrainingConfig(dtype="bfloat16").pair == ("bf16", "bf16")
    assert SAETrainingConfig(lower_dtype="float16", gradient_scale=8.0).pair == ("fp32", "fp16")
    assert [SAETrainingConfig(adam_trick=True, batch_size=b).loss_scale for b in (4, 64, 1024, 4096)] == [1, 4, 64, 256]


def one(value: float) -> Tensor:
    return torch.tensor([[[float(value)]]])


def single(W_enc: float, W_dec: float, b_enc: float = 0.0, b_dec: float = 0.0) -> Params:
    made = Params(one(W_enc), torch.tensor([[b_enc]]), one(W_dec), torch.tensor([[b_dec]]))
    return made.map(lambda value: value.requires_grad_())


def test_products_are_cast_and_errors_are_not():
    """x = 1 + 2^-9 is 1 in bf16, whose numbers from 1 to 2 lie 2^-7 apart; the error to x itself is 2^-9."""
    config = recipe(("fp32", "bf16")).training
    kind = ReLUConfig(d_sae=1, l1_coefficient=0.25, l1_warmup_steps=0)
    x, dead = one(1 + 2**-9), torch.zeros(1, 1, dtype=torch.bool)
    done = Computation(architecture_of(kind), config, "cpu").gradients(single(1, 1), x, step=0, dead=dead)
    assert float(done.mse) == 2**-18
    assert float(done.terms["l1"]) == 0.25
    assert float(done.peak) == 1.0
    assert done.mse.dtype == done.gradients.W_enc.dtype == torch.float32
    exact = Computation(architecture_of(kind), recipe().training, "cpu")
    assert float(exact.gradients(single(1, 1), x, step=0, dead=dead).mse) == 0.0


def test_fp16_products_are_those_of_fp32_rounded_once():
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, *shape, generator=g).half() for shape in ((5, 70), (70, 3)))
    with WideProducts():
        found = torch.bmm(a, b)
    assert found.dtype == torch.float16
    assert torch.equal(found, (a.float() @ b.float()).half())
    assert torch.equal((a.float() @ b.float()).half(), torch.bmm(a, b))  # torch's own fp16 accumulates in fp32 too


def test_samples_are_brought_to_unit_size_by_a_power_of_two():
    x = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    assert unit_of(x) == 1
    assert unit_of(x * 1e6) == 2**-20
    assert unit_of(x * 1e-6) == 2**20
    assert unit_of(x * 0) == unit_of(x * torch.nan) == 1


def test_inputs_and_targets_of_a_transcoder_have_one_unit(planted):
    pairs = Pairs(planted.x * 2.0**10, planted.noise[:, :8] * 2.0**-5)
    sae = SAE_CONFIGS["transcoder"].model_validate({"d_sae": 64, "l1_coefficient": 1e-4})
    config = recipe(("fp32", "fp16"), normalise="none", steps=20).model_copy(update={"sae": sae})
    trainer = Trainer(pairs, config)
    assert trainer.unit == unit_of(pairs.x)
    assert torch.equal(trainer.targets, pairs.target * trainer.unit)
    trained = train_saes(pairs, config)
    assert all(value.isfinite().all() for value in trained.ensemble.params)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        *(pytest.param(name, {}, id=name) for name, kind in SAE_CONFIGS.items() if not kind.fitted),
        pytest.param("jumprelu", {"sparsity_loss": "tanh", "pre_act_coefficient": 0.5}, id="jumprelu, tanh"),
    ],
)
def test_an_architecture_in_other_units_is_the_same(make_params, name, extra):
    """With samples and biases 8 times as large every loss is 64 times as large, and codes 8 times; dials go along."""
    architecture = architecture_of(
        SAE_CONFIGS[name].model_validate(
            {"d_sae": 8, **({"k": 2} if "k" in SAE_CONFIGS[name].model_fields else {}), **extra}
        )
    )
    params = architecture.init(make_params(2, 6, 8, unit=True)).map(lambda value: value.requires_grad_())
    units = {"b_enc", "b_dec", *architecture.scaled, *architecture.rescaled}
    moved = Params.of({name: value.detach() * (8 if name in units else 1) for name, value in params.items()})
    moved = moved.map(lambda value: value.requires_grad_())
    x = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dead = torch.zeros(2, 8, dtype=torch.bool)
    dead[:, :3] = True
    here = architecture.losses(params, x, step=500, dead=dead)
    there = architecture.in_units(8.0).losses(moved, x * 8, step=500, dead=dead)
    torch.testing.assert_close(there.codes, 8 * here.codes)
    torch.testing.assert_close(there.mse, 64 * here.mse)
    assert there.terms.keys() == here.terms.keys()
    for term, value in here.terms.items():
        torch.testing.assert_close(there.terms[term], 64 * value, msg=term)
    slopes = architecture.gradients(params, x, step=500, dead=dead).gradients
    steeper = architecture.in_units(8.0).gradients(moved, x * 8, step=500, dead=dead).gradients
    for (tensor, value), (_, other) in zip(slopes.items(), steeper.items(), strict=True):
        torch.testing.assert_close(other, (8 if tensor in units else 64) * value, msg=tensor)


def test_every_dial_is_known_to_have_units_of_samples_or_none():
    """Shares, numbers of latents and coefficients of squared errors have none."""
    none = {"auxk_coefficient", "threshold_lr", "target_l0"}
    for name, kind in SAE_CONFIGS.items():
        if not kind.fitted:
            dials = {key for key, field in kind.model_fields.items() if "float" in str(field.annotation)}
            powers = set(architecture_of(kind()).powers)
            assert powers <= dials
            assert dials - powers <= none, f"{name}: {dials - powers - none} needs a power, or a place above"


@pytest.mark.parametrize("pair", [("fp32", "fp16"), ("bf16", "bf16")], ids="/".join)
@pytest.mark.parametrize("kind", KINDS)
def test_raw_samples_train_in_units_of_their_own_and_say_so_in_theirs(planted, kind, pair):
    """Samples 2^20 times as large, with dials to match: the same training bit for bit, losses 2^40 times as large."""
    size = 2.0**20
    here = recipe(pair, kind, normalise="none", steps=30)
    there = here.model_copy(update={"sae": architecture_of(here.sae).in_units(size).config})
    small = train_saes(planted.x, here, log_every=10)
    large = train_saes(planted.x * size, there, log_every=10)
    assert torch.equal(large.ensemble.params.W_enc, small.ensemble.params.W_enc)
    assert torch.equal(large.ensemble.params.b_enc, small.ensemble.params.b_enc * size)
    assert torch.equal(large.ensemble.params.b_dec, small.ensemble.params.b_dec * size)
    for ours, theirs in zip(large.history, small.history, strict=True):
        assert ours.loss == theirs.loss * size**2
        assert ours.terms == {name: value * size**2 for name, value in theirs.terms.items()}
        assert ours.max_activation == theirs.max_activation * size
        assert ours.explained_variance == theirs.explained_variance
    member = large.ensemble.member(0)
    left = (member.decode(member.encode(planted.x * size)) - planted.x * size).square().sum(-1).mean()
    assert float(left) == pytest.approx(large.history[-1].mse, rel=0.2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e6, 1e-6])
def test_raw_samples_of_any_size_train_in_fp16(planted, kind, size):
    config = recipe(("fp32", "fp16"), kind, normalise="none", steps=40)
    there = config.model_copy(update={"sae": architecture_of(config.sae).in_units(size).config})  # λ that suits
    trained = train_saes(planted.x * size, there)
    assert all(value.isfinite().all() for value in trained.ensemble.params)
    assert all(torch.tensor(list(row.line.values())).isfinite().all() for row in trained.history)


def test_without_scaling_fp16_overflows_and_underflows(planted, monkeypatch):
    """The control of the two tests above."""
    monkeypatch.setattr("husai.sae.pairs.unit_of", lambda _: 1.0)
    config = recipe(("fp32", "fp16"), normalise="none", steps=40)
    with pytest.raises(HusaiError, match=r"not finite at step .* or compute in fp32 instead of fp16"):
        train_saes(planted.x * 1e6, config, log_every=1)
    trainer = Trainer(planted.x * 1e-6, config)
    trainer.advance()
    assert not trainer.params.W_enc.grad.any()
    monkeypatch.undo()
    trainer = Trainer(planted.x * 1e-6, config)
    trainer.advance()
    assert trainer.params.W_enc.grad.any()


def test_a_gradient_scale_that_is_too_large_is_noticed(planted):
    with pytest.raises(HusaiError, match="not finite"):
        train_saes(planted.x, recipe(("fp32", "fp16"), adam_trick=False, gradient_scale=1e9, steps=5))


def test_without_a_gradient_scale_fp16_loses_small_gradients(planted):
    """Relative error of the encoder's gradient with scale 2^-17 (as of a batch 2^17 times as large) and 16."""

    def gradient(pair, **training):
        trainer = Trainer(planted.x, recipe(pair, "relu", clip_norm=None, **training))
        x, dead = trainer.batches.at(0), trainer.silent > 0
        return trainer.computation.gradients(trainer.params, x, step=0, dead=dead).gradients.W_enc

    exact = gradient(("fp32", "fp32"))
    errors = [
        float((gradient(("fp32", "fp16"), adam_trick=False, gradient_scale=scale) - exact).norm() / exact.norm())
        for scale in (2.0**-17, 16.0)
    ]
    assert errors[1] < 0.01
    assert errors[0] > 10 * errors[1]


@pytest.mark.parametrize("optimiser", ["adam", "rmsprop"])
def test_adam_cancels_the_scale_bit_for_bit(planted, optimiser):
    """A power of two changes no digit of the gradients, so leaving it in gives what taking it out does."""
    given = {"optimiser": optimiser, "clip_norm": None, "steps": 40, "gradient_scale": 64.0}
    kept = train_saes(planted.x, recipe(("fp32", "fp16"), adam_trick=True, **given), log_every=5)
    removed = train_saes(planted.x, recipe(("fp32", "fp16"), adam_trick=False, **given), log_every=5)
    assert all(torch.equal(a, b) for a, b in zip(kept.ensemble.params, removed.ensemble.params, strict=True))
    assert kept.history == removed.history


def test_clipping_and_decorrelation_mean_the_same_with_the_adam_trick(planted):
    given = {"clip_norm": 0.5, "decorrelation": 1e-3, "steps": 10, "gradient_scale": 64.0}
    kept = train_saes(planted.x, recipe(("fp32", "fp16"), adam_trick=True, **given), log_every=1)
    removed = train_saes(planted.x, recipe(("fp32", "fp16"), adam_trick=False, **given), log_every=1)
    assert kept.history[0].grad_norm > 0.5
    for a, b in zip(kept.history, removed.history, strict=True):
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)
        assert a.loss == pytest.approx(b.loss, rel=1e-4)


def test_small_updates_of_low_precision_parameters_add_up():
    """From 1, bf16's next number is 1 + 2^-7: four steps of 2^-9 reach it, though each alone is rounded away."""
    params = single(1, 1).map(lambda value: value.detach())
    kept = Rounding(params, torch.bfloat16)
    path = []
    for _ in range(4):
        params.W_enc.add_(2**-9)
        kept.round(params)
        path.append(float(params.W_enc))
    assert path == [1, 1, 1 + 2**-7, 1 + 2**-7]
    assert float(params.W_enc) + float(kept.lost.W_enc) == 1 + 4 * 2**-9
    assert float(torch.tensor(1 + 2**-9).bfloat16()) == 1


def test_what_a_replaced_latent_lost_does_not_come_back():
    params = Params(torch.ones(1, 1, 2), torch.ones(1, 2), torch.ones(1, 2, 1), torch.ones(1, 1))
    kept = Rounding(params, torch.bfloat16)
    for value in params:
        value.add_(2**-9)
    kept.round(params)
    assert all((lost == 2**-9).all() for lost in kept.lost)
    for value in (params.W_enc[..., 1], params.b_enc[:, 1], params.W_dec[:, 1]):
        value.fill_(2 + 2**-10)
    kept.restart(params, torch.tensor([[False, True]]))
    assert (
        params.W_enc.flatten().tolist() == params.b_enc.flatten().tolist() == params.W_dec.flatten().tolist() == [1, 2]
    )
    assert kept.lost.W_enc.flatten().tolist() == kept.lost.W_dec.flatten().tolist() == [2**-9, 2**-10]
    assert float(kept.lost.b_dec) == 2**-9


def test_what_was_lost_takes_part_in_what_is_computed_of_it():
    """Given back, then halved: half of it is there, and nothing twice."""
    params = single(1, 1).map(lambda value: value.detach())
    kept = Rounding(params, torch.bfloat16)
    params.W_dec.add_(2**-9)
    kept.round(params)
    kept.give_back(params)
    params.W_dec.div_(2)
    kept.round(params)
    assert float(params.W_dec) + float(kept.lost.W_dec) == 0.5 + 2**-10


def test_a_latent_is_resampled_to_numbers_of_the_dtype(planted):
    config = recipe(("bf16", "bf16"), seeds=(0, 1), resample_every=2, resample_until=1)
    trainer = Trainer(planted.x, config)
    for _ in range(2):
        trainer.advance()
    with torch.no_grad():
        trainer.params.b_enc[:, 5:9] = -100.0
    for lost in trainer.rounding.lost:
        lost.fill_(2**-4)
    seen = {}

    def look(params, *_, **__):
        rows = params.W_enc.detach()
        seen.update(rounded=torch.equal(rows, rows.bfloat16().float()), lost=trainer.rounding.lost.W_enc.clone())
        raise InterruptedError

    trainer.computation.gradients = look
    with pytest.raises(InterruptedError):
        trainer.advance()
    assert seen["rounded"]
    assert (seen["lost"][..., 5:9].abs() < 2**-4).all()
    assert (seen["lost"] == 2**-4).any()


@pytest.mark.parametrize("name", ["topk", "blocktopk", "frozen", "archetypal"])
@pytest.mark.parametrize("pair", [("bf16", "bf16"), ("fp16", "fp16")], ids="/".join)
def test_a_finished_sae_selects_what_it_selected_in_training(planted, pair, name):
    sae = SAE_CONFIGS[name].model_validate({"d_sae": 64, "k": 4, "k_aux": 16})
    config = recipe(pair, seeds=(0, 1), lr=1e-2, steps=60).model_copy(update={"sae": sae})
    trainer = Trainer(planted.x, config)
    for _ in range(60):
        trainer.advance()
    stack = trainer.samples[None].expand(2, -1, -1)
    with torch.no_grad():
        before = trainer.architecture.encode(trainer.params, stack) != 0
    assert (trainer.params.W_dec.norm(dim=-1) - 1).abs().max() > 1e-5
    made = trainer.ensemble()
    for seed, member in enumerate(made.dictionaries):
        other = ((member.encode(planted.x) != 0) != before[seed]).any(1)
        assert float(other.double().mean()) < 1e-3
    torch.testing.assert_close(made.params.W_dec.norm(dim=-1), torch.ones(2, 64))


@pytest.mark.parametrize(("pair", "dtype"), [(("fp16", "fp16"), torch.float16), (("bf16", "bf16"), torch.bfloat16)])
def test_parameters_stay_numbers_of_their_dtype(planted, pair, dtype):
    trainer = Trainer(planted.x, recipe(pair, seeds=(0, 1)))
    for _ in range(3):
        assert all(torch.equal(value, value.to(dtype).float()) for value in trainer.params)
        trainer.advance()
    exact = Trainer(planted.x, recipe())
    assert not torch.equal(exact.params.W_dec, exact.params.W_dec.to(dtype).float())


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_a_resumed_run_is_bit_for_bit_the_whole_one_and_so_is_a_rerun(tmp_path, planted, pair):
    class Halt(Exception): ...

    def halt(*_):
        raise Halt

    config = recipe(pair, seeds=(0, 3), steps=30)
    kept = Checkpoints(tmp_path, {}, every=7)
    with pytest.raises(Halt):
        train_saes(planted.x, config, stop=halt, stop_at=(20,), checkpoints=kept)
    resumed = train_saes(planted.x, config, checkpoints=kept)
    for whole in (train_saes(planted.x, config), train_saes(planted.x, config)):
        assert all(torch.equal(a, b) for a, b in zip(resumed.ensemble.params, whole.ensemble.params, strict=True))
        assert resumed.history == whole.history


@pytest.mark.parametrize("pair", LOW, ids=NAMES)
def test_each_seed_trains_as_it_would_alone(planted, pair):
    both = train_saes(planted.x, recipe(pair, seeds=(0, 3), steps=20)).ensemble.params
    alone = train_saes(planted.x, recipe(pair, seeds=(3,), steps=20)).ensemble.params
    for ours, theirs in zip(both, alone, strict=True):
        torch.testing.assert_close(ours[1], theirs[0], rtol=2e-2, atol=2e-2)


def test_health_looks_for_what_low_precision_cannot_tell(tmp_path, planted):
    for pair in (("fp32", "bf16"), ("fp32", "fp32")):
        out = tmp_path / pair[1]
        train_sae_run(planted.x, recipe(pair, steps=60), out, {}, finish=lambda *_: {})
        assert ("FVU at best" in (out / "health.json").read_text()) == (pair[1] == "bf16")


def test_without_a_compiler_compilation_is_refused(planted, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(HusaiError, match=r"training\.compile: torch\.compile needs a C\+\+ compiler"):
        train_saes(planted.x, recipe(compile=True))


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiled_losses_are_the_same(planted):
    given = {"steps": 8, "kind": "relu"}
    compiled = train_saes(planted.x, recipe(compile=True, **given), log_every=1)
    plain = train_saes(planted.x, recipe(**given), log_every=1)
    for a, b in zip(compiled.history, plain.history, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-3)
