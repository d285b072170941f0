import pytest
import torch

from husai.config import TopKConfig
from husai.sae.params import Params
from husai.sae.topk import TopK

pytestmark = pytest.mark.filterwarnings(
    "ignore:The 'utils' module has been deprecated:DeprecationWarning",  # sae_lens imports transformer_lens.utils
)

# One SAE, two inputs, two latents. At x = (3, 3) the encoder sees x − b_dec = (2, 2): pre-activations 2·1 and 2·½.
BY_HAND = Params(
    W_enc=torch.tensor([[[1.0, 0.0], [0.0, 0.5]]]),
    b_enc=torch.tensor([[0.0, 0.0]]),
    W_dec=torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]),
    b_dec=torch.tensor([[1.0, 1.0]]),
)
NONE_DEAD = torch.zeros(1, 2, dtype=torch.bool)


def one(*values: float) -> torch.Tensor:
    return torch.tensor([[values]])


def test_only_the_largest_pre_activation_survives():
    assert TopK(TopKConfig(d_sae=2, k=1)).encode(BY_HAND, one(3, 3)).tolist() == [[[2.0, 0.0]]]


def test_every_pre_activation_survives_if_k_is_d_sae():
    assert TopK(TopKConfig(d_sae=2, k=2)).encode(BY_HAND, one(3, 3)).tolist() == [[[2.0, 1.0]]]


def test_encoder_bias_is_added():
    shifted = BY_HAND.replace(b_enc=torch.tensor([[-0.5, 4.0]]))
    assert TopK(TopKConfig(d_sae=2, k=2)).encode(shifted, one(3, 3)).tolist() == [[[1.5, 5.0]]]


def test_loss_is_the_squared_error_of_the_reconstruction():
    # codes (2, 0), x̂ = (2, 0) + b_dec = (3, 1), error (0, 2)
    losses = TopK(TopKConfig(d_sae=2, k=1)).losses(BY_HAND, one(3, 3), step=0, dead=NONE_DEAD)
    assert losses.mse.tolist() == [4.0]
    assert losses.penalty.tolist() == [0.0]
    assert losses.total.tolist() == [4.0]
    assert losses.codes.tolist() == [[[2.0, 0.0]]]


def test_loss_sums_over_inputs_and_averages_over_the_batch():
    # x = (1, 1) is b_dec and costs nothing; (3, 3) costs 4
    batch = torch.tensor([[[3.0, 3.0], [1.0, 1.0]]])
    losses = TopK(TopKConfig(d_sae=2, k=1)).losses(BY_HAND, batch, step=0, dead=NONE_DEAD)
    assert losses.mse.tolist() == [2.0]


def test_negative_values_among_the_k_largest_become_zero():
    # x − b_dec = (2, −4): pre-activations 2 and −2
    assert TopK(TopKConfig(d_sae=2, k=2)).encode(BY_HAND, one(3, -3)).tolist() == [[[2.0, 0.0]]]


def test_no_positive_pre_activation_gives_the_decoder_bias():
    losses = TopK(TopKConfig(d_sae=2, k=1)).losses(BY_HAND, one(0, 0), step=0, dead=NONE_DEAD)
    assert losses.codes.tolist() == [[[0.0, 0.0]]]
    assert losses.mse.tolist() == [2.0]  # x̂ = b_dec = (1, 1)


def test_of_tied_values_exactly_k_survive():
    # x − b_dec = (1, 2): both pre-activations are 1
    codes = TopK(TopKConfig(d_sae=2, k=1)).encode(BY_HAND, one(2, 3))
    assert sorted(codes.flatten().tolist()) == [0.0, 1.0]


def test_weighted_norms_decide_what_is_largest_and_scale_the_codes():
    # norms (1, 3): scores (2·1, 1·3); the second wins and adds 3 along its unit row: x̂ = (1, 4), error (−2, 1)
    long = BY_HAND.replace(W_dec=torch.tensor([[[1.0, 0.0], [0.0, 3.0]]]))
    losses = TopK(TopKConfig(d_sae=2, k=1, decoder_norm="weighted")).losses(long, one(3, 3), step=0, dead=NONE_DEAD)
    assert losses.codes.tolist() == [[[0.0, 3.0]]]
    assert losses.mse.tolist() == [5.0]


SECOND_DEAD = torch.tensor([[False, True]])


def test_auxk_charges_what_dead_latents_miss_of_the_residual():
    # residual (0, 2); the dead latent's pre-activation 1 gives (0, 1) of it; the rest costs 1, times coefficient 3
    config = TopKConfig(d_sae=2, k=1, auxk_coefficient=3, k_aux=1)
    losses = TopK(config).losses(BY_HAND, one(3, 3), step=0, dead=SECOND_DEAD)
    assert losses.penalty.tolist() == [3.0]
    assert losses.total.tolist() == [7.0]


def test_auxk_is_scaled_down_while_fewer_than_k_aux_latents_are_dead():
    config = TopKConfig(d_sae=2, k=1, auxk_coefficient=3, k_aux=2)
    assert TopK(config).losses(BY_HAND, one(3, 3), step=0, dead=SECOND_DEAD).penalty.tolist() == [1.5]


def test_auxk_uses_half_of_d_in_latents_by_default():
    config = TopKConfig(d_sae=2, k=1, auxk_coefficient=3, k_aux=None)  # d_in / 2 = 1
    assert TopK(config).losses(BY_HAND, one(3, 3), step=0, dead=SECOND_DEAD).penalty.tolist() == [3.0]


def test_auxk_off_charges_nothing():
    config = TopKConfig(d_sae=2, k=1, auxk_coefficient=0)
    assert TopK(config).losses(BY_HAND, one(3, 3), step=0, dead=SECOND_DEAD).penalty.tolist() == [0.0]


def test_rectified_auxk_codes_are_not_negative():
    # b_enc (0, −4): the dead latent's pre-activation is −3. As a code it gives (0, −3) of the residual (0, 2): 25;
    # rectified it gives nothing, and the residual itself is the error: 4
    shifted = BY_HAND.replace(b_enc=BY_HAND.b_enc - torch.tensor([[0.0, 4.0]]))
    for rectified, expected in ((False, 25.0), (True, 4.0)):
        config = TopKConfig(d_sae=2, k=1, auxk_coefficient=1, k_aux=1, auxk_rectified=rectified)
        assert TopK(config).losses(shifted, one(3, 3), step=0, dead=SECOND_DEAD).penalty.tolist() == [expected]


SEEDS, D_IN, D_SAE, BATCH = 3, 6, 10, 7
DEAD = {"none": [], "few": [1, 4], "many": [0, 2, 3, 5, 8, 9]}  # SAELens' k_aux is d_in // 2 = 3


def dead_masks(*names: str) -> torch.Tensor:
    masks = torch.zeros(len(names), D_SAE, dtype=torch.bool)
    for mask, name in zip(masks, names, strict=True):
        mask[DEAD[name]] = True
    return masks


@pytest.mark.parametrize("decoder_norm", ["weighted", "unit"])
@pytest.mark.parametrize(
    "dead",
    [("none", "few", "many"), ("few", "few", "few"), ("many", "many", "many")],
    ids="-".join,
)
def test_training_step_equals_sae_lens(sae_lens, make_params, decoder_norm, dead):
    from sae_lens.saes.sae import TrainStepInput

    start = make_params(SEEDS, D_IN, D_SAE, unit=decoder_norm == "unit")
    x = torch.randn(SEEDS, BATCH, D_IN, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    config = TopKConfig(d_sae=D_SAE, k=3, decoder_norm=decoder_norm, auxk_coefficient=0.7, k_aux=None)
    masks = dead_masks(*dead)

    ours = start.map(lambda value: value.clone().requires_grad_())
    losses = TopK(config).losses(ours, x, step=0, dead=masks)
    losses.total.sum().backward()

    for seed in range(SEEDS):
        theirs = sae_lens.TopKTrainingSAE(
            sae_lens.TopKTrainingSAEConfig(
                d_in=D_IN,
                d_sae=D_SAE,
                k=3,
                dtype="float64",
                aux_loss_coefficient=0.7,
                rescale_acts_by_decoder_norm=decoder_norm == "weighted",
            )
        )
        theirs.load_state_dict({name: value[seed] for name, value in start.items()})
        step = theirs.training_forward_pass(
            TrainStepInput(
                sae_in=x[seed], coefficients={}, dead_neuron_mask=masks[seed], n_training_steps=0, is_logging_step=False
            )
        )
        step.loss.backward()
        torch.testing.assert_close(losses.codes[seed], step.feature_acts, rtol=0, atol=1e-12)
        torch.testing.assert_close(losses.mse[seed], step.losses["mse_loss"])
        torch.testing.assert_close(losses.penalty[seed], step.losses["auxiliary_reconstruction_loss"])
        torch.testing.assert_close(losses.total[seed], step.loss)
        for name, _ in start.items():
            expected = getattr(theirs, name).grad
            assert expected.abs().max() > 1e-3, f"the gradient of {name} is trivially equal"
            torch.testing.assert_close(getattr(ours, name).grad[seed], expected, rtol=1e-9, atol=1e-11, msg=name)
