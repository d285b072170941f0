"""What commands and scripts print, and how they end: progress, tables, one-sentence errors, exit codes."""

import contextlib
import functools
import json
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from husai.errors import HusaiError

P = ParamSpec("P")
MOST_SHOWN = 2000  # characters of a message
NO_MEMORY = re.compile("out of memory|allocate memory")  # as torch says it

out = Console(highlight=False, soft_wrap=True, emoji=False)
BAND_STYLES = {"ok": "green", "acceptable": "yellow", "poor": "magenta", "red": "red"}
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


class Terminated(BaseException):
    """SIGTERM arrived."""


def _terminate(_signal: int, _frame: object) -> None:
    raise Terminated


def exits(command: Callable[P, int | None]) -> Callable[P, None]:
    """Turn what a command raises into a sentence and an exit code: 2 bad input, 1 gate failed, 130 and 143 interrupted."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from husai.runs import GateFailed
        from husai.store.files import reason

        signal.signal(signal.SIGTERM, _terminate)
        try:
            code = command(*args, **kwargs) or 0
        except HusaiError as error:
            code = fail(str(error), 2)
        except GateFailed as error:
            code = fail(str(error), 1)
        except OSError as error:
            code = fail(f"{error.filename or 'a file'}: {reason(error)}", 2)
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
                raise
            code = fail("there is not enough memory; use smaller sizes, fewer seeds or fewer --jobs", 2)
        except KeyboardInterrupt:
            code = fail(
                "interrupted; nothing half-written remains, and the same command goes on from what is finished", 130
            )
        except Terminated:
            code = fail(
                "terminated; nothing half-written remains, and the same command goes on from what is finished", 143
            )
        sys.exit(code)

    return run


def fail(message: str, code: int) -> int:
    err.print(f"husai: {one_line(message)}", style="red", markup=False)
    return code


def one_line(message: str) -> str:
    """A message as one line that a terminal only shows: what it quotes from a file may hold anything, at any length."""
    text = printable(" ".join(message.split()))
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def printable(text: str) -> str:
    """Text with escapes in place of characters that a terminal would obey or that no encoding has, but for line ends."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def say(text: str = "", style: str | None = None) -> None:
    out.print(printable(text), style=style, markup=False)


@contextlib.contextmanager
def warnings_said() -> Iterator[None]:
    """What is warned of inside goes to standard error, a line each, once all is done."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        warn(one_line(str(warning.message)))


def warn(text: str) -> None:
    """A notice on standard error."""
    err.print(f"husai: {text}", markup=False)


def show_json(data: object) -> None:
    """JSON on standard output and nothing else; NaN becomes null."""
    text = json.dumps(plain(data), indent=2, ensure_ascii=False)
    sys.stdout.write(text.encode(errors="backslashreplace").decode() + "\n")  # half a surrogate pair is no text


def plain(value: Any) -> Any:
    """Plain data with None for NaN, as JSON takes it."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def progress(quiet: bool = False) -> Progress:
    """A progress bar with room for a line of figures; silent where nobody watches."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[figures]}"),
        console=out,
        transient=True,
        disable=quiet or not out.is_terminal,
    )


def show_health(health: Any) -> None:
    """A training's health as a table. (`health` is a husai.sae.health.Health; typed loosely to keep torch unloaded.)"""
    table = Table(title=f"Health: {health.verdict}", title_justify="left", box=None, pad_edge=False)
    for name in ("check", "value", "seed", "band", "rule"):
        table.add_column(name, justify="right" if name == "value" else "left")
    for check in health.checks:
        shown = (check.name, check.shown, str(check.seed), check.band, check.rule)
        table.add_row(*map(Text, shown), style=BAND_STYLES[check.band])
    out.print(table)
    for advice in dict.fromkeys(check.advice for check in health.checks if check.advice):
        say(f"- {advice}")


def gate_lines(report: Any) -> list[str]:
    """A gate report for people. (`report` is a husai.truth.circuit.GateReport; typed loosely to keep torch unloaded.)"""
    mark = {True: "holds ", False: "FAILED"}
    absent = report.gradient_symmetricity is None
    symmetricity = "undefined (no pair of embeddings)" if absent else f"{report.gradient_symmetricity:.3f}"
    constant = report.distance_irrelevance is None
    irrelevance = "undefined (the right logit is constant)" if constant else f"{report.distance_irrelevance:.3f}"
    beside = (
        "" if report.fve_variant is None else f", with fve {report.fve_variant:.6g}; the plain fve is {report.fve:.6g}"
    )
    lines = [f"Gate for {report.op} mod {report.p}: {'PASSED' if report.passed else 'FAILED'}"]
    lines += [f"  {mark[condition.passed]}  {condition}" for condition in report.conditions]
    lines += [
        f"  key frequencies ({report.key_rule} rule): {list(report.key_frequencies)}",
        f"  by the logits rule: {list(report.key_frequencies_logits)} · "
        f"in W_E (over-counts, never used): {list(report.key_frequencies_embedding)}",
        f"  neuron purity {report.neuron_purity:.3f} · "
        f"gradient symmetricity {symmetricity} · distance irrelevance {irrelevance}",
        f"  variant {report.variant}" + beside,
    ]
    return lines


def require_device(name: str) -> str:
    """Raises HusaiError unless the device is there."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):
        raise HusaiError(f"--device {name}: not available here; cpu always is") from None
    return name
