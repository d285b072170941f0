import pytest
import torch

from husai.config import JumpReLUConfig
from husai.errors import HusaiError
from husai.sae.jumprelu import JumpReLU, jump
from husai.sae.params import Params

pytestmark = pytest.mark.filterwarnings(
    "ignore:The 'utils' module has been deprecated:DeprecationWarning",  # sae_lens imports transformer_lens.utils
)

# Latents are the two inputs, with thresholds 1 and 2 and decoder norms 1 and 3.
BY_HAND = Params(
    torch.eye(2)[None],
    torch.zeros(1, 2),
    torch.tensor([[[1.0, 0.0], [0.0, 3.0]]]),
    torch.zeros(1, 2),
    {"threshold": torch.tensor([[1.0, 2.0]])},
)
NONE_DEAD = torch.zeros(1, 2, dtype=torch.bool)


def terms(x, *, step=0, dead=NONE_DEAD, **settings) -> dict[str, float]:
    config = JumpReLUConfig(d_sae=2, **({"l0_warmup_steps": 0} | settings))
    losses = JumpReLU(config).losses(BY_HAND, torch.tensor([x]), step=step, dead=dead)
    return {name: float(value) for name, value in losses.terms.items()}


@pytest.mark.parametrize(
    ("x", "codes"), [([3.0, 3.0], [3, 3]), ([1.0, 2.0], [0, 0]), ([1.5, -5.0], [1.5, 0]), ([0.5, 2.5], [0, 2.5])]
)
def test_what_exceeds_its_threshold_passes_unchanged(x, codes):
    architecture, batch = JumpReLU(JumpReLUConfig(d_sae=2)), torch.tensor([[x]])
    assert architecture.encode(BY_HAND, batch).tolist() == [[codes]]
    assert architecture.losses(BY_HAND, batch, step=0, dead=NONE_DEAD).codes.tolist() == [[codes]]


def test_step_counts_active_latents():
    assert terms([[3.0, 3.0], [1.5, 0.0]], l0_coefficient=2) == {"l0": 3.0}  # 2 · (2 + 1) / 2


def test_quadratic_charges_the_distance_to_the_target():
    # L0 2 and 1 at target 1: 3 · 2/1 · (1² + 0²) / 2
    found = terms([[3.0, 3.0], [1.5, 0.0]], sparsity_loss="quadratic", target_l0=1, l0_coefficient=3)
    assert found == {"l0": 3.0}


def test_tanh_charges_by_size_times_decoder_norm():
    found = terms([[3.0, 2.5]], sparsity_loss="tanh", tanh_scale=0.1, l0_coefficient=2)
    assert found["l0"] == pytest.approx(2 * float(torch.tensor([0.1 * 3, 0.1 * 2.5 * 3]).tanh().sum()))


@pytest.mark.parametrize(("step", "share"), [(0, 0.25), (2, 0.75), (9, 1.0)])
def test_the_sparsity_loss_warms_up(step, share):
    assert terms([[3.0, 3.0]], step=step, l0_warmup_steps=4) == {"l0": 2 * share}


def test_dead_latents_are_charged_for_what_they_miss_of_their_threshold():
    # latent 1 is dead: thresholds 2 missed by 1.5 and 0, times norm 3, mean 2.25, times 0.1; latent 0 misses too, alive
    found = terms([[0.0, 0.5], [0.0, 2.5]], dead=torch.tensor([[False, True]]), pre_act_coefficient=0.1)
    assert found == {"l0": 0.5, "pre_act": pytest.approx(0.225)}


def test_thresholds_stay_at_0_or_above():
    params = BY_HAND.adding(threshold=torch.tensor([[-0.5, 0.5]]))
    JumpReLU(JumpReLUConfig(d_sae=2)).settle(params, {})
    assert params.more["threshold"].tolist() == [[0.0, 0.5]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"sparsity_loss": "quadratic"},
        {"target_l0": 3},
        {"sparsity_loss": "quadratic", "target_l0": 2000},
        {"sparsity_loss": "quadratic", "target_l0": 0},
        {"bandwidth": 0},
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(wrong):
    with pytest.raises(HusaiError):
        JumpReLUConfig.parse(wrong)


def test_the_dial_is_the_coefficient_or_the_target():
    assert JumpReLUConfig(l0_coefficient=2).sparsity == ("l0_coefficient", 2)
    assert JumpReLUConfig(sparsity_loss="quadratic", target_l0=20).sparsity == ("target_l0", 20)


# --- gradients ---

BANDWIDTH = 0.8


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def upstream():
    """Pre-activations, thresholds, and arbitrary gradients of codes and counts."""
    return drawn(2, 40, 5, seed=0), drawn(2, 5, seed=1).abs(), drawn(2, 40, 5, seed=2), drawn(2, 40, seed=3)


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("used", ["codes", "count", "both"])
def test_the_fused_gradient_is_that_of_the_slow_formula(through, used):
    hidden, threshold, to_codes, to_count = upstream()
    ours = hidden.clone().requires_grad_(), threshold.clone().requires_grad_()
    codes, count = jump(*ours, BANDWIDTH, through)
    parts = {"codes": (codes * to_codes).sum(), "count": (count * to_count).sum()}
    found = torch.autograd.grad(sum(parts.values()) if used == "both" else parts[used], ours, materialize_grads=True)
    expected = torch.zeros_like(hidden), torch.zeros_like(threshold)
    for s, b, i in torch.cartesian_prod(*(torch.arange(n) for n in hidden.shape)).tolist():
        h, level = float(hidden[s, b, i]), float(threshold[s, i])
        kernel = 1 / BANDWIDTH if abs(h - level) < BANDWIDTH / 2 else 0.0
        code = float(to_codes[s, b, i]) if used != "count" else 0.0
        counted = float(to_count[s, b]) if used != "codes" else 0.0
        expected[1][s, i] -= kernel * (level * code + counted)
        expected[0][s, b, i] = code * (h > level) + (kernel * (level * code + counted) if through else 0.0)
    for fused, slow in zip(found, expected, strict=True):
        assert slow.any() or (used == "count" and not through)
        torch.testing.assert_close(fused, slow, rtol=1e-12, atol=1e-12)


def smoothed(hidden, threshold, to_codes, to_count) -> torch.Tensor:
    """The objective with each jump spread over thresholds within half a bandwidth of h.

    The count falls linearly from 1 to 0 as θ passes h; the code falls from h to 0 with slope −θ / bandwidth:
    ((h + w)² − clamp(θ, h − w, h + w)²) / (4w) with w half the bandwidth.
    """
    half, level = BANDWIDTH / 2, threshold[:, None]
    near = torch.minimum(torch.maximum(level, hidden - half), hidden + half)
    codes = ((hidden + half).square() - near.square()) / (2 * BANDWIDTH)
    count = ((hidden + half - near) / BANDWIDTH).sum(-1)
    return (codes * to_codes).sum() + (count * to_count).sum()


def test_the_threshold_gradient_is_that_of_the_smoothed_objective():
    hidden, threshold, to_codes, to_count = upstream()
    threshold.requires_grad_()
    codes, count = jump(hidden, threshold, BANDWIDTH)
    ((codes * to_codes).sum() + (count * to_count).sum()).backward()
    level, small = threshold.detach(), 1e-6
    near = (hidden - level[:, None]).abs()
    assert (near - BANDWIDTH / 2).abs().min() > small  # no sample at the kernel's edge, where it has a kink
    assert (near < BANDWIDTH / 2).any(1).all()  # every threshold has samples to learn from
    for s, i in torch.cartesian_prod(torch.arange(2), torch.arange(5)).tolist():
        nudge = torch.zeros_like(level)
        nudge[s, i] = small
        ahead, behind = (smoothed(hidden, level + sign * nudge, to_codes, to_count) for sign in (1, -1))
        assert float((ahead - behind) / (2 * small)) == pytest.approx(float(threshold.grad[s, i]), rel=1e-6, abs=1e-7)


def test_the_smoothed_objective_is_the_objective_away_from_thresholds():
    hidden, threshold, to_codes, to_count = upstream()
    far = torch.where((hidden - threshold[:, None]).abs() < BANDWIDTH, hidden + 5, hidden)
    codes, count = jump(far, threshold, BANDWIDTH)
    expected = (codes * to_codes).sum() + (count * to_count).sum()
    torch.testing.assert_close(smoothed(far, threshold, to_codes, to_count), expected)


# --- SAELens ---


@pytest.mark.parametrize("decoder_norm", ["weighted", "unit"])
@pytest.mark.parametrize("through", [False, True], ids=["thresholds only", "to input"])
@pytest.mark.parametrize("mode", ["step", "tanh", "quadratic"])
def test_training_step_equals_sae_lens(sae_lens, equals_sae_lens, decoder_norm, mode, through):
    target = 2.5 if mode == "quadratic" else None

    def theirs():
        return sae_lens.JumpReLUTrainingSAE(
            sae_lens.JumpReLUTrainingSAEConfig(
                d_in=6,
                d_sae=10,
                dtype="float64",
                jumprelu_bandwidth=BANDWIDTH,
                jumprelu_sparsity_loss_mode=mode,
                jumprelu_ste_to_input=through,
                jumprelu_tanh_scale=0.7,
                pre_act_loss_coefficient=0.05,
                target_l0=target,
            )
        )

    config = JumpReLUConfig(
        d_sae=10,
        decoder_norm=decoder_norm,
        bandwidth=BANDWIDTH,
        sparsity_loss=mode,
        ste_to_input=through,
        tanh_scale=0.7,
        target_l0=target,
        pre_act_coefficient=0.05,
        l0_coefficient=0.4,
        l0_warmup_steps=10,
    )
    equals_sae_lens(
        JumpReLU(config),
        theirs,
        {"l0": "l0_loss", "pre_act": "pre_act_loss"},
        coefficients={"l0": 0.4 * 0.3},
        step=2,
        more={"threshold": drawn(3, 10, seed=5).abs()},
        idle=("pre_act",),
    )
