"""Frozen, typed configs: YAML in, unknown keys refused, content hash out. One dial per idea."""

import difflib
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, Tag, ValidationError

from husai.config.text import MOST_LEVELS, parse_yaml, read_yaml
from husai.errors import HusaiError

MOST = 10**9
NAME = r"^[a-z0-9][a-z0-9_-]*$"
Count = Annotated[int, Field(ge=0, le=MOST)]
Positive = Annotated[int, Field(ge=1, le=MOST)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Spread = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def later(default: Any, description: str, **rules: Any) -> Any:
    """A field that came after results that are as with its default: left out of run ids and files where it has that."""
    return Field(default=default, exclude_if=lambda value: value == default, description=description, **rules)


class Config(BaseModel):
    """Base of all configs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, data: object, where: str = "config") -> Self:
        """Build from plain data. Raises HusaiError naming `where` and the key that is wrong."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise HusaiError(f"{where}: {_explain(error, cls)}") from None

    @classmethod
    def load(cls, path: Path, overrides: tuple[str, ...] | list[str] = ()) -> Self:
        """Read a YAML file and apply `key=value` overrides with dotted keys, such as `sae.k=8`."""
        where = f"{path} with {' '.join(overrides)}" if overrides else str(path)
        return cls.parse(override(read_yaml(path), overrides), where)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem of a pydantic error as one sentence; unknown keys first, since they tell a file of another kind.

    Where a key may hold one of several things, pydantic names each that it is not; they are one problem.
    """
    first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    unknown = first["type"] == "extra_forbidden"
    path, holder = _locate(first["loc"], model, unknown=unknown)
    key = ".".join(path) or "(top level)"
    others = {tuple(_locate(problem["loc"], model, unknown=unknown)[0]) for problem in error.errors()} - {tuple(path)}
    more = f" (and {len(others)} further problem{'s' if len(others) > 1 else ''})" if others else ""
    if unknown:
        allowed = list(holder.model_fields)
        close = difflib.get_close_matches(path[-1], allowed, n=1)
        meant = f", did you mean '{close[0]}'?" if close else "."
        return f"unknown key '{key}'{more}{meant} Allowed here: {', '.join(allowed)}"
    if first["type"] == "missing":
        return f"key '{key}' is missing{more}"
    if first["type"] == "union_tag_not_found":
        return f"key '{key}.architecture' is missing{more}"
    if first["type"] == "union_tag_invalid":
        context = first.get("ctx", {})
        return f"'{key}.architecture': must be {context['expected_tags']}, got '{context['tag']}'{more}"
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    shown = f", got {given!r}" if isinstance(given, str | int | float | bool) else ""
    wanted = (message[0].lower() + message[1:]).replace("input should", "must")
    return f"'{key}': {wanted}{shown}{more}"


def _locate(
    location: tuple[int | str, ...], model: type[BaseModel], *, unknown: bool
) -> tuple[list[str], type[BaseModel]]:
    """The key a pydantic location means, as written in YAML, and the innermost config that holds it.

    Where a key may hold one of several things, pydantic adds the tag of the one it chose: no key, so it is left out.
    unknown: whether the last part is a key that no config has.
    """
    path: list[str] = []
    choices: dict[str, type[BaseModel]] = {}
    for place, part in enumerate(location, 1):
        is_key = isinstance(part, int) or part in model.model_fields or (unknown and place == len(location))
        if is_key:
            path.append(str(part))
        elif len(choices) > 1:
            model = choices[str(part)]
        if isinstance(part, str) and is_key and part in model.model_fields:
            choices = _configs_in(model.model_fields[part].annotation)
            model = next(iter(choices.values())) if len(choices) == 1 else model
    return path, model


def _configs_in(annotation: object) -> dict[str, type[BaseModel]]:
    """The config classes that occur in a type annotation, by the tag under which pydantic's locations know them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        architecture = annotation.model_fields.get("architecture")
        return {str(architecture.default) if architecture else annotation.__name__: annotation}
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated and isinstance(parts[1], Tag):
        return dict(zip([parts[1].tag], _configs_in(parts[0]).values(), strict=False))
    return {tag: found for part in parts for tag, found in _configs_in(part).items()}


def override(data: dict[str, Any], overrides: tuple[str, ...] | list[str]) -> dict[str, Any]:
    """A copy of `data` with `a.b=value` settings applied; values are read as YAML."""
    for item in overrides:
        key, sign, text = item.partition("=")
        if not sign or not key:
            raise HusaiError(f"override '{item}': must have the form key=value, such as sae.k=8")
        if key.count(".") > MOST_LEVELS:
            raise HusaiError(f"override '{item}': its key has more than {MOST_LEVELS} dots")
        data = put(data, key, parse_yaml(text, f"override '{item}': the value"), f"override '{item}'")
    return data


def put(data: dict[str, Any], key: str, value: object, where: str) -> dict[str, Any]:
    """A copy of nested `data` with `value` under a dotted key, or under the key that is written with these dots there.

    Raises HusaiError, beginning with `where`, if a part of the key is there and holds no keys.
    """
    head, dot, rest = key.partition(".")
    if not dot or key in data:
        return {**data, key: value}
    inside = data.get(head, {})
    if not isinstance(inside, dict):
        raise HusaiError(f"{where}: '{head}' is not a group of keys")
    return {**data, head: put(inside, rest, value, where)}


def content_hash(*parts: object) -> str:
    """12 hex digits that identify configs and plain values by content, whatever the order of their keys."""
    plain = [part.model_dump(mode="json") if isinstance(part, Config) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]
