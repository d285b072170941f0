"""What determines a model under study: trained transformers, compiled ones, recurrent networks."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from husai.config.base import Config, Count, Fraction, Positive, Seed, Size, later
from husai.config.text import read_yaml
from husai.config.tracking import TrackingConfig, tracking_field
from husai.errors import HusaiError


class TaskConfig(Config):
    """A modular operation."""

    op: str = Field(default="add", description="add, sub, mul, div or squares (a² + b²)")
    p: int = Field(default=113, description="prime modulus")


class TransformerConfig(Config):
    """The shape of the transformer."""

    layout: Literal["abe", "husai"] = Field(
        default="abe", description="abe: [a, b, =], 1 layer; husai: 2 layers, LayerNorm"
    )
    d_model: Positive = Field(default=128, description="width of the residual stream")
    n_heads: Positive = Field(default=4, description="attention heads; must divide d_model")
    d_mlp: Positive = Field(default=512, description="neurons of the MLP")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.d_model % self.n_heads:
            raise ValueError(f"n_heads {self.n_heads} does not divide d_model {self.d_model}")
        return self


class OptimiserConfig(Config):
    """What the training of every model under study has in common: AdamW on a float64 cross-entropy."""

    steps: Count = Field(
        default=1500, description="optimiser steps; 0 leaves the weights as they were drawn: a negative control"
    )
    lr: float = Field(default=2e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(default=1.0, ge=0, description="decoupled weight decay")
    beta2: float = Field(default=0.98, gt=0, lt=1, description="Adam's second beta; the first is 0.9")
    warmup_steps: Count = Field(default=10, description="steps of linear warm-up")
    decay_fraction: Fraction = Field(default=0.5, description="last share of steps over which lr falls linearly to 0")
    log_every: Positive = Field(default=100, description="steps between evaluations on what is not trained on")
    init_seed: Seed = Field(default=0, description="seed of the initial weights")


class TransformerTrainingConfig(OptimiserConfig):
    """How the transformer is trained, at the last position."""

    frac_train: float = Field(default=0.5, gt=0, lt=1, description="share of the grid trained on")
    batch_size: Positive | None = Field(default=2048, description="pairs a step; null trains on the full batch")
    pos_scale: Size = later(
        1.0,
        "how many times as large positional embeddings start; from about 5 on, heads tell a from b at once, "
        "which sub and div need. Left out of files where 1",
    )
    split_seed: Seed = Field(default=0, description="seed of the train/test split")
    batch_seed: Seed = Field(default=0, description="seed of the order of batches")
    shuffle_labels: bool = Field(
        default=False, description="negative control: permute the labels, so that nothing general can be learned"
    )
    checkpoint_epochs: Positive | None = Field(
        default=None, description="passes over the training pairs between checkpoints"
    )


class ModelConfig(Config):
    """Everything that determines a trained transformer."""

    task: TaskConfig = TaskConfig()
    transformer: TransformerConfig = TransformerConfig()
    training: TransformerTrainingConfig = TransformerTrainingConfig()
    tracking: TrackingConfig = tracking_field()

    @property
    def control(self) -> Literal["random", "memorised"] | None:
        """Which negative control this recipe declares itself to be; None: it is meant to learn a circuit."""
        if self.training.steps == 0:
            return "random"
        return "memorised" if self.training.shuffle_labels else None

    def with_seed(self, seed: int) -> "ModelConfig":
        """The same recipe with all three seeds set to `seed`."""
        training = self.training.model_copy(update=dict.fromkeys(("init_seed", "split_seed", "batch_seed"), seed))
        return self.model_copy(update={"training": training})


class RecurrentShape(Config):
    """The shape of a recurrent network: one layer over one-hot inputs, and a linear readout of its hidden state."""

    cell: Literal["gru", "lstm"] = Field(default="gru", description="torch.nn's cell")
    d_hidden: Positive = Field(default=128, description="width of the hidden state")


class WalksConfig(Config):
    """The walks on which a recurrent network is verified and read. (docs/method.md §Recurrent networks)"""

    length: Positive = Field(default=4, description="steps of a walk after its start; so many are trained on, too")
    repeats: Positive = Field(default=1, description="walks are p² times this, so that each step is the grid so often")
    seed: Seed = Field(default=0, description="seed of the walks' inputs")


class RecurrentTrainingConfig(OptimiserConfig):
    """How a recurrent network is trained, at every step of walks drawn anew for every batch."""

    batch_size: Positive = Field(default=256, description="walks an optimiser step")
    batch_seed: Seed = Field(default=0, description="seed of the walks trained on")


class RecurrentConfig(Config):
    """Everything that determines a recurrent network trained on the running sum mod p."""

    p: int = Field(default=59, description="prime modulus")
    recurrent: RecurrentShape
    walks: WalksConfig = WalksConfig()
    training: RecurrentTrainingConfig = RecurrentTrainingConfig()
    tracking: TrackingConfig = tracking_field()

    @property
    def control(self) -> Literal["random"] | None:
        """Which negative control this recipe declares itself to be; None: it is meant to learn a circuit."""
        return None if self.training.steps else "random"

    def with_seed(self, seed: int) -> "RecurrentConfig":
        """The same recipe with both training seeds set to `seed`; the walks it is verified on stay."""
        training = self.training.model_copy(update=dict.fromkeys(("init_seed", "batch_seed"), seed))
        return self.model_copy(update={"training": training})


class CompiledConfig(Config):
    """Everything that determines a compiled transformer, whose weights are written down (docs/method.md §Compiled models)."""

    task: TaskConfig = TaskConfig()
    kind: Literal["clock", "pizza"] = Field(description="the circuit; pizza for add and sub only")
    keys: tuple[Positive, ...] = Field(min_length=1, description="key frequencies, each from 1 to (n - 1)/2, of Z_n")
    d_model: Positive | None = Field(default=None, description="width; null: 128, or more if the circuit needs more")
    d_mlp: Positive | None = Field(default=None, description="neurons; null: 512, or more if the circuit needs more")
    rotate: bool = Field(default=True, description="rotate the residual stream, so that no basis of it is privileged")
    noise: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="Gaussian weight noise, relative to each matrix's rms entry"
    )
    seed: Seed = Field(default=0, description="seed of the rotation and of the noise")

    @property
    def variant(self) -> Literal["plain", "pizza"]:
        """The variant of the gate that this circuit is to pass."""
        return "pizza" if self.kind == "pizza" else "plain"


Trainable = ModelConfig | RecurrentConfig
Recipe = Trainable | CompiledConfig


def load_recipe(path: Path, overrides: tuple[str, ...] | list[str] = ()) -> Recipe:
    """The config of any model. One that names a `kind` is of a compiled transformer, a `recurrent` shape of a network."""
    keys = read_yaml(path)
    kind = CompiledConfig if "kind" in keys else RecurrentConfig if "recurrent" in keys else ModelConfig
    return kind.load(path, overrides)


def load_trainable(path: Path, overrides: tuple[str, ...] | list[str] = ()) -> Trainable:
    """The same of a model that is trained. Raises HusaiError for a compiled one."""
    recipe = load_recipe(path, overrides)
    if isinstance(recipe, CompiledConfig):
        raise HusaiError(
            f"{path}: is of a compiled model, whose weights are written down; `husai model compile` does that"
        )
    return recipe
