"""The flags of whatever command trains SAEs, and what they mean in a config and a request."""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from husai.commands.options import DeviceOption, OpOption, TrackOption, UnverifiedOption, tracked

if TYPE_CHECKING:
    from husai.config import SAEConfig
    from husai.single import Request

# Flags that are settings of the training, and what those are called; flags that a request takes as they are.
SETTINGS = {
    "early_exit": "early_exit",
    "log_every": "log_every",
    "log_timing": "log_timing",
    "log_statistics": "log_statistics",
    "compile": "compile",
    "optimizer": "optimiser",
    "dtype": "dtype",
    "lower_dtype": "lower_dtype",
    "adam_trick": "adam_trick",
}
ASKED = ("hook", "layer", "target_hook", "op", "allow_unverified", "shard_dir", "resume_from", "deterministic")


@dataclass(frozen=True)
class TrainingFlags:
    """Name, type, help and default of each flag."""

    config: Annotated[str, typer.Option(help="a YAML file, or a shipped name such as topk_8x")] = "topk_8x"
    hook: Annotated[
        str | None,
        typer.Option(help="short or full hook name; resid_post by default, of a transcoder what the MLP reads"),
    ] = None
    layer: Annotated[int | None, typer.Option(help="layer of a short hook name; the last by default")] = None
    target_hook: Annotated[str | None, typer.Option(help="what a transcoder reconstructs; mlp_out by default")] = None
    op: OpOption = None
    device: DeviceOption = "cpu"
    allow_unverified: UnverifiedOption = False
    shard_dir: Annotated[
        Path | None, typer.Option(help="store of activations to train on (husai activations capture), streamed")
    ] = None
    resume_from: Annotated[
        Path | None, typer.Option(help="folder of checkpoints to go on from; a run's own are found without it")
    ] = None
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="one thread and deterministic algorithms: reruns agree in every bit")
    ] = False
    early_exit: Annotated[
        int | None, typer.Option(min=1, help="training.early_exit: stop after so many steps, with everything saved")
    ] = None
    log_every: Annotated[int | None, typer.Option(min=0, help="training.log_every; 0: no rows but the last")] = None
    log_timing: Annotated[bool, typer.Option("--log-timing", help="training.log_timing: where a step's time goes")] = (
        False
    )
    log_statistics: Annotated[
        bool,
        typer.Option("--log-statistics", help="training.log_statistics: parameters and gradients, for the tracker"),
    ] = False
    compile: Annotated[bool, typer.Option("--compile", help="training.compile: losses through torch.compile")] = False
    optimizer: Annotated[Literal["adam", "rmsprop"] | None, typer.Option(help="training.optimiser")] = None
    dtype: Annotated[str | None, typer.Option(help="training.dtype: what parameters are kept in: fp32, bf16, fp16")] = (
        None
    )
    lower_dtype: Annotated[
        str | None, typer.Option(help="training.lower_dtype: what products are computed in; the same by default")
    ] = None
    adam_trick: Annotated[
        bool,
        typer.Option("--adam-trick", help="training.adam_trick: gradients stay scaled, and Adam cancels the scale"),
    ] = False
    sparsity_coeff: Annotated[
        float | None, typer.Option(help="the dial of the architecture: sae.k, sae.l1_coefficient, sae.l0_coefficient")
    ] = None
    track: TrackOption = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what the run would take, and stop")] = False

    def load(
        self, overrides: Sequence[str], *, architecture: str | None = None, **settings: float | None
    ) -> "SAEConfig":
        """The config, with what is said on top of it. settings: further ones of the training; None: not given.

        Raises HusaiError as `SAEConfig.load` and `with_sparsity`.
        """
        from husai.config import SAEConfig
        from husai.resources import find_config

        said = {SETTINGS[name]: value for name, value in vars(self).items() if name in SETTINGS} | settings
        given = {name: value for name, value in said.items() if value is not None and value is not False}
        every = [*overrides, *(f"training.{name}={str(value).lower()}" for name, value in given.items())]
        every += tracked(self.track)
        config = SAEConfig.load(find_config(self.config, "examples"), every, architecture=architecture)
        return config if self.sparsity_coeff is None else config.with_sparsity(self.sparsity_coeff)

    def request(self, model: str | None, config: "SAEConfig", out: Path, **more: Any) -> "Request":
        """What is asked for; `more` is as `Request` has it. Raises HusaiError if the device is not there."""
        from husai.console import require_device
        from husai.single import Request

        asked: dict[str, Any] = {name: getattr(self, name) for name in ASKED} | {"position": -1} | more
        return Request(model=model, config=config, out=out, device=require_device(self.device), **asked)


def with_training_flags(command: Callable[..., int]) -> Callable[..., int]:
    """A command whose parameter `flags` is a `TrainingFlags`, as one that has each of them beside its own parameters."""
    own = [one for one in inspect.signature(command).parameters.values() if one.name != "flags"]
    theirs = list(inspect.signature(TrainingFlags).parameters.values())

    @functools.wraps(command)
    def run(**given: Any) -> int:
        flags = TrainingFlags(**{one.name: given.pop(one.name) for one in theirs})
        return command(**given, flags=flags)

    run.__dict__["__signature__"] = inspect.Signature([*own, *theirs])
    return run
