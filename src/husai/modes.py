"""Where training curves may go, and W&B's project: words of configs and of commands, which start without configs."""

from typing import Literal

PROJECT = "husai-sae-stability"

Mode = Literal["auto", "online", "offline", "tensorboard", "none"]
