"""Where training curves go. It determines no result, so it is in no run id and no file."""

from typing import Annotated, Any, Self

from pydantic import Field

from husai.config.base import Config
from husai.modes import PROJECT, Mode

Tag = Annotated[str, Field(min_length=1, max_length=64)]


class TrackingConfig(Config):
    """The tracker of a run or of a suite's cells. (docs/tracking.md)"""

    mode: Mode | None = Field(
        default=None,
        description="auto, online or offline: W&B; tensorboard: event files; none. auto is online with an account, "
        "offline with WANDB_MODE=offline, else none. null: auto in scripts/, none in husai's commands",
    )
    project: str = Field(default=PROJECT, min_length=1, description="W&B project")
    entity: str | None = Field(default=None, description="W&B user or team; null: the account's own")
    group: str | None = Field(default=None, description="W&B group; null: in a sweep the suite's name, else none")
    tags: tuple[Tag, ...] = Field(
        default=(), description="W&B tags beside those a run gets by itself: architecture, hook, model"
    )

    def otherwise(self, mode: Mode) -> Self:
        """With `mode` where none is given."""
        return self if self.mode else self.model_copy(update={"mode": mode})


def tracking_field() -> Any:
    """The section `tracking` of a config whose runs may be tracked."""
    return Field(default=TrackingConfig(), exclude=True, description="where curves go. In no run id and no file")
