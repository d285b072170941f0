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
    RunsOption,
    TrackOption,
    UnverifiedOption,
    tracked,
)
from husai.console import exits, say
from husai.engines import EngineName


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
    runs: RunsOption = Path("runs"),
    jobs: JobsOption = CPUS,
    device: DeviceOption = "cpu",
    engine: Annotated[
        EngineName | None, typer.Option(help="serial, processes or ray (default: processes, or serial with --jobs 1)")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="of a Ray cluster, auto for the one of this machine (default: a new one here)")
    ] = None,
    cpus: Annotated[float, typer.Option(min=0.01, help="processors that a cell takes of the Ray cluster")] = 1.0,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs that a cell takes of the Ray cluster, fractions too")] = 0.0,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="threads of every cell (default: processors divided by --jobs, with ray --cpus)"),
    ] = None,
    deterministic: Annotated[
        bool,
        typer.Option("--deterministic", help="one thread and deterministic algorithms: equal bits from every engine"),
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="try cells again that failed before")] = False,
    shard: Annotated[str, typer.Option(help="i/n: only every n-th cell from the i-th, one shard a machine")] = "1/1",
    max_time: Annotated[
        str | None, typer.Option(help="stop in time: seconds, or 90m, 4h, 1-12:00:00; exit code 75 if cells are left")
    ] = None,
    allow_unverified: UnverifiedOption = False,
    dry_run: Annotated[bool, typer.Option(help="list the cells, what is finished, time and memory, and stop")] = False,
    track: TrackOption = None,
    no_wandb: NoWandbOption = False,
    wandb_project: ProjectOption = None,
) -> int:
    """Compute the missing cells of a suite and write its results; stop and start it as you like."""
    from husai.config import SuiteConfig
    from husai.resources import find_config
    from husai.suite import run_suite
    from husai.sweep.ways import Ways, duration, part

    ways = Ways(
        jobs=jobs,
        engine=engine,
        address=address,
        cpus=cpus,
        gpus=gpus,
        threads=threads,
        deterministic=deterministic,
        device=console.require_device(device) if engine != "ray" else device,
        retry_failed=retry_failed,
        shard=part(shard),
        seconds=None if max_time is None else duration(max_time),
        allow_unverified=allow_unverified,
        dry_run=dry_run,
    )
    said = [*(overrides or []), *tracked(track, wandb_project, no_wandb=no_wandb)]
    chosen = SuiteConfig.load(find_config(suite, "suites"), said)
    return run_suite(chosen, out or Path("results") / chosen.name, runs, ways)


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
