"""FINDINGS.md from its template: prose whose every number is filled from a record. (docs/method.md §Findings)"""

import csv
import io
import re
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from husai.errors import HusaiError
from husai.report.quotes import Name, Quote, Row
from husai.report.results import SuiteResults
from husai.report.selections import Suite

OPEN, MIDDLE, CLOSE = (
    "\x02",
    "\x1f",
    "\x03",
)  # around what a placeholder filled in, with its number, until the text is done
FILLED = re.compile(f"{OPEN}(\\d*){MIDDLE}(.*?){CLOSE}", re.DOTALL)
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
NO_RESULT = re.compile(
    r"<!--.*?-->"
    r"|`[^`\n]*[A-Za-z=<>≤≥][^`\n]*`"  # code that says what its digits are
    r"|\[[^\]\n]*\]\(https?://[^)\n]*\)"  # a source: the year in its name, its address
    r"|(?<=\])\([^)\n]*\)"  # a link's target
    r"|^\s*\d+\.(?=\s)",  # the mark of a numbered list
    re.MULTILINE,
)
HEAD = ("number", "line", "text", "what", *(field.name for field in fields(Row)))


@dataclass(frozen=True)
class Findings:
    """The text, and the table of its numbers: a line for every row that a number rests on, in the order of the text."""

    text: str
    numbers: str


class Placed(NamedTuple):
    """A number and the line of the text it stands in."""

    quote: Quote
    line: int


def render_findings(template: Path, results: Path) -> Findings:
    """Fill `template` from the suites below the folder `results`.

    Raises HusaiError if a file is missing, a placeholder is wrong or has no record, a claim does not hold, or a digit of the
    prose comes from no placeholder.
    """
    quotes: list[Quote] = []

    def fill(value: object) -> object:
        if isinstance(value, Quote):
            quotes.append(value)
            return f"{OPEN}{len(quotes) - 1}{MIDDLE}{value.text}{CLOSE}"
        if isinstance(value, Name):
            return f"{OPEN}{MIDDLE}{value.text}{CLOSE}"
        if isinstance(value, str | int | float | Undefined):
            return value
        raise HusaiError(
            f"a placeholder gives a {type(value).__name__}, which is neither a number nor a name; ask it for one"
        )

    marked = _filled(template, results, fill)
    _refuse_digits(template, marked)
    placed = [
        Placed(quotes[int(found[1])], FILLED.sub(r"\2", marked[: found.start()]).count("\n") + 1)
        for found in FILLED.finditer(marked)
        if found[1]
    ]
    return Findings(FILLED.sub(r"\2", marked), _table(placed))


def write_findings(findings: Findings, text: Path, numbers: Path) -> None:
    """Both files, in UTF-8. Raises OSError if they cannot be written."""
    text.write_text(findings.text, encoding="utf-8", newline="\n")
    numbers.write_text(findings.numbers, encoding="utf-8", newline="\n")


def drift(findings: Findings, text: Path, numbers: Path) -> str | None:
    """One line that says where the files are not what the records give; None if they are."""
    for path, wanted in ((text, findings.text), (numbers, findings.numbers)):
        if not path.is_file():
            return f"{path}: is missing"
        found, made = path.read_bytes().decode("utf-8", "replace").split("\n"), wanted.split("\n")
        at = next((i for i, (old, new) in enumerate(zip(found, made, strict=False)) if old != new), None)
        if at is None and len(found) != len(made):
            at = min(len(found), len(made))
        if at is not None:
            old, new = ((lines[at] if at < len(lines) else "").strip() for lines in (found, made))
            return f"{path}, line {at + 1}: is {_around(old, new)!r}, but the records give {_around(new, old)!r}"
    return None


def _around(text: str, other: str, reach: int = 30) -> str:
    """The part of a line in which it differs from another."""
    at = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    return text[max(0, at - reach) : at + reach]


def _filled(template: Path, results: Path, fill: object) -> str:
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        finalize=fill,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        extensions=["jinja2.ext.do"],
    )

    @cache
    def suite(name: str) -> Suite:
        if Path(name).name != name:
            raise HusaiError(f"suite '{name}': is not the name of a folder in {results}")
        return Suite(SuiteResults.load(results / name), name)

    def claim(holds: bool, sentence: str) -> str:
        if not holds:
            raise HusaiError(f"the records no longer bear out that {sentence}")
        return ""

    try:
        source = template.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HusaiError(f"{template}: is no template that can be read ({error.__class__.__name__})") from None
    try:
        return environment.from_string(source).render(suite=suite, claim=claim)
    except TemplateSyntaxError as error:
        raise HusaiError(f"{template}, line {error.lineno}: {error.message}") from None
    except (HusaiError, TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise HusaiError(f"{template}, line {_line(error.__traceback__)}: {error}") from None


def _line(trace: TracebackType | None) -> int:
    """The template's line in a traceback that Jinja has rewritten."""
    line = 0
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == "<template>" else line
        trace = trace.tb_next
    return line


def _refuse_digits(template: Path, marked: str) -> None:
    """Raises HusaiError if a digit is left where no placeholder, code or link stands."""
    blank = FENCED.sub(lambda found: "\n" * found[0].count("\n"), FILLED.sub("", marked))
    for line in blank.split("\n"):
        if digits := re.search(r"\d[\d.,]*", NO_RESULT.sub("", line)):
            shown = FILLED.sub("…", line).strip()[:100]
            raise HusaiError(
                f"{template}: '{digits[0].rstrip('.,')}' in \"{shown}\" is no placeholder; a result is filled from a record, "
                "and digits that are none stand in `code = …` or in a link"
            )


def _table(placed: list[Placed]) -> str:
    handle = io.StringIO()
    writer = csv.writer(handle, lineterminator="\n")
    writer.writerow(HEAD)
    for count, (quote, line) in enumerate(placed, start=1):
        writer.writerows([count, line, quote.text, quote.what, *astuple(row)] for row in quote.rows)
    return handle.getvalue()
