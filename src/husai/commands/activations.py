"""`husai activations`: what SAEs are trained on."""

from pathlib import Path
from typing import Annotated

import typer

from husai import console
from husai.commands.options import DeviceOption, JsonOption, ModelArg, OpOption, UnverifiedOption
from husai.console import exits, say

app = typer.Typer(help="Activations of the whole input grid.", no_args_is_help=True)


@app.command("extract")
@exits
def activations_extract(
    model: ModelArg,
    hook: Annotated[str, typer.Option(help="short (resid_post) or full hook name")] = "resid_post",
    layer: Annotated[int | None, typer.Option(help="layer of a short hook name; the last by default")] = None,
    position: Annotated[int, typer.Option(help="position in the input; -1 is where the answer is read")] = -1,
    op: OpOption = None,
    out: Annotated[Path, typer.Option(help="file to write (.safetensors: x, a, b, label)")] = Path(
        "activations.safetensors"
    ),
    allow_unverified: UnverifiedOption = False,
    json: JsonOption = False,
) -> None:
    """Write the activations of the whole grid at one hook, and print their true subspaces."""
    from husai.activations import extract
    from husai.runs import check_gate, load_model
    from husai.suite import describe_hook, save_activations

    loaded = load_model(model, op)
    verified, _ = check_gate(loaded, allow_unverified=allow_unverified)
    activations = extract(verified, loaded.task, hook, layer=layer, position=position)
    save_activations(activations, out)
    description = describe_hook(activations)
    if json:
        return console.show_json(description)
    say(
        f"{out}: {tuple(activations.x.shape)} at {activations.hook}, "
        f"mean {activations.x.mean():.4f}, std {activations.x.std():.4f}"
    )
    for subspace in description["subspaces"]:
        say(f"  {subspace['label']:<24} share {subspace['share']:.3f}  dimensions {subspace['dim']}")
    if not description["subspaces"]:
        say("  no Fourier family explains 1% of the variance here: there is no truth to recover at this hook")
    return None


@app.command("capture")
@exits
def activations_capture(
    model: Annotated[
        str,
        typer.Option(
            help="a name TransformerLens knows (gpt2), a folder of a TransformerLens or Hugging Face model, or a MODEL"
        ),
    ],
    hook: Annotated[str, typer.Option(help="short (resid_post) or full hook name")],
    out: Annotated[Path, typer.Option(help="folder to write: shards and store.json")],
    num_batches: Annotated[int, typer.Option(min=1, help="batches run")] = 16,
    batch_size: Annotated[int, typer.Option(min=1, help="sequences a batch")] = 32,
    layer: Annotated[int | None, typer.Option(help="layer of a short hook name; the last by default")] = None,
    tokens: Annotated[
        Path | None, typer.Option(help="text, or token ids (.pt, .safetensors); without it, tokens are drawn at random")
    ] = None,
    seq_len: Annotated[int | None, typer.Option(min=1, help="tokens a sequence; default the model's context")] = None,
    position: Annotated[int | None, typer.Option(help="the only position kept; default all")] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of tokens drawn at random")] = 0,
    rows_per_shard: Annotated[int, typer.Option(min=1, help="rows of each file")] = 65536,
    dtype: Annotated[str, typer.Option(help="float32, float16, bfloat16 or float64 on disk")] = "float32",
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Write a TransformerLens model's activations at one hook as a store that `sae train --shard-dir` streams."""
    from husai.capture import Request, capture

    where = console.require_device(device)
    store = capture(
        Request(
            model=model,
            hook=hook,
            layer=layer,
            batches=num_batches,
            batch_size=batch_size,
            out=out,
            tokens=tokens,
            seq_len=seq_len,
            position=position,
            seed=seed,
            rows_per_shard=rows_per_shard,
            dtype=dtype,
            device=where,
        )
    )
    if json:
        return console.show_json(
            {"rows": len(store), "d": store.d, "dtype": store.dtype, "shards": len(store.shards), **store.of}
        )
    say(f"{out}: {len(store)} rows of width {store.d} in {len(store.shards)} shard(s), {store.of['hook_name']}")
    return None


@app.command("verify")
@exits
def activations_verify(folder: Annotated[Path, typer.Argument(help="a store, or a folder of shards")]) -> None:
    """Read every shard: checksums, shapes, NaN. Exit 0 if all are whole, 2 with the first that is not."""
    from husai.shards import open_store

    store = open_store(folder)
    store.verify()
    say(f"{folder}: {len(store)} rows of width {store.d} ({store.dtype}) in {len(store.shards)} shard(s), all whole")
