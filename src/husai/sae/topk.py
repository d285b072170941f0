"""TopK SAE with AuxK (Gao et al. 2024, arXiv 2406.04093, §2.3 and appendix A.2)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from husai.config import TopKConfig
from husai.sae.base import Losses, Params, pre_activations, reconstruct, squared_error


def scores(params: Params, x: Tensor, config: TopKConfig) -> Float[Tensor, "seeds batch d_sae"]:
    """What the k largest are chosen by: pre-activations, times the decoder norms if those are free."""
    hidden = pre_activations(params, x)
    return hidden * params.W_dec.norm(dim=-1)[:, None] if config.decoder_norm == "weighted" else hidden


def encode(params: Params, x: Tensor, config: TopKConfig) -> Float[Tensor, "seeds batch d_sae"]:
    """ReLU of the k largest scores, 0 elsewhere."""
    return keep_largest(scores(params, x, config), config.k)


def keep_largest(hidden: Float[Tensor, "... d_sae"], k: int) -> Float[Tensor, "... d_sae"]:
    values, indices = hidden.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(hidden).scatter(-1, indices, values.relu())


def decode(
    params: Params, codes: Float[Tensor, "seeds batch d_sae"], config: TopKConfig
) -> Float[Tensor, "seeds batch d_in"]:
    """x̂ with decoder rows of norm 1: they are kept so, or the codes already carry their norms."""
    if config.decoder_norm == "weighted":
        params = params._replace(W_dec=params.W_dec / params.W_dec.norm(dim=-1, keepdim=True))
    return reconstruct(params, codes)


def losses(params: Params, x: Tensor, config: TopKConfig, *, step: int, dead: Bool[Tensor, "seeds d_sae"]) -> Losses:
    """Squared error plus AuxK; `step` plays no part."""
    hidden = scores(params, x, config)
    codes = keep_largest(hidden, config.k)
    reconstruction = decode(params, codes, config)
    mse = squared_error(reconstruction, x)
    residual = (x - reconstruction).detach()
    each = zip(hidden.unbind(), params.W_dec.unbind(), residual.unbind(), dead.unbind(), strict=True)
    aux = torch.stack([_auxk(*one, config) for one in each])
    return Losses(mse + aux, mse, aux, codes)


def _auxk(hidden: Tensor, W_dec: Tensor, residual: Tensor, dead: Tensor, config: TopKConfig) -> Tensor:
    """One seed's dead latents reconstruct the residual; scaled down while there are fewer than k_aux of them."""
    count = int(dead.sum())
    if count == 0 or config.auxk_coefficient == 0:
        return hidden.new_zeros(())
    wanted = config.k_aux or W_dec.shape[1] // 2
    of_dead = hidden[:, dead]
    values, indices = of_dead.topk(min(wanted, count), dim=-1, sorted=False)
    codes = torch.zeros_like(of_dead).scatter(-1, indices, values.relu() if config.auxk_rectified else values)
    atoms = W_dec[dead] / W_dec[dead].norm(dim=-1, keepdim=True) if config.decoder_norm == "weighted" else W_dec[dead]
    error = (codes @ atoms - residual).pow(2).sum(-1).mean()
    return config.auxk_coefficient * min(count / wanted, 1.0) * error
