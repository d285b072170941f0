"""ReLU SAE with an L1 penalty (Bricken et al. 2023): λ · mean over batch of Σ_i |f_i|·‖W_dec,i‖."""

from jaxtyping import Bool, Float
from torch import Tensor

from husai.config import ReLUConfig
from husai.sae.architecture import Architecture, Losses
from husai.sae.params import Params, pre_activations, squared_error
from husai.schedule import warmth


class ReLU(Architecture[ReLUConfig]):
    """ReLU of the pre-activations; the norms of the decoder rows are part of x̂, whatever the config."""

    saelens = "standard"
    encoder_scale = 0.2

    def encode(self, params: Params, x: Tensor) -> Float[Tensor, "seeds batch d_sae"]:
        return pre_activations(params, x).relu()

    def losses(self, params: Params, x: Tensor, *, step: int, dead: Bool[Tensor, "seeds d_sae"]) -> Losses:
        """Squared error plus the L1 penalty at its warm-up level; `dead` plays no part.

        The penalty sums over latents and averages over the batch only: averaging over latents too would make it d_sae times
        too weak.
        """
        codes, config = self.encode(params, x), self.config
        norms = params.W_dec.norm(dim=-1)
        strength = config.l1_coefficient * self.strength * warmth(step, config.l1_warmup_steps)
        l1 = strength * (codes * norms[:, None]).sum(-1).mean(-1)
        return Losses(squared_error(self.decode(params, codes), x), {"l1": l1}, codes)
