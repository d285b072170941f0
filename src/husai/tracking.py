"""Where training curves go beside the run folder: Weights & Biases online or offline, or nowhere.

A run never fails because W&B is absent, unreachable or not logged in: it says so once and goes on without.
"""

import netrc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

PROJECT = "husai-sae-stability"

Mode = Literal["auto", "online", "offline", "none"]


class Tracker(Protocol):
    """Takes figures while a run goes on."""

    def log(self, figures: dict[str, float], step: int) -> None:
        """Figures at one step."""
        ...

    def finish(self) -> None:
        """No more figures will come."""
        ...


class NoTracker:
    """Keeps nothing."""

    def log(self, figures: dict[str, float], step: int) -> None: ...

    def finish(self) -> None: ...


class WandbTracker:
    """One W&B run. Any failure on its side ends tracking with a notice, never the run."""

    def __init__(self, run: Any, warn: Callable[[str], object]) -> None:
        self.run, self.warn, self.working = run, warn, True

    def _try(self, action: Callable[[], object]) -> None:
        try:
            if self.working:
                action()
        except Exception as error:  # W&B raises many kinds; none may end a run
            self.warn(f"W&B stopped working ({error.__class__.__name__}); going on without it")
            self.working = False

    def log(self, figures: dict[str, float], step: int) -> None:
        self._try(lambda: self.run.log(figures, step=step))

    def finish(self) -> None:
        self._try(lambda: self.run.finish())


def logged_in() -> bool:
    """Whether W&B could reach an account: a key in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc.netrc(Path.home() / ".netrc").hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def open_tracker(
    mode: Mode,
    *,
    project: str = PROJECT,
    name: str,
    config: dict[str, Any],
    folder: Path,
    warn: Callable[[str], object],
) -> Tracker:
    """A tracker for one run.

    auto: online if there is an account, offline if WANDB_MODE=offline, else none with a notice. warn gets the notices.
    """
    if mode == "auto":
        mode = "offline" if os.environ.get("WANDB_MODE") == "offline" else "online" if logged_in() else "none"
        if mode == "none":
            warn("W&B is not set up, so nothing is tracked (`wandb login` to change that, --no-wandb to silence this)")
    if mode == "none":
        return NoTracker()
    try:
        import wandb

        run = wandb.init(
            project=project, name=name, config=config, mode=mode, dir=str(folder), settings=wandb.Settings(silent=True)
        )
    except Exception as error:  # absent, unreachable, misconfigured: all the same to the run
        warn(f"W&B cannot be used ({error.__class__.__name__}); going on without it")
        return NoTracker()
    return WandbTracker(run, warn)
