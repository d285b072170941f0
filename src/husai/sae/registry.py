"""Training classes that SAELens knows: found by name, checked, given their settings. (docs/bring_your_own.md)"""

import importlib
import math
import os
import sys
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from husai.config import SAE_CONFIGS, RegisteredConfig
from husai.errors import HusaiError

OWN = "saelens"  # before the colon: SAELens' own class of that name
METHODS = (
    *("training_forward_pass", "get_coefficients", "process_state_dict_for_saving_inference"),
    *("named_parameters", "named_buffers", "state_dict", "load_state_dict"),
)
TAKEN = {  # what is not for settings to say
    "d_in": "the activations' width",
    "d_sae": "sae.d_sae",
    "dtype": "float32",
    "device": "--device",
    "metadata": "written by training",
    "reshape_activations": "none, since activations are flat here",
}
ELSEWHERE = ("expected_average_only_in", "covariance_whitening")  # SAELens' trainer does these, not the class


class Found(NamedTuple):
    """A training class and its config class."""

    name: str
    training: type[Any]
    config: type[Any]


def find(name: str) -> Found:
    """The class that an architecture's name means, checked. Raises HusaiError if there is none, or it lacks a method."""
    from sae_lens.registry import SAE_CLASS_REGISTRY
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY as KNOWN

    module_name, colon, wanted = name.rpartition(":")
    if not colon or module_name == OWN:
        if wanted not in KNOWN:
            known = ", ".join(sorted(KNOWN))
            if wanted in SAE_CLASS_REGISTRY:
                what = "SAELens runs such SAEs but does not train them"
                raise HusaiError(f"architecture '{name}': {what}; of SAELens' classes allowed are {known}")
            ours = "" if colon else f"{', '.join(SAE_CONFIGS)}; "
            raise HusaiError(
                f"architecture '{name}': must be one of {ours}the names registered with SAELens ({known}); or "
                "package.module:Class"
            )
        return _checked(Found(name, *KNOWN[wanted]))
    module = import_module(module_name, f"architecture '{name}'")
    named = getattr(module, wanted, None)
    if not isinstance(named, type):
        if wanted in KNOWN:
            return _checked(Found(name, *KNOWN[wanted]))
        raise HusaiError(
            f"architecture '{name}': {module_name} has no class '{wanted}' and registers none of that name"
        )
    for training, config in KNOWN.values():
        if training is named:
            return _checked(Found(name, training, config))
    raise HusaiError(
        f"architecture '{name}': is not registered with SAELens; {module_name} must call "
        f"sae_lens.register_sae_training_class(name, {wanted}, its config class)"
    )


def import_module(name: str, what: str) -> Any:
    """A module, which may lie in the working folder. Raises HusaiError, saying that `what` wanted it."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(name)
    except Exception as error:  # a module may fail in any way while it is imported
        raise HusaiError(f"{what}: module {name} cannot be imported ({error.__class__.__name__}: {error})") from error


def _checked(found: Found) -> Found:
    """Raises HusaiError naming what a class lacks."""
    lacking = sorted(getattr(found.training, "__abstractmethods__", ()))
    lacking += [method for method in METHODS if not callable(getattr(found.training, method, None))]
    if lacking:
        raise HusaiError(
            f"architecture '{found.name}': {found.training.__name__} lacks {', '.join(lacking)}; "
            "a training class is a subclass of sae_lens.TrainingSAE with every method of it"
        )
    if not is_dataclass(found.config) or not callable(getattr(found.config, "get_inference_sae_cfg_dict", None)):
        raise HusaiError(
            f"architecture '{found.name}': its config class {found.config.__name__} must be a dataclass that derives from "
            "sae_lens.TrainingSAEConfig"
        )
    return found


def require_settings(found: Found, config: RegisteredConfig) -> None:
    """Raises HusaiError for a setting that the config class does not have, or that is not for it to say."""
    known = [field.name for field in fields(found.config) if field.init and field.name not in TAKEN]
    for key, value in config.settings.items():
        if key in TAKEN:
            raise HusaiError(f"'sae.settings.{key}': is no setting; it is {TAKEN[key]}")
        if key not in known:
            raise HusaiError(
                f"unknown key 'sae.settings.{key}': {found.config.__name__} has {', '.join(known) or 'no settings'}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise HusaiError(f"'sae.settings.{key}': is {value}; it must be a finite number")
        if key == "k" and isinstance(value, int | float) and not value > 0:
            raise HusaiError(f"'sae.settings.k': is {value}; it must be above 0")
        if key == "normalize_activations" and value in ELSEWHERE:
            raise HusaiError(f"'sae.settings.{key}': '{value}' is done by SAELens' trainer; use training.normalise")
    if config.dial is not None and config.dial not in config.settings:
        raise HusaiError(f"'sae.dial': '{config.dial}' is not among sae.settings ({', '.join(config.settings)})")


def build(found: Found, config: RegisteredConfig, d_in: int) -> Any:
    """A module of the class, drawn from the global stream. Raises HusaiError if it cannot be made."""
    try:
        given = found.config(d_in=d_in, d_sae=config.d_sae, dtype="float32", device="cpu", **config.settings)
    except KeyError as error:
        raise HusaiError(
            f"architecture '{config.architecture}': SAELens has no class to save it as (KeyError: {error}); call "
            "sae_lens.register_sae_class, or let get_inference_config_class name the config of one that it has"
        ) from error
    except Exception as error:  # whatever a config class asserts
        raise HusaiError(
            f"architecture '{config.architecture}': {found.config.__name__} does not take sae.settings "
            f"({error.__class__.__name__}: {error})"
        ) from error
    try:
        return found.training(given)
    except Exception as error:  # whatever its code raises
        raise HusaiError(
            f"architecture '{config.architecture}': {found.training.__name__} cannot be made with these settings "
            f"({error.__class__.__name__}: {error})"
        ) from error
