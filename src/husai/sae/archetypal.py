"""Relaxed archetypal SAE (Fel et al. 2025, "Archetypal SAE", arXiv 2502.12892, §3): atoms that stay near the data.

Atoms are D = W·C + Λ: rows of W are convex weights over candidate data points C, and rows of Λ have norm at most δ.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from husai.config import ArchetypalConfig
from husai.sae.baselines import centroids, require_distinct
from husai.sae.params import FOUR, Params
from husai.sae.topk import TopK
from husai.seeding import generator

SHARE = 0.9  # weight of a latent's own candidate at the start
SAMPLES, ITERATIONS = 16384, 20  # of k-means


class Archetypal(TopK[ArchetypalConfig]):
    """TopK whose decoder rows are D, or their directions if decoder_norm is unit; a finished SAE is a plain TopK.

    What is trained in W_dec's place: `logits` (seeds, d_sae, candidates), of which W is the softmax, so that its rows
    are positive and sum to 1 whatever the update; and `relaxation` Λ (seeds, d_sae, d_in), scaled back to norm δ after
    each. (The paper clips W at 0 and divides by the sum, where Adam's equal steps would spread every atom over all
    candidates.) W_dec follows from them after every update, and has no gradient of its own.

    Candidates are k-means centroids of the samples, the same for every seed. A seed draws which of them each latent starts
    at, with weight .9.
    """

    saelens = "topk"
    powers = MappingProxyType({"relaxation": 1})
    points: Float[Tensor, "candidates d_in"] | None = None
    init_seeds: tuple[int, ...] = ()

    def begin(self, samples: Float[Tensor, "samples d_in"], init_seeds: tuple[int, ...]) -> None:
        """Find the candidates. Raises HusaiError if there are more of them than distinct samples."""
        count = self.config.candidates or self.config.d_sae
        spread = torch.linspace(0, len(samples) - 1, min(SAMPLES, len(samples))).long()
        some = samples.cpu()[spread]
        require_distinct(some, count, "sae.candidates")
        found = centroids(some, count, seed=0, iterations=ITERATIONS)
        self.points, self.init_seeds = found.rows.to(samples.device), init_seeds

    def init(self, params: Params) -> Params:
        """Every latent at a candidate of its own while they last; as they are if no samples were seen."""
        if self.points is None:
            return params
        count = len(self.points)
        logits = torch.stack([self._start(seed, count) for seed in self.init_seeds]).to(params.W_dec)
        made = params.adding(logits=logits, relaxation=torch.zeros_like(params.W_dec))
        made = self.derived(made)
        squares = made.W_dec.pow(2).sum(-1, keepdim=True).clamp(min=1e-12)
        return made.replace(W_enc=(made.W_dec / squares).mT.contiguous())

    def _start(self, seed: int, count: int) -> Float[Tensor, "d_sae candidates"]:
        """Noise, so that no two latents are equal, and a peak."""
        stream, d_sae = generator("sae-archetypal", seed), self.config.d_sae
        own = torch.cat([torch.randperm(count, generator=stream) for _ in range(-(-d_sae // count))])[:d_sae]
        return peaked(torch.randn(d_sae, count, generator=stream), own)

    def atoms(self, params: Params) -> Float[Tensor, "seeds d_sae d_in"]:
        """D, before any scaling to norm 1."""
        assert self.points is not None, "begin comes first"
        points = self.points.to(params.W_dec)
        return params.more["logits"].softmax(-1) @ points + params.more["relaxation"]

    def derived(self, params: Params) -> Params:
        atoms = self.atoms(params)
        return params.replace(W_dec=F.normalize(atoms, dim=-1) if self.config.decoder_norm == "unit" else atoms)

    def pulled(self, params: Params, gradients: Params) -> Params:
        """By the chain rule through `derived`; W_dec's own is 0."""
        assert self.points is not None, "begin comes first"
        inward = gradients.W_dec
        if self.config.decoder_norm == "unit":
            rows = params.W_dec.detach()
            inward = inward - (inward * rows).sum(-1, keepdim=True) * rows
            inward = inward / self.atoms(params).detach().norm(dim=-1, keepdim=True).clamp(min=1e-12)
        weights = params.more["logits"].detach().softmax(-1)
        to_weights = inward @ self.points.to(inward).mT
        to_logits = weights * (to_weights - (weights * to_weights).sum(-1, keepdim=True))
        more = {"logits": to_logits, "relaxation": inward}
        return replace(gradients, W_dec=torch.zeros_like(gradients.W_dec), more=more)

    def point(
        self, params: Params, seed: int, which: Bool[Tensor, "d_sae"], directions: Float[Tensor, "n d_in"]
    ) -> Float[Tensor, "n d_in"]:
        """To the candidate of largest cosine, without relaxation."""
        assert self.points is not None, "begin comes first"
        nearest = (directions @ F.normalize(self.points, dim=-1).T).argmax(1)
        params.more["logits"][seed, which] = peaked(params.more["logits"][seed, which], nearest)
        params.more["relaxation"][seed, which] = 0.0
        params.W_dec[seed, which] = self.derived(params).W_dec[seed, which]
        return F.normalize(params.W_dec[seed, which], dim=-1)

    def settle(self, params: Params, seen: Mapping[str, Tensor]) -> None:
        relaxation = params.more["relaxation"]
        norms = relaxation.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        relaxation.mul_((self.config.relaxation / norms).clamp(max=1.0))
        params.W_dec.copy_(self.derived(params).W_dec)

    def export(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """A finished SAE has neither candidates nor weights."""
        return super().export({name: value for name, value in tensors.items() if name in FOUR})


def peaked(logits: Float[Tensor, "n candidates"], own: Tensor) -> Float[Tensor, "n candidates"]:
    """With weight .9 on one candidate each; the others share the rest as before."""
    count = logits.shape[-1]
    if count == 1:
        return logits
    others = logits.scatter(1, own[:, None], -torch.inf).logsumexp(1, keepdim=True)
    peak = others + torch.tensor(SHARE / (1 - SHARE)).log().to(others)
    return logits.scatter(1, own[:, None], peak)
