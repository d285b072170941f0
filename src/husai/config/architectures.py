"""The dials of every architecture: which it is, how wide, how sparse."""

from itertools import pairwise
from typing import ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from husai.config.base import Count, Fraction, Positive, Size, Spread
from husai.config.baselines import ArchetypalConfig, FrozenConfig, ICAConfig, KMeansConfig, NMFConfig, PCAConfig
from husai.config.kind import BaseSAEConfig, KConfig, SignedKConfig


class TopKConfig(KConfig):
    """TopK SAE (Gao et al. 2024)."""

    architecture: Literal["topk"] = "topk"


class AbsTopKConfig(SignedKConfig):
    """AbsTopK SAE (arXiv 2510.00404): the k largest magnitudes, with their signs."""

    architecture: Literal["abstopk"] = "abstopk"


class BlockTopKConfig(SignedKConfig):
    """Block TopK SAE: groups of consecutive latents are chosen together, by the norm of their scores."""

    architecture: Literal["blocktopk"] = "blocktopk"
    group_size: int = Field(default=2, ge=2, le=4, description="latents of a group; 2 for circles")

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        for name, value in (("k", self.k), ("d_sae", self.d_sae), ("k_aux", self.k_aux)):
            if value is not None and value % self.group_size:
                raise ValueError(
                    f"{name} {value} is not a multiple of group_size {self.group_size}; k, d_sae and k_aux must be, since "
                    "groups are active as a whole"
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
    l1_warmup_steps: Count = Field(default=100, description="steps over which λ rises linearly from 0")

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
    l0_warmup_steps: Count = Field(default=100, description="steps over which λ rises linearly from 0")
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
    l1_warmup_steps: Count = Field(default=100, description="steps over which λ rises linearly from 0")

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
    | BlockTopKConfig
    | ArchetypalConfig
    | FrozenConfig
    | PCAConfig
    | ICAConfig
    | NMFConfig
    | KMeansConfig
)
SAE_CONFIGS = {kind.model_fields["architecture"].default: kind for kind in get_args(SAEKind)}
