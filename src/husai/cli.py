"""The `husai` command: parse, call one function, print. Heavy imports stay inside the commands."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from husai import console
from husai.commands.compare import compare
from husai.commands.conformance import conformance
from husai.console import exits, say

WandbMode = Literal["auto", "online", "offline", "none"]
TrackMode = Literal["auto", "online", "offline", "tensorboard", "none"]
VariantName = Literal["plain", "pizza"]
Kind = Literal["clock", "pizza"]
CPUS = os.cpu_count() or 1

app = typer.Typer(
    help="Ground-truth benchmark suite for the stability of sparse autoencoders (SAEs).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
model_app = typer.Typer(help="Train, compile, verify and list the models under study.", no_args_is_help=True)
activations_app = typer.Typer(help="Activations of the whole input grid.", no_args_is_help=True)
sae_app = typer.Typer(help="Train and score sparse autoencoders.", no_args_is_help=True)
app.add_typer(model_app, name="model")
app.add_typer(activations_app, name="activations")
app.add_typer(sae_app, name="sae")
app.command("compare")(compare)
app.command("conformance")(conformance)

ModelArg = Annotated[str, typer.Argument(help="MODEL: a reference name (add-p113-0), a run folder or a weights file")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value settings on top of the config, such as sae.k=8")]
OpOption = Annotated[str | None, typer.Option(help="operation of a bare weights file: add, sub, mul, div, squares")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON and nothing else")]
DeviceOption = Annotated[str, typer.Option(help="cpu, or a CUDA device such as cuda:0")]
UnverifiedOption = Annotated[bool, typer.Option(help="go on if the gate fails; every result is marked unverified")]
ShardDirOption = Annotated[
    Path | None, typer.Option(help="store of activations to train on (husai activations capture), streamed")
]
ResumeOption = Annotated[
    Path | None, typer.Option(help="folder of checkpoints to go on from; a run's own are found without it")
]
DeterministicOption = Annotated[
    bool, typer.Option("--deterministic", help="one thread and deterministic algorithms: reruns agree in every bit")
]
EarlyExitOption = Annotated[
    int | None, typer.Option(min=1, help="training.early_exit: stop after so many steps, with everything saved")
]
LogEveryOption = Annotated[int | None, typer.Option(min=0, help="training.log_every; 0: no rows but the last")]
TimingOption = Annotated[bool, typer.Option("--log-timing", help="training.log_timing: where a step's time goes")]
StatisticsOption = Annotated[
    bool, typer.Option("--log-statistics", help="training.log_statistics: parameters and gradients, for the tracker")
]
CompileOption = Annotated[bool, typer.Option("--compile", help="training.compile: losses through torch.compile")]
OptimizerOption = Annotated[Literal["adam", "rmsprop"] | None, typer.Option(help="training.optimiser")]
DtypeOption = Annotated[str | None, typer.Option(help="training.dtype: what parameters are kept in: fp32, bf16, fp16")]
LowerDtypeOption = Annotated[
    str | None, typer.Option(help="training.lower_dtype: what products are computed in; the same by default")
]
AdamTrickOption = Annotated[
    bool, typer.Option("--adam-trick", help="training.adam_trick: gradients stay scaled, and Adam cancels the scale")
]
SparsityOption = Annotated[
    float | None, typer.Option(help="the dial of the architecture: sae.k, sae.l1_coefficient, sae.l0_coefficient")
]
TrackOption = Annotated[
    TrackMode | None,
    typer.Option(help="where curves go: W&B (online, offline), TensorBoard files beside the run, none"),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="print what the run would take, and stop")]
JobsOption = Annotated[int, typer.Option(min=1, help="cells computed at once, each in its own process")]


def training_settings(**flags: object) -> list[str]:
    """Flags of the training as overrides of its config; those not given are left out."""
    given = {name: value for name, value in flags.items() if value is not None and value is not False}
    return [f"training.{name}={str(value).lower()}" for name, value in given.items()]


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        say(f"husai {version('husai')}")
        raise typer.Exit


@app.callback()
def root(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Options that stand before a command."""


@app.command()
@exits
def smoke(
    out: Annotated[Path, typer.Option(help="folder for the results; an earlier smoke run there is replaced")] = Path(
        "results/smoke"
    ),
    jobs: JobsOption = CPUS,
    device: DeviceOption = "cpu",
) -> int:
    """The whole pipeline, small and real, in minutes: train, prove, train SAEs, compare, draw."""
    from husai.config import SuiteConfig
    from husai.resources import find_config
    from husai.suite import run_smoke

    suite = SuiteConfig.load(find_config("smoke", "suites"))
    return run_smoke(suite, out, jobs=jobs, device=console.require_device(device))


@model_app.command("train")
@exits
def model_train(
    overrides: Overrides = None,
    config: Annotated[str, typer.Option(help="a YAML file, or a shipped name such as add-p113")] = "add-p113",
    seed: Annotated[int | None, typer.Option(min=0, help="sets the init, split and batch seeds")] = None,
    out: Annotated[Path, typer.Option(help="run folder to write")] = Path("runs/model"),
    attempts: Annotated[int, typer.Option(min=1, help="seeds tried until the gate passes")] = 3,
    device: DeviceOption = "cpu",
    quiet: Annotated[bool, typer.Option(help="no progress bar")] = False,
) -> int:
    """Train a model until its circuit is verified. Exit 0 if the gate passes, 1 if no attempt does."""
    from husai.config import load_trainable
    from husai.resources import find_config
    from husai.suite import train_and_report

    recipe = load_trainable(find_config(config, "models"), overrides or [])
    recipe = recipe if seed is None else recipe.with_seed(seed)
    return train_and_report(recipe, out, attempts=attempts, device=console.require_device(device), quiet=quiet)


@model_app.command("compile")
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
    from husai.suite import compile_and_report

    given = {"task": {"op": op, "p": p}, "kind": kind, "keys": keys.split(","), "d_model": d_model, "d_mlp": d_mlp}
    config = CompiledConfig.parse({**given, "rotate": rotate, "noise": noise, "seed": seed}, "model compile")
    return compile_and_report(config, out)


@model_app.command("verify")
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


@model_app.command("list")
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


@activations_app.command("extract")
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


@activations_app.command("capture")
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


@activations_app.command("verify")
@exits
def activations_verify(folder: Annotated[Path, typer.Argument(help="a store, or a folder of shards")]) -> None:
    """Read every shard: checksums, shapes, NaN. Exit 0 if all are whole, 2 with the first that is not."""
    from husai.stores import open_store

    store = open_store(folder)
    store.verify()
    say(f"{folder}: {len(store)} rows of width {store.d} ({store.dtype}) in {len(store.shards)} shard(s), all whole")


@sae_app.command("train")
@exits
def sae_train(
    model: Annotated[
        str | None,
        typer.Argument(
            help="MODEL: a reference name (add-p113-0), a run folder or a weights file; with --shard-dir it may be left out"
        ),
    ] = None,
    overrides: Overrides = None,
    config: Annotated[str, typer.Option(help="a YAML file, or a shipped name such as topk_8x")] = "topk_8x",
    architecture: Annotated[
        str | None, typer.Option(help="another architecture than the config's; what both have stays as the config says")
    ] = None,
    hook: Annotated[
        str | None,
        typer.Option(help="short or full hook name; resid_post by default, of a transcoder what the MLP reads"),
    ] = None,
    layer: Annotated[int | None, typer.Option(help="layer of a short hook name; the last by default")] = None,
    target_hook: Annotated[str | None, typer.Option(help="what a transcoder reconstructs; mlp_out by default")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="SAEs trained together, with seeds 0, 1, …")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="init and data seed; of several SAEs, the first's")] = None,
    op: OpOption = None,
    out: Annotated[Path, typer.Option(help="run folder to write")] = Path("runs/sae"),
    device: DeviceOption = "cpu",
    allow_unverified: UnverifiedOption = False,
    quiet: Annotated[bool, typer.Option(help="print nothing but errors")] = False,
    json: JsonOption = False,
    shard_dir: ShardDirOption = None,
    target_shard_dir: Annotated[
        Path | None, typer.Option(help="store of a transcoder's targets, row by row those of --shard-dir")
    ] = None,
    resume_from: ResumeOption = None,
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
    """Train SAEs on one hook of a verified model, or on a store; the folder opens with sae_lens.SAE.load_from_disk.

    Exit 1 if training was given up as hopeless (training.stop), which the folder says.
    """
    from dataclasses import asdict

    from husai.config import SAEConfig
    from husai.resources import find_config
    from husai.single import Request, estimate_single, train_single

    settings = list(overrides or [])
    if shard_dir is not None and model is not None and "=" in model and not Path(model).exists():
        settings, model = [model, *settings], None
    settings += training_settings(
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
    chosen = SAEConfig.load(find_config(config, "examples"), settings, architecture=architecture)
    if sparsity_coeff is not None:
        chosen = chosen.with_sparsity(sparsity_coeff)
    if seeds > 1 or seed is not None:
        many = tuple(range(seed or 0, (seed or 0) + seeds))
        chosen = chosen.model_copy(update={"init_seeds": many, "data_seeds": many})
    request = Request(
        model,
        hook,
        layer,
        -1,
        op,
        chosen,
        out,
        allow_unverified,
        console.require_device(device),
        quiet or json,
        shard_dir=shard_dir,
        resume_from=resume_from,
        deterministic=deterministic,
        tracking=track or "none",
        target_hook=target_hook,
        target_shard_dir=target_shard_dir,
    )
    if dry_run:
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


@sae_app.command("score")
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
    imports: Annotated[
        list[str] | None, typer.Option("--import", help="module to import first, which registers SAE classes")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder to write scores.csv to, every number of every SAE")] = None,
    json: JsonOption = False,
) -> None:
    """Every score of finished SAEs beside its chance levels, and of several their agreement. Nothing is trained."""
    import warnings

    from husai.finished import score_folders, write_scores
    from husai.sae.registry import import_module

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        for name in imports or []:
            import_module(name, "--import")
        scored = score_folders(saes, model, hook, op=op, shard_dir=shard_dir)
    for warning in caught:
        console.err.print(f"husai: {warning.message}", markup=False)
    if out is not None:
        write_scores(scored, out)
    if json:
        rows = {n: {"value": s.value, "nulls": s.nulls, "adjusted": s.adjusted} for n, s in scored.scores.items()}
        return console.show_json(rows)
    for folder, sae in zip(scored.folders, scored.saes, strict=True):
        where = hook or sae.meta.get("hook_name")
        if sae.paired:
            where = f"{sae.meta.get('hook_name')} to {hook or sae.meta.get('hook_name_out')}"
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


@app.command()
@exits
def sweep(
    suite: Annotated[str, typer.Argument(help="a suite's YAML file, or a shipped name such as default")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="results folder (default results/<suite>)")] = None,
    runs: Annotated[Path, typer.Option(help="folder for run folders")] = Path("runs"),
    jobs: JobsOption = CPUS,
    device: DeviceOption = "cpu",
    allow_unverified: UnverifiedOption = False,
    dry_run: Annotated[bool, typer.Option(help="list the cells and whether they are finished, and stop")] = False,
    wandb: Annotated[WandbMode, typer.Option(help="track every cell with W&B")] = "none",
) -> int:
    """Compute the missing cells of a suite and write its results; stop and start it as you like."""
    from husai.config import SuiteConfig
    from husai.resources import find_config
    from husai.suite import run_suite

    chosen = SuiteConfig.load(find_config(suite, "suites"), overrides or [])
    return run_suite(
        chosen,
        out or Path("results") / chosen.name,
        runs,
        jobs=jobs,
        device=console.require_device(device),
        allow_unverified=allow_unverified,
        dry_run=dry_run,
        tracking=wandb,
    )


@app.command()
@exits
def report(
    results: Annotated[Path, typer.Argument(help="a results folder such as results/default")],
    out: Annotated[Path | None, typer.Option(help="where to write (default: the results folder)")] = None,
) -> None:
    """Draw the figures (PDF and PNG) and write summary.md and the CSV matrices."""
    from husai.report.write import write_report

    for path in write_report(results, out or results):
        say(str(path))


def main(arguments: list[str] | None = None) -> Any:
    """Entry point. Bad usage exits with 2 like all bad input."""
    sys.argv[0] = "husai"
    return app(arguments)


if __name__ == "__main__":
    main()
