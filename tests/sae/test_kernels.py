"""The fast twins against the plain computation. Without numba the sparse ones have nothing to compare and are skipped."""

import importlib.util
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from husai.config import (
    SAE_CONFIGS,
    BatchTopKConfig,
    JumpReLUConfig,
    MatryoshkaConfig,
    ReLUConfig,
    SAEConfig,
    TopKConfig,
)
from husai.sae.architecture import Architecture
from husai.sae.architectures import ARCHITECTURES
from husai.sae.batchtopk import BatchTopK
from husai.sae.jumprelu import JumpReLU
from husai.sae.kernels import choice
from husai.sae.kernels.share import serial, share
from husai.sae.matryoshka import Matryoshka
from husai.sae.params import Params
from husai.sae.relu import ReLU
from husai.sae.topk import TopK
from husai.sae.trainer import Trainer

needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")


def single(params: Params) -> Params:
    return params.map(lambda value: value.float().contiguous().requires_grad_())


def samples(seeds: int, batch: int, d_in: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(seeds, batch, d_in, generator=torch.Generator().manual_seed(seed))


def both(architecture: Architecture, params: Params, x: torch.Tensor, dead: torch.Tensor | None = None, step: int = 0):
    """The step as training takes it, and by autograd."""
    dead = torch.zeros(params.b_enc.shape, dtype=torch.bool) if dead is None else dead
    fast = architecture.gradients(params, x, step=step, dead=dead)
    return fast, architecture.by_autograd(params, x, step, dead)


def equal(fast, plain) -> None:
    for (name, ours), theirs in zip(fast.gradients.items(), plain.gradients, strict=True):
        assert theirs.abs().max() > 1e-4, f"the gradient of {name} is trivially equal"
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max(), name
    torch.testing.assert_close(fast.mse, plain.mse, rtol=1e-5, atol=0)
    assert set(fast.terms) == set(plain.terms)
    for name, value in fast.terms.items():
        torch.testing.assert_close(value, plain.terms[name], rtol=1e-5, atol=1e-7)
    assert torch.equal(fast.l0, plain.l0)
    assert torch.equal(fast.fired, plain.fired)


@pytest.fixture
def counted(monkeypatch):
    """How many steps went through the sparse kernels."""
    from husai.sae.kernels import topk

    calls, step = [], topk.sparse_step
    monkeypatch.setattr(topk, "sparse_step", lambda *arguments: calls.append(1) or step(*arguments))
    return calls


@pytest.fixture
def batch_steps(monkeypatch):
    """How many steps of BatchTopK went through its kernel."""
    from husai.sae.kernels import batchtopk

    calls, step = [], batchtopk.batch_step
    monkeypatch.setattr(batchtopk, "batch_step", lambda *arguments: calls.append(1) or step(*arguments))
    return calls


# --- TopK ---


@needs_numba
@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(
    ("batch", "d_in", "d_sae", "k"),
    [(64, 16, 64, 4), (777, 37, 131, 7), (1, 5, 9, 2), (300, 8, 63, 1), (290, 12, 70, 70), (257, 20, 200, 40)],
)
def test_topk_equals_autograd(make_params, counted, seeds, batch, d_in, d_sae, k):
    params = single(make_params(seeds, d_in, d_sae, unit=True))
    equal(*both(TopK(TopKConfig(d_sae=d_sae, k=k)), params, samples(seeds, batch, d_in)))
    assert len(counted) == seeds


@needs_numba
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_topk_does_not_depend_on_the_number_of_threads(make_params, threads):
    params, x = single(make_params(2, 16, 96, unit=True)), samples(2, 1000, 16)
    before, architecture = torch.get_num_threads(), TopK(TopKConfig(d_sae=96, k=5))
    once, _ = both(architecture, params, x)
    try:
        torch.set_num_threads(threads)
        again, _ = both(architecture, params, x)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for ours, theirs in zip(once.gradients, again.gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@needs_numba
@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("k_aux", [None, 40])
def test_topk_with_dead_latents(make_params, counted, rectified, k_aux):
    params, x = single(make_params(3, 20, 80, unit=True)), samples(3, 300, 20)
    dead = torch.zeros(3, 80, dtype=torch.bool)
    dead[0, ::9], dead[2, 5:60] = True, True
    config = TopKConfig(d_sae=80, k=6, auxk_rectified=rectified, k_aux=k_aux, auxk_coefficient=0.7)
    fast, plain = both(TopK(config), params, x, dead)
    assert (plain.terms["auxk"] > 0.01).tolist() == [True, False, True]
    equal(fast, plain)
    assert len(counted) == 3


def by_hand(W_enc: torch.Tensor, b_enc: torch.Tensor) -> Params:
    """One SAE on one input whose decoder rows are all 1."""
    m = len(b_enc)
    return single(Params(W_enc.view(1, 1, m), b_enc.view(1, m), torch.ones(1, m, 1), torch.zeros(1, 1)))


@needs_numba
def test_of_equal_scores_exactly_k_survive():
    # Scores at x = 1: 3 once, 2 seventy times, 1 once. k = 5 leaves 3 + 4·2 = 11, whichever of the twos these are.
    W_enc = torch.cat([torch.tensor([1.0]), torch.full((70,), 2.0), torch.tensor([3.0])])
    step, _ = both(TopK(TopKConfig(d_sae=72, k=5)), by_hand(W_enc, torch.zeros(72)), torch.ones(1, 1, 1))
    assert step.l0.tolist() == [5.0]
    assert step.mse.tolist() == [100.0]
    assert step.fired.sum() == 5
    assert step.fired[0, 71]
    assert step.gradients.W_dec[0, 71].tolist() == [2 * 10 * 3.0]


@needs_numba
def test_negative_scores_among_the_k_largest_are_zero():
    # Scores of x = 1 are 2 and −1, of x = −1 they are −2 and 1, of x = 0 both 0: with k = 2 one, one and none are active.
    params = by_hand(torch.tensor([2.0, -1.0]), torch.zeros(2))
    step, _ = both(TopK(TopKConfig(d_sae=2, k=2)), params, torch.tensor([[[1.0], [-1.0], [0.0]]]))
    assert step.l0.item() == pytest.approx(2 / 3)
    assert step.mse.item() == pytest.approx((1 + 4 + 0) / 3)  # x̂ − x is 1, 2 and 0


@needs_numba
def test_a_batch_without_any_active_latent(make_params):
    params = make_params(1, 6, 12, unit=True)
    params.b_enc.fill_(-1e3)
    fast, plain = both(TopK(TopKConfig(d_sae=12, k=3)), single(params), samples(1, 40, 6))
    assert fast.l0.item() == 0
    assert not fast.fired.any()
    for ours, theirs in zip(fast.gradients, plain.gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@needs_numba
@pytest.mark.parametrize("value", [float("nan"), float("-nan"), float("inf")])
def test_weights_that_are_not_finite_show_in_the_loss(make_params, value):
    params = make_params(1, 6, 12, unit=True)
    params.b_enc[0, 3] = value
    step, _ = both(TopK(TopKConfig(d_sae=12, k=3)), single(params), samples(1, 40, 6))
    assert not step.mse.isfinite().any()


@needs_numba
def test_what_the_kernels_do_not_cover_is_computed_plainly(make_params, counted):
    free, x = make_params(1, 6, 12), samples(1, 40, 6)
    equal(*both(TopK(TopKConfig(d_sae=12, k=3, decoder_norm="weighted")), single(free), x))
    unit = make_params(1, 6, 12, unit=True).map(lambda value: value.requires_grad_())
    equal(*both(TopK(TopKConfig(d_sae=12, k=3)), unit, x.double()))

    class Variant(TopK):
        def select(self, scores):
            return scores.relu()

    equal(*both(Variant(TopKConfig(d_sae=12, k=3)), single(make_params(1, 6, 12, unit=True)), x))
    assert not counted


def trained(planted, steps: int = 200) -> tuple[float, Params]:
    sae = TopKConfig(d_sae=64, k=3, dead_steps=20)
    training = {"steps": steps, "batch_size": 512, "lr": 3e-3, "warmup_steps": 0}
    trainer = Trainer(planted.x, SAEConfig(sae=sae, training=training, init_seeds=(0, 1), data_seeds=(0, 0)))
    losses = [trainer.advance().mse for _ in range(steps)]
    return float(torch.stack(losses[-20:]).mean()), trainer.params


@needs_numba
def test_training_is_the_same_with_and_without_kernels(planted, counted, monkeypatch):
    fast, params = trained(planted)
    assert len(counted) == 400
    torch.testing.assert_close(params.W_dec.norm(dim=-1), torch.ones(2, 64))
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: None)
    plain, others = trained(planted)
    assert len(counted) == 400
    assert fast == pytest.approx(plain, rel=0.02)
    assert F.cosine_similarity(params.W_dec, others.W_dec, dim=-1).median() > 0.999


def test_without_numba_training_works(planted, monkeypatch):
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: None)
    loss, _ = trained(planted, 20)
    assert loss < planted.x.shape[1]


# --- BatchTopK ---


def batchtopk(params: Params, **config) -> tuple[BatchTopK, Params]:
    architecture = BatchTopK(BatchTopKConfig(d_sae=params.b_enc.shape[1], **config))
    return architecture, single(architecture.init(params))


def equal_batchtopk(fast, plain) -> None:
    """As `equal`; thresholds get no gradient."""
    for step in (fast, plain):
        assert not step.gradients.more["threshold"].any()
    torch.testing.assert_close(fast.seen["smallest"], plain.seen["smallest"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fast.peak, plain.peak, rtol=1e-6, atol=0)
    four = [step._replace(gradients=replace(step.gradients, more={})) for step in (fast, plain)]
    equal(*four)


@needs_numba
@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(
    ("batch", "d_in", "d_sae", "k"),
    [(64, 16, 64, 4), (777, 37, 131, 7), (1, 5, 9, 2), (300, 8, 63, 1), (290, 12, 70, 70), (257, 20, 200, 40)],
)
def test_batchtopk_equals_autograd(make_params, batch_steps, seeds, batch, d_in, d_sae, k):
    architecture, params = batchtopk(make_params(seeds, d_in, d_sae, unit=True), k=k)
    fast, plain = both(architecture, params, samples(seeds, batch, d_in))
    equal_batchtopk(fast, plain)
    assert len(batch_steps) == seeds
    if k < d_sae // 2:
        assert fast.l0.tolist() == [k] * seeds


@needs_numba
def test_a_batch_that_is_not_like_its_beginning(make_params, batch_steps):
    # The level is guessed from the first block: here its samples are far larger or smaller than all others.
    for factor in (100.0, 0.01):
        architecture, params = batchtopk(make_params(1, 16, 96, unit=True), k=5)
        x = samples(1, 1500, 16)
        x[:, :256] *= factor
        equal_batchtopk(*both(architecture, params, x))
    assert len(batch_steps) == 2


@needs_numba
def test_batchtopk_with_dead_latents(make_params):
    architecture, params = batchtopk(make_params(3, 20, 80, unit=True), k=6, auxk_coefficient=0.7)
    dead = torch.zeros(3, 80, dtype=torch.bool)
    dead[0, ::9], dead[2, 5:60] = True, True
    fast, plain = both(architecture, params, samples(3, 300, 20), dead)
    assert (plain.terms["auxk"] > 0.01).tolist() == [True, False, True]
    equal_batchtopk(fast, plain)


@needs_numba
def test_of_equal_scores_in_a_batch_exactly_as_many_survive():
    # Scores are 3 once, 2 six hundred times and 1 once, on each of 700 samples x = 1: 700·2 largest are all threes and 700
    # of the twos, so that the squared errors average to less than those of a sample with one three and one two.
    W_enc = torch.cat([torch.tensor([1.0]), torch.full((600,), 2.0), torch.tensor([3.0])])
    architecture, params = batchtopk(by_hand(W_enc, torch.zeros(602)), k=2)
    step, _ = both(architecture, params, torch.ones(1, 700, 1))
    assert step.l0.tolist() == [2.0]
    assert step.seen["smallest"].tolist() == [[2.0]]
    assert step.fired[0, 601]
    assert not step.fired[0, 0]
    # The first 600-odd twos fill sample 0 and part of sample 1: x̂ − 1 is 3 + 1200 − 1, then 3 + 200 − 1, then 2.
    assert step.mse.item() == pytest.approx((1202**2 + 202**2 + 698 * 2**2) / 700)


@needs_numba
def test_batchtopk_without_any_active_latent(make_params):
    start = make_params(1, 6, 12, unit=True)
    start.b_enc.fill_(-1e3)
    architecture, params = batchtopk(start, k=3)
    fast, plain = both(architecture, params, samples(1, 40, 6))
    assert fast.l0.item() == 0
    assert fast.seen["smallest"].tolist() == plain.seen["smallest"].tolist() == [[float("inf")]]
    for ours, theirs in zip(fast.gradients, plain.gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@needs_numba
@pytest.mark.parametrize("value", [float("nan"), float("-nan"), float("inf")])
def test_batchtopk_shows_weights_that_are_not_finite(make_params, value):
    start = make_params(1, 6, 12, unit=True)
    start.b_enc[0, 3] = value
    architecture, params = batchtopk(start, k=3)
    assert not both(architecture, params, samples(1, 40, 6))[0].mse.isfinite().any()


@needs_numba
def test_matryoshka_is_computed_plainly(make_params, batch_steps):
    architecture = Matryoshka(MatryoshkaConfig(d_sae=16, k=3))
    params = single(architecture.init(make_params(1, 6, 16, unit=True)))
    fast, plain = both(architecture, params, samples(1, 40, 6))
    assert set(fast.terms) == {"auxk", "inner_2", "inner_4", "inner_8"}
    torch.testing.assert_close(fast.gradients.W_dec, plain.gradients.W_dec)
    assert len(batch_steps) == 0


# --- ReLU and JumpReLU ---

SHAPES = pytest.mark.parametrize(("batch", "d_in", "d_sae"), [(64, 16, 128), (777, 37, 131), (1, 5, 9), (256, 8, 63)])


@pytest.mark.parametrize("seeds", [1, 3])
@SHAPES
@pytest.mark.parametrize(("step", "unit"), [(3, False), (500, True)], ids=["warming up", "unit norms"])
def test_relu_without_numba_equals_autograd(make_params, monkeypatch, seeds, batch, d_in, d_sae, step, unit):
    from husai.sae import relu

    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: None)
    calls, fast_step = [], relu.relu_step
    monkeypatch.setattr(relu, "relu_step", lambda *arguments: calls.append(1) or fast_step(*arguments))
    params = single(make_params(seeds, d_in, d_sae, unit=unit))
    config = ReLUConfig(d_sae=d_sae, l1_coefficient=0.8, l1_warmup_steps=10)
    equal(*both(ReLU(config), params, samples(seeds, batch, d_in), step=step))
    assert len(calls) == seeds


@pytest.fixture(params=["sparse", "dense"])
def way(request, monkeypatch):
    """Both ways of computing a step, whatever the share of codes."""
    threshold = pytest.importorskip("husai.sae.kernels.threshold", exc_type=ImportError)
    monkeypatch.setattr(threshold, "DENSE", 2.0 if request.param == "sparse" else 0.0)
    calls, name = [], f"_{request.param}"
    step = getattr(threshold, name)
    monkeypatch.setattr(threshold, name, lambda *arguments: calls.append(1) or step(*arguments))
    return calls


@needs_numba
@pytest.mark.parametrize("seeds", [1, 3])
@SHAPES
@pytest.mark.parametrize(("step", "unit"), [(3, False), (500, True)], ids=["warming up", "unit norms"])
def test_relu_equals_autograd(make_params, way, seeds, batch, d_in, d_sae, step, unit):
    params = single(make_params(seeds, d_in, d_sae, unit=unit))
    architecture = ReLU(ReLUConfig(d_sae=d_sae, l1_coefficient=0.8, l1_warmup_steps=10))
    architecture.strength = torch.arange(1.0, seeds + 1)
    fast, plain = both(architecture, params, samples(seeds, batch, d_in), step=step)
    equal(fast, plain)
    torch.testing.assert_close(fast.peak, plain.peak, rtol=1e-6, atol=0)
    assert len(way) == seeds


@needs_numba
@pytest.mark.parametrize("seeds", [1, 3])
@SHAPES
@pytest.mark.parametrize("to_input", [False, True], ids=["theirs", "to input"])
@pytest.mark.parametrize(
    ("loss", "step", "unit"), [("step", 500, False), ("step", 3, True), ("tanh", 500, False), ("tanh", 3, True)]
)
def test_jumprelu_equals_autograd(make_params, way, seeds, batch, d_in, d_sae, to_input, loss, step, unit):
    config = {"sparsity_loss": loss, "l0_coefficient": 0.8, "l0_warmup_steps": 10, "ste_to_input": to_input}
    architecture = JumpReLU(JumpReLUConfig(d_sae=d_sae, bandwidth=5.0 if batch == 1 else 0.5, **config))
    architecture.strength = torch.arange(1.0, seeds + 1)
    levels = 0.6 * torch.rand(seeds, d_sae, generator=torch.Generator().manual_seed(1))
    params = single(make_params(seeds, d_in, d_sae, unit=unit).adding(threshold=levels))
    fast, plain = both(architecture, params, samples(seeds, batch, d_in), step=step)
    equal(fast, plain)
    torch.testing.assert_close(fast.peak, plain.peak, rtol=1e-6, atol=0)
    assert len(way) == seeds


@needs_numba
def test_a_pre_activation_in_the_band_by_hand(way):
    # h = 1·x + 0 = 1 with θ = 1.2 and band 0.5: no code, but dθ = −(θ·d f + λ)/0.5 with d f = 2·(0 − 1)·1 = −2, λ = 1.
    params = by_hand(torch.ones(1), torch.zeros(1)).adding(threshold=torch.full((1, 1), 1.2))
    step, _ = both(JumpReLU(JumpReLUConfig(d_sae=1, bandwidth=0.5)), single(params), torch.ones(1, 1, 1), step=500)
    assert step.l0.item() == 0
    assert not step.fired.any()
    assert step.gradients.more["threshold"].item() == pytest.approx(-(1.2 * -2 + 1) / 0.5)
    assert step.gradients.W_enc.item() == 0
    assert len(way) == 1


@needs_numba
@pytest.mark.parametrize("value", [float("nan"), float("-nan"), float("inf")])
def test_thresholds_show_weights_that_are_not_finite(make_params, way, value):
    start = make_params(1, 6, 12).adding(threshold=torch.full((1, 12), 0.1))
    start.b_enc[0, 3] = value
    step, _ = both(JumpReLU(JumpReLUConfig(d_sae=12)), single(start), samples(1, 40, 6))
    assert not step.mse.isfinite().any()


@needs_numba
@pytest.mark.parametrize("level", [0.0, 2.0])
def test_the_way_follows_the_share_of_codes(make_params, monkeypatch, level):
    from husai.sae.kernels import threshold

    calls, step = [], threshold._sparse
    monkeypatch.setattr(threshold, "_sparse", lambda *arguments: calls.append(1) or step(*arguments))
    start = make_params(1, 6, 40)
    start.b_enc.sub_(level * start.W_enc.norm(dim=1))
    equal(*both(ReLU(ReLUConfig(d_sae=40, l1_warmup_steps=0)), single(start), samples(1, 500, 6)))
    assert len(calls) == (level > 0)


@needs_numba
@pytest.mark.parametrize(
    "config", [{"sparsity_loss": "quadratic", "target_l0": 4}, {"pre_act_coefficient": 0.1}, {"decoder_norm": "unit"}]
)
def test_jumprelu_that_the_kernels_do_not_cover(make_params, way, config):
    dtype = torch.float64 if "decoder_norm" in config else torch.float32
    architecture = JumpReLU(JumpReLUConfig(d_sae=20, l0_warmup_steps=0, **config))
    params = architecture.init(make_params(2, 6, 20)).map(lambda value: value.to(dtype).requires_grad_())
    dead = torch.ones(2, 20, dtype=torch.bool)
    equal(*both(architecture, params, samples(2, 64, 6).to(dtype), dead))
    assert not way


# --- stacks by autograd ---


@pytest.mark.parametrize("kind", ["jumprelu", "matryoshka", "gated", "topk"])
def test_seeds_in_groups_get_what_they_get_together(make_params, monkeypatch, kind):
    from husai.sae import architecture as module

    architecture = ARCHITECTURES[kind](
        SAE_CONFIGS[kind](d_sae=16, **({"k": 3} if kind in ("topk", "matryoshka") else {}))
    )
    architecture.strength = torch.arange(1.0, 6.0)
    params = architecture.init(make_params(5, 6, 16)).map(lambda value: value.requires_grad_())
    x, dead = samples(5, 32, 6).double(), torch.zeros(5, 16, dtype=torch.bool)
    dead[1, 3] = dead[4, 2:9] = True
    together = architecture.by_autograd(params, x, 50, dead)
    calls, autograd = [], Architecture._together
    monkeypatch.setattr(Architecture, "_together", lambda *arguments: calls.append(1) or autograd(*arguments))
    monkeypatch.setattr(module, "AT_ONCE", 2 * 32 * 16)
    grouped = architecture.by_autograd(params, x, 50, dead)
    assert len(calls) == 3
    torch.testing.assert_close(grouped.mse, together.mse)
    for ours, theirs in zip(grouped.gradients, together.gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(dict(grouped.terms), dict(together.terms))
    torch.testing.assert_close(dict(grouped.seen), dict(together.seen))
    torch.testing.assert_close(grouped.peak, together.peak)
    assert torch.equal(grouped.l0, together.l0)
    assert torch.equal(grouped.fired, together.fired)


# --- blocks ---


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_block_is_done_once(threads):
    done = []
    share(done.append, 37, threads)
    assert sorted(done) == list(range(37))


def test_an_error_in_a_block_is_raised_and_the_threads_stay():
    threads = torch.get_num_threads()

    def fail(block: int) -> None:
        raise ValueError(f"block {block} with {torch.get_num_threads()} thread")

    def run() -> None:
        with serial():
            share(fail, 8, 2)

    with pytest.raises(ValueError, match="with 1 thread"):
        run()
    assert torch.get_num_threads() == threads
