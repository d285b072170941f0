"""Train a transformer on a modular task until its circuit is verified.

    python scripts/train_transformer.py --save-dir runs/transformer training.steps=2000 task.op=mul

Writes transformer_best, transformer_final and transformer_epoch_<N> as safetensors, with config.yaml, gate.json,
metrics.json, history.csv and provenance.json. Exit 0 if the gate passes, 1 if no attempt does.
"""

from pathlib import Path
from typing import Annotated

import typer

from husai.commands.options import NoWandbOption, ProjectOption, TrackOption, tracked
from husai.console import exits


@exits
def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value settings, such as task.p=59")] = None,
    config: Annotated[str, typer.Option(help="a YAML file, or a shipped name such as add-p113")] = "add-p113",
    seed: Annotated[int | None, typer.Option(help="sets the init, split and batch seeds")] = None,
    save_dir: Annotated[Path, typer.Option(help="run folder to write")] = Path("runs/transformer"),
    attempts: Annotated[int, typer.Option(min=1, help="seeds tried until the gate passes")] = 3,
    device: Annotated[str, typer.Option(help="cpu, or a CUDA device such as cuda:0")] = "cpu",
    track: TrackOption = None,
    no_wandb: NoWandbOption = False,
    wandb_project: ProjectOption = None,
    quiet: Annotated[bool, typer.Option(help="no progress bar")] = False,
) -> int:
    """Train and verify."""
    from husai.config import ModelConfig
    from husai.console import require_device
    from husai.making import say_run, train_watched
    from husai.resources import find_config

    said = [*(overrides or []), *tracked(track, wandb_project, no_wandb=no_wandb)]
    recipe = ModelConfig.load(find_config(config, "models"), said)
    recipe = recipe if seed is None else recipe.with_seed(seed)
    passed = train_watched(
        recipe,
        save_dir,
        attempts=attempts,
        device=require_device(device),
        quiet=quiet,
        tracking=recipe.tracking.otherwise("auto"),
    )
    return say_run(save_dir, passed)


if __name__ == "__main__":
    typer.run(main)
