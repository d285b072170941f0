"""The dials of an SAE that SAELens knows and this project does not: whose class it is, and its settings."""

import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Discriminator, Field, Tag

from husai.config.architectures import SAE_CONFIGS, BaseSAEConfig, SAEKind
from husai.config.base import Positive

DIALS = ("k", "target_l0", "l1_coefficient", "l0_coefficient")  # settings that set sparsity, in SAELens' names
REGISTERED = "package.module:Class"
SAE_LENS = ("standard", "matryoshka_batchtopk", "matching_pursuit")  # its own training classes whose names are not ours


class RegisteredConfig(BaseSAEConfig):
    """A training class registered with SAELens (`register_sae_training_class`), trained seed by seed."""

    architecture: str = Field(
        min_length=1,
        description="package.module:Class, package.module:name or a name registered with SAELens; saelens:topk is SAELens' "
        "own class of a name that stands for another here. Run ids know this name and not the code behind it",
    )
    decoder_norm: Literal["unit", "weighted"] = Field(
        default="weighted",
        description="weighted: the class's own business; unit: decoder rows are projected to norm 1 each step",
    )
    settings: dict[str, Any] = Field(default={}, description="what its config class is given beside d_in and d_sae")
    dial: str | None = Field(
        default=None,
        description="the setting that sets sparsity, named in results; null: the first there is of k, target_l0, "
        "l1_coefficient, l0_coefficient, or else d_sae. One called k is the L0 that health expects",
    )
    dead_steps: Positive = Field(
        default=100, description="steps without firing after which a latent counts as dead in training"
    )

    @property
    def sparsity(self) -> tuple[str, float]:
        """Name and value of the dial that sets sparsity; d_sae, where none is known."""
        names = DIALS if self.dial is None else (self.dial,)
        for name in names:
            if isinstance(value := self.settings.get(name), int | float):
                return name, float(value)
        return "d_sae", float(self.d_sae)


AnySAE = SAEKind | RegisteredConfig


def is_registered(name: str) -> bool:
    """Whether a name that is not ours is that of a class: with a colon, or among SAELens' own and what was registered so far.

    SAELens takes seconds to import, so it is not asked before someone else has.
    """
    there = sys.modules.get("sae_lens.registry")
    return ":" in name or name in (*SAE_LENS, *getattr(there, "SAE_TRAINING_CLASS_REGISTRY", ()))


def kind_of(given: Any) -> str | None:
    """Under which of the configs' tags plain data, or a config, belong; a slip is its own tag, which no config has."""
    keys = given if isinstance(given, dict) else vars(given) if isinstance(given, BaseSAEConfig) else {}
    if "architecture" not in keys:
        return None
    name = str(keys["architecture"])
    return REGISTERED if name not in SAE_CONFIGS and is_registered(name) else name


if TYPE_CHECKING:
    ArchitectureConfig = AnySAE
else:
    _OURS = tuple(Annotated[kind, Tag(name)] for name, kind in SAE_CONFIGS.items())
    ArchitectureConfig = Annotated[
        Union[(*_OURS, Annotated[RegisteredConfig, Tag(REGISTERED)])],
        Discriminator(kind_of),
    ]
