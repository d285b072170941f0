"""`husai runs`: what lies in a folder of runs, whether it is whole, and what of it can go."""

from pathlib import Path
from typing import Annotated

import typer

from husai import console
from husai.commands.options import JsonOption
from husai.console import exits, say

app = typer.Typer(help="Run folders: list, show, verify, and clean up.", no_args_is_help=True)
RunsOption = Annotated[Path, typer.Option(help="folder for run folders")]
RUNS = Path("runs")
STYLES = {"running": "cyan", "failed": "red", "damaged": "red", "unfinished": "yellow"}
MIB = 2**20


@app.command("list")
@exits
def runs_list(
    runs: RunsOption = RUNS,
    check: Annotated[bool, typer.Option(help="compare every file with its checksum")] = False,
    json: JsonOption = False,
) -> None:
    """Every run, what it is, and how far."""
    from dataclasses import asdict

    from husai.store.listing import list_runs

    known = list_runs(runs, check=check)
    if json:
        return console.show_json([asdict(run) for run in known])
    lines = [("id", "what", "state", "MiB", "finished", "seconds", "")]
    for run in known:
        seconds = "" if run.seconds is None else f"{run.seconds:.1f}"
        lines.append((run.id, run.what, run.state, f"{run.size / MIB:.1f}", run.finished or "", seconds, run.detail))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        shown = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        say(shown.rstrip(), STYLES.get(line[2]))
    say(f"{len(known)} runs, {sum(run.size for run in known) / MIB:.1f} MiB")
    return None


@app.command("show")
@exits
def runs_show(
    run: Annotated[str, typer.Argument(help="a run's id, or as much of its beginning as tells it from the others")],
    runs: RunsOption = RUNS,
    json: JsonOption = False,
) -> None:
    """Config, metrics and provenance of a run; of one that failed or is on its way, why and how far."""
    from dataclasses import asdict

    import yaml

    from husai.store.listing import being_written, describe, find_run, read_config, read_json

    place = find_run(runs, run)
    about = describe(place, being_written(runs).get(place.name, []))
    held = {
        "config": read_config(place),
        "metrics": read_json(place / "metrics.json"),
        "provenance": read_json(place / "provenance.json"),
    }
    if json:
        return console.show_json(asdict(about) | held)
    say(f"{about.id}: {about.what or 'a run'}, {about.state}, {about.size / MIB:.1f} MiB")
    if about.detail:
        say(f"  {about.detail}")
    for name, content in held.items():
        if content:
            say(f"\n{name}:")
            say(yaml.safe_dump(content, sort_keys=False, allow_unicode=True).rstrip())
    return None


@app.command("verify")
@exits
def runs_verify(
    ids: Annotated[
        list[str] | None, typer.Argument(help="runs, by the beginnings of their ids; all by default")
    ] = None,
    runs: RunsOption = RUNS,
    json: JsonOption = False,
) -> int:
    """Compare every file of finished runs with its checksum; 1 if one is damaged."""
    from husai.errors import HusaiError
    from husai.store.checksums import is_sealed, verify
    from husai.store.folders import finished
    from husai.store.listing import find_run, run_ids

    places = [find_run(runs, name) for name in ids] if ids else [runs / name for name in run_ids(runs)]
    if ids and (open_ones := [place for place in places if not finished(place)]):
        raise HusaiError(f"{open_ones[0]}: is not finished; only finished runs have checksums")
    places = [place for place in dict.fromkeys(places) if finished(place)]
    problems = {place.name: verify(place) for place in places}
    damaged = {name: found for name, found in problems.items() if found}
    if json:
        console.show_json(problems)
        return 1 if damaged else 0
    for found in damaged.values():
        for problem in found:
            console.fail(problem, 1)
    older = sum(not is_sealed(place) for place in places)
    without = f", {older} of an earlier version have no checksums" if older else ""
    say(f"{len(places)} finished runs: {len(damaged)} damaged, {len(places) - len(damaged) - older} whole{without}")
    return 1 if damaged else 0


@app.command("gc")
@exits
def runs_gc(
    runs: RunsOption = RUNS,
    results: Annotated[
        list[Path] | None, typer.Option(help="folder of results folders, whose tables refer to runs (default results)")
    ] = None,
    unreferenced: Annotated[
        bool, typer.Option(help="also finished runs that no results table refers to, and models nothing was trained on")
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="say what would go, and stop")] = False,
    watch: Annotated[
        bool, typer.Option(help="watch leases of other machines for a minute; those without a beat are of dead holders")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Remove what dead processes left, what finished runs no longer need, and draws of nulls that other code made."""
    from husai.measure.null_cache import outdated
    from husai.store.gc import find, remove
    from husai.store.lease import STALE_AFTER

    default = Path("results")
    given = results or ([default] if default.is_dir() or unreferenced else [])
    found = find(runs, given, unreferenced=unreferenced, outdated=outdated, watch=STALE_AFTER if watch else None)
    gone = found.remove if dry_run else remove(found)
    if json:
        return console.show_json(
            {
                "removed": [{"path": str(one.path), "why": one.why, "size": one.size} for one in gone],
                "kept": [{"path": str(path), "why": why} for path, why in found.kept],
                "dry_run": dry_run,
                "size": sum(one.size for one in gone),
            }
        )
    for one in gone:
        say(f"{'would remove' if dry_run else 'removed'} {one.path} ({one.size / MIB:.1f} MiB): {one.why}")
    for path, why in found.kept:
        say(f"kept {path}: {why}")
    say(f"{sum(one.size for one in gone) / MIB:.1f} MiB {'would be' if dry_run else ''} freed".replace("  ", " "))
    return None
