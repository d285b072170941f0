"""`husai findings`: prose with its numbers filled from records."""

from pathlib import Path
from typing import Annotated

import typer

from husai import console
from husai.console import exits, say


@exits
def findings(
    template: Annotated[Path, typer.Option(help="the text, with a placeholder for every number")] = Path(
        "docs/findings.md.j2"
    ),
    results: Annotated[Path, typer.Option(help="folder of the suites' results")] = Path("results"),
    out: Annotated[Path, typer.Option(help="the filled text")] = Path("FINDINGS.md"),
    numbers: Annotated[
        Path | None, typer.Option(help="the table of its numbers and their rows (default: findings.csv in --results)")
    ] = None,
    check: Annotated[bool, typer.Option(help="write nothing; exit 1 if a file is not what the records give")] = False,
) -> int:
    """Fill FINDINGS.md from the records, and write down the row of every number in it."""
    from husai.report.findings import drift, render_findings, write_findings

    made, table = render_findings(template, results), numbers or results / "findings.csv"
    if check:
        reason = drift(made, out, table)
        if reason:
            return console.fail(reason, 1)
        say(f"{out} and {table} are what the records give")
        return 0
    write_findings(made, out, table)
    say(f"{out}\n{table}")
    return 0
