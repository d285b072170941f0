"""Block TopK SAE: latents in groups of 2 to 4 that are active together, the natural dictionary for circles.

TopK (Gao et al. 2024) over groups. A Fourier plane is one group, and its atoms are unique up to a rotation in the group.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from husai.config import BlockTopKConfig
from husai.sae.topk import TopK


class BlockTopK(TopK[BlockTopKConfig]):
    """The k / group_size groups of largest norm are active with all their latents; codes keep their signs.

    A group's norm is that of its latents' scores, so turning its encoder, bias and decoder rows by one rotation changes
    neither what is chosen nor the reconstruction. Nothing makes a group's rows orthogonal. A group is dead if all its
    latents are; AuxK chooses dead groups by norm too, at least one.
    """

    saelens = "blocktopk"  # SAELens has none such

    def select(self, scores: Float[Tensor, "seeds batch d_sae"]) -> Float[Tensor, "seeds batch d_sae"]:
        return keep_groups(scores, self.config.k // self.config.group_size, self.config.group_size)

    def auxiliary(self, scores: Float[Tensor, "batch n_dead"], k: int) -> Float[Tensor, "batch n_dead"]:
        return keep_groups(scores, max(1, k // self.config.group_size), self.config.group_size)

    def _auxk(self, scores: Tensor, W_dec: Tensor, residual: Tensor, dead: Bool[Tensor, "d_sae"]) -> Tensor:
        size = self.config.group_size
        return super()._auxk(scores, W_dec, residual, dead.view(-1, size).all(1).repeat_interleave(size))

    def export(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return tensors, {"k": self.config.k, "group_size": self.config.group_size}


def keep_groups(scores: Float[Tensor, "... d_sae"], groups: int, size: int) -> Float[Tensor, "... d_sae"]:
    """The groups of `size` consecutive scores with the largest norms as they are, 0 elsewhere."""
    blocks = scores.unflatten(-1, (-1, size))
    chosen = blocks.pow(2).sum(-1).topk(groups, dim=-1, sorted=False).indices
    return (blocks * torch.zeros_like(blocks[..., 0]).scatter(-1, chosen, 1.0)[..., None]).flatten(-2)
