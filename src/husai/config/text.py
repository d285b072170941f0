"""YAML as plain data, bounded before anything is built: no tags, no aliases that multiply, no numbers without end."""

import re
from pathlib import Path
from typing import Any

import yaml

from husai.errors import HusaiError

MOST_BYTES = 2**20
MOST_VALUES = 200_000  # with every alias written out
MOST_LEVELS = 60
MOST_DIGITS = 100
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufeff]")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file. Raises HusaiError if it is missing, unreadable, too large, or not a mapping."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        text = content.decode()
    except FileNotFoundError:
        raise HusaiError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise HusaiError(f"{path}: cannot be read ({error.__class__.__name__})") from None
    if len(content) > MOST_BYTES:
        raise HusaiError(f"{path}: is larger than {MOST_BYTES} bytes, which no config is")
    data = parse_yaml(text, f"{path}:")
    if not isinstance(data, dict):
        raise HusaiError(f"{path}: must hold a mapping of keys to values")
    return data


def parse_yaml(text: str, where: str) -> Any:
    """Plain data of one YAML document.

    Raises HusaiError, beginning with `where`, for what is not valid, has tags, has a key twice in one mapping, holds control
    characters, or would be larger than MOST_VALUES values, MOST_LEVELS levels or MOST_DIGITS digits of a whole number.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _require_bounded(node)
        return loader.construct_document(node)
    except HusaiError as error:
        raise HusaiError(f"{where} {error}") from None
    except RecursionError:
        raise HusaiError(f"{where} is nested more than {MOST_LEVELS} levels deep") from None
    except (yaml.YAMLError, ValueError) as error:  # PyYAML lets ValueError through, as of a date that there is not
        raise HusaiError(f"{where} is not valid YAML ({' '.join(str(error).split())})") from None


def _require_bounded(document: yaml.Node) -> None:
    """Raises HusaiError, without a place, unless the document is small when all its aliases are written out."""
    sizes: dict[int, int] = {}
    open_now: set[int] = set()

    def size(node: yaml.Node) -> int:
        """Values in a node; what an alias names is counted again, and walked once."""
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in open_now:
            raise HusaiError("holds an alias within what it stands for")
        open_now.add(id(node))
        if len(open_now) > MOST_LEVELS:
            raise HusaiError(f"is nested more than {MOST_LEVELS} levels deep")
        if isinstance(node, yaml.MappingNode):
            _require_different_keys(node)
            found = 1 + sum(size(key) + size(value) for key, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            found = 1 + sum(map(size, node.value))
        else:
            _require_plain(node)
            found = 1
        open_now.remove(id(node))
        sizes[id(node)] = found
        return found

    total = size(document)
    if total > MOST_VALUES:
        raise HusaiError(
            f"would hold {total:.3g} values with its aliases written out; a config has at most {MOST_VALUES}"
        )


def _require_different_keys(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value in seen:
            raise HusaiError(f"key '{key.value}' stands twice in one mapping (line {key.start_mark.line + 1})")
        if isinstance(key, yaml.ScalarNode):
            seen.add(key.value)


def _require_plain(node: yaml.Node) -> None:
    """Of one value."""
    text, line = str(node.value), node.start_mark.line + 1
    if found := CONTROL.search(text):
        raise HusaiError(f"holds the control character U+{ord(found[0]):04X} (line {line})")
    if node.tag.endswith(":int") and len(text) > MOST_DIGITS:
        raise HusaiError(f"holds a whole number of {len(text)} digits (line {line}); at most {MOST_DIGITS} are read")
