"""Frozen, typed configs: YAML in, unknown keys refused, content hash out. One dial per idea.

A config is a value: it never changes after it was read, it says everything that determines a result, and its hash is
the identity of the run (`content_hash`). Where things run (device, folders, trackers) is not part of a config.
"""

import copy
import difflib
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from husai.errors import HusaiError

DEFAULT_MODEL = "add-p113-0"
NAME = r"^[a-z0-9][a-z0-9_-]*$"
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0)]
Size = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Spread = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Config(BaseModel):
    """Base of all configs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def parse(cls, data: object, where: str = "config") -> Self:
        """Build from plain data. Raises HusaiError naming `where` and the key that is wrong."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise HusaiError(f"{where}: {_explain(error, cls)}") from None

    @classmethod
    def load(cls, path: Path, overrides: tuple[str, ...] | list[str] = ()) -> Self:
        """Read a YAML file and apply `key=value` overrides with dotted keys, such as `sae.k=8`."""
        where = f"{path} with {' '.join(overrides)}" if overrides else str(path)
        return cls.parse(override(read_yaml(path), overrides), where)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem of a pydantic error as one sentence; unknown keys first, since they tell a file of another kind."""
    first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    unknown = first["type"] == "extra_forbidden"
    path, holder = _locate(first["loc"], model, unknown=unknown)
    key = ".".join(path) or "(top level)"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if unknown:
        allowed = list(holder.model_fields)
        close = difflib.get_close_matches(path[-1], allowed, n=1)
        meant = f", did you mean '{close[0]}'?" if close else "."
        return f"unknown key '{key}'{more}{meant} Allowed here: {', '.join(allowed)}"
    if first["type"] == "missing":
        return f"key '{key}' is missing{more}"
    if first["type"] == "union_tag_not_found":
        return f"key '{key}.architecture' is missing{more}"
    if first["type"] == "union_tag_invalid":
        context = first.get("ctx", {})
        return f"'{key}.architecture': must be {context['expected_tags']}, got '{context['tag']}'{more}"
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    shown = f", got {given!r}" if isinstance(given, str | int | float | bool) else ""
    return f"'{key}': {message[0].lower() + message[1:]}{shown}{more}"


def _locate(
    location: tuple[int | str, ...], model: type[BaseModel], *, unknown: bool
) -> tuple[list[str], type[BaseModel]]:
    """The key a pydantic location means, as written in YAML, and the innermost config that holds it.

    Where a key may hold one of several things, pydantic adds the tag of the one it chose: no key, so it is left out.
    unknown: whether the last part is a key that no config has.
    """
    path: list[str] = []
    choices: dict[str, type[BaseModel]] = {}
    for place, part in enumerate(location, 1):
        is_key = isinstance(part, int) or part in model.model_fields or (unknown and place == len(location))
        if is_key:
            path.append(str(part))
        elif len(choices) > 1:
            model = choices[str(part)]
        if isinstance(part, str) and is_key and part in model.model_fields:
            choices = _configs_in(model.model_fields[part].annotation)
            model = next(iter(choices.values())) if len(choices) == 1 else model
    return path, model


def _configs_in(annotation: object) -> dict[str, type[BaseModel]]:
    """The config classes that occur in a type annotation, by the tag under which pydantic's locations know them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        architecture = annotation.model_fields.get("architecture")
        return {str(architecture.default) if architecture else annotation.__name__: annotation}
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated and isinstance(parts[1], Tag):
        return dict(zip([parts[1].tag], _configs_in(parts[0]).values(), strict=False))
    return {tag: found for part in parts for tag, found in _configs_in(part).items()}


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file. Raises HusaiError if it is missing, unreadable or not a mapping."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HusaiError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise HusaiError(f"{path}: cannot be read ({error.__class__.__name__})") from None
    except yaml.YAMLError as error:
        raise HusaiError(f"{path}: is not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(data, dict):
        raise HusaiError(f"{path}: must hold a mapping of keys to values")
    return data


def override(data: dict[str, Any], overrides: tuple[str, ...] | list[str]) -> dict[str, Any]:
    """A copy of `data` with `a.b=value` settings applied; values are read as YAML."""
    data = copy.deepcopy(data)
    for item in overrides:
        key, sign, text = item.partition("=")
        if not sign or not key:
            raise HusaiError(f"override '{item}': must have the form key=value, such as sae.k=8")
        *parents, leaf = key.split(".")
        place = data
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise HusaiError(f"override '{item}': '{parent}' is not a group of keys")
        try:
            place[leaf] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise HusaiError(f"override '{item}': the value is not valid YAML") from None
    return data


def content_hash(*parts: object) -> str:
    """12 hex digits that identify configs and plain values by content, whatever the order of their keys."""
    plain = [part.model_dump(mode="json") if isinstance(part, Config) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


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

    steps: int = Field(
        default=1500, ge=0, description="optimiser steps; 0 leaves the weights as they were drawn: a negative control"
    )
    lr: float = Field(default=2e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(default=1.0, ge=0, description="decoupled weight decay")
    beta2: float = Field(default=0.98, gt=0, lt=1, description="Adam's second beta; the first is 0.9")
    warmup_steps: int = Field(default=10, ge=0, description="steps of linear warm-up")
    decay_fraction: Fraction = Field(default=0.5, description="last share of steps over which lr falls linearly to 0")
    log_every: Positive = Field(default=100, description="steps between evaluations on what is not trained on")
    init_seed: Seed = Field(default=0, description="seed of the initial weights")


class TransformerTrainingConfig(OptimiserConfig):
    """How the transformer is trained, at the last position."""

    frac_train: float = Field(default=0.5, gt=0, lt=1, description="share of the grid trained on")
    batch_size: Positive | None = Field(default=2048, description="pairs a step; null trains on the full batch")
    pos_scale: Size = Field(
        default=1.0,
        exclude_if=lambda scale: scale == 1.0,
        description="how many times as large positional embeddings start; from about 5 on, heads tell a from b at once, "
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


class TopKConfig(Config):
    """TopK SAE (Gao et al. 2024)."""

    architecture: Literal["topk"] = "topk"
    d_sae: Positive = Field(default=1024, description="latents")
    k: Positive = Field(default=32, description="active latents a sample")
    decoder_norm: Literal["unit", "weighted"] = Field(
        default="unit",
        description="unit: decoder rows are projected to norm 1 each step; weighted: codes are scaled by the norms",
    )
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


class ReLUConfig(Config):
    """ReLU SAE with an L1 penalty (Bricken et al. 2023)."""

    architecture: Literal["relu"] = "relu"
    d_sae: Positive = Field(default=1024, description="latents")
    l1_coefficient: float = Field(default=1.0, ge=0, description="λ of λ · mean over batch of Σ_i |f_i|·‖W_dec,i‖")
    l1_warmup_steps: int = Field(default=100, ge=0, description="steps over which λ rises linearly from 0")
    decoder_norm: Literal["unit", "weighted"] = Field(
        default="unit",
        description="unit: decoder rows are projected to norm 1 each step; weighted: only the penalty sees norms",
    )

    @property
    def sparsity(self) -> tuple[str, float]:
        """Name and value of the dial that sets sparsity."""
        return "l1_coefficient", self.l1_coefficient


ArchitectureConfig = Annotated[TopKConfig | ReLUConfig, Field(discriminator="architecture")]


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


class AnalysisConfig(Config):
    """What is computed beside the raw scores. More draws cost time and narrow the chance levels."""

    curve: tuple[int, ...] = Field(
        default=(0, 30, 100, 300, 1000), description="steps at which every score is taken; the end is added"
    )
    null_draws: Positive = Field(
        default=100, description="draws of each null at the end of training, for up to 256 atoms"
    )
    wide_null_draws: Positive = Field(default=20, description="the same for more than 256 atoms")
    curve_null_draws: Positive = Field(default=2, description="draws of each null at the other points of the curve")
    aligned_null_draws: Positive = Field(
        default=2, description="draws of the aligned score's null at the end of training"
    )
    shifts: Positive = Field(
        default=16, description="shifts averaged over at the end, for more than 256 atoms; below that all"
    )
    curve_shifts: Positive = Field(
        default=4, description="shifts averaged and searched at the other points of the curve"
    )


class PlantedConfig(Config):
    """Samples Σ_i z_i·g_i + noise of known unit atoms g_i with sparse z ≥ 0. (docs/method.md §Planted atoms)"""

    d_model: int = Field(default=64, ge=2, description="dimensions of the samples")
    n_atoms: Positive = Field(default=128, description="true atoms")
    k: Positive = Field(default=4, description="groups picked a sample; with group_size 1, active atoms")
    magnitudes: tuple[Size, Size] = Field(
        default=(0.5, 1.5), description="lowest and highest z of an active atom, uniform between them"
    )
    noise: Spread = Field(default=0.0, description="standard deviation of Gaussian noise in each dimension")
    coherence: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="squared weight of a direction all atoms share; about the mean cosine of two",
    )
    zipf: Spread = Field(default=0.0, description="groups are picked in proportion to rank^-zipf; 0: all equally often")
    group_size: Positive = Field(default=1, description="atoms a group; must divide n_atoms; 1: every atom by itself")
    together: Fraction = Field(
        default=0.0, description="probability that all of a picked group fire, else one does (hierarchy: see there)"
    )
    hierarchy: bool = Field(
        default=False,
        description="a group's first atom is a parent that fires whenever the group is picked, with probability "
        "`together` beside one of the others, its children",
    )
    samples: Positive = Field(default=32768, description="samples drawn once, that everything is measured on")
    streamed: bool = Field(
        default=False,
        exclude_if=lambda streamed: not streamed,
        description="whether every training step draws fresh samples of the same atoms; else SAEs train on the ones that are "
        "measured, pass after pass. Left out of files where false",
    )
    seed: Seed = Field(default=0, description="seed of atoms, codes and noise, each with a stream of its own")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        low, high = self.magnitudes
        if low > high:
            raise ValueError(f"magnitudes {low:g} to {high:g} run backwards; the lower end comes first")
        if self.n_atoms % self.group_size:
            raise ValueError(f"group_size {self.group_size} does not divide n_atoms {self.n_atoms}")
        groups = self.n_atoms // self.group_size
        if self.k > groups:
            raise ValueError(f"k {self.k} exceeds the {groups} groups of atoms; allowed is 1 to {groups}")
        if self.group_size == 1 and (self.together or self.hierarchy):
            raise ValueError("together and hierarchy need groups of at least 2 atoms (group_size)")
        if self.rates[0] > 1 + 1e-9:
            raise ValueError(
                f"zipf {self.zipf:g} would pick the commonest group {self.rates[0]:.2f} times a sample; "
                "lower zipf or k until that is at most 1"
            )
        return self

    @property
    def rates(self) -> list[float]:
        """How often a sample picks each group; they sum to k."""
        weights = [rank**-self.zipf for rank in range(1, self.n_atoms // self.group_size + 1)]
        return [self.k * weight / sum(weights) for weight in weights]


class CirclesConfig(Config):
    """Samples Σ_k r_k·U_k·(cos w_k c, sin w_k c) + noise, U_k known planes. (docs/method.md §Planted circles)"""

    d_model: Positive = Field(default=128, description="dimensions of the samples")
    p: int = Field(default=113, ge=3, description="answers c = 0 … p - 1, and the period of the circles")
    frequencies: tuple[Positive, ...] = Field(
        default=(3, 17, 34, 41, 50), min_length=1, description="one circle each, from 1 to (p - 1)/2"
    )
    radii: tuple[Size, ...] = Field(default=(1.0, 1.0, 1.0, 1.0, 1.0), description="radius of each circle")
    noise: Spread = Field(default=0.0, description="standard deviation of Gaussian noise in each dimension")
    repeats: Positive = Field(default=113, description="samples an answer; only noise tells them apart")
    seed: Seed = Field(default=0, description="seed of planes and noise, each with a stream of its own")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        keys, most = self.frequencies, (self.p - 1) // 2
        folded = [k for k in keys if k > most]
        if folded:
            raise ValueError(
                f"frequency {folded[0]} is not from 1 to {most}, the distinct ones mod {self.p}; "
                "k and p - k are the same and are written as the smaller"
            )
        if len(set(keys)) < len(keys):
            raise ValueError(f"frequencies {list(keys)} name one twice; each has one circle")
        if len(self.radii) != len(keys):
            raise ValueError(f"{len(self.radii)} radii for {len(keys)} frequencies; there must be one each")
        if self.d_model < 2 * len(keys):
            raise ValueError(f"d_model {self.d_model} has no room for {len(keys)} orthogonal planes; they take 2 each")
        return self


class PlantedSource(Config):
    """`planted: {...}` in place of a model."""

    planted: PlantedConfig


class CirclesSource(Config):
    """`circles: {...}` in place of a model."""

    circles: CirclesConfig


class ControlConfig(Config):
    """Samples in place of a model's activations that keep only part of what is in them. (docs/method.md §Controls)"""

    kind: Literal["surrogate", "permuted"] = Field(
        description="surrogate: Gaussian, with their mean and covariance; permuted: each principal coordinate shuffled"
    )
    seed: Seed = Field(default=0, description="seed of the Gaussian draw or of the orders")


class SuiteEntry(Config):
    """One architecture at one sparsity; it is trained at every hook of the suite."""

    sae: ArchitectureConfig
    training: SAETrainingConfig = SAETrainingConfig()


def _kind_of_model(value: Any) -> str:
    """Which of the things that may stand under `model` a value is."""
    if isinstance(value, str):
        return "name"
    keys = value if isinstance(value, dict) else getattr(value, "model_fields_set", ())
    kinds = {"planted": "planted", "circles": "circles", "kind": "compiled", "recurrent": "recurrent"}
    return next((kind for key, kind in kinds.items() if key in keys), "recipe")


ModelOrSource = Annotated[
    Annotated[str, Tag("name")]
    | Annotated[ModelConfig, Tag("recipe")]
    | Annotated[CompiledConfig, Tag("compiled")]
    | Annotated[RecurrentConfig, Tag("recurrent")]
    | Annotated[PlantedSource, Tag("planted")]
    | Annotated[CirclesSource, Tag("circles")],
    Discriminator(_kind_of_model),
]


def _hooks_fit(hooks: tuple[str, ...], model: object) -> tuple[str, ...]:
    """A model needs hooks, a synthetic source has none."""
    synthetic = isinstance(model, PlantedSource | CirclesSource)
    if synthetic and hooks:
        raise ValueError("a synthetic source has no hooks; leave them out")
    if not synthetic and not hooks:
        raise ValueError("at least one hook of the model must be named, such as resid_post")
    return hooks


class Subject(Config):
    """What SAEs are trained on: a model at some of its hooks, or a synthetic source."""

    name: str | None = Field(
        default=None,
        pattern=NAME,
        description="what results call it; null: a MODEL by its own name, anything else <suite>-model",
    )
    model: ModelOrSource = Field(
        description="a MODEL by name or path, a recipe to train or compile first, or a synthetic source (planted: or "
        "circles:)",
    )
    hooks: tuple[str, ...] = Field(
        default=(), validate_default=True, description="hooks of the model, short or full; none for a synthetic source"
    )
    unverified: bool = Field(
        default=False,
        description="the suite knows that this model fails the gate, uses it all the same and marks every result unverified; a "
        "recipe is then trained once",
    )
    entries: tuple[SuiteEntry, ...] = Field(default=(), description="the SAEs trained on it; none: those of the suite")
    controls: tuple[ControlConfig, ...] = Field(
        default=(),
        description="stand-ins for its samples, on which every SAE is trained besides; none: those of the suite",
    )

    @field_validator("hooks")
    @classmethod
    def _hooks_belong_to_a_model(cls, hooks: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        return _hooks_fit(hooks, info.data.get("model"))


class SuiteConfig(Config):
    """A sweep: models × their hooks × entries × seeds. One model stands under `model`, several in the list `models`."""

    name: str = Field(pattern=NAME, description="names the folder results/<name>")
    models: tuple[Subject, ...] = Field(
        default=(), description="several models or sources, in place of model and hooks"
    )
    model: ModelOrSource | None = Field(default=None, description="the only model or source; null: add-p113-0")
    hooks: tuple[str, ...] = Field(default=(), validate_default=True, description="its hooks")
    entries: tuple[SuiteEntry, ...] = Field(min_length=1, description="the SAEs trained at every hook")
    controls: tuple[ControlConfig, ...] = Field(
        default=(), description="stand-ins for the samples, on which every SAE is trained besides"
    )
    init_seeds: tuple[Seed, ...] = Field((0, 1, 2, 3, 4), description="seed of the initial weights, one an SAE")
    data_seeds: tuple[Seed, ...] = Field((0, 1, 2, 3, 4), description="seed of the order of batches, one an SAE")
    analysis: AnalysisConfig = AnalysisConfig()

    @field_validator("models")
    @classmethod
    def _names_differ(cls, models: tuple[Subject, ...]) -> tuple[Subject, ...]:
        names = [subject.name or subject.model for subject in models]
        for name in names:
            if not isinstance(name, str):
                raise ValueError("each entry needs a name, unless its model is one")
            if names.count(name) > 1:
                raise ValueError(f"two entries are called {name}")
        return models

    @field_validator("model")
    @classmethod
    def _one_or_several(cls, model: ModelOrSource | None, info: ValidationInfo) -> ModelOrSource | None:
        if info.data.get("models") and model is not None:
            raise ValueError("the suite has a list of models; leave out model, or add an entry to models")
        return model

    @field_validator("hooks")
    @classmethod
    def _hooks_belong_to_a_model(cls, hooks: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if info.data.get("models") and hooks:
            raise ValueError("the suite has a list of models, each with hooks of its own; leave these out")
        return hooks if info.data.get("models") else _hooks_fit(hooks, info.data.get("model"))

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """Every model or source, each with its SAEs."""
        listed = self.models or (Subject(model=self.model or DEFAULT_MODEL, hooks=self.hooks),)
        return tuple(
            subject.model_copy(
                update={"entries": subject.entries or self.entries, "controls": subject.controls or self.controls}
            )
            for subject in listed
        )
