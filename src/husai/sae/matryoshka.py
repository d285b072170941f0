"""Matryoshka BatchTopK SAE (Bussmann et al. 2025, arXiv 2503.17547): nested dictionaries in one."""

from dataclasses import replace
from itertools import pairwise

from jaxtyping import Bool, Float
from torch import Tensor

from husai.config import MatryoshkaConfig
from husai.sae.architecture import Losses
from husai.sae.batchtopk import BatchTopK
from husai.sae.params import Params, squared_error


class Matryoshka(BatchTopK[MatryoshkaConfig]):
    """BatchTopK whose first m latents must reconstruct on their own, for every m in `widths`.

    Which latents are active is decided once, for all of them. To the loss of BatchTopK come the squared errors of the
    inner reconstructions; AuxK is for all dead latents and the whole residual.
    """

    def losses(
        self, params: Params, x: Tensor, *, step: int, dead: Bool[Tensor, "seeds d_sae"], target: Tensor | None = None
    ) -> Losses:
        losses = super().losses(params, x, step=step, dead=dead, target=target)
        return replace(
            losses, terms={**losses.terms, **self._inner(params, losses.codes, x if target is None else target)}
        )

    def _inner(self, params: Params, codes: Tensor, target: Tensor) -> dict[str, Float[Tensor, "seeds"]]:
        """Squared errors of all widths but the last, by name; each width adds its latents to what is inside it."""
        errors: dict[str, Tensor] = {}
        sum_so_far = params.b_dec[:, None]
        for start, end in pairwise((0, *self.config.nested[:-1])):
            block = params.replace(W_dec=params.W_dec[:, start:end], b_dec=params.b_dec.new_zeros(params.b_dec.shape))
            sum_so_far = sum_so_far + self.decode(block, codes[..., start:end])
            errors[f"inner_{end}"] = squared_error(sum_so_far, target)
        return errors
