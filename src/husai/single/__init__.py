"""One SAE run from a command."""

from husai.single.run import estimate_single, train_single
from husai.single.source import Request

__all__ = ["Request", "estimate_single", "train_single"]
