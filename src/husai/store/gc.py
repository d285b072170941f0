"""What nobody needs any more in a folder of runs, found and then removed. (docs/runs.md)

Nothing is found that a living process may still want or a results table refers to; in doubt, it stays and is named.
"""

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from husai.errors import HusaiError
from husai.store.files import reason
from husai.store.folders import discard, finished
from husai.store.lease import STALE_AFTER, TOKEN, Holder, Watch, break_dead, read_holder
from husai.store.listing import read_config, read_json, require_runs, run_ids, size_of
from husai.store.places import CHECKPOINTS, FAILED, LEASES, MERGING, NULLS, checkpoint_folder, failure_path, lease_path
from husai.store.processes import Process
from husai.store.references import GATE, References, references

OF_A_LEASE = re.compile(rf"\.(?P<name>.+)\.(?P<token>{TOKEN.pattern})\.(beat|end)")
OF_A_MODEL = re.compile(r"(?P<name>.+)-[0-9a-f]{12}")
POLLS = 20  # looks at each lease while watching
CLOSE = 1e-3  # numbers of one model's gate, measured twice


@dataclass(frozen=True)
class Leftover:
    """Something to remove. token: of the lease that it is, or belongs to."""

    path: Path
    why: str
    size: int
    token: str | None = None

    @property
    def lease(self) -> Path:
        """The lease that a token is of."""
        about = OF_A_LEASE.fullmatch(self.path.name)
        return self.path.with_name(about["name"]) if about else self.path


@dataclass
class Found:
    """What goes, and what stays though nothing speaks for it, with the reason."""

    remove: list[Leftover] = field(default_factory=list)
    kept: list[tuple[Path, str]] = field(default_factory=list)

    def add(self, path: Path, why: str, token: str | None = None) -> None:
        self.remove.append(Leftover(path, why, size_of(path), token))


def find(
    runs: Path,
    results: Sequence[Path] = (),
    *,
    unreferenced: bool = False,
    outdated: Callable[[Path], list[Path]] = lambda _: [],
    watch: float | None = None,
) -> Found:
    """What can be removed from `runs`, and of temporary files and locks from `results`.

    unreferenced: also finished runs of sweeps that no results table below `results` refers to, and models of suites on which
    no run was trained that stays. outdated: which draws of nulls serve nobody. watch: seconds to watch leases of other
    machines, of which those without a beat meanwhile are dead; None: they stay.

    Raises HusaiError if a folder is missing or a table cannot be read, or for `unreferenced` if there is no table at all.
    """
    require_runs(runs)
    for folder in results:
        if not folder.is_dir():
            raise HusaiError(f"{folder}: no such folder of results; name one with --results")
    known, found = references(list(results)), Found()
    if unreferenced and not known.tables:
        named = ", ".join(map(str, results)) or "no folder"
        raise HusaiError(f"{named}: holds no results table, so that every run would go; name others with --results")
    dead = _leases(runs, results, watch, found)
    living = {path.stem for path in (runs / LEASES).glob("[!.]*.json")} - {path.stem for path in dead}
    writers = {holder.process for holder in dead.values()}
    for folder in _folders(runs, results):
        _temporary(folder, writers, found)
    _of_finished(runs, known, living, found)
    for path in outdated(runs / NULLS):
        found.add(path, "draws of nulls that other code made, or damaged ones")
    if unreferenced:
        _unreferenced(runs, known, living, found)
    return found


def _folders(runs: Path, results: Sequence[Path]) -> Iterator[Path]:
    """All in which files are written aside first; not the run folders, which are written elsewhere."""
    yield from (folder for folder in (runs, runs / LEASES, runs / FAILED, runs / NULLS) if folder.is_dir())
    yield from (folder for folder in runs.glob(f"*{CHECKPOINTS}") if folder.is_dir())
    for folder in results:
        yield folder
        yield from (inside for inside in folder.rglob("*") if inside.is_dir() and not Process.of_temporary(inside))


def _leases(runs: Path, results: Sequence[Path], watch: float | None, found: Found) -> dict[Path, Holder]:
    """The leases of the dead, by path, after watching the others; they and what lies about them are found."""
    paths = [*(runs / LEASES).glob("[!.]*.json"), *(path for folder in results for path in folder.rglob(MERGING))]
    watcher, start = Watch(STALE_AFTER if watch is None else watch), time.monotonic()
    dead: dict[Path, Holder] = {}
    while True:
        for path in paths:
            holder = read_holder(path)
            if holder is not None and watcher.stale(path):
                dead[path] = holder
        if watch is None or len(dead) == len(paths) or time.monotonic() - start > watch * (1 + 2 / POLLS):
            break
        time.sleep(watch / POLLS)
    for path, holder in dead.items():
        found.add(path, f"lease of {holder}, which is dead", holder.token)
    for path in paths:
        holder = None if path in dead else read_holder(path)
        if holder is not None and not (holder.process and holder.process.is_here):
            found.kept.append((path, f"lease of {holder}, which may live; --watch finds out"))
    for folder in (runs / LEASES, *(inside for one in results for inside in (one, *one.rglob("*")))):
        if folder.is_dir():
            _about_leases(folder, found)
    return dead


def _about_leases(folder: Path, found: Found) -> None:
    """Beats without their lease, and what processes left that were killed while they removed one."""
    for path in folder.glob(".*"):
        if match := OF_A_LEASE.fullmatch(path.name):
            lease, ender = read_holder(folder / match["name"]), read_holder(path)
            if path.suffix == ".end" and ender is not None and ender.dead_here():
                found.add(path, f"left by {ender}, which is dead", match["token"])
            elif path.suffix == ".beat" and (lease is None or lease.token != match["token"]):
                found.add(path, "beats of a lease that nobody holds")


def _temporary(folder: Path, writers: set[Process | None], found: Found) -> None:
    for path in sorted(folder.iterdir()):
        if temporary := Process.of_temporary(path):
            writer = temporary[1]
            if writer.dead_here() or writer in writers:
                found.add(path, f"temporary, of process {writer.pid}, which is dead")
            elif not writer.is_here:
                found.kept.append((path, "temporary, of a process on another machine; husai runs gc there removes it"))


def _of_finished(runs: Path, known: References, living: set[str], found: Found) -> None:
    """Checkpoints and notes of failure of runs that are finished."""
    named = {path.name.removesuffix(CHECKPOINTS) for path in runs.glob(f"*{CHECKPOINTS}")}
    named |= {path.stem for path in (runs / FAILED).glob("[!.]*.json")}
    for name in sorted(named - living):
        if finished(runs / name) or name in known.recorded:
            for path in (checkpoint_folder(runs / name), failure_path(runs / name)):
                if path.exists():
                    found.add(path, "of a run that is finished")


def _unreferenced(runs: Path, known: References, living: set[str], found: Found) -> None:
    """Finished runs of sweeps that no table knows, then models that nothing needs that stays."""
    needed, models, on_their_way = set(known.models), [], bool(living)
    for name in run_ids(runs):
        place, model = runs / name, OF_A_MODEL.fullmatch(name)
        about, config = read_json(place / "provenance.json"), read_config(place)
        if not finished(place) or name in living:
            on_their_way |= not model
        elif about.get("run_id") == name and name not in known.runs:
            found.add(place, "a run that no results table refers to")
        elif "sae" in config or "model_name" in about:
            needed.add(str(about.get("model_name")).split("/")[0])
            if about.get("run_id") != name:
                found.kept.append((place, "not of a sweep, so that no table would refer to it"))
        elif model:
            models.append((place, model["name"]))
        else:
            found.kept.append((place, "not of a sweep, so that no table would refer to it"))
    for place, name in models:
        called = any(place.name == one or name == one or name.endswith(f"-{one}") for one in needed)
        if on_their_way or called or any(_alike(read_json(place / GATE), gate) for gate in known.gates):
            found.kept.append((place, "a model that runs may have been trained on"))
        else:
            found.add(place, "a model that no run was trained on that stays")


def _alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two gate reports may be of one model, measured twice."""
    numbers = [key for key in one if isinstance(one[key], float) and isinstance(other.get(key), float)]
    return bool(numbers) and all(math.isclose(one[key], other[key], rel_tol=CLOSE, abs_tol=CLOSE) for key in numbers)


def remove(found: Found) -> list[Leftover]:
    """Remove what was found, unless somebody took it meanwhile; returns what is gone. Raises HusaiError if that fails."""
    gone = []
    for leftover in found.remove:
        try:
            if leftover.token is None:
                removed = _remove(leftover.path)
            else:
                removed = break_dead(leftover.lease, leftover.token) or not leftover.path.exists()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise HusaiError(f"{leftover.path}: cannot be removed ({reason(error)})") from None
        if removed:
            gone.append(leftover)
    return gone


def _remove(path: Path) -> bool:
    """Whether it is gone; a run that somebody has taken stays."""
    if not path.is_dir():
        path.unlink()
        return True
    if finished(path) and read_holder(lease_path(path)) is not None:
        return False
    discard(path)
    return True
