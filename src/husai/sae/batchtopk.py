"""BatchTopK SAE (Bussmann et al. 2024, arXiv 2412.06410): k active latents a sample on average over a batch."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from husai.config import BatchConfig
from husai.sae.architecture import Losses
from husai.sae.params import Params
from husai.sae.topk import TopK, keep_largest

B = TypeVar("B", bound=BatchConfig)


class BatchTopK(TopK[B]):
    """ReLU of the B·k largest scores of each seed's batch of B; AuxK as with TopK.

    A finished SAE sees samples one by one, so it takes a threshold instead: every positive score above it is a code. The
    threshold (seeds, 1) follows the batches' smallest active scores, as in the paper: the first batch sets it,
    then it moves by `threshold_lr`. SAELens starts from 0 instead, which is forgotten after some hundred steps. No
    gradient reaches it. Before the first step it is 0.
    """

    saelens = "jumprelu"
    rescaled = ("threshold",)

    def init(self, params: Params) -> Params:
        return params.adding(threshold=params.b_enc.new_zeros(len(params.b_enc), 1))

    def select(self, scores: Float[Tensor, "seeds batch d_sae"]) -> Float[Tensor, "seeds batch d_sae"]:
        return keep_largest(scores.flatten(1), self.config.k * scores.shape[1]).view_as(scores)

    def encode(self, params: Params, x: Tensor) -> Float[Tensor, "seeds batch d_sae"]:
        scores = self.scores(params, x)
        return scores.relu() * (scores > params.more["threshold"][:, None])

    def losses(
        self, params: Params, x: Tensor, *, step: int, dead: Bool[Tensor, "seeds d_sae"], target: Tensor | None = None
    ) -> Losses:
        """As TopK's."""
        losses = super().losses(params, x, step=step, dead=dead, target=target)
        return replace(losses, seen={"smallest": smallest_active(losses.codes.detach())})

    def settle(self, params: Params, seen: Mapping[str, Tensor]) -> None:
        """A batch without any active latent leaves the threshold as it is."""
        threshold, smallest = params.more["threshold"], seen["smallest"]
        moved = torch.where(threshold == 0, smallest, threshold.lerp(smallest, self.config.threshold_lr))
        threshold.copy_(torch.where(smallest.isfinite(), moved, threshold))

    def export(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As SAELens does: a JumpReLU SAE whose thresholds are all alike."""
        threshold = tensors["threshold"].expand(tensors["b_enc"].shape).contiguous()
        return {**tensors, "threshold": threshold}, {}


def smallest_active(codes: Float[Tensor, "seeds batch d_sae"]) -> Float[Tensor, "seeds 1"]:
    """Smallest positive code of each seed's batch; infinity if there is none."""
    return codes.masked_fill(codes <= 0, torch.inf).flatten(1).amin(1, keepdim=True)
