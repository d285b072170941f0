"""What determines a stack of SAEs but the activations: architecture, training, seeds."""

from abc import ABC, abstractmethod
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from husai.config.base import Config, Fraction, Positive, Seed, Size, Spread, override, read_yaml
from husai.errors import HusaiError


class BaseSAEConfig(Config, ABC):
    """What every architecture has."""

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


class ReLUConfig(BaseSAEConfig):
    """ReLU SAE with an L1 penalty (Bricken et al. 2023)."""

    architecture: Literal["relu"] = "relu"
    l1_coefficient: float = Field(default=1.0, ge=0, description="λ of λ · mean over batch of Σ_i |f_i|·‖W_dec,i‖")
    l1_warmup_steps: int = Field(default=100, ge=0, description="steps over which λ rises linearly from 0")

    @property
    def sparsity(self) -> tuple[str, float]:
        """Name and value of the dial that sets sparsity."""
        return "l1_coefficient", self.l1_coefficient


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


SAEKind = TopKConfig | ReLUConfig | BatchTopKConfig | MatryoshkaConfig | AbsTopKConfig | JumpReLUConfig | GatedConfig
SAE_CONFIGS = {kind.model_fields["architecture"].default: kind for kind in get_args(SAEKind)}
ArchitectureConfig = Annotated[SAEKind, Field(discriminator="architecture")]


class SAETrainingConfig(Config):
    """How SAEs are trained: Adam on batches drawn without replacement from the whole grid."""

    steps: Positive = Field(default=1500, description="optimiser steps")
    batch_size: Positive = Field(default=1024, description="samples a step")
    lr: float = Field(default=1e-3, gt=0, description="peak learning rate")
    warmup_steps: int = Field(default=50, ge=0, description="steps of linear warm-up")
    decay_fraction: Fraction = Field(default=0.3, description="last share of steps over which lr falls")
    decay: Literal["linear", "exponential"] = Field(
        default="linear", description="how it falls: linearly to 0, or by equal factors to 1% of the peak"
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Adam's first beta")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="Adam's second beta")
    clip_norm: float | None = Field(
        default=1.0, gt=0, description="each seed's gradient is scaled down to this norm; null: never"
    )
    resample_every: Positive | None = Field(
        default=None, description="steps between resamplings of dead latents; null: never"
    )
    resample_until: Fraction = Field(
        default=0.6, description="share of the steps after which nothing is resampled any more"
    )
    optimiser: Literal["adam", "rmsprop"] = Field(
        default="adam",
        exclude_if=lambda name: name == "adam",
        description="rmsprop: with bias correction, which is Adam at beta1 = 0 without the memory of a first moment",
    )
    normalise: Literal["scalar", "feature", "constant_norm", "none"] = Field(
        default="scalar",
        exclude_if=lambda how: how == "scalar",
        description="what training sees: scalar: centred, mean squared norm d; feature: every coordinate centred, of variance "
        "1; constant_norm: every sample of norm √d, not centred; none: raw activations",
    )
    decoder_norm_every: Positive = Field(
        default=1,
        exclude_if=lambda every: every == 1,
        description="steps between projections of decoder rows to norm 1, where decoder_norm is unit",
    )
    ema_decay: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        exclude_if=lambda decay: decay is None,
        description="finished SAEs are exponential moving averages with this decay a step; null: the last step's weights",
    )
    decorrelation: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        exclude_if=lambda weight: weight == 0,
        description="β of β·Σ_{i≠j}(ŵ_i·ŵ_j)² over unit decoder rows, added to the loss",
    )
    target_l0: float | None = Field(
        default=None,
        gt=0,
        exclude_if=lambda target: target is None,
        description="L0 towards which the sparsity coefficient is steered, each seed's on its own; null: it is constant",
    )
    target_l0_rate: float = Field(
        default=0.01,
        gt=0,
        allow_inf_nan=False,
        exclude_if=lambda rate: rate == 0.01,
        description="each step after warm-up multiplies the coefficient by exp(rate · (log L0 − log target_l0))",
    )
    stop: Literal["fixed", "hopeless", "converged"] = Field(
        default="fixed",
        exclude_if=lambda rule: rule == "fixed",
        description="fixed: after `steps`; hopeless: earlier, once every seed has collapsed; converged: also once fit and "
        "agreement are flat over a doubling of steps",
    )
    buffer_rows: Positive = Field(
        default=65536,
        exclude_if=lambda rows: rows == 65536,
        description="rows of a store that a seed shuffles together, and has in memory (at least one shard). Left out of run "
        "ids and files where 65536",
    )
    checkpoint_every: Positive | None = Field(
        default=None,
        exclude=True,
        description="steps between checkpoints; null: none. It changes no result, so it is in no run id and no file",
    )


class SAEConfig(Config):
    """Everything that determines a stack of SAEs but the activations: architecture, training, seeds."""

    sae: ArchitectureConfig
    training: SAETrainingConfig = SAETrainingConfig()
    init_seeds: tuple[Seed, ...] = Field((0,), description="seed of the initial weights, one an SAE")
    data_seeds: tuple[Seed, ...] = Field((0,), description="seed of the order of batches, one an SAE")

    @model_validator(mode="after")
    def _seeds_pair(self) -> Self:
        if len(self.init_seeds) != len(self.data_seeds) or not self.init_seeds:
            raise ValueError("init_seeds and data_seeds must be lists of equal length, one entry an SAE")
        return self

    @property
    def warmup(self) -> int:
        """Steps until every warm-up is over: the learning rate's, and that of any penalty."""
        named = {name: getattr(part, name) for part in (self.training, self.sae) for name in type(part).model_fields}
        return max(steps for name, steps in named.items() if name.endswith("warmup_steps"))

    @model_validator(mode="after")
    def _target_can_be_steered(self) -> Self:
        target, (name, value) = self.training.target_l0, self.sae.sparsity
        if target is None:
            return self
        if self.sae.fixed_l0 is not None:
            raise ValueError(f"training.target_l0 needs a penalty to steer; {self.sae.architecture} sets L0 by {name}")
        if value == 0:
            raise ValueError(f"training.target_l0 multiplies sae.{name}, which is 0; it must be above 0")
        if target > self.sae.d_sae:
            raise ValueError(f"training.target_l0 {target:g} exceeds d_sae {self.sae.d_sae}")
        return self

    @classmethod
    def load(cls, path: Path, overrides: tuple[str, ...] | list[str] = (), *, architecture: str | None = None) -> Self:
        """As every config; `architecture` takes the place of the file's, whose settings stay where it has them too.

        Raises HusaiError for an unknown architecture, with those there are.
        """
        if architecture is None:
            return super().load(path, overrides)
        if architecture not in SAE_CONFIGS:
            raise HusaiError(f"architecture '{architecture}': must be one of {', '.join(SAE_CONFIGS)}")
        data, known = read_yaml(path), SAE_CONFIGS[architecture].model_fields
        given = data.get("sae")
        kept = {key: value for key, value in (given if isinstance(given, dict) else {}).items() if key in known}
        data["sae"] = kept | {"architecture": architecture}
        return cls.parse(override(data, overrides), f"{path} as {architecture} {' '.join(overrides)}".rstrip())
