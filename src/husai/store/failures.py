"""Notes of cells that failed, so that a sweep does not try them again unasked."""

import json
from pathlib import Path

from husai.store.files import write_atomic
from husai.store.places import failure_path


def note_failure(run: Path, title: str, why: str) -> None:
    """Write down that a run failed, and how often. Raises HusaiError if the note cannot be written."""
    note = {"run_id": run.name, "title": title, "error": why, "attempts": _attempts(run) + 1}
    write_atomic(failure_path(run), json.dumps(note, indent=2) + "\n")


def failure_of(run: Path) -> str | None:
    """Why a run failed; None if it did not, or the note cannot be read."""
    found = _read(run)
    return None if found is None else str(found.get("error", ""))


def forget_failure(run: Path) -> None:
    """The run is finished now."""
    failure_path(run).unlink(missing_ok=True)


def _attempts(run: Path) -> int:
    attempts = (_read(run) or {}).get("attempts", 0)
    return attempts if isinstance(attempts, int) else 0


def _read(run: Path) -> dict[str, object] | None:
    try:
        found = json.loads(failure_path(run).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
