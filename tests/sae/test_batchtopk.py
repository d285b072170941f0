import pytest
import torch

from husai.config import BatchTopKConfig
from husai.sae.batchtopk import BatchTopK
from husai.sae.params import Params
from husai.sae.trainer import Trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:The 'utils' module has been deprecated:DeprecationWarning",  # sae_lens imports transformer_lens.utils
)

# Latents are the two inputs themselves.
IDENTITY = Params(torch.eye(2)[None], torch.zeros(1, 2), torch.eye(2)[None], torch.zeros(1, 2))
NONE_DEAD = torch.zeros(1, 2, dtype=torch.bool)


def with_threshold(value: float) -> Params:
    return IDENTITY.adding(threshold=torch.tensor([[value]]))


def training_codes(x: torch.Tensor, **settings) -> torch.Tensor:
    architecture = BatchTopK(BatchTopKConfig(d_sae=2, k=1, **settings))
    params = with_threshold(0).map(lambda value: value.expand(len(x), *value.shape[1:]))
    return architecture.losses(params, x, step=0, dead=NONE_DEAD.expand(len(x), -1)).codes


def test_the_largest_of_the_batch_survive_whichever_samples_they_are_of():
    # two samples, k = 1: the two largest of 4, 5, 1, 2 are both the first sample's
    assert training_codes(torch.tensor([[[4.0, 5.0], [1.0, 2.0]]])).tolist() == [[[4.0, 5.0], [0.0, 0.0]]]


def test_each_seed_chooses_from_its_own_batch():
    codes = training_codes(torch.tensor([[[4.0, 5.0], [1.0, 2.0]], [[0.125, 0.25], [0.5, -9.0]]]))
    assert codes[1].tolist() == [[0.0, 0.25], [0.5, 0.0]]


def test_negative_scores_are_never_codes():
    assert training_codes(torch.tensor([[[4.0, -5.0], [-1.0, -2.0]]])).tolist() == [[[4.0, 0.0], [0.0, 0.0]]]


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, [1, 3]), (1.0, [0, 3]), (2.9, [0, 3]), (3.0, [0, 0])])
def test_a_finished_sae_takes_what_exceeds_the_threshold(threshold, expected):
    architecture = BatchTopK(BatchTopKConfig(d_sae=2, k=1))
    assert architecture.encode(with_threshold(threshold), torch.tensor([[[1.0, 3.0]]])).tolist() == [[expected]]


def test_the_threshold_is_one_of_codes_which_carry_free_norms():
    # score 3 = pre-activation 1 times norm 3
    long = with_threshold(2.0).replace(W_dec=torch.tensor([[[3.0, 0.0], [0.0, 1.0]]]))
    architecture = BatchTopK(BatchTopKConfig(d_sae=2, k=1, decoder_norm="weighted"))
    assert architecture.encode(long, torch.tensor([[[1.0, 1.5]]])).tolist() == [[[3.0, 0.0]]]


def settled(threshold: float, x: torch.Tensor, **settings) -> float:
    architecture, params = BatchTopK(BatchTopKConfig(d_sae=2, k=1, **settings)), with_threshold(threshold)
    losses = architecture.losses(params, x, step=0, dead=NONE_DEAD)
    architecture.settle(params, losses.seen)
    return float(params.more["threshold"])


def test_the_threshold_follows_the_smallest_active_code():
    batch = torch.tensor([[[4.0, 5.0], [1.0, 2.0]]])  # active: 4 and 5
    assert settled(0.0, batch) == 4  # the first batch sets it
    assert settled(2.0, batch, threshold_lr=0.25) == 2.5
    assert settled(2.0, batch, threshold_lr=0) == 2


def test_a_batch_without_active_latents_leaves_the_threshold():
    assert settled(2.0, -torch.ones(1, 2, 2)) == 2
    assert settled(0.0, -torch.ones(1, 2, 2)) == 0


def test_training_moves_the_threshold_by_batches_alone(planted):
    """Neither a gradient nor Adam reaches it, whatever the rate and the clipping."""
    from husai.config import SAEConfig, SAETrainingConfig

    kind = BatchTopKConfig(d_sae=64, k=3, threshold_lr=0.5)
    training = SAETrainingConfig(steps=10, batch_size=256, lr=0.1, warmup_steps=0)
    trainer = Trainer(planted.x, SAEConfig(sae=kind, training=training, init_seeds=(0, 1), data_seeds=(0, 1)))
    expected = torch.zeros(2, 1)
    for step in range(5):
        smallest = trainer.advance().seen["smallest"]
        expected = smallest if step == 0 else (expected + smallest) / 2
        torch.testing.assert_close(trainer.params.more["threshold"].detach(), expected)
    assert expected[0] != expected[1]


def lens(sae_lens, decoder_norm: str):
    return sae_lens.BatchTopKTrainingSAE(
        sae_lens.BatchTopKTrainingSAEConfig(
            d_in=6,
            d_sae=10,
            k=3,
            dtype="float64",
            aux_loss_coefficient=0.7,
            rescale_acts_by_decoder_norm=decoder_norm == "weighted",
        )
    )


@pytest.mark.parametrize("decoder_norm", ["weighted", "unit"])
def test_training_step_equals_sae_lens(sae_lens, equals_sae_lens, decoder_norm):
    architecture = BatchTopK(BatchTopKConfig(d_sae=10, k=3, decoder_norm=decoder_norm, auxk_coefficient=0.7))
    equals_sae_lens(
        architecture,
        lambda: lens(sae_lens, decoder_norm),
        {"auxk": "auxiliary_reconstruction_loss"},
        idle=("auxk",),
        silent=("threshold",),
    )


def test_the_threshold_moves_as_in_sae_lens(sae_lens, make_params):
    architecture = BatchTopK(BatchTopKConfig(d_sae=10, k=3))
    params = architecture.init(make_params(1, 6, 10, unit=True)).adding(
        threshold=torch.full((1, 1), 0.3, dtype=torch.float64)
    )
    theirs = lens(sae_lens, "unit")
    theirs.topk_threshold.fill_(0.3)
    x = torch.randn(1, 7, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    losses = architecture.losses(params, x, step=0, dead=torch.zeros(1, 10, dtype=torch.bool))
    theirs.update_topk_threshold(losses.codes[0])
    architecture.settle(params, losses.seen)
    assert float(params.more["threshold"]) == pytest.approx(float(theirs.topk_threshold), rel=1e-12, abs=0)
    assert float(params.more["threshold"]) != 0.3
