import math

import pytest
import torch

from husai.config import GatedConfig
from husai.sae.gated import Gated
from husai.sae.params import Params

pytestmark = pytest.mark.filterwarnings(
    "ignore:The 'utils' module has been deprecated:DeprecationWarning",  # sae_lens imports transformer_lens.utils
)

# Latents are the two inputs. Magnitudes are 2·h − 1 and ½·h + 1, gates h − 1 and h − 1; decoder norms are 1 and 3.
BY_HAND = Params(
    torch.eye(2)[None],
    -torch.ones(1, 2),
    torch.tensor([[[1.0, 0.0], [0.0, 3.0]]]),
    torch.zeros(1, 2),
    {"r_mag": torch.tensor([[math.log(2), -math.log(2)]]), "b_mag": torch.tensor([[-1.0, 1.0]])},
)
NONE_DEAD = torch.zeros(1, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("x", "codes"),
    [
        ([2.0, 2.0], [3.0, 2.0]),
        ([1.0, 2.0], [0.0, 2.0]),  # at 0 a gate is closed
        ([1.5, 0.5], [2.0, 0.0]),  # though the second magnitude is positive
        ([-4.0, -4.0], [0.0, 0.0]),
    ],
)
def test_the_gate_decides_whether_and_the_magnitude_how_much(x, codes):
    found = Gated(GatedConfig(d_sae=2)).encode(BY_HAND, torch.tensor([[x]]))
    torch.testing.assert_close(found, torch.tensor([[codes]]))


def test_a_negative_magnitude_behind_an_open_gate_is_no_code():
    lower = BY_HAND.adding(b_mag=torch.tensor([[-9.0, -9.0]]))
    assert Gated(GatedConfig(d_sae=2)).encode(lower, torch.tensor([[[2.0, 2.0]]])).tolist() == [[[0, 0]]]


def test_the_rectified_gate_is_penalised_and_must_reconstruct():
    # x = (2, 3): gates (1, 2), L1 1·1 + 2·3 = 7, x̂ of the gate (1, 6), error (1, 3): 10; codes (3, 2.5), x̂ (3, 7.5)
    config = GatedConfig(d_sae=2, l1_coefficient=0.5, l1_warmup_steps=0)
    losses = Gated(config).losses(BY_HAND, torch.tensor([[[2.0, 3.0]]]), step=0, dead=NONE_DEAD)
    assert losses.terms["l1"].tolist() == [3.5]
    assert losses.terms["gate"].tolist() == [10]
    assert losses.mse.tolist() == pytest.approx([1 + 4.5**2])


@pytest.mark.parametrize(("step", "share"), [(0, 0.25), (2, 0.75), (9, 1.0)])
def test_l1_warms_up_and_the_gates_reconstruction_does_not(step, share):
    config = GatedConfig(d_sae=2, l1_coefficient=2, l1_warmup_steps=4)
    losses = Gated(config).losses(BY_HAND, torch.tensor([[[2.0, 3.0]]]), step=step, dead=NONE_DEAD)
    assert losses.terms["l1"].tolist() == [14 * share]
    assert losses.terms["gate"].tolist() == [10]


@pytest.mark.parametrize("decoder_norm", ["weighted", "unit"])
def test_training_step_equals_sae_lens(sae_lens, equals_sae_lens, decoder_norm):
    def theirs():
        return sae_lens.GatedTrainingSAE(
            sae_lens.GatedTrainingSAEConfig(d_in=6, d_sae=10, dtype="float64", l1_coefficient=0.4)
        )

    g = torch.Generator().manual_seed(5)
    more = {name: 0.3 * torch.randn(3, 10, generator=g, dtype=torch.float64) for name in ("r_mag", "b_mag")}
    config = GatedConfig(d_sae=10, l1_coefficient=0.4, l1_warmup_steps=10, decoder_norm=decoder_norm)
    equals_sae_lens(
        Gated(config),
        theirs,
        {"l1": "l1_loss", "gate": "auxiliary_reconstruction_loss"},
        coefficients={"l1": 0.4 * 0.3},
        step=2,
        more=more,
    )
