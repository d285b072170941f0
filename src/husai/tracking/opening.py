"""Which tracker a run gets."""

import netrc
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from husai.config import TrackingConfig
from husai.modes import Mode
from husai.tracking import tensorboard, wandb
from husai.tracking.base import LIMIT, RETRY_AFTER, NoTracker, Tracker, Warn, failed, named, within

Settled = Literal["online", "offline", "tensorboard", "none"]


def logged_in() -> bool:
    """Whether W&B could reach an account: a key in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc.netrc(Path.home() / ".netrc").hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def settled(mode: Mode | None, warn: Warn) -> Settled:
    """`mode` with auto decided, and none in place of null. warn is told if W&B is not set up."""
    if mode != "auto":
        return mode or "none"
    asked = os.environ.get("WANDB_MODE")
    if asked in ("offline", "disabled"):
        return "offline" if asked == "offline" else "none"
    if logged_in():
        return "online"
    warn(
        "W&B is not set up, so nothing is tracked (`wandb login` to change that, --no-wandb or --track to silence this)"
    )
    return "none"


def open_tracker(
    tracking: TrackingConfig,
    *,
    name: str,
    run: str | None = None,
    config: Mapping[str, Any],
    folder: Path,
    tags: Iterable[str | None] = (),
    every: int | None = None,
    warn: Warn,
) -> NoTracker:
    """A tracker for one run, which W&B shows as `name`; TensorBoard's files go to `folder`/tensorboard/`run`.

    tags: beside the config's. every: steps between rows; at 0 nothing is tracked. warn gets the notices.
    """
    mode = "none" if every == 0 else settled(tracking.mode, warn)
    if mode == "none":
        return NoTracker()
    kind: type[Tracker] = tensorboard.TensorBoardTracker if mode == "tensorboard" else wandb.WandbTracker
    if time.monotonic() - failed.get(kind.name, -RETRY_AFTER) < RETRY_AFTER:
        return NoTracker()
    try:
        if mode == "tensorboard":
            place = folder / "tensorboard" / re.sub(r"[^\w./=-]+", "-", run or name).strip("/.-")
            opened = within(LIMIT, lambda: tensorboard.start(place, config))
        else:
            about = tracking.model_copy(update={"tags": (*tracking.tags, *(tag[:64] for tag in tags if tag))})
            opened = within(LIMIT, lambda: wandb.start(about, mode, name, config, folder))
    except Exception as error:  # absent, unreachable, misconfigured, not writable: all the same to the run
        failed[kind.name] = time.monotonic()
        missing = "; husai[tensorboard] has it" if isinstance(error, ImportError) and mode == "tensorboard" else ""
        warn(f"{kind.name} cannot be used ({named(error)}{missing}); going on without it")
        return NoTracker()
    return kind(opened, warn)
