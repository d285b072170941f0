"""The dials of dictionaries that scikit-learn solves for, and of those whose atoms are not free."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from husai.config.base import Positive, Spread
from husai.config.kind import BaseSAEConfig, KConfig


def _require_unit(kind: BaseSAEConfig, why: str) -> None:
    if kind.decoder_norm != "unit":
        raise ValueError(f"decoder_norm '{kind.decoder_norm}': {why}; allowed is unit")


class FrozenConfig(KConfig):
    """TopK SAE whose decoder stays as it was drawn."""

    fixed_decoder: ClassVar[bool] = True
    architecture: Literal["frozen"] = "frozen"

    @model_validator(mode="after")
    def _unit(self) -> Self:
        _require_unit(self, "a frozen decoder keeps the rows of norm 1 that it was drawn with")
        return self


class ArchetypalConfig(KConfig):
    """Relaxed archetypal SAE (Fel et al. 2025): atoms are convex combinations of data points, plus a little."""

    architecture: Literal["archetypal"] = "archetypal"
    candidates: Positive | None = Field(
        default=None, description="data points (k-means centroids) that atoms are combined of; null means d_sae"
    )
    relaxation: Spread = Field(
        default=1.0,
        description="largest distance δ of an atom from the combination, in scaled inputs, whose norms are about √d",
    )


class FittedConfig(BaseSAEConfig):
    """What every dictionary has that is solved for; `training.steps` is the most iterations its solver takes."""

    fitted: ClassVar[bool] = True

    @model_validator(mode="after")
    def _unit(self) -> Self:
        _require_unit(self, "a dictionary that is solved for has rows of norm 1")
        return self


class SparsifiedConfig(FittedConfig):
    """The same of those with as many codes as components, of which the largest may be kept."""

    own_width: ClassVar[bool] = True

    d_sae: Positive = Field(default=64, description="components; how many there can be depends on the samples")
    k: Positive | None = Field(default=None, description="codes kept a sample, the largest magnitudes; null: all")

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        if self.k is not None and self.k > self.d_sae:
            raise ValueError(f"k {self.k} exceeds d_sae {self.d_sae}; allowed is 1 to d_sae, or null")
        return self

    @property
    def kept(self) -> int:
        """Codes kept a sample."""
        return self.k or self.d_sae

    @property
    def sparsity(self) -> tuple[str, float]:
        """Name and value of the dial that sets sparsity."""
        return "k", float(self.kept)


class PCAConfig(SparsifiedConfig):
    """Principal components; codes are signed."""

    signed_codes: ClassVar[bool] = True
    architecture: Literal["pca"] = "pca"


class ICAConfig(SparsifiedConfig):
    """Independent components (FastICA); codes are signed."""

    signed_codes: ClassVar[bool] = True
    architecture: Literal["ica"] = "ica"


class NMFConfig(SparsifiedConfig):
    """Non-negative factors of the samples' positive and negative parts."""

    architecture: Literal["nmf"] = "nmf"

    @property
    def fixed_l0(self) -> float | None:
        """k where given; non-negativity alone leaves it open how many codes are not 0."""
        return None if self.k is None else float(self.k)


class KMeansConfig(FittedConfig):
    """Directions of k-means centroids, one active a sample."""

    architecture: Literal["kmeans"] = "kmeans"

    @property
    def sparsity(self) -> tuple[str, float]:
        """Name and value of the dial that sets sparsity."""
        return "k", 1.0
