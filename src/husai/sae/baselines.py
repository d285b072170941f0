"""Dictionaries that scikit-learn solves for: PCA, ICA, NMF and k-means under the interface of SAEs.

Pedregosa et al. 2011 (scikit-learn); Hyvärinen & Oja 2000 (FastICA); Lee & Seung 1999 (NMF); Lloyd 1982 (k-means). What they
have in common with SAEs is `Architecture`; in place of gradient steps they have `fit`.
"""

import warnings
from abc import abstractmethod
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from husai.config import FittedConfig, ICAConfig, KMeansConfig, NMFConfig, PCAConfig, SparsifiedConfig
from husai.errors import HusaiError
from husai.sae.abstopk import keep_extremes
from husai.sae.architecture import Architecture, Losses
from husai.sae.params import Params, pre_activations, squared_error
from husai.sae.topk import keep_largest
from husai.seeding import generator

RANK = 1e-6  # directions with a smaller share of the largest singular value are rounding
PURSUIT, SETTLED = (
    500,
    1e-6,
)  # most steps of non-negative least squares, and the change, of the largest code, that ends them

C = TypeVar("C", bound=FittedConfig)
S = TypeVar("S", bound=SparsifiedConfig)


class Solved(NamedTuple):
    """One seed's parameters, with a seed axis of 1 and decoder rows of norm 1, and the iterations they took."""

    params: Params
    iterations: int


class Fitted(Architecture[C]):
    """A dictionary that is solved for."""

    @abstractmethod
    def require(self, samples: Float[Tensor, "samples d_in"]) -> None:
        """Raises HusaiError if samples cannot have so many latents."""

    @abstractmethod
    def fit(self, samples: Float[Tensor, "samples d_in"], seed: int, iterations: int) -> Solved:
        """Solve on (normalised) samples, from the start that `seed` draws, in at most so many iterations."""

    def losses(
        self, params: Params, x: Tensor, *, step: int, dead: Bool[Tensor, "seeds d_sae"], target: Tensor | None = None
    ) -> Losses:
        """Squared error and nothing else; neither `step` nor `dead` plays a part."""
        codes = self.encode(params, x)
        return Losses(squared_error(self.decode(params, codes, x), x if target is None else target), {}, codes)

    def limit(self, most: int, why: str) -> None:
        """Raises HusaiError if d_sae exceeds `most`."""
        if self.config.d_sae > most:
            name = type(self).__name__
            raise HusaiError(
                f"sae.d_sae: {self.config.d_sae} exceeds the {most} latents that {name} can have here: {why}"
            )


class Linear(Fitted[S]):
    """Codes (x − b_dec)·W_enc, of which the `kept` largest magnitudes stay, with their signs: as AbsTopK, and so saved."""

    saelens = "abstopk"

    def encode(self, params: Params, x: Tensor) -> Float[Tensor, "seeds batch d_sae"]:
        return keep_extremes(pre_activations(params, x), self.config.kept)

    def export(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return tensors, {"k": self.config.kept, "rescale_acts_by_decoder_norm": False}


class PCA(Linear[PCAConfig]):
    """Principal components, of largest variance first. Nothing is drawn: all seeds are equal."""

    def require(self, samples: Float[Tensor, "samples d_in"]) -> None:
        self.limit(min(samples.shape), f"as many as {len(samples)} samples of width {samples.shape[1]} span")

    def fit(self, samples: Float[Tensor, "samples d_in"], seed: int, iterations: int) -> Solved:
        from sklearn.decomposition import PCA as Solver

        found = Solver(self.config.d_sae, svd_solver="full").fit(samples.numpy())
        components = torch.as_tensor(found.components_)
        return Solved(linear(components.T, components, found.mean_), 0)


class ICA(Linear[ICAConfig]):
    """Independent components (FastICA, log cosh, deflation in parallel), whitened by the leading principal components."""

    def require(self, samples: Float[Tensor, "samples d_in"]) -> None:
        sizes = torch.linalg.svdvals((samples - samples.mean(0)).double())
        self.limit(int((sizes > RANK * sizes[0]).sum()), "the rank of the samples")

    def fit(self, samples: Float[Tensor, "samples d_in"], seed: int, iterations: int) -> Solved:
        from sklearn.decomposition import FastICA as Solver

        solver = Solver(
            self.config.d_sae,
            whiten="unit-variance",
            whiten_solver="svd",
            max_iter=iterations,
            random_state=drawn(seed),
        )
        with np.errstate(invalid="ignore"):  # whitening divides by the sizes of directions that it then leaves out, too
            found = quietly(solver, samples.double())
        return Solved(linear(found.components_.T, found.mixing_.T, found.mean_), int(found.n_iter_))


class NMF(Fitted[NMFConfig]):
    """Non-negative factors of [x⁺, x⁻], the positive and negative parts of x − b_dec side by side (2·d_in coordinates).

    [x⁺, x⁻] ≈ f·[H⁺, H⁻], all ≥ 0, so x ≈ f·(H⁺ − H⁻): a signed dictionary with codes ≥ 0. They are the best such codes for
    given H (non-negative least squares, by accelerated projected gradients), of which the `kept` largest stay. W_dec
    holds H⁺ − H⁻ and W_enc holds H⁺, transposed, which says both. b_enc plays no part.
    """

    saelens = "nmf"  # SAELens has none such

    def require(self, samples: Float[Tensor, "samples d_in"]) -> None:
        count, width = samples.shape
        self.limit(min(count, 2 * width), f"as many as {count} samples of {width} signed coordinates allow")

    def init(self, params: Params) -> Params:
        return params.replace(W_enc=params.W_dec.relu().mT.contiguous())

    def fit(self, samples: Float[Tensor, "samples d_in"], seed: int, iterations: int) -> Solved:
        from sklearn.decomposition import NMF as Solver

        parts = torch.cat([samples.relu(), (-samples).relu()], dim=1)
        settings: dict[str, Any] = {"n_components": self.config.d_sae, "init": "random", "max_iter": iterations}
        found = quietly(Solver(**settings, random_state=drawn(seed)), parts)
        positive, negative = torch.from_numpy(found.components_).float().chunk(2, dim=1)
        norms = (positive - negative).norm(dim=1, keepdim=True)
        norms = torch.where(norms > RANK * norms.max(), norms, 1.0)
        rows = (positive - negative) / norms
        return Solved(linear((positive / norms).T, rows, torch.zeros(samples.shape[1])), int(found.n_iter_))

    def encode(self, params: Params, x: Tensor) -> Float[Tensor, "seeds batch d_sae"]:
        moved = x - params.b_dec[:, None]
        positive = params.W_enc.mT
        negative = (positive - params.W_dec).relu()
        products = moved.relu() @ positive.mT + (-moved).relu() @ negative.mT
        codes = nonnegative(products, positive @ positive.mT + negative @ negative.mT)
        return keep_largest(codes, self.config.kept)

    def export(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return tensors, {} if self.config.k is None else {"k": self.config.k}


class KMeans(Fitted[KMeansConfig]):
    """Directions of centroids. A sample's one code is its largest projection on any, as in gain-shape quantisation.

    Centroids are found from the samples, b_dec being their origin. Saved as TopK with k = 1, which this is.
    """

    saelens = "topk"

    def require(self, samples: Float[Tensor, "samples d_in"]) -> None:
        require_distinct(samples, self.config.d_sae, "sae.d_sae")

    def fit(self, samples: Float[Tensor, "samples d_in"], seed: int, iterations: int) -> Solved:
        found = centroids(samples, self.config.d_sae, seed=seed, iterations=iterations)
        rows = F.normalize(found.rows, dim=1)
        return Solved(linear(rows.T, rows, torch.zeros(samples.shape[1])), found.iterations)

    def encode(self, params: Params, x: Tensor) -> Float[Tensor, "seeds batch d_sae"]:
        return keep_largest(pre_activations(params, x), 1)

    def export(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return tensors, {"k": 1, "rescale_acts_by_decoder_norm": False}


class Centroids(NamedTuple):
    """rows: k-means centroids. iterations: how many it took."""

    rows: Float[Tensor, "count d_in"]
    iterations: int


def centroids(samples: Float[Tensor, "samples d_in"], count: int, *, seed: int, iterations: int) -> Centroids:
    """k-means (k-means++ start from `seed`, Lloyd's steps) on samples of which at least `count` are distinct."""
    from sklearn.cluster import KMeans as Solver

    settings: dict[str, Any] = {"n_clusters": count, "n_init": 1, "max_iter": iterations}
    found = quietly(Solver(**settings, random_state=drawn(seed)), samples)
    return Centroids(torch.from_numpy(found.cluster_centers_).float(), int(found.n_iter_))


def require_distinct(samples: Float[Tensor, "samples d_in"], count: int, key: str) -> None:
    """Raises HusaiError naming `key` if there are fewer distinct samples than centroids."""
    distinct = len(samples.unique(dim=0))
    if count > distinct:
        raise HusaiError(f"{key}: {count} exceeds the {distinct} distinct samples that centroids are found from")


def quietly(solver: Any, samples: Tensor) -> Any:
    """The fitted solver. That it did not converge is no warning: the curve over `training.steps` says so."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return solver.fit(samples.numpy())


def drawn(seed: int) -> int:
    """A seed for scikit-learn."""
    return int(torch.randint(2**31 - 1, (1,), generator=generator("sae-fit", seed)))


def linear(W_enc: Any, W_dec: Any, b_dec: Any) -> Params:
    """One seed's parameters, with a seed axis: codes (x − b_dec)·W_enc, decoder rows scaled to norm 1, codes with them."""
    enc, dec, bias = (torch.as_tensor(value, dtype=torch.float32) for value in (W_enc, W_dec, b_dec))
    norms = dec.norm(dim=1)
    return Params(
        (enc * norms)[None].contiguous(), torch.zeros(1, len(dec)), F.normalize(dec, dim=1)[None], bias[None].clone()
    )


def nonnegative(
    products: Float[Tensor, "seeds batch n"], gram: Float[Tensor, "seeds n n"]
) -> Float[Tensor, "seeds batch n"]:
    """argmin over f ≥ 0 of ½·f·gram·fᵀ − f·products, by FISTA (Beck & Teboulle 2009), restarted where it turns back."""
    step = 1 / torch.linalg.matrix_norm(gram, ord=2).clamp(min=1e-12)[:, None, None]
    codes = ahead = torch.zeros_like(products)
    momentum = 1.0
    for _ in range(PURSUIT):
        moved = (ahead - step * (ahead @ gram - products)).relu()
        change = moved - codes
        if bool(((ahead - moved) * change).sum() > 0):
            momentum = 1.0
        longer = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        codes, ahead, momentum = moved, moved + (momentum - 1) / longer * change, longer
        if float(change.abs().max()) <= SETTLED * float(codes.max()):
            break
    return codes
