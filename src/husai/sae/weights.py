"""SAEs on disk: SAELens folders, written and read; folders of other formats, read. No pickle is ever executed."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from husai.activations import Normaliser
from husai.config import SAE_CONFIGS, BaseSAEConfig, KConfig
from husai.errors import HusaiError
from husai.sae.architecture import Architecture
from husai.sae.architectures import ARCHITECTURES, architecture_of
from husai.sae.dictionary import Dictionary, SAEEnsemble, as_dictionary, behind, of_sae_lens
from husai.sae.foreign import load_dictionary_learning, load_sparsify
from husai.sae.formats import DICTIONARY_LEARNING, SAE_LENS, SPARSIFY, format_of, require_finite
from husai.sae.params import Params
from husai.sae.registered import Registered, Saved
from husai.store.checksums import require_intact

CONFIG, WEIGHTS = SAE_LENS.config, SAE_LENS.weights
NORMALISER = "husai_normaliser"  # metadata: what inputs go through first, where the weights could not take it in
CONSTANT_NORM = "constant_norm_rescale"  # SAELens' name for samples that are each scaled to norm √d
OTHERS = {SPARSIFY: load_sparsify, DICTIONARY_LEARNING: load_dictionary_learning}
READ = {kind.saelens: name for name, kind in reversed(ARCHITECTURES.items())}  # SAELens' names, as ours


def save_sae(ensemble: SAEEnsemble, index: int, folder: Path, meta: dict[str, Any]) -> None:
    """Write one seed as a SAELens folder that `sae_lens.SAE.load_from_disk` opens.

    meta: what is known beside the config (model_name, hook_name, …); it lands in the folder's metadata.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kind, architecture = ensemble.config, architecture_of(ensemble.config)
    if isinstance(architecture, Registered):
        tensors, keys, note = _of_sae_lens(architecture.finished(ensemble.params, index, ensemble.normaliser))
    else:
        own = {name: value[index].float().contiguous() for name, value in ensemble.params.items()}
        (tensors, keys), note = architecture.export(own), {}
    save_file(tensors, folder / WEIGHTS)
    config: dict[str, Any] = {
        "architecture": architecture.saelens,
        "d_in": ensemble.params.W_enc.shape[1],
        "d_sae": kind.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": kind.centred(),
        "normalize_activations": CONSTANT_NORM if ensemble.constant_norm else "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": version("sae-lens"),
            "sae_lens_training_version": version("sae-lens"),
            "husai_config": kind.model_dump(mode="json"),
            "init_seed": ensemble.init_seeds[index],
            "data_seed": ensemble.data_seeds[index],
            **note,
            **meta,
        },
        **({} if kind.centred() else {"d_out": ensemble.params.W_dec.shape[2]}),
        **keys,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _of_sae_lens(saved: Saved) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Weights, config keys and metadata of an SAE that SAELens runs, as it saves them itself."""
    tensors = saved.sae.state_dict()
    saved.sae.process_state_dict_for_saving(tensors)
    tensors = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    keys = saved.sae.cfg.to_dict()
    note = {name: value for name, value in keys.pop("metadata").items() if name.startswith("training_")}
    if saved.normaliser is not None:
        note[NORMALISER] = _described(saved.normaliser)
    return tensors, keys, note


def _described(normaliser: Normaliser) -> dict[str, Any]:
    """As plain data, exact."""
    scale = normaliser.scale.tolist() if isinstance(normaliser.scale, Tensor) else normaliser.scale
    return {"mean": normaliser.mean.tolist(), "scale": scale, "constant_norm": normaliser.each}


def _normaliser(note: Any, where: Path, d_in: int) -> Normaliser | None:
    """What a folder's metadata say its inputs go through first. Raises HusaiError if that cannot be read."""
    if note is None:
        return None
    try:
        mean, scale = torch.tensor(note["mean"]), torch.tensor(note["scale"])
        assert mean.shape == (d_in,)
        assert scale.shape in ((), (d_in,))
        assert bool(mean.isfinite().all() and scale.isfinite().all() and (scale > 0).all())
        return Normaliser(mean, scale if scale.ndim else float(note["scale"]), bool(note["constant_norm"]))
    except (KeyError, TypeError, ValueError, AssertionError):
        raise HusaiError(
            f"{where}: metadata.{NORMALISER} must hold mean (d_in numbers), scale (one above 0, or d_in) and constant_norm"
        ) from None


def load_sae(folder: str | Path) -> Dictionary:
    """Open a folder of SAELens, sparsify or dictionary_learning as a Dictionary, whoever wrote it.

    Architectures that are trained here are read directly if their settings are plain; every other architecture or setting
    goes through SAELens itself. Raises HusaiError if the folder is missing, incomplete, truncated, of unknown architecture, or
    not as its run wrote it.
    """
    folder = Path(folder)
    kind = format_of(folder)
    require_intact(folder / kind.weights, folder / kind.config)
    if read := OTHERS.get(kind):
        return read(folder)
    config = _read_config(folder)
    normaliser = _normaliser(config["metadata"].get(NORMALISER), folder / CONFIG, config["d_in"])
    return behind(normaliser, _load(folder, config))


def _load(folder: Path, config: dict[str, Any]) -> Dictionary:
    """The dictionary that the weights are."""
    meta = {**config["metadata"], "architecture": config["architecture"]}
    kind = _kind(config)
    plain = (
        kind is not None
        and config.get("apply_b_dec_to_input", True) == kind.centred()
        and config.get("normalize_activations", "none") in ("none", CONSTANT_NORM)
        and config.get("reshape_activations", "none") == "none"
        and not config.get("rescale_acts_by_decoder_norm", False)
        and config.get("dtype", "float32") == "float32"
    )
    if not plain:
        return _through_sae_lens(folder, meta)
    architecture = _architecture(config, folder / CONFIG)
    shapes = _shapes(architecture, config["d_in"], config["d_sae"], config.get("d_out", config["d_in"]))
    try:
        tensors = load_file(folder / WEIGHTS)
        found = {name: tensors[name] for name in shapes}
    except FileNotFoundError:
        raise HusaiError(f"{folder}: has no {WEIGHTS}") from None
    except KeyError as error:
        raise HusaiError(f"{folder / WEIGHTS}: has no tensor {error}; expected {', '.join(shapes)}") from None
    except (SafetensorError, OSError, ValueError):
        raise HusaiError(f"{folder / WEIGHTS}: is not a complete safetensors file; it may be truncated") from None
    for name, value in found.items():
        if value.shape != shapes[name]:
            raise HusaiError(
                f"{folder / WEIGHTS}: {name} has shape {tuple(value.shape)}; {CONFIG} says {tuple(shapes[name])}"
            )
    require_finite(found, folder / WEIGHTS)
    params = architecture.restore(found).map(lambda value: value[None])
    stated = {name: meta.get(name) for name in ("init_seed", "data_seed")}
    seeds = {name: seed if isinstance(seed, int) else 0 for name, seed in stated.items()}
    known: dict[str, object] = {"architecture": architecture.config.architecture}
    known |= dict([architecture.config.sparsity])
    each = config.get("normalize_activations") == CONSTANT_NORM
    return as_dictionary(params, architecture, known | seeds | meta, constant_norm=each)


def _kind(config: dict[str, Any]) -> type[BaseSAEConfig] | None:
    """The config of what SAELens' architecture is here; None for one that is not trained here."""
    return SAE_CONFIGS.get(READ.get(str(config.get("architecture")), ""))


def _shapes(architecture: Architecture, d_in: int, d_sae: int, d_out: int) -> dict[str, torch.Size]:
    """What a folder of this architecture must hold."""
    four = (torch.empty(1, *shape, device="meta") for shape in ((d_in, d_sae), (d_sae,), (d_sae, d_out), (d_out,)))
    W_enc, b_enc, W_dec, b_dec = four
    one = architecture.init(Params(W_enc, b_enc, W_dec, b_dec)).map(lambda value: value[0])
    return {name: value.shape for name, value in architecture.export(dict(one.items()))[0].items()}


def _architecture(config: dict[str, Any], where: Path) -> Architecture:
    """d_sae and k as the folder states them, as SAELens reads it; our own folders also say how they were trained."""
    known, name = config["metadata"].get("husai_config"), READ[config["architecture"]]
    fields = {key: config[key] for key in ("d_sae", "k", "group_size") if key in config}
    if (
        isinstance(known, dict)
        and getattr(ARCHITECTURES.get(str(known.get("architecture"))), "saelens", None) == config["architecture"]
    ):
        name, fields = known["architecture"], known | fields
    kind = SAE_CONFIGS[name]
    return architecture_of(
        kind.parse({key: value for key, value in fields.items() if key in kind.model_fields}, str(where))
    )


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
    kind = _kind(config)
    of_k, paired = kind is not None and issubclass(kind, KConfig), kind is not None and not kind.centred()
    sizes = ("d_in", "d_sae", *(("d_out",) if paired else ()))
    for key in ("architecture", *sizes, *(("k",) if of_k else ())):
        if key not in config:
            raise HusaiError(f"{folder / CONFIG}: key '{key}' is missing")
    if not isinstance(config["architecture"], str):
        raise HusaiError(f"{folder / CONFIG}: 'architecture' must be a name, got {config['architecture']!r}")
    for key in sizes:
        if not isinstance(config[key], int) or config[key] < 1:
            raise HusaiError(f"{folder / CONFIG}: '{key}' must be a whole number of at least 1, got {config[key]!r}")
    return config


def _through_sae_lens(folder: Path, meta: dict[str, Any]) -> Dictionary:
    """Any other SAELens folder, run by SAELens."""
    import sae_lens
    from sae_lens.registry import SAE_CLASS_REGISTRY as KNOWN

    if meta["architecture"] not in KNOWN:
        raise HusaiError(
            f"{folder}: architecture '{meta['architecture']}' is not registered with SAELens; import the module that registers "
            f"it first (husai sae score --import MODULE); known are {', '.join(sorted(KNOWN))}"
        )
    try:
        sae = sae_lens.SAE.load_from_disk(folder)
    except Exception as error:  # SAELens raises many kinds; all mean that this folder cannot be opened
        raise HusaiError(f"{folder}: SAELens cannot open it ({error.__class__.__name__}: {error})") from None
    require_finite(sae.state_dict(), folder / WEIGHTS)
    return of_sae_lens(sae, meta)
