"""What lies where in a folder of runs: `<run id>/` for each finished run, and beside them what belongs to runs on their way."""

from pathlib import Path

LEASES, FAILED, NULLS = ".leases", ".failed", "nulls"
CHECKPOINTS = ".checkpoints"
MERGING = ".lease.json"  # in a results folder: the lease of who writes its tables


def lease_path(place: Path) -> Path:
    """The lease of who computes the run of this folder."""
    return place.parent / LEASES / f"{place.name}.json"


def failure_path(place: Path) -> Path:
    """What is noted of a run that failed: run_id, title, error, attempts."""
    return place.parent / FAILED / f"{place.name}.json"


def checkpoint_folder(place: Path) -> Path:
    """Where the checkpoints of a run lie until it is finished."""
    return place.with_name(f"{place.name}{CHECKPOINTS}")
