"""The runs in a folder: what each is, how far it is, and what is wrong with it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from husai.errors import HusaiError
from husai.store.checksums import verify
from husai.store.files import reason
from husai.store.folders import finished
from husai.store.lease import read_holder
from husai.store.places import CHECKPOINTS, FAILED, LEASES, NULLS, checkpoint_folder, failure_path, lease_path
from husai.store.processes import Process

State = Literal["finished", "running", "failed", "unfinished", "damaged"]
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast
SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Run:
    """A run, finished or not. detail: how far it is, why it failed, or what is damaged. size: bytes, with checkpoints."""

    id: str
    what: str
    state: State
    size: int
    finished: str | None
    seconds: float | None
    detail: str


def require_runs(runs: Path) -> None:
    """Raises HusaiError unless there is such a folder."""
    if not runs.is_dir():
        raise HusaiError(f"{runs}: no such folder of runs; name one with --runs")


def run_ids(runs: Path) -> list[str]:
    """Names of all runs of which there is anything. Raises HusaiError if the folder is missing."""
    require_runs(runs)
    found: set[str] = set()
    for path in runs.iterdir():
        temporary = Process.of_temporary(path)
        if temporary is not None:
            found.add(temporary[0])
        elif path.name.endswith(CHECKPOINTS):
            found.add(path.name.removesuffix(CHECKPOINTS))
        elif path.name != NULLS and finished(path):
            found.add(path.name)
    for beside in (LEASES, FAILED):
        found |= {path.stem for path in (runs / beside).glob("[!.]*.json")}
    return sorted(found)


def find_run(runs: Path, prefix: str) -> Path:
    """The place of the only run whose id begins so. Raises HusaiError if there is none, or there are several."""
    known = run_ids(runs)
    found = [name for name in known if name.startswith(prefix)]
    if prefix in known:
        found = [prefix]
    if not prefix or not found:
        raise HusaiError(f"run '{prefix}': no such run in {runs}, which has {len(known)}; husai runs list names them")
    if len(found) > 1:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise HusaiError(f"run '{prefix}': may be {', '.join(found[:SHOWN])}{more}; give more of its id")
    return runs / found[0]


def list_runs(runs: Path, *, check: bool = False) -> list[Run]:
    """Every run in a folder, by id. Raises HusaiError if it is missing."""
    ids, writing = run_ids(runs), being_written(runs)
    return [describe(runs / name, writing.get(name, []), check=check) for name in ids]


def being_written(folder: Path) -> dict[str, list[Path]]:
    """Temporary files and folders by what they are to become."""
    found: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        if temporary := Process.of_temporary(path):
            found.setdefault(temporary[0], []).append(path)
    return found


def describe(place: Path, writing: Sequence[Path] = (), *, check: bool = False) -> Run:
    """One run. writing: its temporary folders. check: compare every file with its checksum."""
    known = read_json(place / "provenance.json")
    whole, seconds = finished(place), known.get("wall_seconds")
    holder, note = read_holder(lease_path(place)), read_json(failure_path(place))
    what = what_is(place, known) if whole else str((holder and holder.about) or note.get("title") or "")
    state, detail = "unfinished", ""
    if whole:
        problems = verify(place) if check else []
        state, detail = ("damaged" if problems else "finished"), "; ".join(problems)
    elif holder is not None and not holder.dead_here():
        shown = ", ".join(f"{name} {_shown(value)}" for name, value in holder.progress.items())
        state, detail = "running", f"{holder.host}: {shown}" if shown else holder.host
    elif note:
        state, detail = "failed", " ".join(str(note.get("error", "")).split())
    done = str(known["finished"]) if "finished" in known else None
    time = float(seconds) if isinstance(seconds, int | float) else None
    return Run(place.name, what, state, size_of(place, checkpoint_folder(place), *writing), done, time, detail)


def what_is(place: Path, known: dict[str, Any]) -> str:
    """What a finished run trained, in a few words."""
    config = read_config(place)
    sae, training = config.get("sae"), config.get("task")
    if isinstance(sae, dict):
        seeds = config.get("init_seeds")
        parts = (known.get("model_name"), known.get("hook_name"), sae.get("architecture"), f"d_sae={sae.get('d_sae')}")
        count = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}" if isinstance(seeds, list) else None
        return " ".join(str(part) for part in (*parts, count) if part)
    if isinstance(training, dict):
        made = f"compiled {config['kind']}" if "kind" in config else "transformer"
        return f"{made} {training.get('op', 'add')} p={training.get('p')}"
    if isinstance(config.get("recurrent"), dict):
        return f"recurrent network {config['recurrent'].get('cell', '')} p={config.get('p')}"
    return "a run"


def read_config(place: Path) -> dict[str, Any]:
    """A run's config as plain data; empty where there is none that can be read."""
    try:
        found = yaml.load((place / "config.yaml").read_text(encoding="utf-8"), LOADER)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def read_json(path: Path) -> dict[str, Any]:
    """A mapping from a file; empty where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def size_of(*paths: Path) -> int:
    """Bytes of files, and of all files in folders, that others may be removing."""
    total = 0
    for path in paths:
        for file in (path, *path.rglob("*")) if path.is_dir() else (path,):
            try:
                total += file.lstat().st_size if not file.is_dir() else 0
            except FileNotFoundError:
                continue
            except OSError as error:
                raise HusaiError(f"{file}: cannot be read ({reason(error)})") from None
    return total


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
