"""Stacked parameters of S sparse autoencoders. Axes: seeds S, batch B, input d_in, latents d_sae, output d_out."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from husai.memory import require_memory
from husai.seeding import generator

FOUR = ("W_enc", "b_enc", "W_dec", "b_dec")


@dataclass(frozen=True)
class Params:
    """x̂ = f(x)·W_dec + b_dec. Decoder rows are the dictionary's atoms.

    The encoder sees x − b_dec; of transcoders and where there is a skip connection, x (`BaseSAEConfig.centred`).

    more: what one architecture has beside these, by name, with seeds as first axis. Iteration yields the tensors.
    """

    W_enc: Float[Tensor, "seeds d_in d_sae"]
    b_enc: Float[Tensor, "seeds d_sae"]
    W_dec: Float[Tensor, "seeds d_sae d_out"]
    b_dec: Float[Tensor, "seeds d_out"]
    more: Mapping[str, Tensor] = field(default_factory=dict)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        yield from zip(FOUR, (self.W_enc, self.b_enc, self.W_dec, self.b_dec), strict=True)
        yield from self.more.items()

    def __iter__(self) -> Iterator[Tensor]:
        return (value for _, value in self.items())

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Params":
        """From tensors by name. Raises KeyError for one of the first four that is missing."""
        more = {name: value for name, value in tensors.items() if name not in FOUR}
        return cls(tensors["W_enc"], tensors["b_enc"], tensors["W_dec"], tensors["b_dec"], more)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Params":
        return Params.of({name: function(value) for name, value in self.items()})

    def replace(self, **tensors: Tensor) -> "Params":
        """With some of the first four exchanged."""
        return replace(self, **tensors)

    def adding(self, **tensors: Tensor) -> "Params":
        """With further tensors in `more`."""
        return replace(self, more={**self.more, **tensors})


def init_params(d_in: int, d_sae: int, init_seeds: tuple[int, ...], *, d_target: int | None = None) -> Params:
    """Unit decoder rows in random directions, the encoder their transpose, biases 0; one stream a seed.

    d_target: width of the target of a transcoder, whose encoder is drawn apart, as input and target share no axes.
    """
    width = d_in + (d_in if d_target is None else d_target)
    room = 16 * len(init_seeds) * d_sae * width  # values, gradients and two moments, in float32
    require_memory(room, f"sae: {len(init_seeds)} SAE(s) of d_sae {d_sae} on {d_in} dimensions")
    if d_target is None:
        W_dec = _directions("sae-init", d_sae, d_in, init_seeds)
        W_enc = W_dec.mT.contiguous()
    else:
        W_dec = _directions("sae-init", d_sae, d_target, init_seeds)
        W_enc = _directions("sae-init-encoder", d_sae, d_in, init_seeds).mT.contiguous()
    seeds, d_out = len(init_seeds), W_dec.shape[-1]
    return Params(W_enc, torch.zeros(seeds, d_sae), W_dec, torch.zeros(seeds, d_out))


def _directions(purpose: str, count: int, d: int, seeds: tuple[int, ...]) -> Float[Tensor, "seeds count d"]:
    return torch.stack([F.normalize(torch.randn(count, d, generator=generator(purpose, s)), dim=-1) for s in seeds])


def pre_activations(
    params: Params, x: Float[Tensor, "seeds batch d_in"], *, centred: bool = True
) -> Float[Tensor, "seeds batch d_sae"]:
    """centred: whether the encoder sees x − b_dec, as plain SAEs' do."""
    return torch.baddbmm(params.b_enc[:, None], x - params.b_dec[:, None] if centred else x, params.W_enc)


def reconstruct(params: Params, codes: Float[Tensor, "seeds batch d_sae"]) -> Float[Tensor, "seeds batch d_out"]:
    return torch.baddbmm(params.b_dec[:, None], codes, params.W_dec)


def squared_error(reconstruction: Tensor, x: Tensor) -> Float[Tensor, "seeds"]:
    """Sum over d_in, mean over the batch."""
    return (reconstruction - x).pow(2).sum(-1).mean(-1)
