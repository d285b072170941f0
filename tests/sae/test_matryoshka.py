import pytest
import torch

from husai.config import MatryoshkaConfig
from husai.errors import HusaiError
from husai.sae.matryoshka import Matryoshka
from husai.sae.params import Params

pytestmark = pytest.mark.filterwarnings(
    "ignore:The 'utils' module has been deprecated:DeprecationWarning",  # sae_lens imports transformer_lens.utils
)


def test_inner_dictionaries_are_charged_for_what_they_miss():
    """Latents are the three inputs; x = (1, 2, 3) about b_dec = 0, all latents active."""
    params = Params(torch.eye(3)[None], torch.zeros(1, 3), torch.eye(3)[None], torch.zeros(1, 3))
    architecture = Matryoshka(MatryoshkaConfig(d_sae=3, k=3, widths=(1, 2, 3)))
    dead = torch.zeros(1, 3, dtype=torch.bool)
    losses = architecture.losses(architecture.init(params), torch.tensor([[[1.0, 2.0, 3.0]]]), step=0, dead=dead)
    assert losses.mse.tolist() == [0]
    assert {name: value.tolist() for name, value in losses.terms.items()} == {
        "auxk": [0],
        "inner_1": [13],  # 2² + 3²
        "inner_2": [9],
    }
    assert losses.total.tolist() == [22]


def test_the_decoder_bias_counts_once_in_every_inner_dictionary():
    # x − b_dec = (0, 0, 0): nothing is active, x̂ = b_dec = x at every width
    params = Params(torch.eye(3)[None], torch.zeros(1, 3), torch.eye(3)[None], torch.ones(1, 3))
    architecture = Matryoshka(MatryoshkaConfig(d_sae=3, k=1, widths=(1, 2, 3)))
    dead = torch.zeros(1, 3, dtype=torch.bool)
    assert architecture.losses(architecture.init(params), torch.ones(1, 1, 3), step=0, dead=dead).total.tolist() == [0]


@pytest.mark.parametrize(("d_sae", "nested"), [(64, (8, 16, 32, 64)), (4, (1, 2, 4)), (1, (1,))])
def test_widths_double_from_an_eighth_by_default(d_sae, nested):
    assert MatryoshkaConfig(d_sae=d_sae, k=1).nested == nested


@pytest.mark.parametrize("widths", [[], [4, 8], [8, 8, 16], [12, 8, 16], [8, 16, 20], [0, 16]])
def test_widths_that_do_not_nest_are_refused(widths):
    with pytest.raises(HusaiError, match="widths"):
        MatryoshkaConfig.parse({"d_sae": 16, "k": 2, "widths": widths})


@pytest.mark.parametrize("decoder_norm", ["weighted", "unit"])
def test_training_step_equals_sae_lens(sae_lens, equals_sae_lens, decoder_norm):
    config = MatryoshkaConfig(d_sae=10, k=3, decoder_norm=decoder_norm, auxk_coefficient=0.7, widths=(2, 5, 10))

    def theirs():
        return sae_lens.MatryoshkaBatchTopKTrainingSAE(
            sae_lens.MatryoshkaBatchTopKTrainingSAEConfig(
                d_in=6,
                d_sae=10,
                k=3,
                dtype="float64",
                aux_loss_coefficient=0.7,
                matryoshka_widths=[2, 5, 10],
                rescale_acts_by_decoder_norm=decoder_norm == "weighted",
            )
        )

    terms = {
        "auxk": "auxiliary_reconstruction_loss",
        "inner_2": "inner_mse_loss_2",
        "inner_5": "inner_mse_loss_5",
    }
    equals_sae_lens(Matryoshka(config), theirs, terms, idle=("auxk",), silent=("threshold",))
