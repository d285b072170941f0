import pytest
import torch

from husai.config import AbsTopKConfig
from husai.errors import HusaiError
from husai.sae.abstopk import AbsTopK
from husai.sae.params import Params

pytestmark = pytest.mark.filterwarnings(
    "ignore:The 'utils' module has been deprecated:DeprecationWarning",  # sae_lens imports transformer_lens.utils
)

IDENTITY = Params(torch.eye(3)[None], torch.zeros(1, 3), torch.eye(3)[None], torch.zeros(1, 3))


@pytest.mark.parametrize(("k", "expected"), [(1, [0, -3, 0]), (2, [2, -3, 0]), (3, [2, -3, 1])])
def test_the_largest_magnitudes_survive_with_their_signs(k, expected):
    codes = AbsTopK(AbsTopKConfig(d_sae=3, k=k)).encode(IDENTITY, torch.tensor([[[2.0, -3.0, 1.0]]]))
    assert codes.tolist() == [[expected]]


def test_dead_latents_serve_the_residual_by_magnitude():
    # k = 1 keeps −3 and leaves the residual (2, 0, 1); of the dead latents 0 and 2 the larger, 2, is chosen: 1² is left
    architecture = AbsTopK(AbsTopKConfig(d_sae=3, k=1, k_aux=1))
    dead = torch.tensor([[True, False, True]])
    losses = architecture.losses(IDENTITY, torch.tensor([[[-2.0, -3.0, 1.0]]]), step=0, dead=dead)
    assert losses.mse.tolist() == [5]
    assert losses.penalty.tolist() == [1]


def test_rectifying_signed_codes_is_refused():
    with pytest.raises(HusaiError, match="auxk_rectified"):
        AbsTopKConfig.parse({"d_sae": 64, "auxk_rectified": True})


@pytest.mark.parametrize("decoder_norm", ["weighted", "unit"])
def test_training_step_equals_sae_lens(sae_lens, equals_sae_lens, decoder_norm):
    from sae_lens.saes.abstopk_sae import AbsTopKTrainingSAE, AbsTopKTrainingSAEConfig

    def theirs():
        return AbsTopKTrainingSAE(
            AbsTopKTrainingSAEConfig(
                d_in=6,
                d_sae=10,
                k=3,
                dtype="float64",
                aux_loss_coefficient=0.7,
                rescale_acts_by_decoder_norm=decoder_norm == "weighted",
            )
        )

    config = AbsTopKConfig(d_sae=10, k=3, decoder_norm=decoder_norm, auxk_coefficient=0.7)
    equals_sae_lens(AbsTopK(config), theirs, {"auxk": "auxiliary_reconstruction_loss"}, idle=("auxk",))
