"""Run folders: written whole or not at all, by as many processes at once as there are.

A run folder holds `config.yaml` (replays it), weights, `metrics.json`, `history.csv`, `provenance.json`,
`checksums.json` and, written last, `DONE`. It is built in a temporary folder beside its place and renamed into it.
"""

import errno
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from husai.errors import HusaiError
from husai.store.checksums import CHECKSUMS, DONE, file_hash, sums_of
from husai.store.files import crash_point, flush, reason, sync_folder
from husai.store.processes import Process, temporary_of

NAMES_A_RUN = ("run_id", "model_name", "hook_name")  # in provenance.json, beside config.yaml
TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.ENOENT)
ATTEMPTS = 5
FLUSHING = 8  # files flushed at once


def finished(place: Path) -> bool:
    """Whether `place` holds a finished run."""
    return (place / DONE).is_file()


def require_free(place: Path) -> None:
    """Raises HusaiError unless a run folder can be made at `place`: nothing is there, or an empty folder."""
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        what = "already holds a finished run" if finished(place) else "exists and is not an empty folder"
        raise HusaiError(f"{place}: {what}; choose another folder or remove it first")


def discard(folder: Path) -> None:
    """Remove a folder, renamed before it is emptied, so that no half of it is ever taken for a run. Raises OSError."""
    aside = folder
    if Process.of_temporary(folder) is None:
        aside = temporary_of(folder)
        folder.rename(aside)
    crash_point("run-aside")
    shutil.rmtree(aside)


@contextmanager
def whole_folder(place: Path, *, replace_existing: bool = False) -> Iterator[Path]:
    """A fresh folder to fill; on success it gets checksums and `DONE` and becomes `place`, on any failure nothing remains.

    If another process finished the same run at `place` meanwhile, that one stays and this one is dropped. Raises HusaiError
    if `place` already holds a finished run (unless `replace_existing`), holds foreign files, or cannot be written (also
    when the disk fills up meanwhile).
    """
    if not replace_existing:
        require_free(place)
    temporary = temporary_of(place)
    created = [folder for folder in place.parents if not folder.exists()]
    try:
        _make(temporary)
        crash_point("folder-made")
        yield temporary
        crash_point("folder-filled")
        _seal(temporary)
        if replace_existing and place.exists():
            _swap(temporary, place)
        else:
            _put(temporary, place)
        crash_point("folder-renamed")
        sync_folder(place.parent)
    except (OSError, SafetensorError) as error:
        raise HusaiError(f"{place}: cannot be written ({reason(error)})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not place.exists():
            _remove_empty(created)


def _make(temporary: Path) -> None:
    """The folder, and its parents, which another process that fails may be removing again."""
    for left in range(ATTEMPTS - 1, -1, -1):
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            return temporary.mkdir(mode=0o755)
        except FileNotFoundError:
            if not left:
                raise
    return None


def _remove_empty(folders: list[Path]) -> None:
    """Remove the folders, innermost first, as long as they are empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _seal(folder: Path) -> None:
    """Flush every file to disk, readable for all, then write down what they are, then say that this is all."""
    inside = list(folder.rglob("*"))
    files = [path for path in inside if path.is_file()]
    for path in files:
        path.chmod(0o644)
    with ThreadPoolExecutor(FLUSHING) as pool:  # disks take many at once
        list(pool.map(flush, files))
    crash_point("folder-flushed")
    (folder / CHECKSUMS).write_text(sums_of(folder), encoding="utf-8")
    flush(folder / CHECKSUMS)
    crash_point("folder-listed")
    (folder / DONE).write_text(file_hash(folder / CHECKSUMS) + "\n", encoding="utf-8")
    flush(folder / DONE)
    for path in (*(path for path in inside if path.is_dir()), folder):
        sync_folder(path)
    crash_point("folder-marked")


def _put(temporary: Path, place: Path) -> None:
    """Rename into place; a rename replaces nothing but an empty folder, so that of several processes one succeeds.

    Raises HusaiError if something else came to be there.
    """
    try:
        temporary.rename(place)
    except OSError as error:
        if error.errno not in TAKEN or not place.exists():
            raise
        renamed_before = not temporary.exists()  # as NFS says of a rename whose answer was lost
        if not (finished(place) and (renamed_before or _same_run(temporary, place))):
            require_free(place)
            raise


def _same_run(one: Path, other: Path) -> bool:
    """Whether two finished folders are of equal config, model and hook."""
    return _identity(one) == _identity(other)


def _identity(folder: Path) -> tuple[str, list[object]] | None:
    try:
        known = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        return (folder / "config.yaml").read_text(encoding="utf-8"), [known.get(name) for name in NAMES_A_RUN]
    except (OSError, ValueError):
        return None


def _swap(temporary: Path, place: Path) -> None:
    """Replace what is there. Killed between the two renames, it leaves the old folder beside its place, under another name."""
    aside = temporary_of(place)
    place.rename(aside)
    crash_point("folder-aside")
    try:
        temporary.rename(place)
    except OSError:
        aside.rename(place)
        raise
    shutil.rmtree(aside, ignore_errors=True)
