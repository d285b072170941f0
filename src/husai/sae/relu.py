"""ReLU SAE with an L1 penalty (Bricken et al. 2023): λ · mean over batch of Σ_i |f_i|·‖W_dec,i‖."""

from types import MappingProxyType
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from husai.config import L1Config
from husai.sae.architecture import Architecture, Losses, Step
from husai.sae.kernels.choice import numba_there, plain_floats
from husai.sae.kernels.relu import relu_step
from husai.sae.kernels.step import OneSeed, each_seed
from husai.sae.params import Params, pre_activations, squared_error
from husai.schedule import warmth

L = TypeVar("L", bound=L1Config)


class ReLU(Architecture[L]):
    """ReLU of the pre-activations; the norms of the decoder rows are part of x̂, whatever the config."""

    saelens = "standard"
    powers = MappingProxyType({"l1_coefficient": 1})
    encoder_scale = 0.2

    def encode(self, params: Params, x: Tensor) -> Float[Tensor, "seeds batch d_sae"]:
        return pre_activations(params, x, centred=self.config.centred()).relu()

    def coefficient(self, step: int) -> float:
        """λ at its warm-up level."""
        return self.config.l1_coefficient * warmth(step, self.config.l1_warmup_steps)

    def losses(
        self, params: Params, x: Tensor, *, step: int, dead: Bool[Tensor, "seeds d_sae"], target: Tensor | None = None
    ) -> Losses:
        """Squared error plus the L1 penalty at its warm-up level; `dead` plays no part.

        The penalty sums over latents and averages over the batch only: averaging over latents too would make it d_sae times
        too weak.
        """
        codes, norms = self.encode(params, x), params.W_dec.norm(dim=-1)
        l1 = self.coefficient(step) * self.strength * (codes * norms[:, None]).sum(-1).mean(-1)
        return Losses(squared_error(self.decode(params, codes, x), x if target is None else target), {"l1": l1}, codes)

    def fast(self, params: Params, x: Tensor, *, step: int, dead: Bool[Tensor, "seeds d_sae"]) -> Step | None:
        """In blocks that stay in the cache where that applies: float32 on the CPU. With numba, sparse codes as such."""
        if type(self) is not ReLU or not plain_floats(params, x):
            return None
        strength = (torch.ones(len(x)) * self.strength * self.coefficient(step)).tolist()
        if numba_there():
            from husai.sae.kernels.threshold import Gate, threshold_step

            def one(seed: int, alone: Params, made: Params) -> OneSeed:
                return threshold_step(alone, x[seed], Gate(l1=strength[seed]), made, "l1")

            return each_seed(one, params)
        return each_seed(lambda seed, alone, made: relu_step(alone, x[seed], strength[seed], made), params)
