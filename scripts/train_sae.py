"""Train one SAE on one hook of a transformer, with a report that says whether it is any good.

    python scripts/train_sae.py --transformer-checkpoint add-p113-0 --config configs/examples/topk_16x.yaml \
        --hook resid_post --seed 0 --save-dir runs/topk_16x

`--save-dir` is the run folder and a SAELens folder in one. An epoch is one pass over the grid: 20 epochs at batch 1024
are 250 steps, after which an 8x SAE has not converged, and the report says so.
"""

from pathlib import Path
from typing import Annotated

import typer

from husai.commands.options import NoWandbOption, ProjectOption, tracked
from husai.commands.training import TrainingFlags, with_training_flags
from husai.console import exits, say


@exits
@with_training_flags
def main(
    transformer_checkpoint: Annotated[
        str | None, typer.Option(help="reference name, run folder or weights file; with --shard-dir it may be left out")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value settings, such as sae.k=16")] = None,
    position: Annotated[int, typer.Option(help="position in the input; -1 is where the answer is read")] = -1,
    seed: Annotated[int | None, typer.Option(min=0, help="sets the init and the data seed")] = None,
    epochs: Annotated[float | None, typer.Option(help="passes over the samples, in place of training.steps")] = None,
    batch_size: Annotated[int | None, typer.Option(help="training.batch_size")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="training.lr")] = None,
    checkpoint_interval: Annotated[int | None, typer.Option(min=1, help="training.checkpoint_every")] = None,
    save_dir: Annotated[Path, typer.Option(help="run folder to write")] = Path("runs/sae"),
    no_wandb: NoWandbOption = False,
    wandb_project: ProjectOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="print nothing but errors")] = False,
    *,
    flags: TrainingFlags,
) -> int:
    """Train, score and report."""
    from husai.errors import HusaiError
    from husai.single import estimate_single, train_single

    seeds = [] if seed is None else [f"init_seeds=[{seed}]", f"data_seeds=[{seed}]"]
    if epochs is not None and epochs <= 0:
        raise HusaiError(f"--epochs {epochs}: must be above 0")
    training = {"batch_size": batch_size, "lr": learning_rate, "checkpoint_every": checkpoint_interval}
    said = [*(overrides or []), *seeds, *tracked(None, wandb_project, no_wandb=no_wandb)]
    chosen = flags.load(said, **training)
    chosen = chosen.model_copy(update={"tracking": chosen.tracking.otherwise("auto")})
    more = {"position": position, "epochs": epochs, "quiet": quiet}
    request = flags.request(transformer_checkpoint, chosen, save_dir, **more)
    if flags.dry_run:
        say("\n".join(estimate_single(request).lines))
        return 0
    return int("hopeless" in train_single(request))


if __name__ == "__main__":
    typer.run(main)
