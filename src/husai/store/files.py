"""Files written whole or not at all, and kept through a power cut; and the places between where a test may kill a process."""

import errno
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from husai.errors import HusaiError
from husai.store.processes import temporary_of

CRASH_AT = "HUSAI_CRASH_AT"
CRASH_POINTS = (
    *("file-written", "file-flushed", "file-renamed"),
    *(
        "folder-made",
        "folder-filled",
        "folder-flushed",
        "folder-listed",
        "folder-marked",
        "folder-aside",
        "folder-renamed",
    ),
    *("lease-written", "lease-taken", "lease-beaten", "lease-ending", "lease-ended", "run-aside"),
    *("arrays-copied", "costs-merged", "atoms-merged", "records-merged"),
)
NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # file systems that cannot flush a folder by itself

_reached: Counter[str] = Counter()


def crash_point(name: str) -> None:
    """Kills this process, as a power cut would, if the environment variable HUSAI_CRASH_AT is `name`, or `name:3` the third
    time. For tests.

    Raises HusaiError if the variable names no crash point.
    """
    if asked := os.environ.get(CRASH_AT):
        _crash(asked, name)


def _crash(asked: str, name: str) -> None:
    wanted, sign, count = asked.partition(":")
    if wanted not in CRASH_POINTS or (sign and not (count.isdecimal() and int(count))):
        raise HusaiError(
            f"{CRASH_AT}={asked}: must be a crash point, or one and which time such as {CRASH_POINTS[0]}:3; "
            f"crash points are {', '.join(CRASH_POINTS)}"
        )
    assert name in CRASH_POINTS, name
    _reached[name] += 1
    if name == wanted and _reached[name] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)


def reason(error: Exception) -> str:
    """Why a file operation failed, in words."""
    return error.strerror or str(error) if isinstance(error, OSError) else " ".join(str(error).split())


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary place beside `path` to write one file to; on success it becomes `path`, on any failure nothing remains.

    Raises HusaiError if it cannot be written, also when the disk fills up meanwhile.
    """
    temporary = temporary_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        crash_point("file-written")
        flush(temporary)
        crash_point("file-flushed")
        temporary.replace(path)
        crash_point("file-renamed")
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise HusaiError(f"{path}: cannot be written ({reason(error)})") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_atomic(path: Path, text: str) -> None:
    """Replace a file's text in one step. Raises HusaiError if it cannot be written."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flush(path: Path) -> None:
    """A file's content to the disk."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def sync_folder(folder: Path) -> None:
    """Which names a folder holds, to the disk: a rename lasts only after this."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
    finally:
        os.close(handle)
