"""Stacked parameters, the `Dictionary` every score takes, and the ensemble that training returns.

Axes: seeds S, batch B, input d_in, latents d_sae. Decoder rows are the dictionary's atoms.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from husai.activations import Normaliser
from husai.config import ReLUConfig, TopKConfig
from husai.seeding import generator


class Params(NamedTuple):
    """S sparse autoencoders in four tensors: x̂ = f(x)·W_dec + b_dec; the encoder sees x − b_dec."""

    W_enc: Float[Tensor, "seeds d_in d_sae"]
    b_enc: Float[Tensor, "seeds d_sae"]
    W_dec: Float[Tensor, "seeds d_sae d_in"]
    b_dec: Float[Tensor, "seeds d_in"]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Params":
        return Params(*(function(value) for value in self))


class Losses(NamedTuple):
    """Per-seed losses of one batch; `total` is what is minimised.

    mse: mean over batch of the summed squared error. penalty: what the architecture adds to it (weighted).
    codes: the batch's latent activations.
    """

    total: Float[Tensor, "seeds"]
    mse: Float[Tensor, "seeds"]
    penalty: Float[Tensor, "seeds"]
    codes: Float[Tensor, "seeds batch d_sae"]


C = TypeVar("C", contravariant=True)


class Architecture(Protocol, Generic[C]):
    """What one architecture file provides, as pure functions of stacked parameters."""

    def encode(
        self, params: Params, x: Float[Tensor, "seeds batch d_in"], config: C
    ) -> Float[Tensor, "seeds batch d_sae"]:
        """Latent activations f(x)."""
        ...

    def decode(
        self, params: Params, codes: Float[Tensor, "seeds batch d_sae"], config: C
    ) -> Float[Tensor, "seeds batch d_in"]:
        """Reconstruction from codes."""
        ...

    def losses(
        self,
        params: Params,
        x: Float[Tensor, "seeds batch d_in"],
        config: C,
        *,
        step: int,
        dead: Bool[Tensor, "seeds d_sae"],
    ) -> Losses:
        """Losses of a batch at optimiser step `step`, given which latents have been silent for long."""
        ...


SAEKind = TopKConfig | ReLUConfig


def init_params(d_in: int, d_sae: int, init_seeds: tuple[int, ...]) -> Params:
    """Unit decoder rows in random directions, the encoder their transpose, biases 0; one stream a seed."""
    rows = [F.normalize(torch.randn(d_sae, d_in, generator=generator("sae-init", seed)), dim=-1) for seed in init_seeds]
    W_dec = torch.stack(rows)
    seeds = len(init_seeds)
    return Params(W_dec.mT.contiguous(), torch.zeros(seeds, d_sae), W_dec, torch.zeros(seeds, d_in))


def pre_activations(params: Params, x: Float[Tensor, "seeds batch d_in"]) -> Float[Tensor, "seeds batch d_sae"]:
    return torch.baddbmm(params.b_enc[:, None], x - params.b_dec[:, None], params.W_enc)


def reconstruct(params: Params, codes: Float[Tensor, "seeds batch d_sae"]) -> Float[Tensor, "seeds batch d_in"]:
    return torch.baddbmm(params.b_dec[:, None], codes, params.W_dec)


def squared_error(reconstruction: Tensor, x: Tensor) -> Float[Tensor, "seeds"]:
    """Sum over d_in, mean over the batch."""
    return (reconstruction - x).pow(2).sum(-1).mean(-1)


@dataclass(frozen=True)
class Dictionary:
    """One finished SAE as every score sees it, whatever trained it.

    W_dec: (d_sae, d_in). encode: (n, d_in) raw activations to (n, d_sae) codes; decode: back to (n, d_in).
    meta: what is known about its making (architecture, hook_name, model_name, seeds, …).
    """

    W_dec: Float[Tensor, "d_sae d_in"]
    encode: Callable[[Float[Tensor, "n d_in"]], Float[Tensor, "n d_sae"]]
    decode: Callable[[Float[Tensor, "n d_sae"]], Float[Tensor, "n d_in"]]
    meta: dict[str, object] = field(default_factory=dict)

    @property
    def d_in(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]

    @property
    def atoms(self) -> Float[Tensor, "d_sae d_in"]:
        """Unit decoder rows, float32."""
        return F.normalize(self.W_dec.float(), dim=-1)


@dataclass(frozen=True)
class SAEEnsemble:
    """S trained SAEs of one config, on raw activations, with unit decoder rows."""

    params: Params
    config: SAEKind
    init_seeds: tuple[int, ...]
    data_seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.init_seeds)

    @property
    def dictionaries(self) -> list[Dictionary]:
        """Every seed as a Dictionary."""
        return [self.member(index) for index in range(len(self))]

    def member(self, index: int, meta: dict[str, object] | None = None) -> Dictionary:
        """One seed as a Dictionary."""
        from husai.sae.architectures import architecture_of

        params, config = self.params.map(lambda value: value[index : index + 1]), self.config
        architecture = architecture_of(config)

        def encode(x: Tensor) -> Tensor:
            with torch.no_grad():
                return torch.cat([architecture.encode(params, part[None], config)[0] for part in x.split(8192)])

        def decode(codes: Tensor) -> Tensor:
            return reconstruct(params, codes[None])[0]

        seeds = {"init_seed": self.init_seeds[index], "data_seed": self.data_seeds[index]}
        kind: dict[str, object] = {"architecture": config.architecture, **dict([config.sparsity])}
        return Dictionary(params.W_dec[0], encode, decode, kind | seeds | (meta or {}))


def finish(params: Params, normaliser: Normaliser) -> Params:
    """Fold decoder norms and input normalisation into the weights: same reconstructions, unit decoder rows, raw input.

    Both foldings rest on the codes being positively homogeneous: f(c·h) = c·f(h) for c > 0, as ReLU and TopK are.
    Codes come out in units of raw activations.
    """
    norms = params.W_dec.norm(dim=-1).clamp(min=1e-12)
    scale, mean = normaliser.scale, normaliser.mean.to(params.b_dec)
    return Params(
        params.W_enc * norms[:, None],
        params.b_enc * norms / scale,
        params.W_dec / norms[..., None],
        params.b_dec / scale + mean,
    )
