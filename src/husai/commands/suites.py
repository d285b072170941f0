"""`husai smoke`, `sweep`, `plan` and `report`: many SAEs at once, and what came of them."""

from pathlib import Path
from typing import Annotated

import typer

from husai import console
from husai.commands.options import (
    CPUS,
    DeviceOption,
    JobsOption,
    JsonOption,
    NoWandbOption,
    Overrides,
    ProjectOption,
    TrackOption,
    UnverifiedOption,
    tracked,
)
from husai.console import exits, say


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
    track: TrackOption = None,
    no_wandb: NoWandbOption = False,
    wandb_project: ProjectOption = None,
) -> int:
    """Compute the missing cells of a suite and write its results; stop and start it as you like."""
    from husai.config import SuiteConfig
    from husai.resources import find_config
    from husai.suite import run_suite

    said = [*(overrides or []), *tracked(track, wandb_project, no_wandb=no_wandb)]
    chosen = SuiteConfig.load(find_config(suite, "suites"), said)
    return run_suite(
        chosen,
        out or Path("results") / chosen.name,
        runs,
        jobs=jobs,
        device=console.require_device(device),
        allow_unverified=allow_unverified,
        dry_run=dry_run,
    )


@exits
def report(
    results: Annotated[Path, typer.Argument(help="a results folder such as results/default")],
    out: Annotated[Path | None, typer.Option(help="where to write (default: the results folder)")] = None,
) -> None:
    """Draw the figures (PDF and PNG) and write summary.md and the CSV matrices."""
    from husai.report.write import write_report

    for path in write_report(results, out or results):
        say(str(path))


@exits
def plan(
    results: Annotated[Path, typer.Argument(help="a results folder such as results/default")],
    metric: Annotated[str, typer.Option(help="the score to be known more narrowly")] = "pwmcc",
    half_width: Annotated[float, typer.Option(help="wanted half width of its 95% interval over seeds")] = 0.01,
    json: JsonOption = False,
) -> None:
    """How many seeds would every cell of a suite need for an interval so narrow? Read off the seeds there are."""
    from dataclasses import asdict

    from husai.errors import HusaiError
    from husai.planner import MOST, plan_seeds
    from husai.report.results import SuiteResults

    if not half_width > 0:
        raise HusaiError(f"--half-width {half_width:g}: must be above 0")
    plans = plan_seeds(SuiteResults.load(results), metric, half_width)
    if json:
        return console.show_json([asdict(one) for one in plans])
    say(f"Seeds until the 95% interval of {metric} is expected to be ± {half_width:g} (docs/method.md, Planning):")
    for one in plans:
        needed, cautious = (f"> {MOST}" if n is None else str(n) for n in (one.seeds_needed, one.cautious))
        now = f"{one.value:.4f} ± {one.half_width:.4f} with {one.seeds}"
        say(f"  {one.cell:<44} {now:<28} {needed:>5}, cautiously {cautious:>5}")
    return None
