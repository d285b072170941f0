"""Arguments and options that several commands have."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

WandbMode = Literal["auto", "online", "offline", "none"]
VariantName = Literal["plain", "pizza"]
Kind = Literal["clock", "pizza"]
CPUS = os.cpu_count() or 1

ModelArg = Annotated[str, typer.Argument(help="MODEL: a reference name (add-p113-0), a run folder or a weights file")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value settings on top of the config, such as sae.k=8")]
OpOption = Annotated[str | None, typer.Option(help="operation of a bare weights file: add, sub, mul, div, squares")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON and nothing else")]
DeviceOption = Annotated[str, typer.Option(help="cpu, or a CUDA device such as cuda:0")]
UnverifiedOption = Annotated[bool, typer.Option(help="go on if the gate fails; every result is marked unverified")]
JobsOption = Annotated[int, typer.Option(min=1, help="cells computed at once, each in its own process")]
RunsOption = Annotated[Path, typer.Option(help="folder of run folders")]
