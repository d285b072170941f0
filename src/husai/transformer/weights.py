"""Transformer weights on disk: safetensors under TransformerLens names, and foreign TransformerLens state dicts.

No pickled code is ever run: `.pt` files are read with `weights_only=True`.
"""

import hashlib
import pickle
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from husai.errors import HusaiError
from husai.tasks import MIN_P, is_prime
from husai.transformer.model import EXTRA_TOKENS, N_LAYERS, N_TOKENS, Activation, Params, Transformer, n_layers

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

ABE_REQUIRED = ("embed.W_E", "pos_embed.W_pos", "unembed.W_U")
BLOCK_REQUIRED = ("attn.W_Q", "attn.W_K", "attn.W_V", "attn.W_O", "mlp.W_in", "mlp.W_out")
BUFFERS = ("mask", "IGNORE")


def save_weights(model: Transformer, path: Path) -> None:
    """Write the parameters as safetensors; layout, modulus and activation function go to the header."""
    metadata = {"layout": model.layout, "p": str(model.p), "act": model.act}
    save_file({name: value.contiguous() for name, value in model.params.items()}, path, metadata=metadata)


def weights_hash(model: Transformer) -> str:
    """12 hex digits that identify a model by what it computes, wherever it lies and whatever it is called."""
    return tensors_hash(model.params, "" if model.act == "relu" else model.act)


def tensors_hash(params: Params, prefix: str) -> str:
    """12 hex digits of what `prefix` says and of all tensors, as float32, with their names."""
    digest = hashlib.sha256(prefix.encode())
    for name in sorted(params):
        digest.update(name.encode())
        digest.update(params[name].float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name from `.safetensors`, or from a `.pt`/`.pth` state dict without running any pickled code.

    A checkpoint that holds its state dict under `model` or `state_dict` is unwrapped. Raises HusaiError if the file is
    missing, truncated, holds anything but tensors, or is a pickle with code in it.
    """
    if not path.is_file():
        raise HusaiError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError):
            raise HusaiError(f"{path}: is not a complete safetensors file; it may be truncated") from None
    if path.suffix not in (".pt", ".pth"):
        raise HusaiError(f"{path}: weights must be a .safetensors, .pt or .pth file")
    try:
        with warnings.catch_warnings():  # of pickle protocols, which the refusal below says better
            warnings.simplefilter("ignore")
            data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise HusaiError(
            f"{path}: is damaged, or a pickle that would run code when loaded; only plain tensors are read (weights_only=True)"
        ) from None
    except Exception:  # arbitrary bytes make the unpickler fail in arbitrary ways
        raise HusaiError(f"{path}: is not a complete PyTorch file; it may be truncated") from None
    for wrapper in ("model", "state_dict", "model_state_dict"):
        if isinstance(data, dict) and isinstance(data.get(wrapper), dict):
            data = data[wrapper]
    if not isinstance(data, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in data.items()):
        raise HusaiError(f"{path}: must hold a state dict of tensors")
    return data


def read_header(path: Path) -> dict[str, str]:
    """What the header of a safetensors file says beside its tensors; nothing for other files. Raises as `read_tensors`."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError):
        raise HusaiError(f"{path}: is not a complete safetensors file; it may be truncated") from None


def from_state_dict(
    state: dict[str, Tensor], where: str, *, act: Activation = "relu"
) -> tuple[Transformer, tuple[str, ...]]:
    """A Transformer from TransformerLens-named tensors, and the names that were ignored.

    Accepted are the two layouts of this project: one layer without LayerNorm over [a, b, =] with any width and number
    of heads and optional biases, and the two-layer `husai` layout. A state dict does not say what its activation
    function is: it is `act`. Raises HusaiError naming `where` and what is missing or of another shape.
    """
    layers = n_layers(state)
    layout = "husai" if "ln_final.w" in state or layers == 2 else "abe"
    required = (*ABE_REQUIRED, *(f"blocks.{i}.{name}" for i in range(N_LAYERS[layout]) for name in BLOCK_REQUIRED))
    missing = [name for name in required if name not in state]
    if missing:
        raise HusaiError(
            f"{where}: has no '{missing[0]}'; expected a TransformerLens state dict with "
            f"{N_LAYERS[layout]} layer(s) ({len(missing)} of {len(required)} tensors are missing)"
        )
    if layers != N_LAYERS[layout]:
        raise HusaiError(f"{where}: has {layers} layers; layout {layout} has {N_LAYERS[layout]}")
    for name in required:
        dimensions = 3 if ".attn." in name else 2
        if state[name].ndim != dimensions:
            raise HusaiError(
                f"{where}: '{name}' has shape {tuple(state[name].shape)}; expected {dimensions} dimensions"
            )
    known = set(_expected_shapes(state, layout))
    params = {name: state[name].detach().clone().float() for name in state if name in known}
    ignored = tuple(sorted(name for name in state if name not in known and name.rsplit(".", 1)[-1] not in BUFFERS))
    _check_shapes(params, layout, where)
    p = state["embed.W_E"].shape[0] - EXTRA_TOKENS[layout]
    if p < MIN_P or not is_prime(p):
        raise HusaiError(
            f"{where}: embed.W_E has {state['embed.W_E'].shape[0]} rows, so p would be {p} in layout {layout}; "
            f"p must be a prime of at least {MIN_P}"
        )
    if params["pos_embed.W_pos"].shape[0] < N_TOKENS[layout]:
        raise HusaiError(
            f"{where}: pos_embed.W_pos has {params['pos_embed.W_pos'].shape[0]} rows; "
            f"layout {layout} has {N_TOKENS[layout]} input tokens"
        )
    if params["unembed.W_U"].shape[1] < p:
        raise HusaiError(
            f"{where}: unembed.W_U has {params['unembed.W_U'].shape[1]} columns; at least p = {p} are needed"
        )
    return Transformer(params, layout, p, name=where, act=act), ignored


def _expected_shapes(state: dict[str, Tensor], layout: str) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter this layout can have, given the sizes that W_E, W_Q, W_in and W_U set."""
    vocabulary, d = state["embed.W_E"].shape
    shapes: dict[str, tuple[int, ...]] = {
        "embed.W_E": (vocabulary, d),
        "pos_embed.W_pos": (state["pos_embed.W_pos"].shape[0], d),
        "unembed.W_U": (d, state["unembed.W_U"].shape[-1]),
        "unembed.b_U": (state["unembed.W_U"].shape[-1],),
    }
    if layout == "husai":
        shapes |= {"ln_final.w": (d,), "ln_final.b": (d,)}
    for layer in range(N_LAYERS[layout]):
        block = f"blocks.{layer}"
        heads, d_head = state[f"{block}.attn.W_Q"].shape[0], state[f"{block}.attn.W_Q"].shape[-1]
        mlp = state[f"{block}.mlp.W_in"].shape[-1]
        shapes |= {f"{block}.attn.W_{s}": (heads, d, d_head) for s in "QKV"}
        shapes |= {f"{block}.attn.b_{s}": (heads, d_head) for s in "QKV"}
        shapes |= {f"{block}.attn.W_O": (heads, d_head, d), f"{block}.attn.b_O": (d,)}
        shapes |= {f"{block}.mlp.W_in": (d, mlp), f"{block}.mlp.b_in": (mlp,)}
        shapes |= {f"{block}.mlp.W_out": (mlp, d), f"{block}.mlp.b_out": (d,)}
        if layout == "husai":
            shapes |= {f"{block}.{ln}.{s}": (d,) for ln in ("ln1", "ln2") for s in "wb"}
    return shapes


def _check_shapes(params: Params, layout: str, where: str) -> None:
    for name, shape in _expected_shapes(params, layout).items():
        if name in params and tuple(params[name].shape) != shape:
            raise HusaiError(f"{where}: '{name}' has shape {tuple(params[name].shape)}; expected {shape}")


def load_weights(path: Path) -> tuple[Transformer, tuple[str, ...]]:
    """Read a weights file; see `read_tensors` and `from_state_dict` for what is accepted and raised.

    The activation function is the one a safetensors header names under `act`, else relu, as in every foreign file.
    Raises HusaiError also if that name is unknown, or a parameter holds NaN or infinity.
    """
    tensors = read_tensors(path)
    model, ignored = from_state_dict(tensors, str(path), act=_stored_act(path))
    if broken := [name for name, value in model.params.items() if not bool(value.isfinite().all())]:
        raise HusaiError(f"{path}: '{broken[0]}' holds NaN or infinity; weights must be finite")
    return model, ignored


def _stored_act(path: Path) -> Activation:
    """The activation function that the header of a readable weights file names; relu where it names none."""
    name = read_header(path).get("act", "relu")
    found = next((act for act in get_args(Activation) if act == name), None)
    if found is None:
        raise HusaiError(f"{path}: its header names act '{name}'; allowed are {', '.join(get_args(Activation))}")
    return found


def to_transformer_lens(model: Transformer) -> "HookedTransformer":
    """The same model as a TransformerLens HookedTransformer (biases that this model lacks are zero)."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    params = model.params
    heads, d, d_head = params["blocks.0.attn.W_Q"].shape
    hooked = HookedTransformer(
        HookedTransformerConfig(
            n_layers=model.n_layers,
            d_model=d,
            n_ctx=params["pos_embed.W_pos"].shape[0],
            d_head=d_head,
            n_heads=heads,
            d_mlp=params["blocks.0.mlp.W_in"].shape[1],
            d_vocab=params["embed.W_E"].shape[0],
            d_vocab_out=params["unembed.W_U"].shape[1],
            act_fn=model.act,
            normalization_type="LN" if "ln_final.w" in params else None,
            dtype=params["embed.W_E"].dtype,
            device="cpu",
        )
    )
    state = hooked.state_dict()
    zeros = {name: torch.zeros_like(value) for name, value in state.items() if ".b_" in name}
    buffers = {name: value for name, value in state.items() if name.rsplit(".", 1)[-1] in BUFFERS}
    hooked.load_state_dict(buffers | zeros | params)
    return hooked


def public_models() -> dict[str, str]:
    """The official name of every public model that TransformerLens lists, by each of its names."""
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES  # takes seconds, seldom needed

    return {name: own for own in OFFICIAL_MODEL_NAMES for name in (own, *MODEL_ALIASES.get(own, []))}
