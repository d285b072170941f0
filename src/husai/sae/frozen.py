"""TopK SAE with a frozen random decoder: what an encoder makes of atoms that know nothing of the data."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from husai.config import FrozenConfig
from husai.sae.params import Params
from husai.sae.topk import TopK


class Frozen(TopK[FrozenConfig]):
    """TopK whose decoder rows stay as they were drawn; encoder and biases are trained. Saved as TopK.

    A resampled latent keeps its decoder row too: its encoder starts again along it.
    """

    def pulled(self, params: Params, gradients: Params) -> Params:
        return gradients.replace(W_dec=torch.zeros_like(gradients.W_dec))

    def point(
        self, params: Params, seed: int, which: Bool[Tensor, "d_sae"], directions: Float[Tensor, "n d_in"]
    ) -> Float[Tensor, "n d_in"]:
        return params.W_dec[seed, which]
