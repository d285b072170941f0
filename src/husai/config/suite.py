"""What determines a sweep: models × hooks × SAEs × seeds, and what is computed of them."""

import math
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from husai.config.axes import expand, is_grid, require_few
from husai.config.base import NAME, Config, Count, Positive, Seed, content_hash, later
from husai.config.models import CompiledConfig, ModelConfig, RecurrentConfig, Trainable
from husai.config.registered import ArchitectureConfig
from husai.config.sae import SAETrainingConfig
from husai.config.samples import CirclesSource, ControlConfig, PlantedSource
from husai.config.tracking import TrackingConfig, tracking_field

DEFAULT_MODEL = "add-p113-0"


class AnalysisConfig(Config):
    """What is computed beside the raw scores. More draws cost time and narrow the chance levels."""

    curve: tuple[Count, ...] = Field(
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
    causes: bool = later(
        True, "whether a model is asked what it makes of the SAEs, beside null dictionaries with codes"
    )


class SuiteEntry(Config):
    """One architecture at one sparsity; it is trained at every hook of the suite."""

    sae: ArchitectureConfig
    training: SAETrainingConfig = SAETrainingConfig()

    @field_validator("sae")
    @classmethod
    def _reconstructs_its_input(cls, sae: ArchitectureConfig) -> ArchitectureConfig:
        if sae.paired:
            raise ValueError(f"{sae.architecture} needs a target beside its hook; it is trained by husai sae train")
        return sae


def _each_once(entries: tuple[SuiteEntry, ...]) -> tuple[SuiteEntry, ...]:
    """Entries that no run id would tell apart are one."""
    return tuple({content_hash(entry): entry for entry in entries}.values())


Entries = Annotated[tuple[SuiteEntry, ...], AfterValidator(_each_once)]


def _kind_of_model(value: Any) -> str:
    """Which of the things that may stand under `model` a value is."""
    if isinstance(value, str):
        return "name"
    keys = value if isinstance(value, dict) else getattr(value, "model_fields_set", ())
    kinds = {"planted": "planted", "circles": "circles", "kind": "compiled", "recurrent": "recurrent"}
    return next((kind for key, kind in kinds.items() if key in keys), "recipe")


def _tracked_with_suite(model: Any) -> Any:
    if isinstance(model, Trainable) and model.tracking != TrackingConfig():
        raise ValueError("a model of a suite is tracked as the suite is; tracking belongs at the top of the suite")
    return model


ModelOrSource = Annotated[
    Annotated[str, Tag("name")]
    | Annotated[ModelConfig, Tag("recipe")]
    | Annotated[CompiledConfig, Tag("compiled")]
    | Annotated[RecurrentConfig, Tag("recurrent")]
    | Annotated[PlantedSource, Tag("planted")]
    | Annotated[CirclesSource, Tag("circles")],
    Discriminator(_kind_of_model),
    AfterValidator(_tracked_with_suite),
]


def _hooks_fit(hooks: tuple[str, ...], given: dict[str, Any]) -> tuple[str, ...]:
    """A model needs hooks, a synthetic source has none."""
    if "model" not in given:  # it is wrong, which is said already
        return hooks
    model = given["model"]
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
    entries: Entries = Field(default=(), description="the SAEs trained on it; none: those of the suite")
    controls: tuple[ControlConfig, ...] = Field(
        default=(),
        description="stand-ins for its samples, on which every SAE is trained besides; none: those of the suite",
    )

    @field_validator("hooks")
    @classmethod
    def _hooks_belong_to_a_model(cls, hooks: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        return _hooks_fit(hooks, info.data)


class SuiteConfig(Config):
    """A sweep: models × their hooks × entries × seeds. One model stands under `model`, several in the list `models`."""

    name: str = Field(pattern=NAME, description="names the folder results/<name>")
    models: tuple[Subject, ...] = Field(
        default=(), description="several models or sources, in place of model and hooks"
    )
    model: ModelOrSource | None = Field(default=None, description="the only model or source; null: add-p113-0")
    hooks: tuple[str, ...] = Field(default=(), validate_default=True, description="its hooks")
    entries: Entries = Field(min_length=1, description="the SAEs trained at every hook")
    controls: tuple[ControlConfig, ...] = Field(
        default=(), description="stand-ins for the samples, on which every SAE is trained besides"
    )
    init_seeds: tuple[Seed, ...] = Field((0, 1, 2, 3, 4), description="seed of the initial weights, one an SAE")
    data_seeds: tuple[Seed, ...] = Field((0, 1, 2, 3, 4), description="seed of the order of batches, one an SAE")
    analysis: AnalysisConfig = AnalysisConfig()
    tracking: TrackingConfig = tracking_field()

    @classmethod
    def parse(cls, data: object, where: str = "config") -> Self:
        """As every config; a suite given by `base` and `axes` is written out first. Raises HusaiError as `axes.expand`."""
        if is_grid(data):
            data = expand(data, where, entry=SuiteEntry.parse, subject=Subject.parse)
        return super().parse(data, where)

    @field_validator("models")
    @classmethod
    def _names_differ(cls, models: tuple[Subject, ...]) -> tuple[Subject, ...]:
        called: dict[str, tuple[ModelOrSource, set[str]]] = {}
        for subject in models:
            name = subject.name or subject.model
            if not isinstance(name, str):
                raise ValueError("each entry needs a name, unless its model is one")
            if name not in called:
                called[name] = subject.model, set(subject.hooks)
                continue
            model, hooks = called[name]
            if model != subject.model or not subject.hooks or not hooks.isdisjoint(subject.hooks):
                raise ValueError(
                    f"two entries are called {name}; they may be if the model is one and no hook is in both"
                )
            hooks.update(subject.hooks)
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
        return hooks if info.data.get("models") else _hooks_fit(hooks, info.data)

    @model_validator(mode="after")
    def _few_cells(self) -> Self:
        kinds = [(len(one.hooks) or 1, len(one.entries), 1 + len(one.controls)) for one in self.subjects]
        require_few(sum(map(math.prod, kinds)), f"suite {self.name}")
        return self

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
