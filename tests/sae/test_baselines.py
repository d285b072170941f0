import json

import pytest
import torch
import torch.nn.functional as F

from husai.analysis.fit import evaluate_fit
from husai.analysis.matching import pwmcc
from husai.config import ICAConfig, KMeansConfig, NMFConfig, PCAConfig, ReLUConfig, SAEConfig, SAETrainingConfig
from husai.errors import HusaiError
from husai.sae.baselines import KMeans, nonnegative
from husai.sae.checkpoint import Checkpoints
from husai.sae.estimate import estimate
from husai.sae.fitting import Fitter
from husai.sae.health import assess
from husai.sae.params import Params, init_params
from husai.sae.train import train_saes
from husai.seeding import generator
from husai.shards import StoreWriter, open_store

D_IN = 8
KINDS = {
    "pca": PCAConfig(d_sae=5),
    "ica": ICAConfig(d_sae=5),
    "nmf": NMFConfig(d_sae=10),
    "kmeans": KMeansConfig(d_sae=20),
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@pytest.fixture(scope="module")
def x():
    """Five skewed sources in eight dimensions, off the origin, and a little noise."""
    g = generator("test-baselines")
    sources = torch.rand(800, 5, generator=g).pow(3) * torch.tensor([1.0, 2, 3, 4, 5])
    return sources @ torch.randn(5, D_IN, generator=g) + 0.01 * torch.randn(800, D_IN, generator=g) + 3


def recipe(kind, seeds=(0, 1), steps=300, **training) -> SAEConfig:
    return SAEConfig(sae=kind, training=SAETrainingConfig(steps=steps, **training), init_seeds=seeds, data_seeds=seeds)


def fitted(x, kind, **given):
    return train_saes(x, recipe(kind, **given)).ensemble


# --- what each finds ---


def test_pca_explains_what_singular_values_say(x):
    left = torch.linalg.svdvals((x - x.mean(0)).double()).pow(2)
    for width in (1, 3, D_IN):
        member = fitted(x, PCAConfig(d_sae=width)).member(0)
        fit = evaluate_fit(member, x)
        assert fit.explained_variance == pytest.approx(float(left[:width].sum() / left.sum()), abs=1e-5)
        torch.testing.assert_close(member.atoms @ member.atoms.T, torch.eye(width), rtol=0, atol=1e-5)
        torch.testing.assert_close(member.encode(x), (x - x.mean(0)) @ member.atoms.T, rtol=1e-3, atol=1e-3)


def test_pca_is_the_same_for_every_seed_and_no_other_is(x):
    for name, kind in KINDS.items():
        made = fitted(x, kind)
        equal = torch.equal(made.params.W_dec[0], made.params.W_dec[1])
        assert equal == (name == "pca"), name
        again = fitted(x, kind, seeds=(1,))
        assert torch.equal(again.params.W_dec[0], made.params.W_dec[1]), name


def test_ica_finds_independent_sources_that_pca_mixes(x):
    g = generator("test-baselines", 1)
    true = F.normalize(torch.randn(5, D_IN, generator=g), dim=1)
    mixed = torch.rand(4000, 5, generator=g).log() @ true
    found = {name: fitted(mixed, KINDS[name]).member(0) for name in ("ica", "pca")}
    assert pwmcc(true, found["ica"].atoms, abs=True) > 0.98
    assert pwmcc(true, found["pca"].atoms, abs=True) < 0.9
    assert evaluate_fit(found["ica"], mixed).explained_variance > 0.9999
    correlations = torch.corrcoef(found["ica"].encode(mixed).T)
    assert (correlations - torch.eye(5)).abs().max() < 1e-3


def test_nmf_codes_are_those_of_scikit_learn(x):
    from sklearn.decomposition import non_negative_factorization

    fitter = Fitter(x, recipe(KINDS["nmf"], seeds=(0,)))
    params, samples = fitter.params(300), fitter.samples
    positive = params.W_enc[0].T
    H = torch.cat([positive, positive - params.W_dec[0]], dim=1).clamp(min=0)
    parts = torch.cat([samples.relu(), (-samples).relu()], dim=1)
    expected, _, _ = non_negative_factorization(
        parts.double().numpy(), H=H.double().numpy(), n_components=10, update_H=False, tol=1e-8, max_iter=5000
    )
    codes = fitter.architecture.encode(params, samples[None])[0]
    torch.testing.assert_close(codes, torch.from_numpy(expected).float(), rtol=1e-3, atol=1e-3)
    assert float((codes @ H - parts).pow(2).sum() / parts.pow(2).sum()) < 0.05
    assert 0.1 < (codes == 0).double().mean() < 0.9


def test_nmf_finds_parts_of_both_signs():
    g = generator("test-baselines", 2)
    true = F.normalize(torch.tensor([[1.0, 1, 0, 0, 0, 0], [0, 0, -1, -2, 0, 0], [0, 0, 0, 0, 3, -1]]), dim=1)
    codes = torch.rand(2000, 3, generator=g) * (torch.rand(2000, 3, generator=g) < 0.5)
    member = fitted(codes @ true, NMFConfig(d_sae=3), normalise="none").member(0)
    assert pwmcc(true, member.atoms) > 0.99
    found = member.encode(codes @ true)
    assert float(found.min()) >= 0
    assert evaluate_fit(member, codes @ true).explained_variance > 0.99


def test_kmeans_finds_clusters_and_codes_by_the_nearest_direction():
    g = generator("test-baselines", 3)
    true = torch.eye(6)[:4]
    which = torch.randint(4, (1000,), generator=g)
    samples = 5 * true[which] + 0.1 * torch.randn(1000, 6, generator=g)
    member = fitted(samples, KMeansConfig(d_sae=4), normalise="none").member(0)
    assert pwmcc(true, member.atoms) > 0.999
    codes = member.encode(samples)
    assert (codes != 0).sum(1).unique().tolist() == [1]
    best = (true @ member.atoms.T).argmax(1)
    assert torch.equal(codes.argmax(1), best[which])
    torch.testing.assert_close(codes.amax(1), (samples @ member.atoms.T).amax(1))


def test_one_code_a_sample_by_hand():
    params = Params(torch.eye(2)[None], torch.zeros(1, 2), torch.eye(2)[None], torch.ones(1, 2))
    x = torch.tensor([[[3.0, 2], [0, 4], [-1, 0]]])
    assert KMeans(KMeansConfig(d_sae=2)).encode(params, x).tolist() == [[[2, 0], [0, 3], [0, 0]]]


def test_nonnegative_least_squares_by_hand():
    # ½f² − 3f and ½f² + f: f = 3 and, at the bound, 0; coupled by ½, f = (b₁ − ½ b₂)/(1 − ¼) where both are positive
    alone = nonnegative(torch.tensor([[[3.0, -1.0]]]), torch.eye(2)[None])
    torch.testing.assert_close(alone, torch.tensor([[[3.0, 0.0]]]))
    gram = torch.tensor([[[1.0, 0.5], [0.5, 1.0]]])
    coupled = nonnegative(torch.tensor([[[3.0, 2.0], [3.0, 1.0]]]), gram)
    torch.testing.assert_close(coupled, torch.tensor([[[8 / 3, 2 / 3], [3.0, 0.0]]]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["pca", "ica", "nmf"])
def test_the_largest_codes_are_kept(x, name):
    all_codes = fitted(x, KINDS[name]).member(0).encode(x)
    kept = fitted(x, KINDS[name].model_copy(update={"k": 2})).member(0).encode(x)
    at = all_codes.abs().topk(2, dim=1).indices
    expected = torch.zeros_like(all_codes).scatter(1, at, all_codes.gather(1, at))
    torch.testing.assert_close(kept, expected, rtol=1e-3, atol=1e-3)
    assert (kept != 0).sum(1).max() == 2


# --- as any SAE ---


@each_kind
@pytest.mark.parametrize("normalise", ["scalar", "feature", "constant_norm", "none"])
def test_folding_leaves_the_fit_as_it_was(x, kind, normalise):
    if kind.architecture == "nmf" and normalise == "feature":
        with pytest.raises(HusaiError, match="NMF's codes cannot be folded back"):
            SAEConfig.parse({"sae": kind.model_dump(), "training": {"normalise": normalise}})
        return
    config = recipe(kind, seeds=(0,), normalise=normalise)
    fitter, trained = Fitter(x, config), train_saes(x, config)
    params, member = fitter.params(300), trained.ensemble.member(0)
    codes = fitter.architecture.encode(params, fitter.samples[None])
    back = fitter.architecture.decode(params, codes)[0]
    scaled = fitter.normaliser(member.decode(member.encode(x)))
    if normalise == "constant_norm":
        sizes = x.norm(dim=1, keepdim=True) / D_IN**0.5
        scaled = member.decode(member.encode(x)) / sizes
    torch.testing.assert_close(scaled, back, rtol=1e-3, atol=1e-3)
    (row,) = trained.history
    assert row.mse == pytest.approx(float((back - fitter.samples).pow(2).sum(1).mean()), rel=1e-3)
    assert row.explained_variance > (0.9 if normalise == "none" else 0.4)


@each_kind
def test_history_and_health_are_those_of_a_training(x, kind):
    config = recipe(kind)
    seen = []
    trained = train_saes(x, config, on_log=seen.append)
    assert [(row.step, row.seed) for row in trained.history] == [(300, 0), (300, 1)]
    assert seen == [list(trained.history)]
    fits = [evaluate_fit(member, x) for member in trained.ensemble.dictionaries]
    for row, fit in zip(trained.history, fits, strict=True):
        assert row.l0 == pytest.approx(fit.l0, abs=0.02)
        assert row.dead == pytest.approx(fit.dead)
        assert row.explained_variance == pytest.approx(fit.explained_variance, abs=1e-3)
    health = assess(trained.history, config)
    assert health.fixed, health.verdict
    assert not {"gradient norm", "L0 trend", "penalty / reconstruction"} & {check.name for check in health.checks}
    json.dumps(health.to_json())


@each_kind
def test_steps_are_iterations_and_looking_changes_nothing(x, kind):
    seen = {}

    def stop(step, ensemble):
        seen[step] = ensemble.params
        return False

    trained = train_saes(x, recipe(kind), stop=stop, stop_at=(0, 1, 2, 300))
    assert list(seen) == [0, 1, 2, 300]
    assert torch.equal(seen[300].W_dec, trained.ensemble.params.W_dec)
    assert torch.equal(fitted(x, kind).params.W_dec, seen[300].W_dec)
    start = init_params(D_IN, kind.d_sae, (0, 1)).W_dec
    torch.testing.assert_close(seen[0].W_dec, start)
    moves = [float((seen[b].W_dec - seen[a].W_dec).abs().max()) for a, b in ((0, 1), (1, 2))]
    assert moves[0] > 0.1
    assert (moves[1] > 1e-3) == (kind.architecture != "pca")
    short = train_saes(x, recipe(kind), stop=lambda step, _: step == 2, stop_at=(1, 2))
    assert (short.steps, short.history[0].step) == (2, 2)
    assert torch.equal(short.ensemble.params.W_dec, seen[2].W_dec)


def test_a_store_is_fitted_on_a_sample_of_it(x, tmp_path):
    with StoreWriter(tmp_path, {}, rows_per_shard=300) as writer:
        writer.append(x)
    whole = fitted(open_store(tmp_path), KINDS["pca"])
    torch.testing.assert_close(whole.params.W_dec.abs(), fitted(x, KINDS["pca"]).params.W_dec.abs(), atol=1e-3, rtol=0)


# --- bad input ---


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        (
            PCAConfig(d_sae=9),
            800,
            r"sae.d_sae: 9 exceeds the 8 latents that PCA can have here: .* 800 samples of width 8",
        ),
        (PCAConfig(d_sae=5), 4, "exceeds the 4 latents"),
        (NMFConfig(d_sae=17), 800, "sae.d_sae: 17 exceeds the 16 latents that NMF"),
        (KMeansConfig(d_sae=20), 12, "sae.d_sae: 20 exceeds the 12 distinct samples"),
    ],
)
def test_more_latents_than_samples_allow_are_refused(x, kind, rows, message):
    with pytest.raises(HusaiError, match=message):
        train_saes(x[:rows], recipe(kind))


def test_components_beyond_the_rank_are_refused(x):
    flat = (x - x.mean(0)) @ torch.diag(torch.tensor([1.0] * 4 + [0.0] * 4))
    assert evaluate_fit(fitted(flat, ICAConfig(d_sae=4)).member(0), flat).explained_variance > 0.999
    with pytest.raises(HusaiError, match="5 exceeds the 4 latents that ICA can have here: the rank of the samples"):
        fitted(flat, ICAConfig(d_sae=5))


def test_repeated_samples_count_once():
    few = torch.randn(5, D_IN, generator=generator("test-baselines", 4)).repeat(100, 1)
    with pytest.raises(HusaiError, match="6 exceeds the 5 distinct samples"):
        fitted(few, KMeansConfig(d_sae=6))


@each_kind
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_input_is_refused_with_its_row(x, kind, value):
    broken = x.clone()
    broken[7, 2] = value
    with pytest.raises(HusaiError, match="row 7 holds NaN or infinity"):
        fitted(broken, kind)


@each_kind
def test_what_only_gradients_can_do_is_refused(x, tmp_path, kind):
    for data, message in (
        ({"sae": {**kind.model_dump(), "decoder_norm": "weighted"}}, "decoder_norm 'weighted'"),
        ({"sae": kind.model_dump(), "training": {"decorrelation": 0.1}}, "no gradient moves the decoder"),
        ({"sae": kind.model_dump(), "training": {"target_l0": 3}}, "needs a penalty to steer"),
        ({"sae": {**kind.model_dump(), "k": kind.d_sae + 1}}, r"k \d+ exceeds d_sae|unknown key 'sae.k'"),
    ):
        with pytest.raises(HusaiError, match=message):
            SAEConfig.parse(data)
    with pytest.raises(HusaiError, match="nothing to resume from"):
        train_saes(x, recipe(kind), checkpoints=Checkpoints(tmp_path, {}, source=tmp_path / "old"))
    with pytest.raises(HusaiError, match="no steps that could be timed"):
        estimate(x, recipe(kind))
    assert estimate(x, recipe(ReLUConfig(d_sae=16), batch_size=64)).steps == 300


@each_kind
def test_an_early_exit_ends_the_iterations_too(x, kind):
    looked = []
    short = train_saes(x, recipe(kind, early_exit=4), stop=lambda s, _: bool(looked.append(s)), stop_at=(0, 2, 4, 300))
    assert looked == [0, 2, 4]
    assert short.steps == short.history[-1].step == 4
    same = fitted(x, kind, steps=4)
    assert all(torch.equal(a, b) for a, b in zip(short.ensemble.params, same.params, strict=True))


@pytest.mark.parametrize(
    ("switch", "allowed"),
    [
        ({"ema_decay": 0.9}, "null"),
        ({"compile": True}, "false"),
        ({"resample_every": 5}, "null"),
        ({"optimiser": "rmsprop"}, "adam"),
        ({"log_every": 2}, "null"),
        ({"log_timing": True}, "false"),
        ({"log_statistics": True}, "false"),
        ({"gradient_scale": 8.0}, "null"),
        ({"adam_trick": True}, "false"),
        ({"decoder_norm_every": 3}, "1"),
        ({"target_l0_rate": 0.1}, "0.01"),
        ({"stop": "hopeless"}, "fixed or converged"),
    ],
)
def test_switches_that_a_solver_does_not_read_are_refused(switch, allowed):
    (name,) = switch
    for kind in KINDS.values():
        with pytest.raises(
            HusaiError, match=rf"training\.{name}: {kind.architecture} is fitted .*; allowed is {allowed}$"
        ):
            SAEConfig.parse({"sae": kind.model_dump(), "training": switch})
    SAEConfig.parse({"sae": {"architecture": "topk"}, "training": switch})


def test_a_recipe_of_steps_may_stand_where_it_only_shapes_them():
    """Then `--architecture pca` takes an example of another architecture."""
    steps = {"lr": 0.1, "batch_size": 7, "warmup_steps": 3, "decay_fraction": 0.1, "decay": "exponential", "beta1": 0.5}
    more = {"beta2": 0.9, "clip_norm": None, "resample_until": 0.1, "optimiser": "adam", "stop": "converged"}
    for kind in KINDS.values():
        SAEConfig.parse({"sae": kind.model_dump(), "training": steps | more})
