"""Which runs and models results tables refer to."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from husai.errors import HusaiError
from husai.store.files import reason

CELLS, RECORDS, GATE = "cells.json", "records.parquet", "gate.json"
DESCRIBED = (GATE, "truth.json")


@dataclass(frozen=True)
class References:
    """tables: the files that were read. runs: ids in them; recorded: those of which there are records. models: the names that
    results give models. gates: the gate reports of models."""

    tables: tuple[Path, ...]
    runs: frozenset[str]
    recorded: frozenset[str]
    models: frozenset[str]
    gates: tuple[dict[str, Any], ...]


def references(results: list[Path]) -> References:
    """What the tables of every suite folder below these folders refer to. Raises HusaiError for a table that cannot be read."""
    tables, gates = [], []
    runs: set[str] = set()
    recorded: set[str] = set()
    models: set[str] = set()
    for path in sorted(path for folder in results for path in folder.rglob("*") if path.is_file()):
        if path.name == CELLS:
            runs |= set(_cells(path))
        elif path.name == RECORDS:
            ids, names = _columns(path)
            recorded, models = recorded | ids, models | names
        elif path.name in DESCRIBED and (path.parent / CELLS).is_file():
            described = _described(path)
            models |= set(described)
            gates += [report for report in described.values() if path.name == GATE and isinstance(report, dict)]
            continue
        else:
            continue
        tables.append(path)
    own = frozenset(name.split("/")[0] for name in models)  # without what stands in for its samples
    return References(tuple(tables), frozenset(runs | recorded), frozenset(recorded), own, tuple(gates))


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HusaiError(f"{path}: cannot be read ({reason(error)})") from None
    except (ValueError, RecursionError):
        raise HusaiError(f"{path}: is not valid JSON; what it refers to is not known") from None


def _cells(path: Path) -> list[str]:
    found = _read(path)
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise HusaiError(f"{path}: must be a list of run ids; what it refers to is not known")
    return found


def _described(path: Path) -> dict[str, object]:
    found = _read(path)
    if not isinstance(found, dict):
        raise HusaiError(f"{path}: must be a mapping with a key for each model; what it refers to is not known")
    return found


def _columns(path: Path) -> tuple[set[str], set[str]]:
    """Run ids and models in a table of records."""
    import pyarrow
    from pyarrow import parquet

    try:
        found = parquet.read_table(path, columns=["run_id", "model"])
        ids, models = (set(map(str, found.column(name).unique().to_pylist())) for name in ("run_id", "model"))
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        raise HusaiError(
            f"{path}: is not a readable table of records ({error.__class__.__name__}); what it refers to is not known"
        ) from None
    return ids, models
