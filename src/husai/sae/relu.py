"""ReLU SAE with an L1 penalty (Bricken et al. 2023): λ · mean over batch of Σ_i |f_i|·‖W_dec,i‖."""

from jaxtyping import Bool, Float
from torch import Tensor

from husai.config import ReLUConfig
from husai.sae.base import Losses, Params, pre_activations, reconstruct, squared_error


def encode(params: Params, x: Tensor, config: ReLUConfig) -> Float[Tensor, "seeds batch d_sae"]:
    """ReLU of the pre-activations."""
    return pre_activations(params, x).relu()


def decode(
    params: Params, codes: Float[Tensor, "seeds batch d_sae"], config: ReLUConfig
) -> Float[Tensor, "seeds batch d_in"]:
    """x̂; the norms of the decoder rows are part of it, whatever the config."""
    return reconstruct(params, codes)


def losses(params: Params, x: Tensor, config: ReLUConfig, *, step: int, dead: Bool[Tensor, "seeds d_sae"]) -> Losses:
    """Squared error plus the L1 penalty at its warm-up level; `dead` plays no part.

    The penalty sums over latents and averages over the batch only: averaging over latents too would make it d_sae times
    too weak.
    """
    codes = encode(params, x, config)
    mse = squared_error(decode(params, codes, config), x)
    warmth = min(1.0, (step + 1) / config.l1_warmup_steps) if config.l1_warmup_steps else 1.0
    norms = params.W_dec.norm(dim=-1)
    penalty = config.l1_coefficient * warmth * (codes * norms[:, None]).sum(-1).mean(-1)
    return Losses(mse + penalty, mse, penalty, codes)
