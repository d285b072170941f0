from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from husai.activations import Normaliser
from husai.analysis.fit import evaluate_fit
from husai.analysis.matching import pwmcc
from husai.analysis.nulls import null_matrices, sampler
from husai.config import (
    SAE_CONFIGS,
    AbsTopKConfig,
    ArchetypalConfig,
    BatchTopKConfig,
    BlockTopKConfig,
    FrozenConfig,
    GatedConfig,
    JumpReLUConfig,
    MatryoshkaConfig,
    ReLUConfig,
    SAEConfig,
    SAEKind,
    SAETrainingConfig,
    SkipSAEConfig,
    SkipTranscoderConfig,
    TopKConfig,
    TranscoderConfig,
)
from husai.errors import HusaiError
from husai.sae.architectures import ARCHITECTURES, architecture_of
from husai.sae.batches import Batches
from husai.sae.dictionary import finish, finished, sighted
from husai.sae.history import mean_log
from husai.sae.optimisers import Average, RMSprop
from husai.sae.pairs import Pairs
from husai.sae.params import Params, init_params, pre_activations
from husai.sae.resample import resample_dead
from husai.sae.terms import decorrelation
from husai.sae.topk import TopK
from husai.sae.train import train_saes
from husai.sae.trainer import Trainer, clip_each
from husai.seeding import generator

# Far too many latents for five sources, so that AuxK and resampling have work to do.
D_IN, D_SAE = 8, 48
KINDS = {
    "topk unit": TopKConfig(d_sae=D_SAE, k=2, dead_steps=2),
    "topk weighted": TopKConfig(d_sae=D_SAE, k=2, dead_steps=2, decoder_norm="weighted"),
    "relu unit": ReLUConfig(d_sae=D_SAE, l1_coefficient=3, l1_warmup_steps=10),
    "relu weighted": ReLUConfig(d_sae=D_SAE, l1_coefficient=3, l1_warmup_steps=10, decoder_norm="weighted"),
    "batchtopk unit": BatchTopKConfig(d_sae=D_SAE, k=2, dead_steps=2),
    "batchtopk weighted": BatchTopKConfig(d_sae=D_SAE, k=2, dead_steps=2, decoder_norm="weighted"),
    "matryoshka unit": MatryoshkaConfig(d_sae=D_SAE, k=2, dead_steps=2),
    "matryoshka weighted": MatryoshkaConfig(d_sae=D_SAE, k=2, dead_steps=2, decoder_norm="weighted"),
    "abstopk unit": AbsTopKConfig(d_sae=D_SAE, k=2, dead_steps=2),
    "abstopk weighted": AbsTopKConfig(d_sae=D_SAE, k=2, dead_steps=2, decoder_norm="weighted"),
    "jumprelu unit": JumpReLUConfig(d_sae=D_SAE, l0_coefficient=3, l0_warmup_steps=10, initial_threshold=1),
    "jumprelu weighted": JumpReLUConfig(
        d_sae=D_SAE, l0_coefficient=3, l0_warmup_steps=10, initial_threshold=1, decoder_norm="weighted"
    ),
    "gated unit": GatedConfig(d_sae=D_SAE, l1_coefficient=3, l1_warmup_steps=10),
    "gated weighted": GatedConfig(d_sae=D_SAE, l1_coefficient=3, l1_warmup_steps=10, decoder_norm="weighted"),
    "blocktopk unit": BlockTopKConfig(d_sae=D_SAE, k=2, dead_steps=2),
    "blocktopk weighted": BlockTopKConfig(d_sae=D_SAE, k=2, dead_steps=2, decoder_norm="weighted"),
    "archetypal unit": ArchetypalConfig(d_sae=D_SAE, k=2, dead_steps=2, candidates=30),
    "archetypal weighted": ArchetypalConfig(d_sae=D_SAE, k=2, dead_steps=2, candidates=30, decoder_norm="weighted"),
    "frozen unit": FrozenConfig(d_sae=D_SAE, k=2, dead_steps=2),
}
for made in (TranscoderConfig, SkipTranscoderConfig, SkipSAEConfig):
    for norm in ("unit", "weighted"):
        name = f"{made.model_fields['architecture'].default} {norm}"
        KINDS[name] = made(d_sae=D_SAE, l1_coefficient=3, l1_warmup_steps=10, decoder_norm=norm)
        KINDS[f"topk_{name}"] = SAE_CONFIGS[f"topk_{name.split()[0]}"](
            d_sae=D_SAE, k=2, dead_steps=2, decoder_norm=norm
        )
OWN_ROWS = [name for name in KINDS if name.split()[0] not in ("frozen", "archetypal")]  # W_dec itself is trained
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@pytest.fixture(scope="module")
def x():
    g = generator("test-train")
    return torch.randn(600, 5, generator=g).relu() @ torch.randn(5, D_IN, generator=g) + 3


def given(kind, x):
    """What it trains on: a transcoder on pairs, whose targets are narrower and no linear map of x."""
    mixed = (x - x.mean(0)) @ torch.randn(D_IN, D_SAE, generator=generator("test-target"))
    target = mixed.relu() @ torch.randn(D_SAE, D_IN - 2, generator=generator("test-target", 1)) + 7
    return Pairs(x, target) if kind.paired else x


def recipe(kind=KINDS["topk unit"], init=(0,), data=(0,), **training) -> SAEConfig:
    quick = {"steps": 60, "batch_size": 64, "lr": 1e-2, "warmup_steps": 5, "resample_every": 20, "resample_until": 1}
    return SAEConfig(sae=kind, training=SAETrainingConfig(**(quick | training)), init_seeds=init, data_seeds=data)


def same(first: Params, second: Params) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@each_kind
def test_a_seed_in_a_stack_equals_the_seed_alone(x, kind):
    stack = train_saes(given(kind, x), recipe(kind, (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)), log_every=1)
    for index in (0, 3):
        alone = train_saes(given(kind, x), recipe(kind, (index,), (index + 5,)))
        for ours, expected in zip(stack.ensemble.params, alone.ensemble.params, strict=True):
            torch.testing.assert_close(ours[index], expected[0], rtol=1e-4, atol=1e-4)
    assert max(row.penalty for row in stack.history) > 1  # AuxK or L1 was at work
    unresampled = train_saes(given(kind, x), recipe(kind, (0,), (5,), resample_every=None)).ensemble.params
    assert (stack.ensemble.params.W_enc[0] - unresampled.W_enc[0]).abs().max() > 0.1  # and so was resampling


def test_the_same_pair_of_seeds_reproduces_exactly(x):
    assert same(
        train_saes(x, recipe(init=(3,), data=(4,))).ensemble.params,
        train_saes(x, recipe(init=(3,), data=(4,))).ensemble.params,
    )


@pytest.mark.parametrize(("init", "data"), [(3, 5), (5, 4), (4, 3)])
def test_init_seed_and_data_seed_each_change_the_result(x, init, data):
    first = train_saes(x, recipe(init=(3,), data=(4,))).ensemble.params
    second = train_saes(x, recipe(init=(init,), data=(data,))).ensemble.params
    assert (first.W_dec - second.W_dec).abs().max() > 0.01


def test_the_data_seed_leaves_the_start_alone(x):
    starts = []

    def keep(_, ensemble):
        starts.append(ensemble.params)
        return True

    for init, data in ((3, 4), (3, 5), (4, 4)):
        train_saes(x, recipe(init=(init,), data=(data,)), stop=keep, stop_at=(0,))
    assert same(starts[0], starts[1])
    assert not torch.equal(starts[0].W_dec, starts[2].W_dec)


def test_global_randomness_is_neither_used_nor_touched(x):
    torch.manual_seed(1)
    first = train_saes(x, recipe()).ensemble.params
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    torch.manual_seed(2)
    assert same(first, train_saes(x, recipe()).ensemble.params)


@each_kind
def test_gradients_are_those_of_the_losses(make_params, kind):
    """Whatever computes them; latents 0 to 9 count as dead."""
    architecture = architecture_of(kind)
    start = architecture.init(make_params(2, D_IN, D_SAE, unit=kind.decoder_norm == "unit"))
    batch = torch.randn(2, 30, D_IN, generator=generator("test-gradients"), dtype=torch.float64)
    params, dead = start.map(lambda value: value.clone().requires_grad_()), torch.arange(D_SAE).expand(2, -1) < 10
    target = batch.flip(1) if kind.paired else None
    losses = architecture.losses(params, batch, step=50, dead=dead, target=target)
    expected = torch.autograd.grad(losses.total.sum(), list(params), materialize_grads=True)
    done = architecture.gradients(params, batch, step=50, dead=dead, target=target)
    for name, ours, slow in zip(dict(params.items()), done.gradients, expected, strict=True):
        torch.testing.assert_close(ours, slow, msg=name)
    torch.testing.assert_close(done.mse, losses.mse.detach())
    torch.testing.assert_close(done.l0, (losses.codes != 0).sum(-1).double().mean(-1))
    assert torch.equal(done.fired, (losses.codes != 0).any(1))
    assert set(done.seen) == set(losses.seen)
    for name, value in done.seen.items():
        torch.testing.assert_close(value, losses.seen[name])


# --- batches ---


def batches_of(samples: int, batch_size: int, data_seeds: tuple[int, ...]) -> Batches:
    """Batches of samples that are their own row numbers."""
    rows = torch.arange(samples).float()[:, None]
    return Batches(rows, batch_size, data_seeds, Normaliser(torch.zeros(1), 1.0))


def passes(batches: Batches, count: int) -> torch.Tensor:
    """(passes, seeds, rows visited in one pass)."""
    rows = torch.cat([batches.at(step)[..., 0] for step in range(count * batches.per_epoch)], dim=1)
    return torch.stack(rows.chunk(count, dim=1))


def test_a_pass_visits_every_row_once_and_drops_the_ragged_end():
    batches = batches_of(10, 3, (0, 1))
    assert batches.per_epoch == 3
    assert batches.at(0).shape == (2, 3, 1)
    for visited in passes(batches_of(10, 3, (0, 1)), 20).flatten(0, 1):
        assert len(visited) == 9
        assert len(visited.unique()) == 9


def test_every_row_is_visited_in_time_since_passes_drop_different_rows():
    visited = passes(batches_of(10, 3, (0, 1)), 20)
    assert all(len(visited[:, seed].unique()) == 10 for seed in range(2))


def test_passes_and_seeds_have_their_own_orders():
    first, second = passes(batches_of(100, 50, (0, 1)), 2)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], second[0])
    assert torch.equal(first[1], passes(batches_of(100, 50, (1,)), 1)[0, 0])


# --- one step ---


@pytest.mark.parametrize("name", KINDS)
def test_unit_decoders_keep_norm_one_in_every_step(x, monkeypatch, name):
    architecture, decoder_norm = ARCHITECTURES[name.split()[0]], name.split()[1]
    drift, original = [], architecture.gradients

    def spy(self, params, *args, **kwargs):
        drift.append(float((params.W_dec.detach().norm(dim=-1) - 1).abs().max()))
        return original(self, params, *args, **kwargs)

    monkeypatch.setattr(architecture, "gradients", spy)
    kind = KINDS[name]
    trained = train_saes(given(kind, x), recipe(kind))
    assert len(drift) == 60
    assert max(drift) < 1e-5 if decoder_norm == "unit" else max(drift) > 0.01
    torch.testing.assert_close(trained.ensemble.params.W_dec.norm(dim=-1), torch.ones(1, D_SAE))


@pytest.mark.parametrize("name", [name for name in OWN_ROWS if name.endswith("unit")])
def test_gradients_along_unit_decoder_rows_are_dropped(x, monkeypatch, name):
    """They would only fill Adam's moments and the clipped norm with a motion that is undone."""
    architecture = ARCHITECTURES[KINDS[name].architecture]
    rows, along, gradients = [], [], architecture.gradients

    def spy_on_gradients(self, params, *args, **kwargs):
        rows.append(params.W_dec.detach())
        return gradients(self, params, *args, **kwargs)

    def spy_on_clip(gradients, limit, kept):
        along.append(float((gradients.W_dec * rows[-1]).sum(-1).abs().max()))
        assert gradients.W_dec.abs().max() > 1e-3
        return clip_each(gradients, limit, kept)

    monkeypatch.setattr(architecture, "gradients", spy_on_gradients)
    monkeypatch.setattr("husai.sae.trainer.clip_each", spy_on_clip)
    train_saes(given(KINDS[name], x), recipe(KINDS[name], steps=5))
    assert len(along) == 5
    assert max(along) < 1e-5


def gradients(*sizes: float) -> Params:
    """Two seeds; a size s gives a gradient 3s in W_enc and 4s in b_enc, of norm 5s."""
    scale = torch.tensor(sizes)
    return Params(
        torch.tensor([[3.0], [0.0]]) * scale[:, None, None],
        torch.tensor([4.0, 0.0]) * scale[:, None],
        torch.zeros(len(sizes), 2, 1),
        torch.zeros(len(sizes), 1),
    )


def test_gradients_are_clipped_to_the_limit_over_all_four_parameters():
    clipped = gradients(1.0)
    clip_each(clipped, 1.0)
    torch.testing.assert_close(clipped.W_enc[0], torch.tensor([[0.6], [0.0]]), rtol=1e-5, atol=0)
    torch.testing.assert_close(clipped.b_enc[0], torch.tensor([0.8, 0.0]), rtol=1e-5, atol=0)


def test_one_seeds_huge_gradient_does_not_touch_another():
    clipped = gradients(1e12, 0.1)
    clip_each(clipped, 1.0)
    assert float(clipped.W_enc[0].norm()) == pytest.approx(0.6)
    assert torch.equal(clipped.W_enc[1], gradients(0, 0.1).W_enc[1])
    assert torch.equal(clipped.b_enc[1], gradients(0, 0.1).b_enc[1])


def test_clipping_is_part_of_training(x):
    free, clipped, loose = (
        train_saes(x, recipe(clip_norm=limit, steps=10)).ensemble.params for limit in (None, 1e-9, 1e9)
    )
    assert same(free, loose)
    # gradients of norm 1e-9 stay below Adam's epsilon of 1e-8: hardly anything moves
    start = init_params(D_IN, D_SAE, (0,)).W_dec
    assert (clipped.W_dec - start).abs().max() < 0.01 < (free.W_dec - start).abs().max()


def test_the_learning_rate_warms_up_and_decays(x):
    history = train_saes(
        x, recipe(steps=10, lr=1e-3, warmup_steps=4, decay_fraction=0.5, resample_every=None), log_every=1
    ).history
    shape = [0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]
    assert [row.lr for row in history] == pytest.approx([1e-3 * value for value in shape])


def test_history_has_one_row_a_seed_and_pass_and_agrees_with_the_fit(x):
    # A vanishing rate leaves the start as it is, so the training batch (all rows) has the fit of step 0.
    seen = []
    trained = train_saes(
        x,
        recipe(init=(7, 8), data=(0, 0), steps=3, batch_size=600, lr=1e-30, resample_every=None),
        on_log=seen.append,
    )
    assert [(row.step, row.epoch, row.seed) for row in trained.history] == [
        (step, step, seed) for step in (1, 2, 3) for seed in (7, 8)
    ]
    assert [row for rows in seen for row in rows] == list(trained.history)
    for index in range(2):
        fit, last = evaluate_fit(trained.ensemble.member(index), x), trained.history[-2 + index]
        assert last.explained_variance == pytest.approx(fit.explained_variance, abs=1e-5)
        assert last.l0 == pytest.approx(fit.l0, abs=1e-2)
        assert last.mse == pytest.approx(D_IN * fit.fvu, abs=1e-4)  # inputs have mean squared norm d_in
        assert last.loss == pytest.approx(last.mse + last.penalty)


def test_history_says_which_share_of_the_latents_is_active_and_every_term(x):
    trained = train_saes(x, recipe(KINDS["gated unit"], (0, 1), (0, 1), decorrelation=0.1))
    for row in trained.history:
        assert row.active == pytest.approx(row.l0 / D_SAE)
        assert row.line["active"] == row.active
    last = [row for row in trained.history if row.step == 60]
    mean = mean_log(last)
    assert mean["loss"] == pytest.approx(
        mean["mse"] + sum(mean[f"loss/{name}"] for name in ("l1", "gate", "decorrelation"))
    )
    assert mean["loss/l1"] == pytest.approx((last[0].terms["l1"] + last[1].terms["l1"]) / 2)


def test_a_latent_counts_as_dead_after_as_many_silent_steps_as_the_config_says(x, monkeypatch):
    """Latent 7 is biased so low that it never fires; the others start out alive."""
    seen, original = [], TopK.gradients

    def spy(self, params, *args, **kwargs):
        with torch.no_grad():
            params.b_enc[:, 7] = -1e6
        seen.append(kwargs["dead"][0])
        return original(self, params, *args, **kwargs)

    monkeypatch.setattr(TopK, "gradients", spy)
    kind = KINDS["topk unit"].model_copy(update={"dead_steps": 5})
    train_saes(x, recipe(kind, steps=8, resample_every=None))
    assert [bool(dead[7]) for dead in seen] == [False] * 5 + [True] * 3
    assert not any(dead.any() for dead in seen[:5])


# --- stopping ---


def test_stop_sees_the_start_and_ends_training(x):
    calls = {}

    def stop(step, ensemble):
        calls[step] = ensemble
        return step == 12

    trained = train_saes(x, recipe(init=(0, 1), data=(0, 1)), stop=stop, stop_at=(0, 5, 12, 30))
    assert list(calls) == [0, 5, 12]
    assert trained.steps == 12
    assert same(trained.ensemble.params, calls[12].params)
    torch.testing.assert_close(calls[0].params.W_dec, init_params(D_IN, D_SAE, (0, 1)).W_dec)
    assert (calls[5].params.W_dec - calls[0].params.W_dec).abs().max() > 0.01


def test_stop_sees_the_end(x):
    calls = {}
    trained = train_saes(x, recipe(steps=7), stop=lambda step, e: bool(calls.update({step: e})), stop_at=(7,))
    assert list(calls) == [7]
    assert same(calls[7].params, trained.ensemble.params)
    assert trained.steps == 7


def test_looking_does_not_change_training(x):
    looked = train_saes(x, recipe(), stop=lambda *_: False, stop_at=tuple(range(61)))
    assert same(looked.ensemble.params, train_saes(x, recipe()).ensemble.params)


# --- bad input ---


def test_fewer_samples_than_a_batch_are_refused(x):
    with pytest.raises(HusaiError, match=r"batch_size: 64 exceeds the 63 samples"):
        train_saes(x[:63], recipe())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_input_is_refused_with_its_row(x, value):
    broken = x.clone()
    broken[7, 2] = broken[9, 0] = value
    with pytest.raises(HusaiError, match=r"row 7 holds NaN or infinity \(2 such rows\)"):
        train_saes(broken, recipe())


@pytest.mark.parametrize("value", [0.0, 1e4])
def test_constant_input_is_refused(value):
    with pytest.raises(HusaiError, match="do not vary"):
        train_saes(torch.full((600, D_IN), value), recipe())


@each_kind
def test_a_diverging_loss_is_an_error_that_names_the_rate(x, kind):
    with pytest.raises(HusaiError, match=r"not finite at step \d+; halve training.lr \(1e\+30\)"):
        train_saes(given(kind, x), recipe(kind, lr=1e30, resample_every=None))


def test_weights_that_diverge_after_the_last_loss_are_an_error(x):
    # the loss of a step is taken before its update; 1e39 is beyond float32
    with pytest.raises(HusaiError, match=r"weights are not finite at step 1; halve training.lr \(1e\+39\)"):
        train_saes(x, recipe(steps=1, lr=1e39, warmup_steps=0))


def test_stop_never_sees_diverged_weights(x):
    seen = []
    with pytest.raises(HusaiError, match="not finite at step 1;"):
        train_saes(x, recipe(lr=1e39), stop=lambda step, _: bool(seen.append(step)), stop_at=(0, 1, 2))
    assert seen == [0]


# --- resampling ---


CORNERS = {
    "topk unit": TopKConfig(d_sae=4, k=4),
    "topk weighted": TopKConfig(d_sae=4, k=4, decoder_norm="weighted"),
    "relu": ReLUConfig(d_sae=4),
    "batchtopk": BatchTopKConfig(d_sae=4, k=4),
    "abstopk": AbsTopKConfig(d_sae=4, k=4),
    "jumprelu": JumpReLUConfig(d_sae=4),
    "gated": GatedConfig(d_sae=4),
    "blocktopk": BlockTopKConfig(d_sae=4, k=4),
}
PER_LATENT = [
    (name, tensor)
    for name, tensors in (("jumprelu", ["threshold"]), ("gated", ["r_mag", "b_mag"]))
    for tensor in tensors
]


def corner(kind: SAEKind) -> tuple[Params, torch.optim.Adam, torch.Tensor, SAEKind]:
    """Two seeds over four axes. Latents 0–2 read axes 0–2 with encoder rows of norms 1, 2 and 6, and reconstruct them
    exactly. In seed 0, latent 3 is dead: its encoder is −1 everywhere and inputs are positive. In seed 1 it reads
    axis 3, and all are alive.
    """
    sizes = torch.tensor([1.0, 2.0, 6.0, 1.0])
    W_enc, W_dec = torch.diag(sizes).repeat(2, 1, 1), torch.diag(1 / sizes).repeat(2, 1, 1)
    W_enc[0, :, 3] = -1
    W_dec[0, 3] = torch.tensor([1.0, 0, 0, 0])
    plain = Params(W_enc, torch.zeros(2, 4), W_dec, torch.zeros(2, 4))
    params = architecture_of(kind).init(plain).map(lambda v: v.clone().requires_grad_())
    optimiser = torch.optim.Adam(list(params), lr=1e-9)
    sum(value.sum() for value in params).backward()  # gradient 1 everywhere fills the moments
    optimiser.step()
    samples = torch.tensor([[1.0, 1, 1, 0], [2, 9, 2, 0], [1, 2, 9, 0], [1, 1, 1, 0.5]])
    return params, optimiser, samples, kind


def resample(params, optimiser, samples, kind):
    streams = [generator("test-resample", seed) for seed in range(2)]
    return resample_dead(params, optimiser, samples, architecture_of(kind), streams)


@pytest.mark.parametrize(
    ("name", "scale"),
    [("topk unit", 1.0), ("topk weighted", 1.0), ("relu", 0.2), ("batchtopk", 1.0), ("jumprelu", 0.2), ("gated", 0.2)],
)
def test_a_dead_latent_is_pointed_at_the_worst_reconstructed_sample(name, scale):
    params, optimiser, samples, kind = corner(CORNERS[name])
    assert resample(params, optimiser, samples, kind).tolist() == [[False, False, False, True], [False] * 4]
    # only the last sample has an error (axis 3 is read by nobody), so it is chosen; live encoder rows average 3
    direction = torch.tensor([1.0, 1, 1, 0.5]) / 3.25**0.5
    torch.testing.assert_close(params.W_dec[0, 3].detach(), direction)
    torch.testing.assert_close(params.W_enc[0, :, 3].detach(), direction * 3 * scale)
    assert float(params.b_enc.detach()[0, 3]) == 0
    codes = architecture_of(kind).encode(params, samples.repeat(2, 1, 1)).detach()
    assert (codes[0, :, 3] > 0).any()


def test_the_direction_is_taken_from_the_decoder_bias():
    params, optimiser, samples, kind = corner(CORNERS["relu"])
    with torch.no_grad():
        params.b_dec[0] = torch.tensor([0.0, 0, 0, -1.5])
    resample(params, optimiser, samples[3:], kind)
    torch.testing.assert_close(params.W_dec[0, 3].detach(), torch.tensor([1.0, 1, 1, 2]) / 7**0.5)


@pytest.mark.parametrize("kind", CORNERS.values(), ids=CORNERS)
def test_resampling_leaves_every_other_latent_and_seed_alone(kind):
    params, optimiser, samples, kind = corner(kind)
    before = params.map(lambda value: value.detach().clone())
    resample(params, optimiser, samples, kind)
    for name, axis in (("W_enc", 1), ("b_enc", 0), ("W_dec", 0)):
        old, new = getattr(before, name), getattr(params, name).detach()
        alive = torch.arange(3)
        assert torch.equal(old[0].index_select(axis, alive), new[0].index_select(axis, alive)), name
        assert torch.equal(old[1], new[1]), name
    assert torch.equal(before.b_dec, params.b_dec)


@pytest.mark.parametrize("moment", ["exp_avg", "exp_avg_sq"])
def test_resampling_clears_the_moments_of_dead_latents_only(moment):
    params, optimiser, samples, kind = corner(CORNERS["topk unit"])
    before = [optimiser.state[value][moment].clone() for value in params]
    assert all((value > 0).all() for value in before)
    resample(params, optimiser, samples, kind)
    W_enc, b_enc, W_dec, b_dec = (optimiser.state[value][moment] for value in params)
    expected = [value.clone() for value in before]
    expected[0][0, :, 3] = 0
    expected[1][0, 3] = 0
    expected[2][0, 3] = 0
    for found, wanted in zip((W_enc, b_enc, W_dec, b_dec), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(("name", "tensor"), PER_LATENT)
def test_what_a_dead_latent_has_beside_its_directions_starts_afresh(name, tensor):
    params, optimiser, samples, kind = corner(CORNERS[name])
    value, start = params.more[tensor], float(params.more[tensor].detach()[0, 0])
    with torch.no_grad():
        value.copy_(torch.tensor([0.01, 0.02, 0.03, 0.4]))
    resample(params, optimiser, samples, kind)
    torch.testing.assert_close(value.detach()[0], torch.tensor([0.01, 0.02, 0.03, start]))
    torch.testing.assert_close(value.detach()[1], torch.tensor([0.01, 0.02, 0.03, 0.4]))
    for moment in ("exp_avg", "exp_avg_sq"):
        assert (optimiser.state[value][moment] == 0).tolist() == [[False, False, False, True], [False] * 4]


def test_resampling_revives_latents_in_training(x):
    """Without AuxK, most latents of a TopK SAE that is far too wide die; resampling brings some back."""
    kind = TopKConfig(d_sae=D_SAE, k=2, auxk_coefficient=0)

    def live(every, until=1.0):
        trained = train_saes(x, recipe(kind, steps=100, resample_every=every, resample_until=until))
        return int((evaluate_fit(trained.ensemble.member(0), x).live).sum()), trained.ensemble.params

    without, params = live(None)
    assert live(20)[0] > 1.3 * without
    # resampled once, at step 60, unless that is where resampling ends
    assert live(60, until=0.6)[0] == without
    assert same(live(60, until=0.6)[1], params)
    assert not same(live(60, until=0.61)[1], params)


def test_resampled_latents_start_afresh_with_a_stream_of_their_own(x, monkeypatch):
    kind, dead_at, resampled, streams = KINDS["topk unit"], [], {}, []
    gradients = TopK.gradients

    def spy_on_gradients(*args, dead, **kwargs):
        dead_at.append(dead.clone())
        return gradients(*args, dead=dead, **kwargs)

    def spy_on_resampling(*args, **kwargs):
        streams.append([stream.initial_seed() for stream in args[-1]])
        resampled[len(dead_at)] = resample_dead(*args, **kwargs)
        return resampled[len(dead_at)]

    monkeypatch.setattr(TopK, "gradients", spy_on_gradients)
    monkeypatch.setattr("husai.sae.trainer.resample_dead", spy_on_resampling)
    train_saes(x, recipe(kind, init=(0, 0, 1), data=(0, 1, 1)))
    assert list(resampled) == [20, 40]
    for step, mask in resampled.items():
        assert (dead_at[step - 1] & mask).any()  # AuxK had given them up
        assert not (dead_at[step] & mask).any()
    assert len(set(streams[0])) == 3


# --- folding ---


@each_kind
def test_folding_leaves_reconstructions_of_raw_inputs_as_they_were(x, make_params, kind):
    architecture = architecture_of(kind)
    params = architecture.init(make_params(2, D_IN, D_SAE, unit=kind.decoder_norm == "unit"))
    params = params.adding(**{name: torch.rand_like(value) + 0.2 for name, value in params.more.items()})
    raw = x.double().expand(2, -1, -1)
    normaliser = Normaliser.fit(x.double())
    codes = architecture.encode(params, normaliser(raw))
    expected = architecture.decode(params, codes, normaliser(raw)) / normaliser.scale + normaliser.mean

    seen, names = (
        params if kind.centred() else sighted(params, normaliser),
        (architecture.scaled, architecture.rescaled),
    )
    folded = finish(seen, normaliser, *names, centred=kind.centred())
    torch.testing.assert_close(folded.W_dec.norm(dim=-1), torch.ones(2, D_SAE, dtype=torch.float64))
    folded_codes = architecture.encode(folded, raw)
    torch.testing.assert_close(architecture.decode(folded, folded_codes, raw), expected)
    assert torch.equal(folded_codes != 0, codes != 0)
    assert 0.01 < (codes != 0).double().mean() < 0.9


def test_folded_codes_are_in_units_of_raw_activations():
    # x = (0, 0) and (6, 8): mean (3, 4), mean squared norm 25, scale √2/5. Latent 0 reads axis 0 of the scaled input
    # through a decoder row of norm 2: 3·√2/5 with that row is 6·√2/5 in scaled units, and 6 in raw ones.
    normaliser = Normaliser.fit(torch.tensor([[0.0, 0.0], [6.0, 8.0]]))
    params = Params(
        torch.tensor([[[1.0], [0.0]]]), torch.zeros(1, 1), torch.tensor([[[2.0, 0.0]]]), torch.tensor([[0.0, 0.0]])
    )
    folded = finish(params, normaliser)
    assert folded.W_dec.tolist() == [[[1.0, 0.0]]]
    torch.testing.assert_close(folded.b_dec, torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(pre_activations(folded, torch.tensor([[[6.0, 8.0]]])), torch.tensor([[[6.0]]]))


def test_normalised_activations_are_centred_with_mean_squared_norm_d(x):
    scaled = Normaliser.fit(x)(x)
    assert float(scaled.mean(0).abs().max()) < 1e-5
    assert float(scaled.pow(2).sum(1).mean()) == pytest.approx(D_IN, rel=1e-5)


# --- a planted dictionary is found, noise has none ---

RECOVERY = SAEConfig(
    sae=TopKConfig(d_sae=64, k=3, auxk_coefficient=1, k_aux=16, dead_steps=20),
    training=SAETrainingConfig(steps=1500, batch_size=1024, lr=3e-3, warmup_steps=100, decay_fraction=0.3),
    init_seeds=(0, 1),
    data_seeds=(0, 1),
)


def live_atoms(trained, x) -> list[torch.Tensor]:
    members = [trained.ensemble.member(index) for index in range(2)]
    return [member.atoms[evaluate_fit(member, x).live] for member in members]


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        (BatchTopKConfig(d_sae=64, k=3, k_aux=16, dead_steps=20), 0.9),
        (MatryoshkaConfig(d_sae=64, k=3, k_aux=16, dead_steps=20), 0.8),
        (AbsTopKConfig(d_sae=64, k=3, k_aux=16, dead_steps=20), 0.9),
        (ArchetypalConfig(d_sae=64, k=3, k_aux=16, dead_steps=20), 0.9),
        (JumpReLUConfig(d_sae=64, l0_coefficient=1), 0.9),
        (GatedConfig(d_sae=64, l1_coefficient=4), 0.9),
    ],
    ids=lambda value: getattr(value, "architecture", ""),
)
def test_every_architecture_recovers_most_of_a_planted_dictionary(planted, kind, least):
    training = RECOVERY.training.model_copy(update={"steps": 600})
    config = RECOVERY.model_copy(update={"sae": kind, "training": training, "init_seeds": (0,), "data_seeds": (0,)})
    dictionary = train_saes(planted.x, config).ensemble.member(0)
    fit, signless = evaluate_fit(dictionary, planted.x), kind.signed_codes
    atoms = dictionary.atoms[fit.live]
    assert pwmcc(planted.atoms, atoms, abs=signless) >= least
    assert pwmcc(planted.atoms, F.normalize(planted.noise[:64], dim=-1), abs=signless) < 0.6  # chance
    assert 2 < fit.l0 < 4.5  # 3 atoms are active
    assert fit.explained_variance > 0.75


def test_a_planted_dictionary_is_recovered_by_every_seed(planted):
    first, second = live_atoms(train_saes(planted.x, RECOVERY), planted.x)
    for atoms in (first, second):
        assert pwmcc(planted.atoms, atoms) >= 0.97
        assert pwmcc(planted.atoms, F.normalize(planted.noise[:64], dim=-1)) < 0.5  # chance
    assert pwmcc(first, second) > 0.9


def test_seeds_trained_on_noise_agree_no_better_than_chance(planted):
    first, second = live_atoms(train_saes(planted.noise, RECOVERY), planted.noise)
    chance = null_matrices(sampler("data", planted.noise), (len(first), len(second)), pwmcc, draws=10, purpose="test")[
        :, 0, 1
    ]
    assert pwmcc(first, second) < 0.5
    assert abs(pwmcc(first, second) - chance.mean()) < 0.1


def test_fresh_samples_are_what_is_trained_on():
    """Every step asks for a batch a seed, from the seed's own data stream; nothing is learned from x itself."""
    asked = []
    true = torch.nn.functional.normalize(torch.randn(D_IN, D_IN, generator=generator("test-fresh")), dim=1)

    def fresh(count, stream):
        asked.append(count)
        return torch.rand(count, 1, generator=stream) * true[torch.randint(3, (count,), generator=stream)]

    x = fresh(600, generator("test-fresh", 1))
    trained = train_saes(x, recipe(init=(0, 1), data=(0, 1)), fresh=fresh)
    assert asked[1:] == [64] * (2 * 60)
    assert not same(trained.ensemble.params, train_saes(x, recipe(init=(0, 1), data=(0, 1))).ensemble.params)
    alone = train_saes(x, recipe(init=(1,), data=(1,)), fresh=fresh)
    torch.testing.assert_close(alone.ensemble.params.W_dec[0], trained.ensemble.params.W_dec[1], atol=1e-4, rtol=1e-3)


# --- further training features ---


def test_rmsprop_with_bias_correction_is_adam_without_momentum(x):
    adam, rmsprop, momentum = (
        train_saes(x, recipe(init=(0, 1), data=(0, 1), steps=30, resample_every=20, **kind)).ensemble.params
        for kind in ({"beta1": 0.0}, {"optimiser": "rmsprop"}, {})
    )
    for ours, expected, other in zip(rmsprop, adam, momentum, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
        assert (other - expected).abs().max() > 1e-3


def test_rmsprop_by_hand():
    # v̂ = 4 after one step of gradient 2; then v̂ = (.5·.5·4 + .5·16)/.75 = 12 at gradient 4
    value = torch.tensor([1.0], requires_grad=True)
    optimiser = RMSprop([value], lr=0.1, beta2=0.5, eps=0.0)
    for gradient in (2.0, 4.0):
        value.grad = torch.tensor([gradient])
        optimiser.step()
    assert value.item() == pytest.approx(1 - 0.1 * 2 / 2 - 0.1 * 4 / 12**0.5)


def test_the_average_by_hand():
    def at(number):
        return Params(*(torch.full(shape, number) for shape in ((1, 2, 2), (1, 2), (1, 2, 2), (1, 2))))

    average = Average(at(100.0), 0.5)  # the start does not count
    average.update(at(1.0))
    average.update(at(4.0))
    assert all(value.unique().tolist() == [3.0] for value in average.value())  # (1 + 2·4)/3
    average.restart(at(7.0), torch.tensor([[True, False]]))
    restarted = average.value()
    assert restarted.b_enc.tolist() == [[7.0, 3.0]]
    assert restarted.W_dec.tolist() == [[[7.0, 7.0], [3.0, 3.0]]]
    assert restarted.b_dec.tolist() == [[3.0, 3.0]]


def test_a_resampled_latents_average_starts_anew(x, monkeypatch):
    restarted, replaced = [], []

    def spy_on_resampling(*args, **kwargs):
        replaced.append(resample_dead(*args, **kwargs))
        return replaced[-1]

    def spy_on_restart(self, params, which):
        restarted.append(which)

    monkeypatch.setattr("husai.sae.trainer.resample_dead", spy_on_resampling)
    monkeypatch.setattr(Average, "restart", spy_on_restart)
    train_saes(x, recipe(ema_decay=0.9))
    assert len(restarted) == 2
    assert any(bool(which.any()) for which in restarted)
    assert all(torch.equal(*pair) for pair in zip(restarted, replaced, strict=True))


def test_finished_saes_are_averages_with_unit_rows(x):
    seen = []
    stop = {"stop": lambda _, ensemble: bool(seen.append(ensemble.params)), "stop_at": (0, 1, 2)}
    settings = {"steps": 2, "normalise": "none", "resample_every": None}
    plain = train_saes(x, recipe(**settings), **stop)
    averaged = train_saes(x, recipe(**settings, ema_decay=0.5)).ensemble.params
    torch.testing.assert_close(averaged.b_enc, (seen[1].b_enc + 2 * seen[2].b_enc) / 3, rtol=1e-4, atol=1e-5)
    rows = F.normalize(seen[1].W_dec + 2 * seen[2].W_dec, dim=-1)
    torch.testing.assert_close(averaged.W_dec, rows, rtol=1e-4, atol=1e-5)
    assert not same(averaged, plain.ensemble.params)


def test_decoder_rows_are_normalised_every_few_steps(x, monkeypatch):
    drift, along, original = [], [], TopK.gradients

    def spy(self, params, *args, **kwargs):
        drift.append(float((params.W_dec.detach().norm(dim=-1) - 1).abs().max()))
        rows[:] = [F.normalize(params.W_dec.detach(), dim=-1)]
        return original(self, params, *args, **kwargs)

    def spy_on_clip(gradients, limit, kept):
        along.append(float((gradients.W_dec * rows[0]).sum(-1).abs().max() / gradients.W_dec.abs().max()))
        return clip_each(gradients, limit, kept)

    rows: list[torch.Tensor] = []
    monkeypatch.setattr(TopK, "gradients", spy)
    monkeypatch.setattr("husai.sae.trainer.clip_each", spy_on_clip)
    trained = train_saes(x, recipe(steps=8, decoder_norm_every=3, resample_every=None))
    assert [size < 1e-5 for size in drift] == [True, False, False, True, False, False, True, False]
    assert max(along) < 1e-5
    torch.testing.assert_close(trained.ensemble.params.W_dec.norm(dim=-1), torch.ones(1, D_SAE))


def test_decorrelation_is_part_of_the_loss_and_spreads_atoms(x):
    def train(weight):
        trained = train_saes(x, recipe(KINDS["relu unit"], decorrelation=weight, resample_every=None), log_every=1)
        return trained.history, float(decorrelation(trained.ensemble.params.W_dec))

    (plain, free), (history, spread) = train(0.0), train(0.3)
    start = float(decorrelation(init_params(D_IN, D_SAE, (0,)).W_dec))
    assert history[0].terms["decorrelation"] == pytest.approx(0.3 * start, rel=1e-4)
    assert history[0].penalty == pytest.approx(plain[0].penalty + 0.3 * start, rel=1e-4)
    assert history[0].grad_norm > plain[0].grad_norm
    assert "decorrelation" not in plain[0].terms
    assert spread < 0.9 * free


def test_the_target_l0_is_reached_by_every_seed_on_its_own(x):
    kind = ReLUConfig(d_sae=D_SAE, l1_coefficient=0.1, l1_warmup_steps=10)
    settings = {"steps": 500, "resample_every": None, "lr": 5e-3}
    steered = train_saes(x, recipe(kind, (0, 1), (0, 1), **settings, target_l0=4.0, target_l0_rate=0.02), log_every=1)
    free = train_saes(x, recipe(kind, (0, 1), (0, 1), **settings), log_every=1)
    ends = [row for row in steered.history if row.step > 450]
    for seed in (0, 1):
        mean = sum(row.l0 for row in ends if row.seed == seed) / 50
        assert mean == pytest.approx(4, abs=0.8)
    assert free.history[-1].l0 > 6
    assert {row.strength for row in free.history} == {1.0}
    first = [row for row in steered.history if row.seed == 0]
    assert {row.strength for row in first[:10]} == {1.0}  # warm-up
    for before, now in pairwise(first[9:]):
        assert now.strength == pytest.approx(before.strength * (now.l0 / 4) ** 0.02, rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "target", "message"),
    [
        (TopKConfig(d_sae=64), 8.0, "needs a penalty to steer; topk sets L0 by k"),
        (ReLUConfig(d_sae=64, l1_coefficient=0), 8.0, "multiplies sae.l1_coefficient, which is 0"),
        (ReLUConfig(d_sae=64), 65.0, "target_l0 65 exceeds d_sae 64"),
    ],
)
def test_a_target_that_cannot_be_steered_to_is_refused(kind, target, message):
    with pytest.raises(HusaiError, match=message):
        SAEConfig.parse({"sae": kind.model_dump(), "training": {"target_l0": target}}, "some file")


def test_new_settings_leave_old_run_ids_alone():
    assert set(SAETrainingConfig().model_dump()) == {
        *("steps", "batch_size", "lr", "warmup_steps", "decay_fraction", "decay", "beta1", "beta2", "clip_norm"),
        *("resample_every", "resample_until"),
    }


def test_every_step_logs_gradient_norm_and_peak(x):
    (row,) = train_saes(x, recipe(steps=1, batch_size=600, clip_norm=1e-3, resample_every=None)).history
    params = init_params(D_IN, D_SAE, (0,)).map(lambda value: value.requires_grad_())
    architecture, rows = architecture_of(KINDS["topk unit"]), Normaliser.fit(x)(x)[None]
    codes = architecture.encode(params, rows)
    ((architecture.decode(params, codes) - rows).pow(2).sum() / 600).backward()
    gradients = params.map(lambda value: value.grad if value.grad is not None else torch.zeros_like(value))
    W_dec = params.W_dec.detach()
    along = (gradients.W_dec * W_dec).sum(-1, keepdim=True) * W_dec
    squares = sum(float(value.pow(2).sum()) for value in gradients.replace(W_dec=gradients.W_dec - along))
    assert row.grad_norm == pytest.approx(squares**0.5, rel=1e-3)
    assert row.max_activation == pytest.approx(float(codes.detach().max()), rel=1e-4)


# --- normalisations ---


@pytest.mark.parametrize("kind", [KINDS[name] for name in ("topk unit", "topk weighted", "relu unit", "relu weighted")])
def test_a_scale_for_every_coordinate_folds_without_changing_who_fires(x, make_params, kind):
    spread = x.double() * torch.logspace(-2, 2, D_IN, dtype=torch.float64)
    normaliser = Normaliser.fit(spread, how="feature")
    params, raw = make_params(2, D_IN, D_SAE, unit=kind.decoder_norm == "unit"), spread.expand(2, -1, -1)
    architecture = architecture_of(kind)
    codes = architecture.encode(params, normaliser(raw))
    expected = architecture.decode(params, codes) / normaliser.scale + normaliser.mean
    made = finished(params, recipe(kind, (0, 1), (0, 1)), normaliser, architecture)
    folded = architecture_of(made.config)
    folded_codes = folded.encode(made.params, raw)
    assert torch.equal(folded_codes > 0, codes > 0)
    torch.testing.assert_close(folded.decode(made.params, folded_codes), expected)
    sizes = made.params.W_dec.norm(dim=-1)
    assert (sizes - 1).abs().max() < 1e-9 if kind.architecture == "relu" else (sizes - 1).abs().max() > 1


@pytest.mark.parametrize("normalise", ["feature", "constant_norm", "none"])
@pytest.mark.parametrize("name", ["topk unit", "relu weighted"])
def test_training_under_every_normalisation_fits_raw_samples(x, normalise, name):
    kind = KINDS[name].model_copy(update={} if name.startswith("topk") else {"l1_coefficient": 0.3})
    trained = train_saes(x, recipe(kind, normalise=normalise, steps=200, batch_size=600, decay_fraction=0.5))
    last, fit = trained.history[-1], evaluate_fit(trained.ensemble.member(0), x)
    assert fit.explained_variance > 0.6
    assert last.l0 == pytest.approx(fit.l0, abs=0.2)
    if normalise == "none":  # training saw what the fit sees
        assert last.explained_variance == pytest.approx(fit.explained_variance, abs=0.01)


def test_constant_norm_gives_back_what_it_took(x):
    made = train_saes(x, recipe(KINDS["relu unit"], normalise="constant_norm", steps=5)).ensemble
    dictionary, inner = made.member(0), architecture_of(made.config)
    sizes = x.norm(dim=1, keepdim=True) / D_IN**0.5
    codes = inner.encode(made.params, (x / sizes)[None])
    torch.testing.assert_close(dictionary.encode(x), codes[0])
    torch.testing.assert_close(dictionary.decode(codes[0]), inner.decode(made.params, codes)[0] * sizes)
    with pytest.raises(HusaiError, match=r"5 codes .* but the samples encoded last are 600"):
        dictionary.decode(codes[0, :5])


def test_a_gradient_that_is_not_finite_ends_the_run(x):
    """Its loss may be finite still."""
    trainer = Trainer(x, recipe(KINDS["relu unit"]))
    done = trainer.advance()
    trainer.grad_norm = torch.full((1,), torch.inf)
    with pytest.raises(HusaiError, match="gradient is not finite at step 1"):
        trainer.log(done, 0.1)
