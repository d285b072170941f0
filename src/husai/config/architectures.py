"""The dials of every architecture: which it is, how wide, how sparse."""

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from husai.config.base import Config, Fraction, Positive, Size, Spread


class BaseSAEConfig(Config, ABC):
    """What every architecture has.

    paired: whether it reconstructs another activation (the target) than the one it encodes. skip: whether a linear map of
    its input is added to the reconstruction.
    """

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
    auxk_rectified: bool = Field(
        default=False,
        exclude_if=lambda rectified: not rectified,
        description="whether their codes are rectified too, as in Gao et al.'s code; SAELens' are not. Left out of run ids "
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


class TopKConfig(KConfig):
    """TopK SAE (Gao et al. 2024)."""

    architecture: Literal["topk"] = "topk"


class AbsTopKConfig(KConfig):
    """AbsTopK SAE (arXiv 2510.00404): the k largest magnitudes, with their signs."""

    architecture: Literal["abstopk"] = "abstopk"

    @model_validator(mode="after")
    def _signed(self) -> Self:
        if self.auxk_rectified:
            raise ValueError(
                "auxk_rectified: AbsTopK's codes have signs, so they are never rectified; allowed is false"
            )
        return self


class BatchConfig(KConfig):
    """What BatchTopK and its Matryoshka form share; k is the mean over a batch."""

    threshold_lr: Fraction = Field(
        default=0.01,
        description="share by which the threshold used at inference moves to each batch's smallest active code",
    )


class BatchTopKConfig(BatchConfig):
    """BatchTopK SAE (Bussmann et al. 2024)."""

    architecture: Literal["batchtopk"] = "batchtopk"


class MatryoshkaConfig(BatchConfig):
    """Matryoshka BatchTopK SAE (Bussmann et al. 2025)."""

    architecture: Literal["matryoshka"] = "matryoshka"
    widths: tuple[Positive, ...] | None = Field(
        default=None,
        description="numbers of leading latents that must reconstruct on their own, ascending, the last d_sae; null means "
        "an eighth, a quarter, a half and all of d_sae",
    )

    @model_validator(mode="after")
    def _widths_nest(self) -> Self:
        if self.widths is not None:
            rising = all(inner < outer for inner, outer in pairwise(self.widths))
            if not self.widths or not rising or self.widths[-1] != self.d_sae:
                raise ValueError(
                    f"widths {list(self.widths)} must rise strictly and end with d_sae {self.d_sae}, such as "
                    f"{list(self.nested_in(self.d_sae))}"
                )
        return self

    @staticmethod
    def nested_in(d_sae: int) -> tuple[int, ...]:
        """The widths where none are given."""
        return tuple(sorted({max(1, d_sae // part) for part in (8, 4, 2, 1)}))

    @property
    def nested(self) -> tuple[int, ...]:
        """The widths in use."""
        return self.widths or self.nested_in(self.d_sae)


class L1Config(BaseSAEConfig):
    """What every architecture of ReLU codes with an L1 penalty has."""

    l1_coefficient: float = Field(default=1.0, ge=0, description="λ of λ · mean over batch of Σ_i |f_i|·‖W_dec,i‖")
    l1_warmup_steps: int = Field(default=100, ge=0, description="steps over which λ rises linearly from 0")

    @property
    def sparsity(self) -> tuple[str, float]:
        """Name and value of the dial that sets sparsity."""
        return "l1_coefficient", self.l1_coefficient


class ReLUConfig(L1Config):
    """ReLU SAE with an L1 penalty (Bricken et al. 2023)."""

    architecture: Literal["relu"] = "relu"


class JumpReLUConfig(BaseSAEConfig):
    """JumpReLU SAE (Rajamanoharan et al. 2024, arXiv 2407.14435)."""

    architecture: Literal["jumprelu"] = "jumprelu"
    sparsity_loss: Literal["step", "tanh", "quadratic"] = Field(
        default="step",
        description="what λ weighs: step: L0; tanh: Σ tanh(tanh_scale·f·‖W_dec‖); quadratic: 2/target_l0·(L0 − target_l0)²",
    )
    l0_coefficient: float = Field(default=1.0, ge=0, description="λ of the sparsity loss")
    l0_warmup_steps: int = Field(default=100, ge=0, description="steps over which λ rises linearly from 0")
    target_l0: Size | None = Field(default=None, description="L0 that the quadratic loss aims at; only it has one")
    tanh_scale: Size = Field(default=4.0, description="how steeply tanh saturates")
    initial_threshold: Spread = Field(
        default=0.1, description="threshold of every latent at the start, in scaled inputs"
    )
    bandwidth: Size = Field(default=0.5, description="width of the kernel by which thresholds get a gradient")
    ste_to_input: bool = Field(
        default=False,
        description="whether the kernel's gradient reaches the encoder too, as at Anthropic; DeepMind's does not",
    )
    pre_act_coefficient: float = Field(
        default=0.0, ge=0, description="weight of the distance by which dead latents miss their thresholds; 0: none"
    )
    dead_steps: Positive = Field(
        default=100, description="steps without firing after which a latent counts as dead in training"
    )

    @model_validator(mode="after")
    def _target_fits(self) -> Self:
        quadratic = self.sparsity_loss == "quadratic"
        if quadratic != (self.target_l0 is not None):
            raise ValueError("sparsity_loss 'quadratic' needs target_l0, and no other has it")
        if self.target_l0 is not None and self.target_l0 > self.d_sae:
            raise ValueError(f"target_l0 {self.target_l0:g} exceeds d_sae {self.d_sae}")
        return self

    @property
    def sparsity(self) -> tuple[str, float]:
        """Name and value of the dial that sets sparsity."""
        return ("l0_coefficient", self.l0_coefficient) if self.target_l0 is None else ("target_l0", self.target_l0)


class GatedConfig(BaseSAEConfig):
    """Gated SAE (Rajamanoharan et al. 2024, arXiv 2404.16014)."""

    architecture: Literal["gated"] = "gated"
    l1_coefficient: float = Field(
        default=1.0, ge=0, description="λ of λ · mean over batch of Σ_i ReLU(gate_i)·‖W_dec,i‖"
    )
    l1_warmup_steps: int = Field(default=100, ge=0, description="steps over which λ rises linearly from 0")

    @property
    def sparsity(self) -> tuple[str, float]:
        """Name and value of the dial that sets sparsity."""
        return "l1_coefficient", self.l1_coefficient


class TranscoderConfig(L1Config):
    """Transcoder (Dunefsky et al. 2024, arXiv 2406.11944): codes of one activation, mostly an MLP's input, that
    reconstruct another, mostly its output."""

    architecture: Literal["transcoder"] = "transcoder"
    paired: ClassVar[bool] = True


class SkipTranscoderConfig(L1Config):
    """Skip transcoder (Paulo et al. 2025, arXiv 2501.18823): a linear map of the input takes part in the reconstruction."""

    architecture: Literal["skip_transcoder"] = "skip_transcoder"
    paired: ClassVar[bool] = True
    skip: ClassVar[bool] = True


class SkipSAEConfig(L1Config):
    """SAE with a skip connection. The identity solves it, so its latents may mean nothing: a control, not a tool."""

    architecture: Literal["skip_sae"] = "skip_sae"
    skip: ClassVar[bool] = True


class TopKTranscoderConfig(KConfig):
    """Transcoder with the k largest codes, as in sparsify."""

    architecture: Literal["topk_transcoder"] = "topk_transcoder"
    paired: ClassVar[bool] = True


class TopKSkipTranscoderConfig(KConfig):
    """Skip transcoder with the k largest codes (Paulo et al. 2025)."""

    architecture: Literal["topk_skip_transcoder"] = "topk_skip_transcoder"
    paired: ClassVar[bool] = True
    skip: ClassVar[bool] = True


class TopKSkipSAEConfig(KConfig):
    """TopK SAE with a skip connection; a control, as `SkipSAEConfig`."""

    architecture: Literal["topk_skip_sae"] = "topk_skip_sae"
    skip: ClassVar[bool] = True


SAEKind = (
    TopKConfig
    | ReLUConfig
    | BatchTopKConfig
    | MatryoshkaConfig
    | AbsTopKConfig
    | JumpReLUConfig
    | GatedConfig
    | TranscoderConfig
    | SkipTranscoderConfig
    | SkipSAEConfig
    | TopKTranscoderConfig
    | TopKSkipTranscoderConfig
    | TopKSkipSAEConfig
)
SAE_CONFIGS = {kind.model_fields["architecture"].default: kind for kind in get_args(SAEKind)}
ArchitectureConfig = Annotated[SAEKind, Field(discriminator="architecture")]
