import pytest
import torch
import torch.nn.functional as F

from husai.config import FrozenConfig, SAEConfig, SAETrainingConfig, TopKConfig
from husai.errors import HusaiError
from husai.sae.params import init_params
from husai.sae.train import train_saes
from husai.seeding import generator

KIND = FrozenConfig(d_sae=48, k=2, dead_steps=2)


@pytest.fixture(scope="module")
def x():
    g = generator("test-frozen")
    return torch.randn(600, 5, generator=g).relu() @ torch.randn(5, 8, generator=g) + 3


def recipe(kind=KIND, **training) -> SAEConfig:
    quick = {"steps": 60, "batch_size": 64, "lr": 1e-2, "warmup_steps": 5, "resample_every": 20, "resample_until": 1}
    return SAEConfig(sae=kind, training=SAETrainingConfig(**(quick | training)), init_seeds=(0, 1), data_seeds=(0, 1))


@pytest.mark.parametrize("training", [{}, {"ema_decay": 0.9}, {"optimiser": "rmsprop"}, {"decoder_norm_every": 7}])
def test_the_decoder_stays_and_all_else_moves(x, training):
    start = init_params(8, 48, (0, 1))
    made = train_saes(x, recipe(**training)).ensemble.params
    torch.testing.assert_close(made.W_dec, start.W_dec, rtol=0, atol=1e-6)
    scaled = F.normalize(made.W_enc, dim=1)
    assert (scaled - F.normalize(start.W_enc, dim=1)).abs().max() > 0.05
    assert made.b_enc.abs().max() > 0.01


def test_atoms_of_two_seeds_are_as_unlike_as_they_were_drawn(x):
    frozen = train_saes(x, recipe()).ensemble
    free = train_saes(x, recipe(TopKConfig(d_sae=48, k=2, dead_steps=2))).ensemble
    start = init_params(8, 48, (0, 1)).W_dec
    assert torch.allclose(frozen.params.W_dec[0] @ frozen.params.W_dec[1].T, start[0] @ start[1].T, atol=1e-5)
    assert (free.params.W_dec - start).abs().max() > 0.1


def test_a_resampled_encoder_starts_again_along_its_own_atom(x, monkeypatch):
    seen = []

    def spy(params, *rest, **given):
        from husai.sae.resample import resample_dead

        dead = resample_dead(params, *rest, **given)
        for seed, which in enumerate(dead):
            columns = F.normalize(params.W_enc[seed][:, which].detach().T, dim=-1)
            seen.append(float((columns * params.W_dec[seed, which].detach()).sum(-1).min()) if which.any() else 1.0)
        assert dead.any()
        return dead

    monkeypatch.setattr("husai.sae.trainer.resample_dead", spy)
    train_saes(x, recipe(KIND.model_copy(update={"auxk_coefficient": 0.0})))
    assert min(seen) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("sae", "training", "message"),
    [
        ({"decoder_norm": "weighted"}, {}, "decoder_norm 'weighted': a frozen decoder keeps"),
        ({}, {"decorrelation": 0.1}, "no gradient moves the decoder of frozen"),
    ],
)
def test_what_would_move_it_is_refused(sae, training, message):
    with pytest.raises(HusaiError, match=message):
        SAEConfig.parse({"sae": {"architecture": "frozen", **sae}, "training": training})
