"""Where training curves go beside the run folder: Weights & Biases online or offline, TensorBoard, or nowhere.

A run never fails because one of them is absent, unreachable or not logged in: it says so once and goes on without.
"""

import json
import netrc
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

PROJECT = "husai-sae-stability"

Mode = Literal["auto", "online", "offline", "tensorboard", "none"]


class Distribution(Protocol):
    """norm and mean of some numbers, and how many (`counts`) lie between neighbouring `edges`."""

    @property
    def norm(self) -> float: ...
    @property
    def mean(self) -> float: ...
    @property
    def counts(self) -> Any: ...
    @property
    def edges(self) -> Any: ...


class Tracker(Protocol):
    """Takes figures while a run goes on."""

    def log(self, figures: dict[str, float], step: int) -> None:
        """Figures at one step."""
        ...

    def log_statistics(self, statistics: Mapping[str, Distribution], step: int) -> None:
        """Norm, mean and histogram of each, by name."""
        ...

    def finish(self) -> None:
        """No more figures will come."""
        ...


class NoTracker:
    """Keeps nothing."""

    def log(self, figures: dict[str, float], step: int) -> None: ...

    def log_statistics(self, statistics: Mapping[str, Distribution], step: int) -> None: ...

    def finish(self) -> None: ...


class Guarded:
    """Another program's tracker. Any failure on its side ends tracking with a notice, never the run."""

    name: str

    def __init__(self, run: Any, warn: Callable[[str], object]) -> None:
        self.run, self.warn, self.working = run, warn, True

    def _try(self, action: Callable[[], object]) -> None:
        try:
            if self.working:
                action()
        except Exception as error:  # they raise many kinds; none may end a run
            self.warn(f"{self.name} stopped working ({error.__class__.__name__}); going on without it")
            self.working = False


class WandbTracker(Guarded):
    """One W&B run."""

    name = "W&B"

    def log(self, figures: dict[str, float], step: int) -> None:
        self._try(lambda: self.run.log(figures, step=step))

    def log_statistics(self, statistics: Mapping[str, Distribution], step: int) -> None:
        def rows() -> dict[str, Any]:
            import wandb

            found: dict[str, Any] = {}
            for name, one in statistics.items():
                found |= {f"{name}/norm": one.norm, f"{name}/mean": one.mean}
                found[name] = wandb.Histogram(np_histogram=(one.counts, one.edges))
            return found

        self._try(lambda: self.run.log(rows(), step=step))

    def finish(self) -> None:
        self._try(lambda: self.run.finish())


class TensorBoardTracker(Guarded):
    """Event files that `tensorboard --logdir` shows."""

    name = "TensorBoard"

    def log(self, figures: dict[str, float], step: int) -> None:
        self._try(lambda: [self.run.add_scalar(name, value, step) for name, value in figures.items()])

    def log_statistics(self, statistics: Mapping[str, Distribution], step: int) -> None:
        def write() -> None:
            for name, one in statistics.items():
                self.run.add_scalar(f"{name}/norm", one.norm, step)
                self.run.add_scalar(f"{name}/mean", one.mean, step)
                middles, counts = (one.edges[1:] + one.edges[:-1]) / 2, one.counts
                self.run.add_histogram_raw(
                    name,
                    min=one.edges[0],
                    max=one.edges[-1],
                    num=counts.sum(),
                    sum=one.mean * counts.sum(),
                    sum_squares=(counts * middles**2).sum(),
                    bucket_limits=one.edges[1:].tolist(),
                    bucket_counts=counts.tolist(),
                    global_step=step,
                )

        self._try(write)

    def finish(self) -> None:
        self._try(lambda: self.run.close())


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
    run: str = "run",
    config: dict[str, Any],
    folder: Path,
    warn: Callable[[str], object],
) -> Tracker:
    """A tracker for one run, which W&B shows as `name`; TensorBoard's files go to `folder`/tensorboard/`run`.

    auto: online if there is an account, offline if WANDB_MODE=offline, else none with a notice. warn gets the notices.
    """
    if mode == "tensorboard":
        return _open_tensorboard(folder / "tensorboard" / run, config, warn)
    if mode == "auto":
        mode = "offline" if os.environ.get("WANDB_MODE") == "offline" else "online" if logged_in() else "none"
        if mode == "none":
            warn("W&B is not set up, so nothing is tracked (`wandb login` to change that, --no-wandb to silence this)")
    if mode == "none":
        return NoTracker()
    try:
        import wandb

        started = wandb.init(
            project=project, name=name, config=config, mode=mode, dir=str(folder), settings=wandb.Settings(silent=True)
        )
    except Exception as error:  # absent, unreachable, misconfigured: all the same to the run
        warn(f"W&B cannot be used ({error.__class__.__name__}); going on without it")
        return NoTracker()
    return WandbTracker(started, warn)


def _open_tensorboard(folder: Path, config: dict[str, Any], warn: Callable[[str], object]) -> Tracker:
    try:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder))
        writer.add_text("config", f"```\n{json.dumps(config, indent=2)}\n```")
    except Exception as error:  # absent, of another version, not writable: all the same to the run
        warn(f"TensorBoard cannot be used ({error.__class__.__name__}; husai[tensorboard] has it); going on without it")
        return NoTracker()
    return TensorBoardTracker(writer, warn)
