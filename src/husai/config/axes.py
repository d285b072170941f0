"""A suite by its axes: one cell under `base:`, what varies under `axes:`, written out as models and entries.

Pure functions from plain data to plain data. (docs/sweeps.md §Axes)
"""

import difflib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeGuard

from pydantic import Field

from husai.config.base import Config, put
from husai.errors import HusaiError

PARTS = ("model", "name", "hook", "sae", "training")
WRITTEN_OUT = ("models", "model", "hooks", "entries")
MOST_CELLS = 100_000
SHOWN = 200  # characters of a cell in a message

Check = Callable[[dict[str, Any], str], object]


class Grid(Config):
    """The keys of a suite that is given by axes; dotted keys reach into the cell, such as `sae.k`."""

    base: dict[str, Any] = Field(description="one cell: model, name, hook, sae, training")
    axes: dict[str, Any] = Field(
        default={},
        description="dotted key: list of values; the cells are all combinations, the first axis slowest. Several keys with "
        "commas between them are one axis, whose values are lists with one entry a key",
    )
    include: tuple[dict[str, Any], ...] = Field(default=(), description="dotted keys and values of one more cell each")
    exclude: tuple[dict[str, Any], ...] = Field(
        default=(),
        description="dotted keys, each with a value or a list of them; a combination that has all is dropped",
    )


class _Axis(NamedTuple):
    """keys: dotted. rows: for each place along the axis, the value of every key."""

    name: str
    keys: tuple[str, ...]
    rows: list[tuple[Any, ...]]


class _Cell(NamedTuple):
    """parts: plain data by PARTS. label: the settings that make it differ from base."""

    parts: dict[str, Any]
    label: str


def is_grid(data: object) -> TypeGuard[dict[str, Any]]:
    """Whether plain data of a suite are given by axes."""
    return isinstance(data, dict) and any(key in data for key in Grid.model_fields)


def expand(data: dict[str, Any], where: str, *, entry: Check, subject: Check) -> dict[str, Any]:
    """The plain data of the ordinary suite that is meant: cells of one model at one hook stand together, in the order in
    which model, hook and SAE first come up.

    where: what messages call it. entry, subject: raise HusaiError for plain data that are none, and are called once for
    every different one. Raises HusaiError for an axis or rule that cannot be meant, and for more than MOST_CELLS cells.
    """
    given = {key: data[key] for key in Grid.model_fields if key in data}
    rest = {key: value for key, value in data.items() if key not in given}
    both = [key for key in WRITTEN_OUT if key in rest]
    if both:
        raise HusaiError(f"{where}: '{both[0]}' and base exclude each other; leave one out")
    grid = Grid.parse(given, where)
    axes = [_axis(name, values, where) for name, values in _flat(grid.axes)]
    _require_known(grid, axes, where)
    count = math.prod(len(axis.rows) for axis in axes) + len(grid.include)
    require_few(count, where)
    return rest | _written_out(_cells(grid, axes, where), where, entry, subject)


def require_few(count: int, where: str) -> None:
    """Raises HusaiError for more cells than one suite may have."""
    if count > MOST_CELLS:
        raise HusaiError(f"{where}: makes {count} cells; a suite has at most {MOST_CELLS}")


def _flat(axes: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Axes by dotted keys; groups within groups, as overrides make them, are the same."""
    for key, values in axes.items():
        if isinstance(values, dict):
            yield from _flat(values, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", values


def _axis(name: str, values: Any, where: str) -> _Axis:
    keys = tuple(key.strip() for key in name.split(","))
    here = f"{where}: axis '{name}'"
    if not isinstance(values, list) or not values:
        raise HusaiError(f"{here}: must be a list of at least one value")
    rows = [(value,) for value in values] if len(keys) == 1 else values
    for row in rows:
        if not isinstance(row, list | tuple) or len(row) != len(keys):
            raise HusaiError(f"{here}: each value must be a list of {len(keys)}, one a key, got {_shown(row)}")
    repeated = [row for row, times in Counter(map(canonical, rows)).items() if times > 1]
    if repeated:
        value = next(row for row in rows if canonical(row) == repeated[0])
        raise HusaiError(f"{here}: holds {_shown(value[0] if len(keys) == 1 else value)} twice")
    return _Axis(name, keys, [tuple(row) for row in rows])


def _require_known(grid: Grid, axes: list[_Axis], where: str) -> None:
    """Raises HusaiError for a key that no cell has, and for one that two axes set."""
    turned = [key for axis in axes for key in axis.keys]
    twice = [key for key, times in Counter(turned).items() if times > 1]
    if twice:
        raise HusaiError(f"{where}: '{twice[0]}' stands in two axes; it can vary along one")
    named = [("base", key) for key in grid.base] + [("axes", key) for key in turned]
    named += [("include", key) for rule in grid.include for key in rule]
    named += [("exclude", key) for rule in grid.exclude for key in rule]
    for section, key in named:
        head = key.split(".")[0]
        if head not in PARTS or (section == "base" and key != head):
            close = difflib.get_close_matches(head, PARTS, n=1)
            meant = f", did you mean '{close[0]}'?" if close else "."
            within = "" if section == "base" else ", and dotted keys into them"
            raise HusaiError(f"{where}: unknown key '{section}.{key}'{meant} Allowed here: {', '.join(PARTS)}{within}")


def _cells(grid: Grid, axes: list[_Axis], where: str) -> list[_Cell]:
    """All combinations that no rule excludes, then what is included; equal ones once."""
    keys = [key for axis in axes for key in axis.keys]
    combinations = itertools.product(*(axis.rows for axis in axes))
    every = [_cell(grid.base, dict(zip(keys, itertools.chain(*rows), strict=True)), where) for rows in combinations]
    dropped = [_matching(every, rule, i, where) for i, rule in enumerate(grid.exclude)]
    gone = set[int]().union(*dropped)
    kept = {canonical(cell.parts): cell for i, cell in enumerate(every) if i not in gone}
    for i, rule in enumerate(grid.include):
        more = _cell(grid.base, rule, where)
        if canonical(more.parts) in kept:
            raise HusaiError(f"{where}: 'include.{i}' ({more.label}) is there already; leave it out")
        kept[canonical(more.parts)] = more
    if not kept:
        raise HusaiError(f"{where}: 'exclude' leaves no cell")
    return list(kept.values())


def _cell(base: dict[str, Any], settings: dict[str, Any], where: str) -> _Cell:
    """Base with settings; one that replaces a group comes before those within the group, whatever their order."""
    label = ", ".join(f"{key}={_shown(value)}" for key, value in settings.items()) or "of base"
    for key in sorted(settings, key=lambda key: key.count(".")):
        base = put(base, key, settings[key], f"{where}: cell {label}")
    return _Cell(base, label)


def _matching(cells: list[_Cell], rule: dict[str, Any], place: int, where: str) -> set[int]:
    """Which cells a rule excludes. Raises HusaiError if it excludes none."""
    if not rule:
        raise HusaiError(f"{where}: 'exclude.{place}' is empty; name at least one key")
    wanted = {
        key: {canonical(one) for one in (value if isinstance(value, list) else [value])} for key, value in rule.items()
    }
    found = {
        i for i, cell in enumerate(cells) if all(_value(cell.parts, key) in those for key, those in wanted.items())
    }
    if not found:
        shown = ", ".join(f"{key}: {_shown(value)}" for key, value in rule.items())
        raise HusaiError(f"{where}: 'exclude.{place}' ({shown}) drops no cell; is a key or value mistyped?")
    return found


def _value(parts: dict[str, Any], key: str) -> str | None:
    """The canonical value under a dotted key; None where there is none."""
    place: Any = parts
    for part in key.split("."):
        if not isinstance(place, dict) or part not in place:
            return None
        place = place[part]
    return canonical(place)


def _written_out(cells: list[_Cell], where: str, entry: Check, subject: Check) -> dict[str, Any]:
    """`models` and `entries` of the cells; entries that most models share are the suite's."""
    models: dict[str, dict[str, Any]] = {}
    names: dict[str, str] = {}
    sites: dict[str, dict[str, dict[str, Any]]] = {}
    hooks: dict[tuple[str, str], Any] = {}
    seen: set[str] = set()
    for cell in cells:
        here = f"{where}: cell {cell.label}"
        sae = {key: cell.parts[key] for key in ("sae", "training") if key in cell.parts}
        model = {key: cell.parts[key] for key in ("name", "model") if cell.parts.get(key) is not None}
        hook, which, key = cell.parts.get("hook"), canonical(model), canonical(sae)
        site = (which, canonical(hook))
        if key not in seen:
            entry(sae, here)
            seen.add(key)
        if site not in hooks:
            subject(model | {"hooks": [] if hook is None else [hook]}, here)
            _require_name(model, which, names, here)
            hooks[site], models[which] = hook, model
        sites.setdefault(which, {}).setdefault(site[1], {})[key] = sae
    listed: list[dict[str, Any]] = []
    for which, model in models.items():
        for saes, group in itertools.groupby(sites[which].items(), key=lambda site: list(site[1])):
            at = [hooks[which, hook] for hook, _ in group]
            listed.append(model | {"hooks": [hook for hook in at if hook is not None], "entries": saes})
    shared = Counter(tuple(model["entries"]) for model in listed).most_common(1)[0][0]
    written = {key: sae for those in sites.values() for found in those.values() for key, sae in found.items()}
    for model in listed:
        own = model.pop("entries")
        if tuple(own) != shared:
            model["entries"] = [written[key] for key in own]
    return {"models": listed, "entries": [written[key] for key in shared]}


def _require_name(model: dict[str, Any], which: str, names: dict[str, str], here: str) -> None:
    """Raises HusaiError unless results can call the model by a name that is no other's. names: whose each is, so far."""
    name = model.get("name") or model["model"]
    if not isinstance(name, str):
        raise HusaiError(f"{here}: key 'name' is missing; a model that has no name of its own needs one")
    if names.setdefault(name, which) != which:
        raise HusaiError(
            f"{here}: another model is called {name} too; let the name vary along with it, by an axis 'name, model'"
        )


def canonical(value: Any) -> str:
    """Plain data as text, equal for what a config takes as equal: 1, 1.0 and '1', in whatever order keys stand."""
    return json.dumps(_plain(value), sort_keys=True, default=repr)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", value):
        value = float(value)  # YAML 1.1 reads 1e-3 as text
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _shown(value: Any) -> str:
    """A value for a message, cut short; a name without quotes."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
