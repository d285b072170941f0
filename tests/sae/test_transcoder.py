import pytest
import torch
from torch import Tensor

from husai.activations import Normaliser
from husai.analysis.fit import evaluate_fit
from husai.config import (
    AnalysisConfig,
    SAEConfig,
    SAETrainingConfig,
    SkipSAEConfig,
    SkipTranscoderConfig,
    SuiteConfig,
    TopKConfig,
    TopKSkipSAEConfig,
    TopKSkipTranscoderConfig,
    TopKTranscoderConfig,
    TranscoderConfig,
)
from husai.errors import HusaiError
from husai.measure import Hook, Members, measure
from husai.sae.architectures import architecture_of
from husai.sae.dictionary import finished
from husai.sae.estimate import estimate
from husai.sae.pairs import Pairs
from husai.sae.params import Params, init_params
from husai.sae.resample import resample_dead
from husai.sae.train import train_saes
from husai.sae.trainer import Trainer
from husai.seeding import generator
from husai.shards import StoreWriter, open_store
from husai.truth.synthetic import Planted

pytestmark = pytest.mark.filterwarnings(
    "ignore:The 'utils' module has been deprecated:DeprecationWarning",  # sae_lens imports transformer_lens.utils
)

D_IN, D_OUT, D_SAE = 6, 4, 10
RELU = {"d_sae": D_SAE, "l1_coefficient": 0.7, "l1_warmup_steps": 0}
KINDS = {
    "transcoder": TranscoderConfig(**RELU),
    "skip_transcoder": SkipTranscoderConfig(**RELU),
    "skip_sae": SkipSAEConfig(**RELU),
    "topk_transcoder": TopKTranscoderConfig(d_sae=D_SAE, k=3),
    "topk_skip_transcoder": TopKSkipTranscoderConfig(d_sae=D_SAE, k=3),
    "topk_skip_sae": TopKSkipSAEConfig(d_sae=D_SAE, k=3),
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
NONE_DEAD = torch.zeros(1, 2, dtype=torch.bool)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator("test-transcoder", seed), dtype=torch.float64)


def random_params(kind, seeds: int = 2) -> Params:
    """Float64, every tensor generic, the skip connection too; decoder rows of norm 1 where they are kept so."""
    d_out = D_OUT if kind.paired else D_IN
    W_dec = drawn(seeds, D_SAE, d_out, seed=1)
    W_dec = W_dec / W_dec.norm(dim=-1, keepdim=True) if kind.decoder_norm == "unit" else W_dec
    four = (drawn(seeds, D_IN, D_SAE, seed=2), drawn(seeds, D_SAE, seed=3), W_dec, drawn(seeds, d_out, seed=4))
    made = architecture_of(kind).init(Params(*four))
    return made.adding(**{name: drawn(*value.shape, seed=5) for name, value in made.more.items()})


def recipe(kind, seeds=(0,), **training) -> SAEConfig:
    quick = {"steps": 60, "batch_size": 64, "lr": 1e-2, "warmup_steps": 5, "decay_fraction": 0}
    return SAEConfig(sae=kind, training=SAETrainingConfig(**(quick | training)), init_seeds=seeds, data_seeds=seeds)


# --- by hand ---

# Latent 0 reads axis 0 of two, latent 1 axis 1 minus 1; they write along axes 0 and 2 of three.
BY_HAND = Params(
    torch.tensor([[[1.0, 0], [0, 1]]]),
    torch.tensor([[0.0, -1]]),
    torch.tensor([[[1.0, 0, 0], [0, 0, 1]]]),
    torch.tensor([[0.0, 5, 0]]),
)
X, Y = torch.tensor([[[2.0, 3]]]), torch.tensor([[[2.0, 6, 0]]])


def test_a_transcoder_reads_x_itself_and_is_judged_by_the_target():
    architecture = architecture_of(TranscoderConfig(d_sae=2, l1_coefficient=0.5, l1_warmup_steps=0))
    losses = architecture.losses(BY_HAND, X, step=1, dead=NONE_DEAD, target=Y)
    assert losses.codes.tolist() == [[[2.0, 2.0]]]  # b_dec, of the target's width, is not subtracted
    assert architecture.decode(BY_HAND, losses.codes, X).tolist() == [[[2.0, 5, 2]]]
    assert losses.mse.tolist() == [5.0]  # errors 0, 1 and 2
    assert losses.penalty.tolist() == [2.0]  # 0.5·(2 + 2)


def test_a_skip_connection_adds_a_linear_map_of_x():
    architecture = architecture_of(SkipTranscoderConfig(d_sae=2, l1_coefficient=0, l1_warmup_steps=0))
    params = BY_HAND.adding(W_skip=torch.tensor([[[0.0, 0], [-1, 1], [0, 1]]]))
    losses = architecture.losses(params, X, step=1, dead=NONE_DEAD, target=Y)
    assert losses.codes.tolist() == [[[2.0, 2.0]]]
    assert architecture.decode(params, losses.codes, X).tolist() == [[[2.0, 6, 5]]]  # 5 + 3 − 2, 2 + 3
    assert architecture.decode(params, losses.codes).tolist() == [[[2.0, 5, 2]]]
    assert losses.mse.tolist() == [25.0]


def test_topk_keeps_the_largest_and_auxk_is_about_what_is_left_of_the_target():
    architecture = architecture_of(TopKTranscoderConfig(d_sae=2, k=1, k_aux=1))
    x, dead = torch.tensor([[[3.0, 2]]]), torch.tensor([[False, True]])
    losses = architecture.losses(BY_HAND, x, step=1, dead=dead, target=Y)
    assert losses.codes.tolist() == [[[3.0, 0]]]
    assert losses.mse.tolist() == [2.0]  # (3, 5, 0) for (2, 6, 0)
    assert losses.terms["auxk"].tolist() == [3.0]  # the dead latent's (0, 0, 1) for the residual (−1, 1, 0)


@each_kind
def test_a_skip_connection_starts_at_0_and_changes_nothing_then(kind):
    d_target = D_OUT if kind.paired else None
    start = init_params(D_IN, D_SAE, (3, 4), d_target=d_target)
    params = architecture_of(kind).init(start)
    assert ("W_skip" in params.more) == kind.skip
    assert all(not value.any() for value in params.more.values())
    x = torch.randn(2, 5, D_IN, generator=generator("test"))
    codes = architecture_of(kind).encode(params, x)
    decode = architecture_of(kind).decode
    assert torch.equal(decode(params, codes, x), decode(params, codes))


def test_encoders_of_transcoders_are_drawn_apart_from_decoders():
    params = init_params(D_IN, D_SAE, (3, 4), d_target=D_IN)
    for tensor in (params.W_enc.mT, params.W_dec):
        torch.testing.assert_close(tensor.norm(dim=-1), torch.ones(2, D_SAE))
    assert (params.W_enc.mT - params.W_dec).abs().max() > 0.1
    assert not torch.equal(params.W_enc[0], params.W_enc[1])
    alone = init_params(D_IN, D_SAE, (4,), d_target=D_IN)
    assert torch.equal(alone.W_enc[0], params.W_enc[1])


# --- against SAELens, which has the classes but trains none: its forward pass, with autograd ---


@pytest.mark.parametrize("decoder_norm", ["unit", "weighted"])
@pytest.mark.parametrize("name", ["transcoder", "skip_transcoder"])
def test_outputs_loss_and_gradients_are_those_of_sae_lens_forward(sae_lens, name, decoder_norm):
    kind = KINDS[name].model_copy(update={"decoder_norm": decoder_norm})
    architecture, start = architecture_of(kind), random_params(kind, seeds=3)
    x, y = drawn(3, 7, D_IN, seed=6), drawn(3, 7, D_OUT, seed=7)
    losses = architecture.losses(start, x, step=1, dead=torch.zeros(3, D_SAE, dtype=torch.bool), target=y)
    ours = start.map(lambda value: value.clone().requires_grad_())
    done = architecture.gradients(ours, x, step=1, dead=torch.zeros(3, D_SAE, dtype=torch.bool), target=y)
    theirs_of = {"transcoder": "Transcoder", "skip_transcoder": "SkipTranscoder"}[name]
    for seed in range(3):
        settings = getattr(sae_lens, f"{theirs_of}Config")(
            d_in=D_IN, d_sae=D_SAE, d_out=D_OUT, dtype="float64", apply_b_dec_to_input=False
        )
        module = getattr(sae_lens, theirs_of)(settings)
        module.load_state_dict({key: value[seed] for key, value in start.items()})
        out, codes = module.forward_with_activations(x[seed])
        mse = (out - y[seed]).pow(2).sum(-1).mean()
        loss = mse + 0.7 * (codes * module.W_dec.norm(dim=-1)).sum(-1).mean()
        loss.backward()
        assert 0.1 < (codes > 0).double().mean() < 0.9
        torch.testing.assert_close(losses.codes[seed], codes, rtol=0, atol=1e-12)
        torch.testing.assert_close(losses.mse[seed], mse, rtol=1e-9, atol=0)
        torch.testing.assert_close(losses.total[seed], loss, rtol=1e-9, atol=0)
        for key, value in done.gradients.items():
            expected = getattr(module, key).grad
            assert expected.abs().max() > 1e-3
            torch.testing.assert_close(value[seed], expected, rtol=1e-9, atol=1e-11, msg=key)


# --- folding ---


@pytest.mark.parametrize("normalise", ["scalar", "feature", "none"])
@pytest.mark.parametrize("decoder_norm", ["unit", "weighted"])
@each_kind
def test_folding_leaves_what_is_made_of_raw_inputs_as_it_was(kind, decoder_norm, normalise):
    kind = kind.model_copy(update={"decoder_norm": decoder_norm})
    params, architecture = random_params(kind), architecture_of(kind)
    x = drawn(200, D_IN, seed=8) * torch.logspace(-1, 1, D_IN, dtype=torch.float64) + 4
    y = drawn(200, D_OUT, seed=9) * torch.logspace(2, 1, D_OUT, dtype=torch.float64) - 9 if kind.paired else x
    source = Normaliser.fit(x, how=normalise)
    target = Normaliser.fit(y, how=normalise) if kind.paired else source
    seen = source(x).expand(2, -1, -1)
    codes = architecture.encode(params, seen)
    expected = architecture.decode(params, codes, seen) / target.scale + target.mean
    made = finished(params, recipe(kind, (0, 1)), source, architecture, target if kind.paired else None)
    for index in range(2):
        dictionary = made.member(index)
        torch.testing.assert_close(dictionary.reconstruct(x), expected[index])
        assert torch.equal(dictionary.encode(x) != 0, codes[index] != 0)
        if normalise != "feature" or "topk" not in kind.architecture:
            norms = dictionary.W_dec.norm(dim=-1)
            torch.testing.assert_close(norms, torch.ones_like(norms))


# --- batches of pairs ---


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """600 inputs, and targets that are no linear map of them; means and scales are far from 0 and 1."""
    x = drawn(600, D_IN, seed=10).float()
    hidden = (x @ drawn(D_IN, 20, seed=11).float()).relu()
    return Pairs(3 * x + 2, 40 * hidden @ drawn(20, D_OUT, seed=12).float() - 100)


def write(folder, x, of, rows=100):
    with StoreWriter(folder, of, rows_per_shard=rows) as writer:
        writer.append(x)
    return open_store(folder)


@pytest.fixture
def stores(pairs, tmp_path) -> Pairs:
    about = {"model_name": "m"}
    x = write(tmp_path / "x", pairs.x, about | {"hook_name": "in"})
    return Pairs(x, write(tmp_path / "y", pairs.target, about | {"hook_name": "out"}))


def test_batches_hold_the_rows_of_inputs_and_targets_in_the_same_order(tmp_path):
    """A row is its own number, and its target that number times 10; read with buffers of two shards or in memory."""
    rows = torch.arange(300.0)[:, None].expand(-1, 2)
    tensors = Pairs(rows, 10 * rows)
    streamed = Pairs(write(tmp_path / "x", rows, {}, 50), write(tmp_path / "y", 10 * rows, {}, 50))
    for given in (tensors, streamed):
        config = recipe(TopKTranscoderConfig(d_sae=4, k=1), (0, 1), normalise="none", buffer_rows=100)
        trainer = Trainer(given, config)
        assert trainer.aim is not None
        for step in range(10):
            x, target = trainer.batches.at(step), trainer.aim.batches.at(step)
            assert torch.equal(target, 10 * x)
            assert not torch.equal(x[0], x[1])
        assert torch.equal(trainer.targets, 10 * trainer.samples)


@pytest.mark.parametrize("name", ["topk_transcoder", "skip_transcoder"])
def test_a_store_in_one_block_trains_what_its_rows_in_memory_do(pairs, stores, name):
    first = train_saes(pairs, recipe(KINDS[name], resample_every=20)).ensemble.params
    second = train_saes(stores, recipe(KINDS[name], resample_every=20)).ensemble.params
    for ours, theirs in zip(first, second, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_what_is_no_pair_is_refused(tmp_path, pairs):
    kind, plain = KINDS["transcoder"], TopKConfig(d_sae=D_SAE, k=3)
    with pytest.raises(HusaiError, match="are 600 and 599 rows; they must be pairs"):
        Pairs(pairs.x, pairs.target[1:])
    whole = write(tmp_path / "a", pairs.x, {"hook_name": "in", "tokens": "t"})
    with pytest.raises(HusaiError, match="one is a store, the other is not"):
        Pairs(whole, pairs.target)
    with pytest.raises(HusaiError, match=r"its tokens is 'u', but that of .*a is 't'; rows must be pairs"):
        Pairs(whole, write(tmp_path / "b", pairs.target, {"tokens": "u"}))
    about = {"hook_name": "out", "tokens": "t"}
    with pytest.raises(HusaiError, match="hold 100 and 150 rows in shard 0; rows must be pairs, shard by shard"):
        Pairs(whole, write(tmp_path / "c", pairs.target, about, 150))
    with pytest.raises(HusaiError, match="hold 6 and 5 shards; rows"):
        Pairs(whole, write(tmp_path / "d", pairs.target[:500], about))
    with pytest.raises(HusaiError, match=r"sae.architecture transcoder: reconstructs a target, which is missing"):
        train_saes(pairs.x, recipe(kind))
    with pytest.raises(HusaiError, match=r"sae.architecture topk: reconstructs its input; leave out the target"):
        train_saes(pairs, recipe(plain))
    with pytest.raises(HusaiError, match="cannot train on samples that are drawn anew"):
        train_saes(pairs, recipe(kind), fresh=lambda count, g: torch.randn(count, D_IN, generator=g))
    holed = pairs.target.clone()
    holed[17, 1] = float("nan")
    with pytest.raises(HusaiError, match="targets: row 17 holds NaN"):
        train_saes(Pairs(pairs.x, holed), recipe(kind))


@pytest.mark.parametrize("name", ["transcoder", "skip_sae"])
def test_a_scale_of_each_samples_own_is_refused(name):
    with pytest.raises(ValueError, match=f"which {name} cannot undo; allowed are scalar, feature and none"):
        recipe(KINDS[name], normalise="constant_norm")


def test_suites_which_name_one_hook_refuse_transcoders():
    suite = {"name": "s", "hooks": ["mlp_out"], "entries": [{"sae": {"architecture": "skip_sae"}}]}
    assert SuiteConfig.parse(suite).entries[0].sae.skip
    suite["entries"][0]["sae"]["architecture"] = "transcoder"
    with pytest.raises(HusaiError, match="transcoder needs a target beside its hook; it is trained by husai sae train"):
        SuiteConfig.parse(suite)


# --- training ---


@each_kind
def test_fit_in_raw_units_is_what_training_saw(pairs, kind):
    given = pairs if kind.paired else pairs.x
    wide = kind.model_copy(update={"d_sae": 32})
    trained = train_saes(given, recipe(wide, steps=300, batch_size=600, decay_fraction=0.5))
    dictionary, last = trained.ensemble.member(0), trained.history[-1]
    fit = evaluate_fit(dictionary, pairs.target if kind.paired else pairs.x, source=pairs.x)
    assert fit.explained_variance > 0.7
    assert last.explained_variance == pytest.approx(fit.explained_variance, abs=0.01)
    assert last.l0 == pytest.approx(fit.l0, abs=0.1)


def test_gradients_reach_the_optimiser_in_the_order_of_its_weights(pairs):
    """A skip connection's gradient has other strides than W_skip, which fused Adam would not notice."""
    y = pairs.x @ drawn(D_IN, D_OUT, seed=13).float()
    kind = KINDS["skip_transcoder"].model_copy(update={"l1_coefficient": 1e3})  # latents are too dear to help
    trained = train_saes(Pairs(pairs.x, y), recipe(kind, steps=300, lr=3e-2, batch_size=600, decay_fraction=0.5))
    assert trained.history[-1].explained_variance > 0.99


def test_a_dead_latent_reads_the_worst_sample_and_writes_its_target():
    """Latents 0 and 1 transcode axes 0 and 1; latent 2 is dead. The last target alone is missed."""
    kind = TopKTranscoderConfig(d_sae=3, k=1)
    W_enc = torch.tensor([[[2.0, 0, -1], [0, 2, -1]]])
    params = Params(W_enc, torch.zeros(1, 3), torch.eye(3)[None].clone(), torch.zeros(1, 3))
    params = params.map(lambda value: value.requires_grad_())
    samples = torch.tensor([[1.0, 0], [0, 1], [3, 4]])
    targets = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 8, 5]])
    optimiser = torch.optim.Adam(list(params))
    where = (params, optimiser, samples, architecture_of(kind), [generator("test")])
    assert resample_dead(*where, targets=targets).tolist() == [[False, False, True]]
    torch.testing.assert_close(params.W_enc[0, :, 2].detach(), torch.tensor([0.6, 0.8]) * 2)
    torch.testing.assert_close(params.W_dec[0, 2].detach(), torch.tensor([0.0, 8, 5]) / 89**0.5)


def test_an_estimate_counts_inputs_and_targets(pairs, stores):
    alone = estimate(pairs.x, recipe(KINDS["skip_sae"]))
    both = estimate(pairs, recipe(KINDS["skip_transcoder"]))
    assert alone.sample_bytes == 2 * 600 * D_IN * 4
    assert both.sample_bytes == 2 * 600 * (D_IN + D_OUT) * 4
    assert estimate(stores, recipe(KINDS["skip_transcoder"])).sample_bytes == both.sample_bytes
    assert both.parameters == D_IN * D_SAE + D_SAE + D_SAE * D_OUT + D_OUT + D_IN * D_OUT


# --- what is planted is found ---

COUNT, ACTIVE = 24, 2
QUICK = AnalysisConfig(curve_null_draws=2)


def unit(*shape: int, seed: int) -> Tensor:
    rows = drawn(*shape, seed=seed).float()
    return rows / rows.norm(dim=-1, keepdim=True)


@pytest.fixture(scope="module")
def task() -> tuple[Tensor, Planted]:
    """Codes with 2 of 24 active; x writes them with one dictionary, the target with another one, of another width."""
    stream = generator("test-transcoder-planted")
    chosen = torch.stack([torch.randperm(COUNT, generator=stream)[:ACTIVE] for _ in range(4096)])
    codes = torch.zeros(4096, COUNT).scatter(1, chosen, torch.rand(4096, ACTIVE, generator=stream) + 0.5)
    atoms = unit(COUNT, 12, seed=21)
    return codes @ unit(COUNT, 20, seed=20), Planted(x=codes @ atoms, atoms=atoms, codes=codes)


def scores(x: Tensor, planted: Planted, kind) -> dict[str, float]:
    config = recipe(kind, (0, 1), steps=600, batch_size=512, lr=5e-3, decay_fraction=0.3, resample_every=100)
    ensemble = train_saes(Pairs(x, planted.x), config).ensemble
    hook = Hook(planted.x, planted=planted, source=x)
    rows = measure(Members.of(ensemble.dictionaries, hook), hook, QUICK, final=False).rows
    return {f"{row.metric} {row.null}".strip(): row.value for row in rows if row.seed is None}


PLAIN = {
    "topk": TopKTranscoderConfig(d_sae=COUNT + 8, k=ACTIVE),
    "relu": TranscoderConfig(d_sae=COUNT + 8, l1_coefficient=0.3),
}
SKIP = {
    "topk": TopKSkipTranscoderConfig(d_sae=COUNT + 8, k=ACTIVE),
    "relu": SkipTranscoderConfig(d_sae=COUNT + 8, l1_coefficient=0.3),
}


@pytest.mark.parametrize("kind", PLAIN.values(), ids=PLAIN)
def test_a_planted_target_dictionary_is_found(task, kind):
    """In the target's space, though only the input, written with other atoms in another space, is encoded."""
    found = scores(*task, kind)
    assert found["explained_variance"] > 0.95
    assert found["gt_mcc"] > 0.97
    assert found["firing_f1"] > 0.8


def test_targets_in_another_order_cannot_be_told_and_nothing_is_found(task):
    """Atoms still lie where the targets do, so gt_mcc is to be read beside its null of data points."""
    x, planted = task
    order = torch.randperm(len(x), generator=generator("test-transcoder-order"))
    shuffled = Planted(x=planted.x[order], atoms=planted.atoms, codes=planted.codes[order])
    found = scores(x, shuffled, PLAIN["topk"])
    assert abs(found["explained_variance"]) < 0.05
    assert found["firing_f1"] < 0.1
    assert found["gt_mcc"] < found["gt_mcc data_points"]


@pytest.mark.parametrize("name", PLAIN)
def test_a_skip_connection_takes_what_is_linear_and_leaves_the_rest_to_latents(name):
    """The target is a linear map of a dense x and 24 thresholded directions of it, written with planted atoms."""
    x = drawn(4096, 20, seed=30).float()
    codes = (x @ unit(COUNT, 20, seed=31).T - 1.5).relu()
    atoms = unit(COUNT, 12, seed=32)
    planted = Planted(x=4 * codes @ atoms + x @ drawn(20, 12, seed=33).float() / 20**0.5, atoms=atoms, codes=codes)
    skip, plain = scores(x, planted, SKIP[name]), scores(x, planted, PLAIN[name])
    assert skip["explained_variance"] > 0.88 > 0.82 > plain["explained_variance"]
    assert skip["gt_mcc"] > 0.9 > 0.82 > plain["gt_mcc"] > plain["gt_mcc data_points"]
    assert 0.5 < skip["explained_by_skip"] < 0.65  # the thresholded part is partly linear too


def test_what_is_linear_in_x_is_lost_to_the_latents_of_a_skip_transcoder(task):
    """Its target's atoms are those of no latent then: the price of the skip connection."""
    found = scores(*task, SKIP["topk"])
    assert found["explained_variance"] > 0.95
    assert found["explained_by_skip"] > 0.4
    assert found["gt_mcc"] < 0.8


@pytest.mark.parametrize("name", ["skip_sae", "topk_skip_sae"])
def test_the_identity_solves_an_sae_with_a_skip_connection_and_its_latents_mean_nothing(task, name):
    _, planted = task
    kind, hook = KINDS[name].model_copy(update={"d_sae": COUNT + 8}), Hook(planted.x, planted=planted)
    config = recipe(kind, (0, 1), steps=1500, batch_size=512, lr=5e-3)
    members = Members.of(train_saes(planted.x, config).ensemble.dictionaries, hook)
    assert all(fit.explained_variance > 0.999 for fit in members.fits)
    if name == "skip_sae":  # the penalty leaves no latent alive, as none is needed
        assert [fit.explained_by_skip for fit in members.fits] == pytest.approx([1, 1], abs=1e-6)
        with pytest.raises(
            HusaiError, match=r"cannot be scored \(its skip connection alone explains 1.0000 of the variance\); weaken"
        ):
            measure(members, hook, QUICK, final=False)
        return
    found = measure(members, hook, QUICK, final=False)
    plain = TopKConfig(d_sae=COUNT + 8, k=ACTIVE)
    others = Members.of(train_saes(planted.x, config.model_copy(update={"sae": plain})).ensemble.dictionaries, hook)
    assert found.value("explained_by_skip").mean > 0.8
    assert found.value("firing_f1").mean < 0.1
    assert found.value("gt_mcc").mean < found.value("gt_mcc", "data_points").mean
    assert measure(others, hook, QUICK, final=False).value("gt_mcc").mean > 0.9
