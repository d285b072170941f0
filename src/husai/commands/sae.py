"""`husai sae`: train and score sparse autoencoders."""

from pathlib import Path
from typing import Annotated

import typer

from husai import console
from husai.commands.options import JsonOption, OpOption, Overrides
from husai.commands.training import TrainingFlags, with_training_flags
from husai.console import exits, say

app = typer.Typer(help="Train and score sparse autoencoders.", no_args_is_help=True)


@app.command("train")
@exits
@with_training_flags
def sae_train(
    model: Annotated[
        str | None,
        typer.Argument(
            help="MODEL: a reference name (add-p113-0), a run folder or a weights file; with --shard-dir it may be left out"
        ),
    ] = None,
    overrides: Overrides = None,
    architecture: Annotated[
        str | None, typer.Option(help="another architecture than the config's; what both have stays as the config says")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="SAEs trained together, with seeds 0, 1, …")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="init and data seed; of several SAEs, the first's")] = None,
    out: Annotated[Path, typer.Option(help="run folder to write")] = Path("runs/sae"),
    quiet: Annotated[bool, typer.Option(help="print nothing but errors")] = False,
    json: JsonOption = False,
    target_shard_dir: Annotated[
        Path | None, typer.Option(help="store of a transcoder's targets, row by row those of --shard-dir")
    ] = None,
    *,
    flags: TrainingFlags,
) -> int:
    """Train SAEs on one hook of a verified model, or on a store; the folder opens with sae_lens.SAE.load_from_disk.

    Exit 1 if training was given up as hopeless (training.stop), which the folder says.
    """
    from dataclasses import asdict

    from husai.single import estimate_single, train_single

    settings = list(overrides or [])
    if flags.shard_dir is not None and model is not None and "=" in model and not Path(model).exists():
        settings, model = [model, *settings], None
    chosen = flags.load(settings, architecture=architecture)
    if seeds > 1 or seed is not None:
        many = tuple(range(seed or 0, (seed or 0) + seeds))
        chosen = chosen.model_copy(update={"init_seeds": many, "data_seeds": many})
    more = {"quiet": quiet or json, "target_shard_dir": target_shard_dir}
    request = flags.request(model, chosen, out, **more)
    if flags.dry_run:
        expected = estimate_single(request)
        if json:
            console.show_json({**asdict(expected), "seconds": expected.seconds})
        else:
            console.say("\n".join(expected.lines))
        return 0
    metrics = train_single(request)
    if json:
        console.show_json(metrics)
    return int("hopeless" in metrics)


@app.command("score")
@exits
def sae_score(
    saes: Annotated[
        list[Path],
        typer.Argument(
            help="SAEs: SAELens folders (cfg.json and sae_weights.safetensors), or folders that hold some, such as a run"
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="MODEL: a reference name (add-p113-0), a run folder or a weights file")
    ] = None,
    hook: Annotated[str | None, typer.Option(help="hook; by default the one the SAEs say they were trained on")] = None,
    op: OpOption = None,
    shard_dir: Annotated[
        Path | None, typer.Option(help="store of activations in place of a model: fit and agreement, no truth")
    ] = None,
    source_hook: Annotated[
        str | None, typer.Option(help="hook that a transcoder encodes, where it does not say it")
    ] = None,
    target_shard_dir: Annotated[
        Path | None, typer.Option(help="store of what a transcoder reconstructs, row by row that of --shard-dir")
    ] = None,
    imports: Annotated[
        list[str] | None, typer.Option("--import", help="module to import first, which registers SAE classes")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder to write scores.csv to, every number of every SAE")] = None,
    json: JsonOption = False,
) -> None:
    """Every score of finished SAEs beside its chance levels, and of several their agreement. Nothing is trained."""
    from husai.finished import score_folders, write_scores
    from husai.sae.registry import import_module

    with console.warnings_said():
        for name in imports or []:
            import_module(name, "--import")
        stores = {"shard_dir": shard_dir, "target_shard_dir": target_shard_dir}
        scored = score_folders(saes, model, hook, op=op, source_hook=source_hook, **stores)
    if out is not None:
        write_scores(scored, out)
    if json:
        rows = {n: {"value": s.value, "nulls": s.nulls, "adjusted": s.adjusted} for n, s in scored.scores.items()}
        return console.show_json(rows)
    for folder, sae in zip(scored.folders, scored.saes, strict=True):
        where = hook or sae.meta.get("hook_name")
        if sae.paired:
            ends = source_hook or sae.meta.get("hook_name"), hook or sae.meta.get("hook_name_out")
            where = f"{ends[0]} to {ends[1]}" if target_shard_dir is None else f"its targets in {target_shard_dir}"
        say(f"{folder}: {sae.meta.get('architecture')}, {sae.d_sae} latents, on {model or shard_dir} at {where}")
    say("A score says as much as it exceeds the chance levels beside it (docs/method.md).")
    if len(scored.saes) > 1:
        say(f"Means over {len(scored.saes)} SAEs, and the agreement of their pairs.")
    for name, one in scored.scores.items():
        nulls = ", ".join(f"{null} {value:.4g}" for null, value in one.nulls.items())
        say(f"{name:<24} {one.value:>9.4g}{f'   chance: {nulls}' if nulls else ''}")
    if out is not None:
        say(f"Table: {out}/scores.csv")
    return None
