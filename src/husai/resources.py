"""Configs and reference weights, found alike in a checkout and in an installed wheel."""

from pathlib import Path

from husai.errors import HusaiError

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parents[1]


def in_checkout() -> bool:
    """Whether the package runs from a checkout of its repository, not from an installed wheel."""
    return (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "configs").is_dir()


def _root() -> tuple[Path, Path]:
    """Folders of configs and of reference models."""
    if in_checkout():
        return _CHECKOUT / "configs", _CHECKOUT / "results" / "reference"
    return _PACKAGE / "_data" / "configs", _PACKAGE / "_data" / "reference"


def reference_dir() -> Path:
    """The folder that holds one folder a reference model."""
    return _root()[1]


def reference_names() -> list[str]:
    """Names of the reference models that are shipped, such as `add-p113-0`."""
    return sorted(path.parent.name for path in reference_dir().glob("*/model.safetensors"))


def find_config(reference: str | Path, kind: str) -> Path:
    """The YAML file that `reference` means: a path, or the name of a shipped config of this kind (models, suites, examples).

    `configs/suites/smoke.yaml` and `smoke` both work from any folder. Raises HusaiError with the names there are.
    """
    if not str(reference):
        raise HusaiError(f"config: the name is empty; give a YAML file or one of {', '.join(_shipped(kind))}")
    path = Path(reference)
    shipped = _root()[0]
    parts = path.parts[1:] if path.parts[:1] == ("configs",) else path.parts
    for candidate in (path, shipped.joinpath(*parts), shipped / kind / path, shipped / kind / f"{path}.yaml"):
        if candidate.is_file():
            return candidate
    raise HusaiError(
        f"config {reference}: no such file, and no shipped config of that name; shipped are {', '.join(_shipped(kind))}"
    )


def _shipped(kind: str) -> list[str]:
    return sorted(file.stem for file in (_root()[0] / kind).glob("*.yaml"))
