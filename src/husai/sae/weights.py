"""SAEs on disk: SAELens folders, written and read. No pickle is ever involved."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from husai.config import ReLUConfig, TopKConfig
from husai.errors import HusaiError
from husai.sae.base import Dictionary, Params, SAEEnsemble, SAEKind

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SAELENS_NAMES = {"topk": "topk", "relu": "standard"}


def save_sae(ensemble: SAEEnsemble, index: int, folder: Path, meta: dict[str, Any]) -> None:
    """Write one seed as a SAELens folder that `sae_lens.SAE.load_from_disk` opens.

    meta: what is known beside the config (model_name, hook_name, …); it lands in the folder's metadata.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kind, params = ensemble.config, ensemble.params
    tensors = {name: value[index].float().contiguous() for name, value in params._asdict().items()}
    save_file(tensors, folder / WEIGHTS)
    config: dict[str, Any] = {
        "architecture": SAELENS_NAMES[kind.architecture],
        "d_in": params.W_enc.shape[1],
        "d_sae": kind.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": version("sae-lens"),
            "sae_lens_training_version": version("sae-lens"),
            "husai_config": kind.model_dump(mode="json"),
            "init_seed": ensemble.init_seeds[index],
            "data_seed": ensemble.data_seeds[index],
            **meta,
        },
    }
    if isinstance(kind, TopKConfig):
        config |= {"k": kind.k, "rescale_acts_by_decoder_norm": False}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_sae(folder: str | Path) -> Dictionary:
    """Open a SAELens folder as a Dictionary, whoever wrote it.

    TopK and standard (ReLU) SAEs with plain settings are read directly; every other architecture or setting goes
    through SAELens itself. Raises HusaiError if the folder is missing, incomplete, truncated or of unknown architecture.
    """
    folder = Path(folder)
    config = _read_config(folder)
    meta = {**config["metadata"], "architecture": config["architecture"]}
    plain = (
        config.get("apply_b_dec_to_input", True)
        and config.get("normalize_activations", "none") == "none"
        and config.get("reshape_activations", "none") == "none"
        and not config.get("rescale_acts_by_decoder_norm", False)
        and config["architecture"] in SAELENS_NAMES.values()
        and config.get("dtype", "float32") == "float32"
    )
    if not plain:
        return _through_sae_lens(folder, meta)
    try:
        tensors = load_file(folder / WEIGHTS)
        params = Params(*(tensors[name][None] for name in Params._fields))
    except FileNotFoundError:
        raise HusaiError(f"{folder}: has no {WEIGHTS}") from None
    except KeyError as error:
        raise HusaiError(f"{folder / WEIGHTS}: has no tensor {error}; expected {', '.join(Params._fields)}") from None
    except (SafetensorError, OSError, ValueError):
        raise HusaiError(f"{folder / WEIGHTS}: is not a complete safetensors file; it may be truncated") from None
    expected = Params(*(value[None] for value in _empty(config["d_in"], config["d_sae"])))
    for name, value, wanted in zip(Params._fields, params, expected, strict=True):
        if value.shape != wanted.shape:
            raise HusaiError(
                f"{folder / WEIGHTS}: {name} has shape {tuple(value.shape[1:])}; {CONFIG} says {tuple(wanted.shape[1:])}"
            )
    seeds = (int(meta.get("init_seed") or 0),), (int(meta.get("data_seed") or 0),)
    return SAEEnsemble(params, _kind(config, folder / CONFIG), *seeds).member(0, meta)


def _empty(d_in: int, d_sae: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty(d_in, d_sae), torch.empty(d_sae), torch.empty(d_sae, d_in), torch.empty(d_in)


def _kind(config: dict[str, Any], where: Path) -> SAEKind:
    """d_sae and k as the folder states them, as SAELens reads it; our own folders also say how they were trained."""
    known = config["metadata"].get("husai_config")
    ours = isinstance(known, dict) and SAELENS_NAMES.get(str(known.get("architecture"))) == config["architecture"]
    kind, stands = (TopKConfig, ("d_sae", "k")) if config["architecture"] == "topk" else (ReLUConfig, ("d_sae",))
    stated = {key: config[key] for key in stands}
    return kind.parse({**(known if ours else {}), **stated}, str(where))


def _read_config(folder: Path) -> dict[str, Any]:
    """The folder's config; its metadata are a mapping, maybe empty."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise HusaiError(f"{folder}: is not a SAELens folder (no {CONFIG})") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        raise HusaiError(f"{folder / CONFIG}: is not valid JSON") from None
    if not isinstance(config, dict) or not isinstance(config.setdefault("metadata", {}), dict):
        raise HusaiError(f"{folder / CONFIG}: it and its 'metadata' must be mappings of keys to values")
    for key in ("architecture", "d_in", "d_sae", "k"):
        if key not in config and (key != "k" or config["architecture"] == "topk"):
            raise HusaiError(f"{folder / CONFIG}: key '{key}' is missing")
    for key in ("d_in", "d_sae"):
        if not isinstance(config[key], int) or config[key] < 1:
            raise HusaiError(f"{folder / CONFIG}: '{key}' must be a whole number of at least 1, got {config[key]!r}")
    return config


def _through_sae_lens(folder: Path, meta: dict[str, Any]) -> Dictionary:
    """Any other SAELens folder, run by SAELens."""
    import sae_lens

    try:
        sae = sae_lens.SAE.load_from_disk(folder)
    except Exception as error:  # SAELens raises many kinds; all mean that this folder cannot be opened
        raise HusaiError(f"{folder}: SAELens cannot open it ({error.__class__.__name__}: {error})") from None
    with torch.no_grad():
        weights = sae.W_dec.detach().float().clone()
        if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):  # its codes carry the norms already
            weights = F.normalize(weights, dim=-1)

    def encode(x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([sae.encode(part) for part in x.split(8192)]).float()

    def decode(codes: Tensor) -> Tensor:
        with torch.no_grad():
            return sae.decode(codes).float()

    return Dictionary(weights, encode, decode, meta)
