"""HUSAI: the ground-truth benchmark suite for the stability of sparse autoencoders."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from husai.activations import extract
    from husai.api import Score, compute_fourier_overlap, compute_pwmcc, score
    from husai.errors import HusaiError
    from husai.runs import load_model
    from husai.sae.weights import load_sae
    from husai.tasks import Task
    from husai.transformer.weights import to_transformer_lens
    from husai.truth.circuit import verify
    from husai.truth.fourier import get_fourier_basis
    from husai.truth.planes import find_truth

_EXPORTS = {
    "HusaiError": "husai.errors",
    "Score": "husai.api",
    "Task": "husai.tasks",
    "compute_fourier_overlap": "husai.api",
    "compute_pwmcc": "husai.api",
    "extract": "husai.activations",
    "find_truth": "husai.truth.planes",
    "get_fourier_basis": "husai.truth.fourier",
    "load_model": "husai.runs",
    "load_sae": "husai.sae.weights",
    "score": "husai.api",
    "to_transformer_lens": "husai.transformer.weights",
    "verify": "husai.truth.circuit",
}

__all__ = [
    "HusaiError",
    "Score",
    "Task",
    "compute_fourier_overlap",
    "compute_pwmcc",
    "extract",
    "find_truth",
    "get_fourier_basis",
    "load_model",
    "load_sae",
    "score",
    "to_transformer_lens",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Exports load on first use, so that `import husai` and `husai --help` stay fast."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'husai' has no attribute '{name}'")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
