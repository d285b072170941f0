"""`husai model`: the models under study."""

from pathlib import Path
from typing import Annotated

import typer

from husai import console
from husai.commands.options import (
    DeviceOption,
    JsonOption,
    Kind,
    ModelArg,
    OpOption,
    Overrides,
    TrackOption,
    VariantName,
    tracked,
)
from husai.console import exits, say

app = typer.Typer(help="Train, compile, verify and list the models under study.", no_args_is_help=True)


@app.command("train")
@exits
def model_train(
    overrides: Overrides = None,
    config: Annotated[str, typer.Option(help="a YAML file, or a shipped name such as add-p113")] = "add-p113",
    seed: Annotated[int | None, typer.Option(min=0, help="sets the init, split and batch seeds")] = None,
    out: Annotated[Path, typer.Option(help="run folder to write")] = Path("runs/model"),
    attempts: Annotated[int, typer.Option(min=1, help="seeds tried until the gate passes")] = 3,
    device: DeviceOption = "cpu",
    quiet: Annotated[bool, typer.Option(help="no progress bar")] = False,
    track: TrackOption = None,
) -> int:
    """Train a model until its circuit is verified. Exit 0 if the gate passes, 1 if no attempt does."""
    from husai.config import load_trainable
    from husai.making import say_run, train_watched
    from husai.resources import find_config

    recipe = load_trainable(find_config(config, "models"), [*(overrides or []), *tracked(track)])
    recipe = recipe if seed is None else recipe.with_seed(seed)
    device = console.require_device(device)
    return say_run(out, train_watched(recipe, out, attempts=attempts, device=device, quiet=quiet))


@app.command("compile")
@exits
def model_compile(
    kind: Annotated[Kind, typer.Argument(help="clock (ops add, sub, mul, div) or pizza (add, sub)")],
    keys: Annotated[str, typer.Option(help="key frequencies, such as 14,35,41,42,52")],
    op: Annotated[str, typer.Option(help="operation")] = "add",
    p: Annotated[int, typer.Option(help="prime modulus")] = 113,
    d_model: Annotated[int | None, typer.Option(help="width; default 128, or more if needed")] = None,
    d_mlp: Annotated[int | None, typer.Option(help="neurons; default 512, or more if needed")] = None,
    rotate: Annotated[bool, typer.Option(help="rotate the residual stream, so that no basis is privileged")] = True,
    noise: Annotated[float, typer.Option(help="Gaussian weight noise, relative to each matrix's rms entry")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="seed of the rotation and of the noise")] = 0,
    out: Annotated[Path, typer.Option(help="run folder to write")] = Path("runs/compiled"),
) -> int:
    """Write down a transformer that is a known circuit. Exit 0 if it passes its own variant of the gate, 1 if not."""
    from husai.config import CompiledConfig
    from husai.making import compile_and_report

    given = {"task": {"op": op, "p": p}, "kind": kind, "keys": keys.split(","), "d_model": d_model, "d_mlp": d_mlp}
    config = CompiledConfig.parse({**given, "rotate": rotate, "noise": noise, "seed": seed}, "model compile")
    return compile_and_report(config, out)


@app.command("verify")
@exits
def model_verify(
    model: ModelArg,
    op: OpOption = None,
    variant: Annotated[
        VariantName | None,
        typer.Option(
            help="form the logits must have; plain, unless the MODEL is a compiled run folder of another kind"
        ),
    ] = None,
    json: JsonOption = False,
) -> int:
    """Is this model the Fourier circuit? Exit 0 if the gate passes, 1 if it fails, 2 if it cannot be read."""
    from husai.runs import load_model
    from husai.truth.circuit import verify

    loaded = load_model(model, op)
    if ignored := loaded.ignored:
        console.err.print(
            f"husai: ignored {len(ignored)} tensors of no use here: {', '.join(ignored[:5])}", markup=False
        )
    report = verify(loaded.model, loaded.task, variant=variant or loaded.variant)
    if json:
        console.show_json(report.to_json())
    else:
        for line in console.gate_lines(report):
            say(line)
    return 0 if report.passed else 1


@app.command("list")
@exits
def model_list(json: JsonOption = False) -> None:
    """The reference models that are shipped."""
    import json as json_module

    from husai.resources import reference_dir, reference_names

    rows = []
    for name in reference_names():
        gate = json_module.loads((reference_dir() / name / "gate.json").read_text(encoding="utf-8"))
        rows.append({"name": name, **{key: gate[key] for key in ("op", "p", "key_frequencies", "fve", "passed")}})
    if json:
        return console.show_json(rows)
    for row in rows:
        say(f"{row['name']:<12} {row['op']} mod {row['p']}, keys {row['key_frequencies']}, fve {row['fve']:.3f}")
    return None
