import pytest
import torch
import torch.nn.functional as F

from husai.analysis.fit import evaluate_fit
from husai.analysis.matching import pwmcc
from husai.config import ArchetypalConfig, SAEConfig, SAETrainingConfig, TopKConfig
from husai.errors import HusaiError
from husai.sae.archetypal import Archetypal, peaked
from husai.sae.params import init_params
from husai.sae.terms import decorrelation
from husai.sae.train import train_saes
from husai.sae.trainer import Trainer
from husai.seeding import generator

D_IN, D_SAE = 8, 48
KINDS = {
    name: ArchetypalConfig(d_sae=D_SAE, k=2, dead_steps=2, candidates=30, relaxation=0.3, decoder_norm=name)
    for name in ("unit", "weighted")
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@pytest.fixture(scope="module")
def x():
    g = generator("test-archetypal")
    return torch.randn(600, 5, generator=g).relu() @ torch.randn(5, D_IN, generator=g) + 3


def recipe(kind, **training) -> SAEConfig:
    quick = {"steps": 60, "batch_size": 64, "lr": 1e-2, "warmup_steps": 5, "resample_every": 20, "resample_until": 1}
    return SAEConfig(sae=kind, training=SAETrainingConfig(**(quick | training)), init_seeds=(0, 1), data_seeds=(0, 1))


def trained(x, config) -> Trainer:
    trainer = Trainer(x, config)
    for _ in range(config.training.steps):
        trainer.advance()
    return trainer


def require_archetypal(params, architecture) -> None:
    """Every row of W_dec is, but for its length if rows are of norm 1, a convex combination plus at most δ."""
    weights, relaxation = params.more["logits"].softmax(-1), params.more["relaxation"]
    assert float(weights.min()) >= 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
    assert float(relaxation.norm(dim=-1).max()) <= architecture.config.relaxation * (1 + 1e-5)
    atoms = weights @ architecture.points + relaxation
    if architecture.config.decoder_norm == "unit":
        atoms = F.normalize(atoms, dim=-1)
    torch.testing.assert_close(params.W_dec, atoms, rtol=1e-4, atol=1e-5)


@each_kind
def test_atoms_stay_near_the_hull_of_the_candidates(x, kind):
    trainer = trained(x, recipe(kind))
    params = trainer.params.map(torch.Tensor.detach)
    require_archetypal(params, trainer.architecture)
    start = Trainer(x, recipe(kind)).params
    assert (params.W_dec - start.W_dec).abs().max() > 0.1
    assert (params.more["logits"] - start.more["logits"]).abs().max() > 0.05
    sizes = params.more["relaxation"].norm(dim=-1)
    assert float(sizes.max()) == pytest.approx(0.3, rel=1e-4)  # the bound is reached
    for seed in range(2):  # in the dictionary that comes out
        found = trainer.ensemble().member(seed).atoms
        torch.testing.assert_close(found, F.normalize(params.W_dec[seed], dim=-1), rtol=1e-4, atol=1e-5)


def test_without_relaxation_atoms_are_in_the_hull(x):
    trainer = trained(x, recipe(KINDS["weighted"].model_copy(update={"relaxation": 0.0})))
    assert not trainer.params.more["relaxation"].any()
    points = trainer.architecture.points
    # no direction in which an atom lies beyond every candidate
    directions = torch.randn(200, D_IN, generator=generator("test-archetypal", 1))
    assert ((trainer.params.W_dec.detach() @ directions.T).amax(1) <= (points @ directions.T).amax(0) + 1e-4).all()


@each_kind
def test_averages_are_archetypal_too(x, kind):
    trainer = trained(x, recipe(kind, ema_decay=0.9))
    assert trainer.average is not None
    averaged = trainer.architecture.derived(trainer.average.value())
    require_archetypal(averaged, trainer.architecture)
    found = trainer.ensemble().member(0).atoms
    torch.testing.assert_close(found, F.normalize(averaged.W_dec[0], dim=-1), rtol=1e-4, atol=1e-5)


@each_kind
def test_gradients_are_pulled_back_by_the_chain_rule(x, kind):
    architecture = Archetypal(kind)
    samples = ((x - x.mean(0)) / x.std()).double()
    architecture.begin(samples, (0, 1))
    start = architecture.init(init_params(D_IN, D_SAE, (0, 1)).map(torch.Tensor.double))
    start = start.adding(
        relaxation=0.1 * torch.randn(2, D_SAE, D_IN, generator=generator("test-archetypal", 2)).double()
    )
    leaves = architecture.derived(start).map(lambda value: value.clone().requires_grad_())
    batch, dead = samples[:40].expand(2, -1, -1), torch.zeros(2, D_SAE, dtype=torch.bool)

    whole = architecture.derived(leaves)
    loss = architecture.losses(whole, batch, step=0, dead=dead).total.sum() + decorrelation(whole.W_dec).sum()
    expected = dict(
        zip(dict(leaves.items()), torch.autograd.grad(loss, list(leaves), materialize_grads=True), strict=True)
    )

    done = architecture.gradients(leaves, batch, step=0, dead=dead).gradients
    rows = leaves.W_dec.detach().requires_grad_()
    (further,) = torch.autograd.grad(decorrelation(rows).sum(), rows)
    pulled = architecture.pulled(leaves, done.replace(W_dec=done.W_dec + further))
    assert [name for name, _ in pulled.items()] == [name for name, _ in leaves.items()]
    for name, value in pulled.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-9, msg=name)
    assert pulled.more["logits"].abs().max() > 1e-6


def test_seeds_share_candidates_and_start_at_their_own(x):
    trainer, again = Trainer(x, recipe(KINDS["unit"])), Trainer(x, recipe(KINDS["unit"]))
    assert torch.equal(trainer.architecture.points, again.architecture.points)
    first, second = trainer.params.more["logits"].detach()
    assert not torch.equal(first.argmax(1), second.argmax(1))
    torch.testing.assert_close(first.softmax(1).amax(1), torch.full((D_SAE,), 0.9))
    assert len(first[:30].argmax(1).unique()) == 30  # one each, while they last
    pairs = torch.cdist(trainer.params.W_dec[0].detach(), trainer.params.W_dec[0].detach())
    assert float(pairs.fill_diagonal_(1).min()) > 1e-4  # and no two are equal


def test_a_peak_by_hand():
    # the others' weights are 1 and 3, so the peak has 36 = 9·(1 + 3)
    logits = torch.tensor([[1.0, 7.0, 3.0]]).log()
    torch.testing.assert_close(peaked(logits, torch.tensor([1])).exp(), torch.tensor([[1.0, 36.0, 3.0]]))


def test_resampled_atoms_are_pointed_at_the_nearest_candidate(x, monkeypatch):
    checked = []

    def spy(params, optimiser, samples, architecture, streams, **given):
        from husai.sae.resample import resample_dead

        dead = resample_dead(params, optimiser, samples, architecture, streams, **given)
        for seed, which in enumerate(dead):
            checked.append(int(which.sum()))
            if not checked[-1]:
                continue
            logits = params.more["logits"].detach()[seed, which]
            torch.testing.assert_close(logits.softmax(1).amax(1), torch.full((len(logits),), 0.9))
            assert not params.more["relaxation"].detach()[seed, which].any()
            rows = F.normalize(params.W_dec[seed, which].detach(), dim=-1)
            columns = F.normalize(params.W_enc[seed][:, which].detach().T, dim=-1)
            torch.testing.assert_close(columns, rows, rtol=1e-4, atol=1e-5)
            nearest = F.normalize(architecture.points[logits.argmax(1)], dim=-1)
            assert (nearest * rows).sum(1).mean() > 0.9
            for name in ("logits", "relaxation"):
                assert not optimiser.state[params.more[name]]["exp_avg"][seed, which].any()
        require_archetypal(params.map(torch.Tensor.detach), architecture)
        return dead

    monkeypatch.setattr("husai.sae.trainer.resample_dead", spy)
    train_saes(x, recipe(KINDS["unit"].model_copy(update={"auxk_coefficient": 0.0})))
    assert sum(checked) > 0


def test_shared_candidates_make_seeds_agree(x):
    """Far more latents than sources: free atoms settle anywhere, archetypal ones on the same candidates."""

    def agree(kind):
        made = train_saes(x, recipe(kind, steps=300, resample_every=None)).ensemble.dictionaries
        fits = [evaluate_fit(member, x) for member in made]
        assert min(fit.explained_variance for fit in fits) > 0.6
        return pwmcc(*(member.atoms[fit.live] for member, fit in zip(made, fits, strict=True)))

    shared = agree(ArchetypalConfig(d_sae=D_SAE, k=2, dead_steps=20))
    assert shared > agree(TopKConfig(d_sae=D_SAE, k=2, dead_steps=20)) + 0.1


def test_more_candidates_than_samples_are_refused(x):
    with pytest.raises(HusaiError, match=r"sae.candidates: 601 exceeds the 584 distinct samples"):
        train_saes(x, recipe(ArchetypalConfig(d_sae=D_SAE, k=2, candidates=601)))


@pytest.mark.parametrize("pair", [{}, {"lower_dtype": "bf16"}], ids=["fp32", "bf16"])
def test_the_relaxation_of_raw_samples_is_in_their_units(x, pair):
    """Samples 64 times as large may have atoms that lie 64 times as far off, in low precision too."""
    kind = KINDS["weighted"].model_copy(update={"relaxation": 64 * 0.01})
    trainer = trained(64 * x, recipe(kind, normalise="none", lr=0.1, **pair))
    assert (trainer.unit != 1) == bool(pair)
    largest = trainer.params.more["relaxation"].detach().norm(dim=-1).max() / trainer.unit
    assert float(largest) == pytest.approx(0.64, rel=1e-5)
