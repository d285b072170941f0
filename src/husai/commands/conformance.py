"""`husai conformance`: what does somebody's agreement measure measure?"""

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.table import Table
from rich.text import Text

from husai import console
from husai.console import exits, say

if TYPE_CHECKING:
    from husai.analysis.conformance import Measure, Report


@exits
def conformance(
    function: Annotated[
        str,
        typer.Argument(
            help="package.module:function, which takes decoder rows (n_A, d) and (n_B, d) and gives a number"
        ),
    ],
    json: Annotated[bool, typer.Option("--json", help="print JSON and nothing else")] = False,
) -> int:
    """Run a measure of agreement against golden cases. Exit 0 if it is one of our definitions, 1 if not, 2 if it cannot run."""
    from husai.analysis.conformance import conformance as report_on
    from husai.errors import HusaiError

    report = report_on(_imported(function))
    if all(outcome.error for outcome in report.found):
        errors = ", ".join(sorted({outcome.error for outcome in report.found}))
        raise HusaiError(
            f"{function}: gives no number in any case ({errors}); a measure takes two tensors, decoder rows "
            "(n_A, d) and (n_B, d), and gives a number"
        )
    if json:
        console.show_json(_as_data(function, report))
    else:
        _show(function, report)
    return 0 if report.conforms else 1


def _imported(function: str) -> "Measure":
    """Raises HusaiError if there is no such function."""
    from functools import reduce

    from husai.errors import HusaiError
    from husai.sae.registry import import_module

    package, _, name = function.partition(":")
    if not package or not name:
        raise HusaiError(f"{function}: must be package.module:function, such as numpy.linalg:norm")
    try:
        found: Any = reduce(getattr, name.split("."), import_module(package, function))
    except AttributeError as error:
        raise HusaiError(f"{function}: there is no such function ({error})") from None
    if not callable(found):
        raise HusaiError(f"{function}: is no function but {type(found).__name__}")
    return cast("Measure", found)


def _as_data(function: str, report: "Report") -> dict[str, Any]:
    rows = []
    for i, (case, found) in enumerate(zip(report.cases, report.found, strict=True)):
        expected = {name: outcomes[i]._asdict() for name, outcomes in report.expected.items()}
        rows.append({"name": case.name, "asks": case.asks, **found._asdict(), "definitions": expected})
    return {
        "function": function,
        "conforms": report.conforms,
        "nearest": report.nearest,
        "differing": report.differing,
        "sentence": report.sentence,
        "cases": rows,
    }


def _show(function: str, report: "Report") -> None:
    table = Table(title=function, title_justify="left", box=None, pad_edge=False)
    for name in ("case", "asks", "value", *report.expected):
        table.add_column(name, justify="left" if name in ("case", "asks") else "right")
    for i, (case, found) in enumerate(zip(report.cases, report.found, strict=True)):
        outcomes = [found, *(outcomes[i] for outcomes in report.expected.values())]
        style = None if found.agrees(report.expected[report.nearest][i]) else "red"
        values = ["refused" if outcome.error else f"{outcome.value:.3f}" for outcome in outcomes]
        table.add_row(*map(Text, (case.name, case.asks, *values)), style=style)
    console.out.print(table)
    say(report.sentence)
