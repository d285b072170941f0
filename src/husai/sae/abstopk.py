"""AbsTopK SAE ("AbsTopK: Rethinking Sparse Autoencoders For Bidirectional Features", arXiv 2510.00404): signed codes."""

import torch
from jaxtyping import Float
from torch import Tensor

from husai.config import AbsTopKConfig
from husai.sae.topk import TopK


class AbsTopK(TopK[AbsTopKConfig]):
    """The k scores of largest magnitude, with their signs; AuxK chooses dead latents by magnitude too.

    One latent stands for both directions of its atom, so an atom's sign means nothing here.
    """

    saelens = "abstopk"

    def select(self, scores: Float[Tensor, "seeds batch d_sae"]) -> Float[Tensor, "seeds batch d_sae"]:
        return keep_extremes(scores, self.config.k)

    def auxiliary(self, scores: Float[Tensor, "batch n_dead"], k: int) -> Float[Tensor, "batch n_dead"]:
        return keep_extremes(scores, k)


def keep_extremes(scores: Float[Tensor, "... d_sae"], k: int) -> Float[Tensor, "... d_sae"]:
    """The k of largest magnitude in each row as they are, 0 elsewhere."""
    indices = scores.abs().topk(k, dim=-1, sorted=False).indices
    return torch.zeros_like(scores).scatter(-1, indices, scores.gather(-1, indices))
