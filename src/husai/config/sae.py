"""What determines a stack of SAEs but the activations: architecture, training, seeds."""

import json
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from husai.config.architectures import SAE_CONFIGS
from husai.config.base import Config, Count, Fraction, Positive, Seed, Size, later, override
from husai.config.precision import Dtype, DtypeName, gradient_scale, require_pair
from husai.config.registered import REGISTERED, SAE_LENS, ArchitectureConfig, RegisteredConfig, is_registered
from husai.config.text import read_yaml
from husai.config.tracking import TrackingConfig, tracking_field
from husai.errors import HusaiError

ONLY_STEPS = (  # switches of the training that nothing reads where a dictionary is solved for
    *("optimiser", "adam_trick", "gradient_scale", "compile", "ema_decay", "decoder_norm_every"),
    *("resample_every", "target_l0_rate", "log_every", "log_timing", "log_statistics"),
)


class SAETrainingConfig(Config):
    """How SAEs are trained: Adam on batches drawn without replacement from the whole grid."""

    steps: Positive = Field(default=1500, description="optimiser steps")
    batch_size: Positive = Field(default=1024, description="samples a step")
    lr: float = Field(default=1e-3, gt=0, description="peak learning rate")
    warmup_steps: Count = Field(default=50, description="steps of linear warm-up")
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
    optimiser: Literal["adam", "rmsprop"] = later(
        "adam", "rmsprop: with bias correction, which is Adam at beta1 = 0 without the memory of a first moment"
    )
    normalise: Literal["scalar", "feature", "constant_norm", "none"] = later(
        "scalar",
        "what training sees: scalar: centred, mean squared norm d; feature: every coordinate centred, of variance "
        "1; constant_norm: every sample of norm √d, not centred; none: raw activations",
    )
    decoder_norm_every: Positive = later(
        1, "steps between projections of decoder rows to norm 1, where decoder_norm is unit"
    )
    ema_decay: float | None = later(
        None,
        "finished SAEs are exponential moving averages with this decay a step; null: the last step's weights",
        gt=0,
        lt=1,
    )
    decorrelation: float = later(
        0.0, "β of β·Σ_{i≠j}(ŵ_i·ŵ_j)² over unit decoder rows, added to the loss", ge=0, allow_inf_nan=False
    )
    probe: float = later(
        0.0,
        "γ of γ · cross-entropy (nats) of a linear probe on the codes against the samples' labels, added to the "
        "loss; the probe learns along and is dropped at the end. It leaks labels into the SAE",
        ge=0,
        allow_inf_nan=False,
    )
    probe_labels: str | None = later(
        None, "integer column of a store that the probe predicts; null: the answers of the task, or of what is planted"
    )
    temporal: float = later(
        0.0,
        "δ of δ · mean ‖h_t − h_{t−1}‖² over the samples that follow another in time, added to the loss",
        ge=0,
        allow_inf_nan=False,
    )
    target_l0: float | None = later(
        None, "L0 towards which the sparsity coefficient is steered, each seed's on its own; null: it is constant", gt=0
    )
    target_l0_rate: float = Field(
        default=0.01,
        gt=0,
        allow_inf_nan=False,
        exclude_if=lambda rate: rate == 0.01,
        description="each step after warm-up multiplies the coefficient by exp(rate · (log L0 − log target_l0))",
    )
    stop: Literal["fixed", "hopeless", "converged"] = later(
        "fixed",
        "fixed: after `steps`; hopeless: earlier, once every seed has collapsed; converged: also once fit and "
        "agreement are flat over a doubling of steps",
    )
    buffer_rows: Positive = later(
        65536,
        "rows of a store that are shuffled together, and in memory for all seeds (at least one shard). Left out of "
        "run ids and files where 65536",
    )
    dtype: DtypeName = later("fp32", "what parameters are kept in between steps: fp32, bf16 or fp16")
    lower_dtype: DtypeName | None = later(
        None, "what products are computed in, and so codes: fp32, bf16 or fp16; null: the same as dtype"
    )
    adam_trick: bool = later(
        False, "gradients stay scaled in the optimiser, its eps along with them, and its update cancels the scale"
    )
    gradient_scale: Size | None = later(
        None,
        "what the loss is multiplied by before its gradient is taken, against underflow; null: 1, or with "
        "adam_trick about batch_size / 16",
    )
    compile: bool = later(False, "losses go through torch.compile, in place of the kernels here")
    early_exit: Positive | None = later(
        None, "training ends after this many steps, with everything saved, its schedules still those of `steps`"
    )
    log_every: Count | None = later(
        None, "steps between rows of the history; 0: none but the last step's; null: one a pass over the samples"
    )
    checkpoint_every: Positive | None = Field(
        default=None,
        exclude=True,
        description="steps between checkpoints; null: none. It changes no result, so it is in no run id and no file",
    )
    log_timing: bool = Field(
        default=False,
        exclude=True,
        description="whether the history says how long each part of a step took. In no run id and no file",
    )
    log_statistics: bool = Field(
        default=False,
        exclude=True,
        description="whether the tracker gets norm, mean and histogram of parameters and gradients. In no run id and no file",
    )

    @field_validator("lower_dtype")
    @classmethod
    def _said_once(cls, name: str | None, info: ValidationInfo) -> str | None:
        return None if name == info.data.get("dtype") else name

    @model_validator(mode="after")
    def _precision_is_supported(self) -> Self:
        scaled = self.adam_trick or self.gradient_scale is not None
        require_pair(self.dtype, self.lower_dtype or self.dtype, scaled=scaled)
        return self

    @model_validator(mode="after")
    def _rows_to_judge_by(self) -> Self:
        if self.log_every == 0 and self.stop != "fixed":
            raise ValueError(f"stop '{self.stop}' judges by the history's rows, which log_every 0 leaves out")
        return self

    @property
    def pair(self) -> tuple[Dtype, Dtype]:
        """What parameters are kept in, and what products are computed in."""
        return self.dtype, self.lower_dtype or self.dtype  # pyright: ignore[reportReturnType]

    @property
    def low_precision(self) -> bool:
        """Whether products are computed in less than fp32."""
        return self.pair[1] != "fp32"

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by before its gradient is taken."""
        return gradient_scale(self.gradient_scale, adam_trick=self.adam_trick, batch_size=self.batch_size)

    @property
    def end(self) -> int:
        """The step after which training ends at the latest."""
        return min(self.steps, self.early_exit or self.steps)

    @model_validator(mode="after")
    def _labels_are_used(self) -> Self:
        if self.probe_labels is not None and not self.probe:
            raise ValueError(f"probe_labels '{self.probe_labels}' is of use only with probe above 0")
        return self


class SAEConfig(Config):
    """Everything that determines a stack of SAEs but the activations: architecture, training, seeds."""

    sae: ArchitectureConfig
    training: SAETrainingConfig = SAETrainingConfig()
    init_seeds: tuple[Seed, ...] = Field((0,), description="seed of the initial weights, one an SAE")
    data_seeds: tuple[Seed, ...] = Field((0,), description="seed of the order of batches, one an SAE")
    tracking: TrackingConfig = tracking_field()

    @model_validator(mode="after")
    def _seeds_pair(self) -> Self:
        if len(self.init_seeds) != len(self.data_seeds) or not self.init_seeds:
            raise ValueError("init_seeds and data_seeds must be lists of equal length, one entry an SAE")
        return self

    @model_validator(mode="after")
    def _scale_can_be_undone(self) -> Self:
        if self.training.normalise == "constant_norm" and not self.sae.centred():
            raise ValueError(
                "training.normalise constant_norm scales each sample by its own norm, which "
                f"{self.sae.architecture} cannot undo; allowed are scalar, feature and none"
            )
        return self

    @property
    def warmup(self) -> int:
        """Steps until every warm-up is over: the learning rate's, and that of any penalty."""
        named = {name: getattr(part, name) for part in (self.training, self.sae) for name in type(part).model_fields}
        named |= named.get("settings", {})  # SAELens writes warm_up
        ends = ("warmup_steps", "warm_up_steps")
        return max(steps for name, steps in named.items() if name.endswith(ends) and isinstance(steps, int))

    @model_validator(mode="after")
    def _target_can_be_steered(self) -> Self:
        target, (name, value) = self.training.target_l0, self.sae.sparsity
        if target is None:
            return self
        if self.sae.fixed_l0 is not None or self.sae.fitted:
            raise ValueError(f"training.target_l0 needs a penalty to steer; {self.sae.architecture} sets L0 by {name}")
        if value == 0:
            raise ValueError(f"training.target_l0 multiplies sae.{name}, which is 0; it must be above 0")
        if target > self.sae.d_sae:
            raise ValueError(f"training.target_l0 {target:g} exceeds d_sae {self.sae.d_sae}")
        return self

    @model_validator(mode="after")
    def _decoder_is_trained(self) -> Self:
        name = self.sae.architecture
        if self.training.decorrelation and (self.sae.fitted or self.sae.fixed_decoder):
            raise ValueError(f"training.decorrelation: no gradient moves the decoder of {name}; allowed is 0")
        if self.sae.fitted and (self.training.probe or self.training.temporal):
            asked = "probe" if self.training.probe else "temporal"
            raise ValueError(f"training.{asked}: {name} is fitted at once, not by gradients; allowed is 0")
        if self.training.normalise == "feature" and name == "nmf":
            raise ValueError("training.normalise feature: NMF's codes cannot be folded back; allowed are the others")
        if self.sae.fitted and self.training.pair != ("fp32", "fp32"):
            raise ValueError(f"training.dtype: {name} is fitted, not trained; allowed is fp32/fp32")
        return self

    @model_validator(mode="after")
    def _switch_is_read(self) -> Self:
        """Of a solver, what would change how or which steps are made; the dials of a step (`lr`, `batch_size`, …) may stand."""
        if not self.sae.fitted:
            return self
        given = {name: getattr(self.training, name) for name in ONLY_STEPS}
        if self.training.stop == "hopeless":
            given["stop"] = "hopeless"
        for name, value in given.items():
            default = type(self.training).model_fields[name].default
            if value != default:
                allowed = "fixed or converged" if name == "stop" else json.dumps(default).strip('"')
                raise ValueError(
                    f"training.{name}: {self.sae.architecture} is fitted at once, not in optimiser steps, and does not read "
                    f"it; allowed is {allowed}"
                )
        return self

    @model_validator(mode="after")
    def _class_computes_it(self) -> Self:
        """A class of SAELens computes its losses itself, in fp32."""
        if not isinstance(self.sae, RegisteredConfig):
            return self
        name, training = self.sae.architecture, self.training
        if training.pair != ("fp32", "fp32") or training.compile:
            raise ValueError(f"training.dtype: {name} computes its losses itself; allowed is fp32/fp32, not compiled")
        if training.temporal:
            raise ValueError(f"training.temporal: codes of other samples cannot be asked of {name}; allowed is 0")
        return self

    def with_sparsity(self, value: float) -> Self:
        """With the dial that sets the architecture's sparsity at `value`. Raises HusaiError if it cannot be there."""
        (name, _), where, kind = self.sae.sparsity, f"sparsity coefficient {value:g}", self.sae.architecture
        given = self.sae.model_dump()
        if isinstance(self.sae, RegisteredConfig):
            if name not in self.sae.settings:
                raise HusaiError(
                    f"{where}: {kind} has no dial of sparsity; name one in sae.settings, by sae.dial if need be"
                )
            if name == "k" and not value.is_integer():
                raise HusaiError(f"{where}: 'sae.settings.k' of {kind} must be a whole number")
            whole = isinstance(self.sae.settings[name], int) and value.is_integer()
            given["settings"] = {**self.sae.settings, name: int(value) if whole else value}
        elif name in given:
            given[name] = value
        else:
            raise HusaiError(f"{where}: {kind} has no dial of sparsity; its {name} is fixed")
        sae = type(self.sae).parse(given, where)
        return self.parse({**dict(self), "sae": sae}, where)

    @classmethod
    def load(cls, path: Path, overrides: tuple[str, ...] | list[str] = (), *, architecture: str | None = None) -> Self:
        """As every config; `architecture` takes the place of the file's, whose settings stay where it has them too (but see
        `own_width`).

        Raises HusaiError for an unknown architecture, with those there are.
        """
        if architecture is None:
            return super().load(path, overrides)
        if architecture not in SAE_CONFIGS and not is_registered(architecture):
            raise HusaiError(
                f"architecture '{architecture}': must be one of {', '.join(SAE_CONFIGS)}, a name registered with SAELens "
                f"({', '.join(SAE_LENS)}, …), or {REGISTERED}"
            )
        data, known = read_yaml(path), SAE_CONFIGS.get(architecture, RegisteredConfig).model_fields
        given = data.get("sae")
        if SAE_CONFIGS.get(architecture, RegisteredConfig).own_width:
            known = {key: value for key, value in known.items() if key not in ("d_sae", "k")}
        kept = {key: value for key, value in (given if isinstance(given, dict) else {}).items() if key in known}
        data["sae"] = kept | {"architecture": architecture}
        return cls.parse(override(data, overrides), f"{path} as {architecture} {' '.join(overrides)}".rstrip())
