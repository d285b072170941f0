"""JumpReLU SAE (Rajamanoharan et al. 2024, "Jumping Ahead", arXiv 2407.14435), with a threshold for every latent."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from husai.config import JumpReLUConfig
from husai.sae.architecture import Architecture, Losses, Step
from husai.sae.kernels.choice import numba_there, plain_floats
from husai.sae.kernels.step import OneSeed, each_seed
from husai.sae.params import Params, pre_activations, squared_error
from husai.schedule import warmth


class JumpReLU(Architecture[JumpReLUConfig]):
    """f = h where h exceeds the latent's threshold, else 0; thresholds (seeds, d_sae) are learned and stay ≥ 0."""

    saelens = "jumprelu"
    scaled = ("threshold",)
    powers = MappingProxyType(
        {"l0_coefficient": 2, "bandwidth": 1, "initial_threshold": 1, "tanh_scale": -1, "pre_act_coefficient": 1}
    )
    encoder_scale = 0.2

    def init(self, params: Params) -> Params:
        return params.adding(threshold=torch.full_like(params.b_enc, self.config.initial_threshold))

    def encode(self, params: Params, x: Tensor) -> Float[Tensor, "seeds batch d_sae"]:
        hidden = pre_activations(params, x)
        return hidden.relu() * (hidden > params.more["threshold"][:, None])

    def training_codes(self, params: Params, x: Tensor) -> Float[Tensor, "seeds batch d_sae"]:
        """Thresholds get their gradient from here."""
        config = self.config
        return jump(pre_activations(params, x), params.more["threshold"], config.bandwidth, config.ste_to_input)[0]

    def losses(
        self, params: Params, x: Tensor, *, step: int, dead: Bool[Tensor, "seeds d_sae"], target: Tensor | None = None
    ) -> Losses:
        """Squared error, the sparsity loss at its warm-up level (l0), and for dead latents the mean over the batch of
        Σ ReLU(threshold − h)·‖W_dec‖ (pre_act).

        step: L0, as in the paper; tanh: Anthropic 2025, "Circuits Updates — January"; quadratic: Gemma Scope 2.
        """
        config, threshold = self.config, params.more["threshold"]
        hidden, norms = pre_activations(params, x), params.W_dec.norm(dim=-1)[:, None]
        codes, count = jump(hidden, threshold, config.bandwidth, config.ste_to_input)
        if config.sparsity_loss == "tanh":
            sparsity = (config.tanh_scale * codes * norms).tanh().sum(-1)
        elif config.target_l0 is not None:
            sparsity = 2 / config.target_l0 * (count - config.target_l0).square()
        else:
            sparsity = count
        terms = {"l0": config.l0_coefficient * self.strength * warmth(step, config.l0_warmup_steps) * sparsity.mean(-1)}
        if config.pre_act_coefficient:
            missing = (threshold[:, None] - hidden).relu() * (norms * dead[:, None])
            terms["pre_act"] = config.pre_act_coefficient * missing.sum(-1).mean(-1)
        return Losses(squared_error(self.decode(params, codes, x), x if target is None else target), terms, codes)

    def fast(self, params: Params, x: Tensor, *, step: int, dead: Bool[Tensor, "seeds d_sae"]) -> Step | None:
        """By the kernels where they apply: float32 on the CPU, numba installed, neither quadratic loss nor pre_act."""
        config = self.config
        covered = type(self) is JumpReLU and config.sparsity_loss != "quadratic" and not config.pre_act_coefficient
        if not (covered and plain_floats(params, x) and numba_there()):
            return None
        from husai.sae.kernels.threshold import Gate, threshold_step

        warm = config.l0_coefficient * warmth(step, config.l0_warmup_steps)
        strength = (torch.ones(len(x)) * self.strength * warm).tolist()

        def one(seed: int, alone: Params, made: Params) -> OneSeed:
            weight = {config.sparsity_loss: strength[seed]}
            gate = Gate(**weight, scale=config.tanh_scale, bandwidth=config.bandwidth, to_input=config.ste_to_input)
            return threshold_step(alone, x[seed], gate, made, "l0")

        return each_seed(one, params)

    def settle(self, params: Params, seen: Mapping[str, Tensor]) -> None:
        """Below 0 a threshold would let negative pre-activations pass."""
        params.more["threshold"].clamp_(min=0.0)


def jump(
    hidden: Float[Tensor, "seeds batch d_sae"],
    threshold: Float[Tensor, "seeds d_sae"],
    bandwidth: float,
    ste_to_input: bool = False,
) -> tuple[Float[Tensor, "seeds batch d_sae"], Float[Tensor, "seeds batch"]]:
    """Codes and L0 of every sample, in one pass, with gradients for both.

    A jump has no derivative; thresholds get that of the expectation over inputs, estimated with a rectangular kernel of
    width `bandwidth` (arXiv 2407.14435): with K = [|h − θ| < bandwidth/2] / bandwidth, dθ is −Σ_batch K·(θ·d codes + d L0).
    h gets [h > θ]·d codes, and with `ste_to_input` K·(θ·d codes + d L0) besides.
    """
    return _Jump.apply(hidden, threshold, bandwidth, ste_to_input)  # pyright: ignore[reportReturnType]


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, threshold: Tensor, bandwidth: float, ste_to_input: bool) -> Any:
        active = hidden > threshold[:, None]
        ctx.save_for_backward(hidden, threshold)
        ctx.bandwidth, ctx.ste_to_input = bandwidth, ste_to_input
        ctx.set_materialize_grads(False)
        return hidden * active, active.sum(-1).to(threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        (hidden, threshold), (to_codes, to_count) = ctx.saved_tensors, grads
        level = threshold[:, None]
        pull = torch.zeros_like(hidden) if to_codes is None else level * to_codes
        if to_count is not None:
            pull = pull + to_count[..., None]
        pull = pull * (((hidden - level) / ctx.bandwidth).abs() < 0.5) / ctx.bandwidth
        to_hidden = torch.zeros_like(hidden) if to_codes is None else to_codes * (hidden > level)
        return to_hidden + pull if ctx.ste_to_input else to_hidden, -pull.sum(1), None, None
