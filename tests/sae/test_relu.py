import pytest
import torch

from husai.config import ReLUConfig
from husai.sae.params import Params
from husai.sae.relu import ReLU

pytestmark = pytest.mark.filterwarnings(
    "ignore:The 'utils' module has been deprecated:DeprecationWarning",  # sae_lens imports transformer_lens.utils
)

# Decoder norms are 1 and 2. With b_dec = (1, 1) the rows (3, 2) and (0, 4) have codes (2, 1) and (0, 3).
BY_HAND = Params(
    W_enc=torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]),
    b_enc=torch.tensor([[0.0, 0.0]]),
    W_dec=torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]),
    b_dec=torch.tensor([[1.0, 1.0]]),
)
BATCH = torch.tensor([[[3.0, 2.0], [0.0, 4.0]]])
NONE_DEAD = torch.zeros(1, 2, dtype=torch.bool)


def losses_of(config: ReLUConfig, step: int = 0, params: Params = BY_HAND):
    return ReLU(config).losses(params, BATCH, step=step, dead=NONE_DEAD)


def test_codes_are_the_positive_pre_activations():
    assert ReLU(ReLUConfig(d_sae=2)).encode(BY_HAND, BATCH).tolist() == [[[2.0, 1.0], [0.0, 3.0]]]


def test_encoder_bias_is_added():
    shifted = BY_HAND.replace(b_enc=torch.tensor([[2.0, -2.0]]))
    assert ReLU(ReLUConfig(d_sae=2)).encode(shifted, BATCH).tolist() == [[[4.0, 0.0], [1.0, 1.0]]]


def test_squared_error_sums_over_inputs_and_averages_over_the_batch():
    # x̂ = (3, 3) and (1, 7): squared errors 1 and 1 + 9
    assert losses_of(ReLUConfig(d_sae=2, l1_coefficient=0)).mse.tolist() == [5.5]


def test_l1_sums_over_latents_and_averages_over_the_batch():
    # Σ f·‖W_dec‖ is 2·1 + 1·2 = 4 and 0·1 + 3·2 = 6; the mean is 5. Averaging over latents too would halve it.
    losses = losses_of(ReLUConfig(d_sae=2, l1_coefficient=0.5, l1_warmup_steps=0))
    assert losses.penalty.tolist() == [2.5]
    assert losses.total.tolist() == [8.0]


def test_l1_does_not_shrink_when_silent_latents_are_added():
    config = ReLUConfig(d_sae=4, l1_coefficient=0.5, l1_warmup_steps=0)
    wider = Params(
        torch.cat([BY_HAND.W_enc, torch.zeros(1, 2, 2)], dim=2),
        torch.tensor([[0.0, 0.0, -1.0, -1.0]]),
        torch.cat([BY_HAND.W_dec, torch.ones(1, 2, 2)], dim=1),
        BY_HAND.b_dec,
    )
    assert losses_of(config, params=wider).penalty.tolist() == [2.5]


@pytest.mark.parametrize(("step", "penalty"), [(0, 1.25), (1, 2.5), (2, 3.75), (3, 5.0), (1000, 5.0)])
def test_l1_coefficient_warms_up_linearly(step, penalty):
    assert losses_of(ReLUConfig(d_sae=2, l1_coefficient=1, l1_warmup_steps=4), step).penalty.tolist() == [penalty]


@pytest.mark.parametrize("unit", [False, True], ids=["free norms", "unit norms"])
@pytest.mark.parametrize(("step", "warmth"), [(2, 0.3), (50, 1.0)], ids=["warming up", "warm"])
def test_training_step_equals_sae_lens(sae_lens, make_params, unit, step, warmth):
    from sae_lens.saes.sae import TrainStepInput

    seeds, d_in, d_sae = 3, 6, 10
    start = make_params(seeds, d_in, d_sae, unit=unit)
    x = torch.randn(seeds, 7, d_in, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    config = ReLUConfig(
        d_sae=d_sae, l1_coefficient=0.4, l1_warmup_steps=10, decoder_norm="unit" if unit else "weighted"
    )

    ours = start.map(lambda value: value.clone().requires_grad_())
    losses = ReLU(config).losses(ours, x, step=step, dead=torch.zeros(seeds, d_sae, dtype=torch.bool))
    losses.total.sum().backward()

    for seed in range(seeds):
        theirs = sae_lens.StandardTrainingSAE(
            sae_lens.StandardTrainingSAEConfig(d_in=d_in, d_sae=d_sae, dtype="float64", l1_coefficient=0.4)
        )
        theirs.load_state_dict({name: value[seed] for name, value in start.items()})
        out = theirs.training_forward_pass(
            TrainStepInput(
                sae_in=x[seed],
                coefficients={"l1": 0.4 * warmth},
                dead_neuron_mask=None,
                n_training_steps=step,
                is_logging_step=False,
            )
        )
        out.loss.backward()
        torch.testing.assert_close(losses.codes[seed], out.feature_acts, rtol=0, atol=1e-12)
        torch.testing.assert_close(losses.mse[seed], out.losses["mse_loss"])
        torch.testing.assert_close(losses.penalty[seed], out.losses["l1_loss"])
        torch.testing.assert_close(losses.total[seed], out.loss)
        for name, _ in start.items():
            expected = getattr(theirs, name).grad
            assert expected.abs().max() > 1e-3, f"the gradient of {name} is trivially equal"
            torch.testing.assert_close(getattr(ours, name).grad[seed], expected, rtol=1e-9, atol=1e-11, msg=name)
