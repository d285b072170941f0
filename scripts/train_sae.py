"""Train one SAE on one hook of a transformer, with a report that says whether it is any good.

    python scripts/train_sae.py --transformer-checkpoint add-p113-0 --config configs/examples/topk_16x.yaml \
        --hook resid_post --seed 0 --save-dir runs/topk_16x

`--save-dir` is the run folder and a SAELens folder in one. An epoch is one pass over the grid: 20 epochs at batch 1024
are 250 steps, after which an 8x SAE has not converged, and the report says so.
"""

from pathlib import Path
from typing import Annotated

import typer

from husai.commands.options import (
    AdamTrickOption,
    CompileOption,
    DeterministicOption,
    DryRunOption,
    DtypeOption,
    EarlyExitOption,
    LogEveryOption,
    LowerDtypeOption,
    OptimizerOption,
    ResumeOption,
    ShardDirOption,
    SparsityOption,
    StatisticsOption,
    TimingOption,
    TrackOption,
    training_settings,
)
from husai.console import exits, say
from husai.tracking import PROJECT


@exits
def main(
    transformer_checkpoint: Annotated[
        str | None, typer.Option(help="reference name, run folder or weights file; with --shard-dir it may be left out")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value settings, such as sae.k=16")] = None,
    config: Annotated[str, typer.Option(help="a YAML file, or a shipped name")] = "topk_8x",
    layer: Annotated[int | None, typer.Option(help="layer of a short hook name; the last by default")] = None,
    hook: Annotated[
        str | None,
        typer.Option(help="short or full hook name; resid_post by default, of a transcoder what the MLP reads"),
    ] = None,
    target_hook: Annotated[str | None, typer.Option(help="what a transcoder reconstructs; mlp_out by default")] = None,
    position: Annotated[int, typer.Option(help="position in the input; -1 is where the answer is read")] = -1,
    seed: Annotated[int | None, typer.Option(min=0, help="sets the init and the data seed")] = None,
    epochs: Annotated[float | None, typer.Option(help="passes over the samples, in place of training.steps")] = None,
    batch_size: Annotated[int | None, typer.Option(help="training.batch_size")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="training.lr")] = None,
    op: Annotated[str | None, typer.Option(help="operation of a bare weights file")] = None,
    save_dir: Annotated[Path, typer.Option(help="run folder to write")] = Path("runs/sae"),
    device: Annotated[str, typer.Option(help="cpu, or a CUDA device such as cuda:0")] = "cpu",
    allow_unverified: Annotated[
        bool, typer.Option(help="go on if the gate fails; the run is marked unverified")
    ] = False,
    no_wandb: Annotated[bool, typer.Option("--no-wandb", help="do not track with W&B")] = False,
    wandb_project: Annotated[str, typer.Option(help="W&B project")] = PROJECT,
    quiet: Annotated[bool, typer.Option("--quiet", help="print nothing but errors")] = False,
    shard_dir: ShardDirOption = None,
    resume_from: ResumeOption = None,
    checkpoint_interval: Annotated[int | None, typer.Option(min=1, help="training.checkpoint_every")] = None,
    deterministic: DeterministicOption = False,
    early_exit: EarlyExitOption = None,
    log_every: LogEveryOption = None,
    log_timing: TimingOption = False,
    log_statistics: StatisticsOption = False,
    compile: CompileOption = False,
    optimizer: OptimizerOption = None,
    dtype: DtypeOption = None,
    lower_dtype: LowerDtypeOption = None,
    adam_trick: AdamTrickOption = False,
    sparsity_coeff: SparsityOption = None,
    track: TrackOption = None,
    dry_run: DryRunOption = False,
) -> int:
    """Train, score and report."""
    from husai.config import SAEConfig
    from husai.console import require_device
    from husai.errors import HusaiError
    from husai.resources import find_config
    from husai.single import Request, estimate_single, train_single

    settings = training_settings(
        batch_size=batch_size,
        lr=learning_rate,
        checkpoint_every=checkpoint_interval,
        early_exit=early_exit,
        log_every=log_every,
        log_timing=log_timing,
        log_statistics=log_statistics,
        compile=compile,
        optimiser=optimizer,
        dtype=dtype,
        lower_dtype=lower_dtype,
        adam_trick=adam_trick,
    )
    if seed is not None:
        settings += [f"init_seeds=[{seed}]", f"data_seeds=[{seed}]"]
    if epochs is not None and epochs <= 0:
        raise HusaiError(f"--epochs {epochs}: must be above 0")
    chosen = SAEConfig.load(find_config(config, "examples"), [*(overrides or []), *settings])
    if sparsity_coeff is not None:
        chosen = chosen.with_sparsity(sparsity_coeff)
    request = Request(
        model=transformer_checkpoint,
        hook=hook,
        layer=layer,
        position=position,
        op=op,
        config=chosen,
        out=save_dir,
        allow_unverified=allow_unverified,
        device=require_device(device),
        quiet=quiet,
        epochs=epochs,
        tracking=track or ("none" if no_wandb else "auto"),
        project=wandb_project,
        shard_dir=shard_dir,
        resume_from=resume_from,
        target_hook=target_hook,
        deterministic=deterministic,
    )
    if dry_run:
        say("\n".join(estimate_single(request).lines))
        return 0
    return int("hopeless" in train_single(request))


if __name__ == "__main__":
    typer.run(main)
