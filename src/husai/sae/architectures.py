"""The one list of architectures."""

from typing import Any

from husai.sae import relu, topk
from husai.sae.base import Architecture, SAEKind

ARCHITECTURES: dict[str, Any] = {"topk": topk, "relu": relu}


def architecture_of(config: SAEKind) -> Architecture[Any]:
    """The functions that belong to a config."""
    return ARCHITECTURES[config.architecture]
