"""Weights & Biases."""

import html
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from husai.config import TrackingConfig
from husai.tracking.base import Distribution, Tracker

INIT_LIMIT, FINISH_LIMIT = 20.0, 60.0  # seconds W&B takes to reach its server, and at the end to send what is left


class WandbTracker(Tracker):
    """One W&B run."""

    name = "W&B"

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._try(lambda: self.run.log(dict(figures), step=step))

    def log_statistics(self, statistics: Mapping[str, Distribution], step: int) -> None:
        def rows() -> dict[str, Any]:
            import wandb

            found: dict[str, Any] = {}
            for name, one in statistics.items():
                found |= {f"{name}/norm": one.norm, f"{name}/mean": one.mean}
                found[name] = wandb.Histogram(np_histogram=(one.counts, one.edges))
            return found

        self._try(lambda: self.run.log(rows(), step=step))

    def summarise(self, metrics: Mapping[str, Any]) -> None:
        def write() -> None:
            self.run.log({}, commit=True)  # a row that is sent later would overwrite metrics of the same names
            self.run.summary.update(dict(metrics))

        self._try(write)

    def text(self, name: str, markdown: str) -> None:
        def write() -> None:
            import wandb

            self.run.log({name: wandb.Html(f"<pre>{html.escape(markdown)}</pre>", inject=False)})

        self._try(write)

    def show(self, images: Iterable[Path]) -> None:
        def write() -> None:
            import wandb

            self.run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in images})

        self._try(write)

    def finish(self, failed: bool = False) -> None:
        self._try(lambda: self.run.finish(exit_code=int(failed)))


def start(
    tracking: TrackingConfig,
    mode: Literal["online", "offline"],
    name: str,
    config: Mapping[str, Any],
    folder: Path,
) -> Any:
    """A W&B run, as `tracking` says, beside any others of this process."""
    import wandb

    folder.mkdir(parents=True, exist_ok=True)  # where it cannot be written, W&B would write elsewhere
    settings = wandb.Settings(
        silent=True,
        console="off",  # standard output stays as it is
        reinit="create_new",
        init_timeout=INIT_LIMIT,
        finish_timeout=FINISH_LIMIT,
        finish_timeout_raises=True,
    )
    return wandb.init(
        project=tracking.project,
        entity=tracking.entity,
        group=tracking.group,
        tags=list(dict.fromkeys(tracking.tags)),
        name=name,
        config=dict(config),
        mode=mode,
        dir=str(folder.resolve()),
        settings=settings,
    )
