"""Which of the formats a folder of an SAE is in, and the reading that all of them share. No pickle is ever executed."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from husai.activations import ordinary
from husai.errors import HusaiError
from husai.shards import read_file


class Format(NamedTuple):
    """The files that make a folder an SAE. marks: keys of the config that tell it where there are no weights."""

    name: str
    config: str
    weights: str
    marks: tuple[str, ...]


SAE_LENS = Format("SAELens", "cfg.json", "sae_weights.safetensors", ("architecture",))
SPARSIFY = Format("sparsify", "cfg.json", "sae.safetensors", ("expansion_factor", "num_latents"))
DICTIONARY_LEARNING = Format("dictionary_learning", "config.json", "ae.pt", ("dict_class",))
FORMATS = (SAE_LENS, SPARSIFY, DICTIONARY_LEARNING)


def format_of(folder: Path) -> Format:
    """The format by the weights there are, or, if there are none, by what the config says.

    Raises HusaiError if the folder holds none, or weights of several.
    """
    weights = [known for known in FORMATS if (folder / known.weights).is_file()]
    if len(weights) > 1:
        names = " and ".join(f"{known.weights} ({known.name})" for known in weights)
        raise HusaiError(f"{folder}: holds {names}; a folder holds one SAE")
    marked = weights or [known for known in FORMATS if _says(folder / known.config, known.marks)]
    if not marked and (folder / SAE_LENS.config).is_file():
        return SAE_LENS
    if not marked:
        first, *others = (f"{known.name} folder ({known.config}, {known.weights})" for known in FORMATS)
        raise HusaiError(f"{folder}: is not a {first}, nor a {' or '.join(others)}; {_held(folder)}")
    return marked[0]


def _says(path: Path, marks: tuple[str, ...]) -> bool:
    if not path.is_file():
        return False
    text = path.read_text(encoding="utf-8", errors="replace")
    return any(f'"{mark}"' in text for mark in marks)


def _held(folder: Path) -> str:
    if not folder.is_dir():
        return "it is a file" if folder.exists() else "there is no such folder"
    names = sorted(path.name for path in folder.iterdir())
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"it holds {', '.join(names[:5])}{more}" if names else "it is empty"


def sae_folders(given: Sequence[Path]) -> list[Path]:
    """Each path that is an SAE's folder, and those in each that holds some, such as a run of several seeds, in order.

    Raises HusaiError for a path that is neither, and for an SAE that is named twice.
    """
    found: list[Path] = []
    for path in given:
        inside = [] if _is_sae(path) or not path.is_dir() else [place for place in path.iterdir() if _is_sae(place)]
        if not inside:
            format_of(path)
        found += sorted(inside, key=_in_order) or [path]
    for path in found:
        if sum(path.resolve() == other.resolve() for other in found) > 1:
            raise HusaiError(f"{path}: is named twice; an SAE agrees with itself in full")
    return found


def _is_sae(folder: Path) -> bool:
    return (folder / SAE_LENS.config).is_file() or any((folder / known.weights).is_file() for known in FORMATS)


def _in_order(path: Path) -> list[tuple[int, str]]:
    """seed-2-2 before seed-10-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON file. Raises HusaiError if it is missing, damaged or no mapping."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HusaiError(f"{path.parent}: has no {path.name}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        raise HusaiError(f"{path}: is not valid JSON") from None
    if not isinstance(data, dict):
        raise HusaiError(f"{path}: must be a mapping of keys to values")
    return data


def whole_number(config: Mapping[str, Any], key: str, where: Path, default: int | None = None) -> int:
    """A number of at least 1. Raises HusaiError if the key is missing, and has no default, or holds anything else."""
    value = config.get(key, default)
    if value is None:
        raise HusaiError(f"{where}: key '{key}' is missing")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise HusaiError(f"{where}: '{key}' must be a whole number of at least 1, got {value!r}")
    return value


def read_weights(path: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Those tensors of a file, float ones as float32. Raises HusaiError if one is missing, or holds NaN or infinity."""
    if not path.is_file():
        raise HusaiError(f"{path.parent}: has no {path.name}")
    tensors = read_file(path)
    if missing := [name for name in names if name not in tensors]:
        raise HusaiError(
            f"{path}: has no tensor '{missing[0]}'; it needs {', '.join(names)}, and holds {', '.join(tensors)}"
        )
    found = {name: tensors[name] for name in names}
    found = {name: value.float().clone() if value.is_floating_point() else value for name, value in found.items()}
    require_finite(found, path)
    return found


def require_shapes(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Raises HusaiError for a tensor of another shape."""
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise HusaiError(f"{path}: {name} has shape {tuple(tensors[name].shape)}; it must be {shape}")


def require_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises HusaiError for a tensor that holds NaN or infinity."""
    for name, value in tensors.items():
        if not bool(ordinary(value).all()):
            what = "a number beyond 1e15" if bool(value.isfinite().all()) else "NaN or infinity"
            raise HusaiError(f"{path}: {name} holds {what}; its training diverged or the file is damaged")
