"""Arguments and options that several commands have, and what flags mean in a config."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

WandbMode = Literal["auto", "online", "offline", "none"]
TrackMode = Literal["auto", "online", "offline", "tensorboard", "none"]
VariantName = Literal["plain", "pizza"]
Kind = Literal["clock", "pizza"]
CPUS = os.cpu_count() or 1

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
