"""The `husai` command: parse, call one function, print. Heavy imports stay inside the commands."""

import sys
from typing import Annotated, Any

import typer

from husai.commands import activations, model, runs, sae
from husai.commands.compare import compare
from husai.commands.conformance import conformance
from husai.commands.findings import findings
from husai.commands.suites import plan, report, smoke, sweep
from husai.console import say

app = typer.Typer(
    help="Ground-truth benchmark suite for the stability of sparse autoencoders (SAEs).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("smoke")(smoke)
app.add_typer(model.app, name="model")
app.add_typer(activations.app, name="activations")
app.add_typer(sae.app, name="sae")
app.add_typer(runs.app, name="runs")
for command in (compare, conformance, sweep, plan, report, findings):
    app.command(command.__name__)(command)


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


def main(arguments: list[str] | None = None) -> Any:
    """Entry point. Bad usage exits with 2 like all bad input."""
    sys.argv[0] = "husai"
    return app(arguments)


if __name__ == "__main__":
    main()
