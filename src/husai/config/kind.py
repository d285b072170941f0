"""What the dials of all architectures have in common."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from husai.config.base import Config, Positive, later


class BaseSAEConfig(Config, ABC):
    """What every architecture has.

    signed_codes: whether codes may be negative, so that an atom's sign means nothing. fitted: whether it is solved for at
    once, without gradient steps. fixed_decoder: whether its atoms stay as they were drawn. own_width: whether d_sae and k are
    not taken over from the config of another architecture. paired: whether it reconstructs another activation (the target) than
    the one it encodes. skip: whether a linear map of its input is added to the reconstruction.
    """

    signed_codes: ClassVar[bool] = False
    fitted: ClassVar[bool] = False
    fixed_decoder: ClassVar[bool] = False
    own_width: ClassVar[bool] = False
    paired: ClassVar[bool] = False
    skip: ClassVar[bool] = False

    d_sae: Positive = Field(default=1024, description="latents")
    decoder_norm: Literal["unit", "weighted"] = Field(
        default="unit",
        description="unit: decoder rows are projected to norm 1 each step; weighted: their norms are free, and selection and "
        "penalties see them",
    )

    @property
    @abstractmethod
    def sparsity(self) -> tuple[str, float]:
        """Name and value of the dial that sets sparsity."""

    @classmethod
    def centred(cls) -> bool:
        """Whether the encoder sees x − b_dec. With a target or a skip connection b_dec is no centre of x: it sees x."""
        return not (cls.paired or cls.skip)

    @property
    def fixed_l0(self) -> float | None:
        """Active latents a sample where the architecture itself sets them (its dial is k); None where a penalty does."""
        name, value = self.sparsity
        return value if name == "k" else None


class KConfig(BaseSAEConfig):
    """What every architecture with k active latents has."""

    k: Positive = Field(default=32, description="active latents a sample")
    auxk_coefficient: float = Field(
        default=1.0, ge=0, description="weight of the dead latents' reconstruction of the residual"
    )
    k_aux: Positive | None = Field(default=None, description="dead latents used for it; null means d_in / 2")
    auxk_rectified: bool = later(
        False,
        "whether their codes are rectified too, as in Gao et al.'s code; SAELens' are not. Left out of run ids "
        "and files where false, since it came later than the results that have it so",
    )
    dead_steps: Positive = Field(
        default=100, description="steps without firing after which a latent counts as dead in training"
    )

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        if self.k > self.d_sae:
            raise ValueError(f"k {self.k} exceeds d_sae {self.d_sae}; allowed is 1 to d_sae")
        return self

    @property
    def sparsity(self) -> tuple[str, float]:
        """Name and value of the dial that sets sparsity."""
        return "k", float(self.k)


class SignedKConfig(KConfig):
    """The same of codes with signs."""

    signed_codes: ClassVar[bool] = True

    @model_validator(mode="after")
    def _signed(self) -> Self:
        if self.auxk_rectified:
            raise ValueError("auxk_rectified: its codes have signs, so they are never rectified; allowed is false")
        return self
