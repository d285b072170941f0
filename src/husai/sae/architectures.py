"""The one list of architectures."""

from typing import Any

from husai.config import SAEKind
from husai.sae.architecture import Architecture
from husai.sae.relu import ReLU
from husai.sae.topk import TopK

ARCHITECTURES: dict[str, type[Architecture[Any]]] = {"topk": TopK, "relu": ReLU}


def architecture_of(config: SAEKind) -> Architecture[Any]:
    """The functions that belong to a config."""
    return ARCHITECTURES[config.architecture](config)
