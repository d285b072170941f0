"""What every file of a run folder was when it was written, so that damage is seen before it becomes a result.

`checksums.json` holds sha256 and size of every file, and `DONE` the sha256 of `checksums.json`.
"""

import hashlib
import json
import re
from pathlib import Path

from husai.errors import HusaiError
from husai.store.files import reason

DONE, CHECKSUMS = "DONE", "checksums.json"
SHA256 = re.compile("[0-9a-f]{64}")
Sums = dict[str, dict[str, str | int]]


def file_hash(path: Path) -> str:
    """sha256 of a file, read piece by piece. Raises HusaiError if it is not there."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise HusaiError(f"{path}: cannot be read ({reason(error)})") from None


def sums_of(folder: Path) -> str:
    """The text of `checksums.json` for what a folder holds now."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {
        path.relative_to(folder).as_posix(): {"sha256": file_hash(path), "size": path.stat().st_size} for path in files
    }
    return json.dumps(sums, indent=2) + "\n"


def verify(folder: Path) -> list[str]:
    """What is wrong with a finished run folder, each problem a sentence; empty if it is as it was written.

    Further files are fine. A run of an earlier version, whose `DONE` is empty, has nothing to be compared with.
    """
    stated = _stated(folder)
    if stated is None:
        return []
    try:
        sums = _read(folder, stated)
    except HusaiError as error:
        return [str(error)]
    return [problem for name in sums if (problem := _problem(folder / name, sums[name]))]


def is_sealed(folder: Path) -> bool:
    """Whether a folder has checksums to be compared with."""
    return _stated(folder) is not None


def require_intact(*paths: Path) -> None:
    """Raises HusaiError if one of these files lies in a run folder, or one folder below, and is not as it was written.

    What lies elsewhere, or was added later, passes; so does a file that is not there.
    """
    for path in paths:
        for folder in path.parents[:2]:
            stated = _stated(folder) if path.is_file() else None
            sums = {} if stated is None else _read(folder, stated)
            name = path.relative_to(folder).as_posix()
            if name in sums and (problem := _problem(path, sums[name])):
                raise HusaiError(f"{problem}; train it again or restore it")


def _stated(folder: Path) -> str | None:
    """The sha256 of `checksums.json` as `DONE` has it; None where there are none: an earlier version's run, or a stranger's."""
    try:
        text = (folder / DONE).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
    return text if SHA256.fullmatch(text) or (folder / CHECKSUMS).exists() else None


def _read(folder: Path, stated: str) -> Sums:
    """Raises HusaiError if the checksums are not those of which `DONE` speaks."""
    path = folder / CHECKSUMS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise HusaiError(f"{path}: cannot be read ({reason(error)}), though {DONE} names its checksum") from None
    if hashlib.sha256(data).hexdigest() != stated:
        raise HusaiError(f"{path}: does not match its checksum in {DONE} (one of them is damaged or was changed)")
    return json.loads(data)


def _problem(path: Path, known: dict[str, str | int]) -> str | None:
    """What is wrong with one file, as a sentence without its end."""
    if not path.is_file():
        return f"{path}: is missing"
    if path.stat().st_size == known["size"] and file_hash(path) == known["sha256"]:
        return None
    return f"{path}: does not match its checksum (damaged or changed since it was written)"
