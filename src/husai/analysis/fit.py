"""Does it fit: reconstruction and sparsity on the whole grid. (docs/method.md §Fit)"""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from husai.sae.dictionary import Dictionary


class Fit(NamedTuple):
    """explained_variance = 1 − Σ‖x − x̂‖² / Σ‖x − x̄‖²; fvu = 1 − that; l0 = mean number of codes other than 0.

    dead: fraction of latents that are not live. firing_rate: (d_sae,). energy: (d_sae,), Σ (f_i·‖W_dec,i‖)² over rows,
    so that scaling an atom against its code changes nothing. explained_by_skip: explained variance of what a skip connection
    makes of the input, at its best offset; None without one.
    """

    explained_variance: float
    fvu: float
    l0: float
    dead: float
    firing_rate: Float[Tensor, "d_sae"]
    energy: Float[Tensor, "d_sae"]
    explained_by_skip: float | None = None

    @property
    def live(self) -> Bool[Tensor, "d_sae"]:
        """Latents that add something to at least one row: they fire, and their decoder row is not 0."""
        return self.energy > 0


def evaluate_fit(
    dictionary: Dictionary,
    x: Float[Tensor, "samples d_out"],
    codes: Float[Tensor, "samples d_sae"] | None = None,
    *,
    source: Float[Tensor, "samples d_in"] | None = None,
) -> Fit:
    """Fit of one dictionary on x; `codes` saves encoding again. source: what is encoded, where x is a transcoder's target."""
    source = x if source is None else source
    codes = dictionary.encode(source) if codes is None else codes
    error = (dictionary.reconstruct(source, codes) - x).double().pow(2).sum()
    variance = (x - x.mean(0)).double().pow(2).sum()
    fvu = float(error / variance)
    fires = codes != 0
    energy = (codes.double() * dictionary.W_dec.double().norm(dim=-1)).pow(2).sum(0)
    return Fit(
        explained_variance=1 - fvu,
        fvu=fvu,
        l0=float(fires.sum(1).double().mean()),
        dead=float((energy == 0).double().mean()),
        firing_rate=fires.double().mean(0),
        energy=energy,
        explained_by_skip=None if dictionary.skip is None else _linear(x - dictionary.skip(source), variance),
    )


def _linear(rest: Float[Tensor, "samples d_out"], variance: Float[Tensor, ""]) -> float:
    """Explained variance of what leaves `rest` unexplained, up to an offset."""
    return 1 - float((rest - rest.mean(0)).double().pow(2).sum() / variance)
