"""Gated SAE (Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated SAEs", arXiv 2404.16014)."""

from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from husai.config import GatedConfig
from husai.sae.architecture import Architecture, Losses
from husai.sae.params import Params, squared_error
from husai.schedule import warmth


class Gated(Architecture[GatedConfig]):
    """A gate says which latents are active, a magnitude how much; both read the same encoder directions.

    gate = (x − b_dec)·W_enc + b_enc; magnitude = (x − b_dec)·W_enc·exp(r_mag) + b_mag; f = [gate > 0]·ReLU(magnitude).
    r_mag, b_mag: (seeds, d_sae), 0 at the start. Only the gate is penalised, so magnitudes do not shrink.
    """

    saelens = "gated"
    scaled = ("b_mag",)
    powers = MappingProxyType({"l1_coefficient": 1})
    encoder_scale = 0.2

    def init(self, params: Params) -> Params:
        return params.adding(r_mag=torch.zeros_like(params.b_enc), b_mag=torch.zeros_like(params.b_enc))

    def encode(self, params: Params, x: Tensor) -> Float[Tensor, "seeds batch d_sae"]:
        return self._paths(params, x)[0]

    def _paths(self, params: Params, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and gate, each (seeds, batch, d_sae)."""
        projected = (x - params.b_dec[:, None]) @ params.W_enc
        gate = projected + params.b_enc[:, None]
        magnitude = projected * params.more["r_mag"].exp()[:, None] + params.more["b_mag"][:, None]
        return (gate > 0) * magnitude.relu(), gate

    def losses(
        self, params: Params, x: Tensor, *, step: int, dead: Bool[Tensor, "seeds d_sae"], target: Tensor | None = None
    ) -> Losses:
        """Squared error, L1 of the rectified gate (l1), and the squared error of x̂ from it (gate); `dead` plays no part.

        No gradient passes the step of the gate, so the last two train it. As in SAELens, the decoder learns from the
        last one too; Rajamanoharan et al. hold the decoder constant in it.
        """
        config, norms = self.config, params.W_dec.norm(dim=-1)[:, None]
        codes, gate = self._paths(params, x)
        open_gate = gate.relu()
        strength = config.l1_coefficient * self.strength * warmth(step, config.l1_warmup_steps)
        l1 = strength * (open_gate * norms).sum(-1).mean(-1)
        wanted = x if target is None else target
        terms = {"l1": l1, "gate": squared_error(self.decode(params, open_gate, x), wanted)}
        return Losses(squared_error(self.decode(params, codes, x), wanted), terms, codes)

    def export(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """SAELens calls the gate's bias b_gate."""
        return {"b_gate" if name == "b_enc" else name: value for name, value in tensors.items()}, {}

    def restore(self, tensors: dict[str, Tensor]) -> Params:
        return Params.of({"b_enc" if name == "b_gate" else name: value for name, value in tensors.items()})
