"""The terms of codes that a recipe adds: a probe of labels, and smoothness in time (requirements.md D2)."""

import math

import pytest
import torch

from husai.activations import Normaliser
from husai.config import (
    BatchTopKConfig,
    CirclesConfig,
    GatedConfig,
    JumpReLUConfig,
    PlantedConfig,
    ReLUConfig,
    SAEConfig,
    SAETrainingConfig,
    TopKConfig,
    WalksConfig,
)
from husai.errors import HusaiError
from husai.measure import Hook
from husai.recurrent.walks import Walks
from husai.sae.architecture import Losses
from husai.sae.architectures import architecture_of
from husai.sae.batches import Batches, StoreBatches
from husai.sae.guide import Guide, known_of
from husai.sae.health import assess
from husai.sae.known import Beside, Known, KnownOfStore
from husai.sae.params import Params
from husai.sae.terms import probe, temporal
from husai.sae.train import train_saes
from husai.sae.trainer import Trainer
from husai.seeding import generator
from husai.shards import StoreWriter, open_store
from husai.tasks import Task
from husai.truth.synthetic import draw_circles, plant

D, D_SAE = 6, 24
KINDS = {
    "topk": TopKConfig(d_sae=D_SAE, k=3, dead_steps=2),
    "relu": ReLUConfig(d_sae=D_SAE, l1_coefficient=1, l1_warmup_steps=10),
    "batchtopk": BatchTopKConfig(d_sae=D_SAE, k=3, dead_steps=2, decoder_norm="weighted"),
    "jumprelu": JumpReLUConfig(d_sae=D_SAE, l0_warmup_steps=10, decoder_norm="weighted"),
    "gated": GatedConfig(d_sae=D_SAE, l1_warmup_steps=10),
}
SCALED = ({"adam_trick": True}, {"gradient_scale": 64.0})
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def recipe(kind=KINDS["topk"], seeds=(0,), **training) -> SAEConfig:
    quick = {"steps": 60, "batch_size": 64, "lr": 1e-2, "warmup_steps": 5, "resample_every": 20, "resample_until": 1}
    return SAEConfig(sae=kind, training=SAETrainingConfig(**(quick | training)), init_seeds=seeds, data_seeds=seeds)


@pytest.fixture(scope="module")
def x():
    return torch.randn(600, D, generator=generator("test-guide"))


@pytest.fixture(scope="module")
def known(x):
    """Four classes; walks of 10 steps."""
    row = torch.arange(len(x))
    return Known((x[:, 0] > 0).long() + 2 * (x[:, 1] > 0), torch.where(row % 10 > 0, row - 1, -1))


# --- by hand ---


def test_the_probe_by_hand():
    # Two classes. Seed 0: the first sample has odds of 3 to 1, all others have even ones.
    codes = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[5.0, 7.0], [1.0, 1.0]]])
    weight = torch.tensor([[[math.log(3), 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    bias = torch.zeros(2, 2)
    labels = torch.tensor([[0, 1], [1, 0]])
    # seed 0: −ln(3/4) and −ln(1/2); seed 1 knows nothing: ln 2
    expected = torch.tensor([(math.log(4 / 3) + math.log(2)) / 2, math.log(2)])
    torch.testing.assert_close(probe(codes, weight, bias, labels), expected)


def test_the_term_of_time_by_hand():
    codes = torch.tensor([[[1.0, 2.0], [3.0, 0.0], [9.0, 9.0]], [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]])
    before = torch.tensor([[[1.0, 0.0], [0.0, 4.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    follows = torch.tensor([[True, True, False], [False, False, False]])
    # seed 0: (0 + 4) and (9 + 16), the third follows nothing; seed 1: nothing follows anything
    torch.testing.assert_close(temporal(codes, before, follows), torch.tensor([14.5, 0.0]))


def beside_of(seeds: int, batch: int) -> Beside:
    g = generator("test-beside")
    before = torch.randn(seeds, batch, D, generator=g, dtype=torch.float64)
    follows = torch.rand(seeds, batch, generator=g) < 0.7
    return Beside(torch.randint(4, (seeds, batch), generator=g), before, follows)


@each_kind
def test_gradients_are_those_of_the_sum_of_all_terms(make_params, kind):
    """Of the SAE by autograd over the written-out sum, of the probe by the formula codesᵀ(softmax − one-hot)/batch."""
    architecture = architecture_of(kind)
    config = recipe(kind, (0, 1), probe=0.7, temporal=0.3)
    start = architecture.init(make_params(2, D, D_SAE, unit=kind.decoder_norm == "unit"))
    batch = torch.randn(2, 30, D, generator=generator("test-gradients"), dtype=torch.float64)
    beside, dead = beside_of(2, 30), torch.arange(D_SAE).expand(2, -1) < 4
    guide = Guide(config, architecture, Known(torch.arange(4)), "cpu")
    assert guide.probe is not None
    weight, bias = (leaf.detach() for leaf in guide.leaves)

    def total(params: Params) -> tuple[Losses, torch.Tensor]:
        losses = architecture.losses(params, batch, step=50, dead=dead)
        earlier = architecture.losses(params, beside.before, step=50, dead=dead).codes
        logits = losses.codes.float() @ weight + bias[:, None]
        right = logits.log_softmax(-1).gather(-1, beside.labels[..., None])[..., 0]
        moved = ((losses.codes - earlier).square().sum(-1) * beside.follows).sum(1) / beside.follows.sum(1)
        return losses, losses.total - 0.7 * right.mean(1) + 0.3 * moved

    params = start.map(lambda value: value.clone().requires_grad_())
    losses, whole = total(params)
    expected = torch.autograd.grad(whole.sum(), list(params), materialize_grads=True)
    done = architecture.gradients(params, batch, step=50, dead=dead, extra=guide.extra(beside))
    for name, ours, slow in zip(dict(params.items()), done.gradients, expected, strict=True):
        torch.testing.assert_close(ours, slow, rtol=1e-5, atol=1e-6, msg=name)
    torch.testing.assert_close(done.mse + sum(done.terms.values()), whole.detach(), rtol=1e-6, atol=0)
    assert set(done.terms) == {*losses.terms, "probe", "temporal"}
    codes = losses.codes.detach().float()
    off = (codes @ weight + bias[:, None]).softmax(-1) - torch.nn.functional.one_hot(beside.labels, 4)
    torch.testing.assert_close(guide.probe.weight.grad, 0.7 * codes.mT @ off / 30)
    torch.testing.assert_close(guide.probe.bias.grad, 0.7 * off.mean(1))
    plain = architecture.gradients(params, batch, step=50, dead=dead).gradients
    assert (plain.W_enc - done.gradients.W_enc).abs().max() > 1e-3


@each_kind
def test_codes_in_training_are_those_of_the_losses(make_params, kind):
    architecture = architecture_of(kind)
    params = architecture.init(make_params(2, D, D_SAE, unit=kind.decoder_norm == "unit"))
    batch, dead = beside_of(2, 30).before, torch.zeros(2, D_SAE, dtype=torch.bool)
    codes = architecture.losses(params, batch, step=0, dead=dead).codes
    assert torch.equal(architecture.training_codes(params, batch), codes)


# --- in training ---


@each_kind
def test_a_seed_in_a_stack_equals_the_seed_alone(x, known, kind):
    more = {"probe": 1.0, "temporal": 0.1}
    stack = train_saes(x, recipe(kind, (3, 4, 5), **more), known=known)
    for index, seed in enumerate((3, 4, 5)):
        alone = train_saes(x, recipe(kind, (seed,), **more), known=known)
        for ours, expected in zip(stack.ensemble.params, alone.ensemble.params, strict=True):
            torch.testing.assert_close(ours[index], expected[0], rtol=1e-4, atol=1e-4)
    assert {"probe", "temporal"} <= set(stack.history[0].line)
    assert all(row.penalty == pytest.approx(sum(row.terms.values())) for row in stack.history)


def test_weights_of_zero_change_nothing_and_each_term_something(x, known):
    plain = train_saes(x, recipe()).ensemble.params.W_dec
    assert torch.equal(plain, train_saes(x, recipe(probe=0, temporal=0), known=known).ensemble.params.W_dec)
    for name in ("probe", "temporal"):
        trained = train_saes(x, recipe(**{name: 0.1}), known=known)
        assert list(trained.history[0].terms)[-1] == name
        assert (trained.ensemble.params.W_dec - plain).abs().max() > 1e-3


def test_the_probe_is_dropped_at_the_end(x, known):
    made = train_saes(x, recipe(probe=1.0), known=known).ensemble
    assert [name for name, _ in made.params.items()] == ["W_enc", "b_enc", "W_dec", "b_dec"]


@pytest.mark.parametrize(("optimiser", "names"), [("adam", ("exp_avg", "exp_avg_sq")), ("rmsprop", ("exp_avg_sq",))])
def test_a_replaced_latent_is_forgotten_by_the_probe_and_its_moments(x, known, optimiser, names):
    trainer = Trainer(x, recipe(probe=1.0, optimiser=optimiser), known=known)
    for _ in range(3):
        trainer.advance()
    assert trainer.guide is not None
    weight = trainer.guide.probe.weight
    moments = [trainer.optimiser.state[weight][name] for name in names]
    replaced = torch.zeros(1, D_SAE, dtype=torch.bool)
    replaced[0, 7] = True
    trainer.guide.restart(replaced, trainer.optimiser)
    for value in (weight, *moments):
        assert not value[0, 7].any()
        assert value[0, 6].any()


def test_rewards_for_labels_and_smoothness_are_no_sparsity_penalty(x, known):
    """Health's ratio of penalty to reconstruction is of the architecture's own terms."""
    config = recipe(KINDS["relu"], probe=5.0, temporal=5.0)
    history = train_saes(x, config, known=known).history
    last = history[-1]
    ratio = next(check for check in assess(history, config).checks if check.name == "penalty / reconstruction")
    assert ratio.value == pytest.approx(last.terms["l1"] / last.mse)


@pytest.mark.parametrize("low", [{"lower_dtype": "bf16"}, *({"lower_dtype": "fp16", **way} for way in SCALED)], ids=str)
def test_the_probe_learns_of_raw_samples_as_in_fp32(x, known, low):
    """Samples 256 times as large are brought to unit size in low precision, of which the probe must see nothing."""
    given = {"probe": 1.0, "normalise": "none", "resample_every": None, "clip_norm": None}
    found = {}
    for name, more in (("fp32", {}), ("low", low)):
        trainer = Trainer(256 * x, recipe(**given, **more), known=known)
        assert (trainer.unit == 1) == (name == "fp32")
        first, gradient = trainer.advance(), trainer.guide.probe.weight.grad.clone() / trainer.computation.kept
        path = [float(first.terms["probe"])] + [float(trainer.advance().terms["probe"]) for _ in range(5)]
        found[name] = gradient, [value / trainer.unit**2 for value in path]
    (exact, path), (rough, other) = found["fp32"], found["low"]
    assert float((rough - exact).norm() / exact.norm()) < 0.05
    assert other[0] == pytest.approx(path[0], rel=0.02)
    assert other == pytest.approx(path, rel=0.1)


# --- effects, and their controls ---


def read_out(codes: torch.Tensor, labels: torch.Tensor, held_out: torch.Tensor) -> float:
    """Accuracy on held-out rows of a linear probe that is fitted to the others."""
    classes = int(labels.max()) + 1
    weight = torch.zeros(codes.shape[1] + 1, classes, requires_grad=True)
    inputs = torch.cat([codes / codes.std(), torch.ones(len(codes), 1)], dim=1)
    optimiser = torch.optim.Adam([weight], lr=0.05)
    for _ in range(200):
        loss = torch.nn.functional.cross_entropy(inputs[~held_out] @ weight, labels[~held_out])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return float(((inputs[held_out] @ weight).argmax(1) == labels[held_out]).float().mean())


def test_the_probe_makes_codes_tell_labels_and_shuffled_labels_teach_nothing():
    """Labels lie in a direction of 1% of the variance, for which two codes a sample leave no room."""
    g = generator("test-effect")
    labels = torch.randint(2, (3000,), generator=g)
    loud, quiet = torch.randn(3000, 8, generator=g).relu() * 2, (2.0 * labels[:, None] - 1) * 0.4
    x = torch.cat([loud, quiet + 0.05 * torch.randn(3000, 1, generator=g)], dim=1)
    held_out = torch.arange(3000) >= 2000
    kind = TopKConfig(d_sae=16, k=2)

    def accuracy(weight: float, told: torch.Tensor) -> float:
        config = recipe(kind, steps=400, probe=weight)
        made = train_saes(x[~held_out], config, known=Known(told[~held_out])).ensemble.member(0)
        return read_out(made.encode(x), told, held_out)

    without, with_probe = accuracy(0.0, labels), accuracy(10.0, labels)
    assert with_probe > 0.95 > 0.85 > without
    shuffled = labels[torch.randperm(3000, generator=g)]
    assert accuracy(10.0, shuffled) < 0.55


def slow_and_fast() -> tuple[torch.Tensor, Known]:
    """Walks of 20 steps: four slow features that persist, four fast ones drawn anew at each step."""
    g = generator("test-time")
    slow = torch.randn(150, 1, 4, generator=g).expand(-1, 20, -1).relu()
    fast = torch.randn(150, 20, 4, generator=g).relu()
    mix = torch.linalg.qr(torch.randn(8, 8, generator=g))[0]
    row = torch.arange(3000)
    return torch.cat([slow, fast], dim=2).flatten(0, 1) @ mix, Known(before=torch.where(row % 20 > 0, row - 1, -1))


def test_smoothness_lowers_the_steps_of_codes_along_walks_and_not_in_shuffled_order():
    x, ordered = slow_and_fast()
    follows = ordered.before >= 0
    mixed = torch.full_like(ordered.before, -1)
    mixed[follows] = torch.randint(len(x), (int(follows.sum()),), generator=generator("test-mixed"))

    def speed(weight: float, known: Known) -> float:
        """Mean ‖h_t − h_{t−1}‖² along the true walks, in units of the codes' variance: 2 if no step resembles the last."""
        config = recipe(ReLUConfig(d_sae=16, l1_coefficient=0.3), steps=400, temporal=weight)
        codes = train_saes(x, config, known=known).ensemble.member(0).encode(x)
        step = (codes[follows] - codes[ordered.before[follows]]).square().sum(1).mean()
        return float(step / codes.var(0).sum())

    plain, smooth, control = speed(0.0, ordered), speed(1.0, ordered), speed(1.0, Known(before=mixed))
    assert smooth < 0.6 * plain
    assert control > 0.9 * plain


# --- what is known of which samples ---


def test_the_answers_of_a_grid_are_its_labels_and_it_has_no_order():
    task = Task("add", 5)
    known = Known.of(task)
    assert torch.equal(known.labels, (task.a + task.b) % 5)
    assert known.before is None


def test_steps_of_walks_follow_one_another_within_a_walk():
    walks = Walks(5, WalksConfig(length=3, repeats=1))
    known = Known.of(walks)
    assert known.before.view(-1, 3)[:2].tolist() == [[-1, 0, 1], [-1, 3, 4]]
    rows = (known.before >= 0).nonzero()[:, 0]
    assert torch.equal(walks.states[:, 1:].flatten()[known.before[rows]], walks.a[rows])
    assert torch.equal(known.labels, walks.labels)


def test_synthetic_hooks_know_answers_and_the_strongest_planted_atom():
    circles = draw_circles(CirclesConfig(repeats=2))
    assert torch.equal(Hook.of_circles(circles).known.labels, circles.answers)
    planted = plant(PlantedConfig(samples=2000))
    strongest = Hook.of_planted(planted).known.labels
    assert torch.equal(planted.codes.gather(1, strongest[:, None])[:, 0], planted.codes.amax(1))
    assert Hook(planted.x).known == Known()


def test_batches_bring_the_labels_and_predecessors_of_their_rows():
    rows = torch.arange(12.0)[:, None]
    known = Known(torch.arange(12) % 3, torch.where(torch.arange(12) % 4 > 0, torch.arange(12) - 1, -1))
    batches = Batches(rows, 5, (0, 1), Normaliser(torch.zeros(1), 1.0), known=known)
    for step in range(6):
        at, beside = batches.at(step)[..., 0].long(), batches.beside()
        assert torch.equal(beside.labels, at % 3)
        assert torch.equal(beside.follows, at % 4 > 0)
        assert torch.equal(beside.before[..., 0].long(), at - beside.follows.long())


def store_of(folder, x, rows_per_shard, **columns):
    with StoreWriter(folder, {}, rows_per_shard=rows_per_shard) as writer:
        writer.append(x, **columns)
    return open_store(folder)


def test_batches_of_a_store_bring_its_columns(tmp_path):
    """Sequences of 4 in shards of 10: a row whose predecessor lies in another shard follows none."""
    row = torch.arange(48)
    store = store_of(tmp_path / "s", row[:, None].float(), 10, token=row % 3 * 7, position=row % 4)
    known = KnownOfStore.read(store, "token", ordered=True)
    assert known.classes.tolist() == [0, 7, 14]
    batches = StoreBatches(store, 9, (0, 1), Normaliser(torch.zeros(1), 1.0), 20, "cpu", known)
    for step in range(2 * batches.per_epoch):
        at, beside = batches.at(step)[..., 0].long(), batches.beside()
        assert torch.equal(beside.labels, at % 3)
        assert torch.equal(beside.follows, (at % 4 > 0) & (at % 10 > 0))
        assert torch.equal(beside.before[..., 0].long(), at - beside.follows.long())


def test_a_store_in_one_shard_trains_as_the_tensor_does(tmp_path, x, known):
    position = torch.arange(600) % 10
    store = store_of(tmp_path / "s", x, 600, label=known.labels + 5, position=position)
    config = recipe(probe=1.0, temporal=0.1, resample_every=None)
    streamed = config.model_copy(update={"training": config.training.model_copy(update={"probe_labels": "label"})})
    held, read = train_saes(x, config, known=known), train_saes(store, streamed)
    torch.testing.assert_close(read.ensemble.params.W_dec, held.ensemble.params.W_dec, rtol=1e-4, atol=1e-4)


def test_what_is_not_known_is_refused_in_a_sentence(tmp_path, x, known):
    def fresh(count, stream):
        return torch.randn(count, D, generator=stream)

    row = torch.arange(len(x))
    bare = store_of(tmp_path / "bare", x, 100)
    still = store_of(tmp_path / "still", x, 100, position=torch.full_like(row, 3))
    one = store_of(tmp_path / "one", x, 100, label=torch.zeros_like(row))
    labels = {"probe": 1.0, "probe_labels": "label"}
    for source, training, more, message in (
        (x, {"probe": 1.0}, {}, "training.probe: nobody knows labels"),
        (x, {"temporal": 1.0}, {}, "training.temporal: these samples have no order in time"),
        (x, {"temporal": 1.0}, {"known": Known(known.labels)}, "training.temporal: these samples have no order"),
        (x, {"probe": 1.0}, {"known": known, "fresh": fresh}, "training.probe: samples drawn anew"),
        (x, {"temporal": 1.0}, {"known": known, "fresh": fresh}, "training.temporal: samples drawn anew"),
        (x, labels, {"known": known}, "'label' names a column of a store"),
        (x, {"probe": 1.0}, {"known": Known(torch.zeros_like(row))}, "have 1 value"),
        (bare, {"probe": 1.0}, {}, "training.probe_labels must name a column"),
        (bare, labels, {}, "has no tensor 'label'"),
        (bare, {"temporal": 1.0}, {}, "has no tensor 'position'"),
        (still, {"temporal": 1.0}, {}, "no row has a 'position' one above"),
        (one, labels, {}, "have 1 value"),
    ):
        with pytest.raises(HusaiError, match=message):
            train_saes(source, recipe(**training), **more)
    with pytest.raises(HusaiError, match=r"training\.temporal: pca is fitted at once"):
        SAEConfig.parse({"sae": {"architecture": "pca", "d_sae": 4, "k": 2}, "training": {"temporal": 1.0}})
    with pytest.raises(HusaiError, match="probe_labels 'label' is of use only with probe above 0"):
        SAEConfig.parse({"sae": {"architecture": "topk"}, "training": {"probe_labels": "label"}})


def test_run_ids_without_these_terms_are_what_they_were():
    dumped = SAETrainingConfig().model_dump(mode="json")
    assert not {"probe", "probe_labels", "temporal"} & set(dumped)
    assert SAETrainingConfig(probe=0.5).model_dump(mode="json")["probe"] == 0.5


@pytest.mark.parametrize(
    "known",
    [
        Known(torch.zeros(3, dtype=torch.long)),
        Known(torch.full((64,), -1)),
        Known(None, torch.zeros(5, dtype=torch.long)),
    ],
    ids=["too few labels", "a negative label", "too few predecessors"],
)
def test_what_is_known_must_be_one_a_sample(known):
    recipe = SAETrainingConfig(batch_size=8, probe=1.0 if known.labels is not None else 0.0, temporal=1.0)
    with pytest.raises(HusaiError, match="there must be one a sample"):
        known_of(torch.randn(64, 4), known, recipe, fresh=False)
