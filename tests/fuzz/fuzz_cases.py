"""One case: a command on hostile input, in this process, with bounded time and memory; what it may do; how many there were."""

import contextlib
import io
import os
import resource
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings

from husai.cli import main

CASES = int(os.environ.get("FUZZ_CASES", "12"))  # a kind
SECONDS, WALL_SECONDS, MEMORY = 20, 240, 3 * 2**30  # of a case: processor time, and how much more memory
PLACES = {"runs", "runs/.leases"}  # made before it is known whether anything will lie there
counted: Counter[tuple[str, int]] = Counter()

fuzz = settings(
    max_examples=CASES,
    derandomize=True,  # the same cases on every machine, so that a failure can be repeated
    database=None,
    deadline=None,
    print_blob=True,
    phases=(Phase.generate,),  # shrinking takes longer than looking at what was found
    suppress_health_check=list(HealthCheck),
)


class Hangs(BaseException):
    """A case took longer than any may."""


def _hangs(_signal: int, _frame: object) -> None:
    raise Hangs


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Time and memory are bounded within. Raises Hangs, and MemoryError or RuntimeError for what would allocate too much."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    handlers = {one: signal.signal(one, _hangs) for one in (signal.SIGPROF, signal.SIGALRM)}
    terminated = signal.getsignal(signal.SIGTERM)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        for one, handler in (*handlers.items(), (signal.SIGTERM, terminated)):
            signal.signal(one, handler)


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


class Ended:
    """How a command ended. code: its exit code. out, err: what it printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def run(*arguments: object) -> Ended:
    """A `husai` command in this process; whatever it raises beyond its exit code is the caller's to see."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    before = sys.argv
    sys.argv = ["husai"]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), bounded(), warnings.catch_warnings():
            warnings.resetwarnings()  # as in a process of its own: what is warned of there is printed here too
            for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
                warnings.simplefilter("ignore", kind)
            main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = before
    return Ended(code, out.getvalue(), err.getvalue())


def case(kind: str, folder: Path, *arguments: object) -> Ended:
    """Run a command on what lies in `folder` and hold it to what every command must do with any input.

    It ends with 0, 1 or 2; on standard error stands at most one line, which is no traceback; what it refuses leaves the
    folder as it was, and no command leaves a temporary file.
    """
    before = files_in(folder)
    done = run(*arguments)
    after = files_in(folder)
    assert done.code in (0, 1, 2), (done.code, done.err)
    assert "Traceback" not in done.err + done.out
    lines = [line for line in done.err.splitlines() if line.strip()]
    assert len(lines) <= 1, done.err
    if done.code == 2:
        assert len(lines) == 1
        assert lines[0].startswith("husai: ")
        assert after <= before | PLACES, after - before
    assert not [name for name in after - before - PLACES if Path(name).name.startswith(".")], after - before
    counted[kind, done.code] += 1
    return done


def table() -> str:
    """Cases of every kind by how they ended, as Markdown."""
    kinds = sorted({kind for kind, _ in counted})
    lines = ["| kind | cases | exit 0 | exit 1 | refused (2) |", "| --- | --: | --: | --: | --: |"]
    for kind in [*kinds, ""]:
        by_code = [sum(n for (k, c), n in counted.items() if c == code and kind in (k, "")) for code in (0, 1, 2)]
        lines.append(f"| {kind or 'all'} | {sum(by_code)} | {' | '.join(map(str, by_code))} |")
    return "\n".join(lines) + "\n"
