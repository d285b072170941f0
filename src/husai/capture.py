"""Activations of any TransformerLens model, brought into a store. (docs/method.md §Activation stores)"""

import contextlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from husai.errors import HusaiError
from husai.recurrent.model import Recurrent
from husai.resources import reference_names
from husai.runs import load_model
from husai.seeding import generator
from husai.shards import ROWS_PER_SHARD, Store, StoreWriter, open_store, read_file
from husai.tasks import Task
from husai.transformer.weights import to_transformer_lens

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.pt", "model.pth")


class Request(NamedTuple):
    """What a command asked for.

    tokens: a text file, or a `.pt` or `.safetensors` file of token ids (n,) or (n, seq); None: tokens drawn with `seed`
    (of a model of this project: rows of its task's grid). position: the only one that is kept; None: all.
    """

    model: str
    hook: str
    layer: int | None
    batches: int
    batch_size: int
    out: Path
    tokens: Path | None = None
    seq_len: int | None = None
    position: int | None = None
    seed: int = 0
    rows_per_shard: int = ROWS_PER_SHARD
    dtype: str = "float32"
    device: str = "cpu"


class Subject(NamedTuple):
    """A model to be read; task: what its inputs are, if it is one of ours."""

    model: "HookedTransformer"
    name: str
    task: Task | None = None
    layout: str = ""


def capture(request: Request) -> Store:
    """Run the model batch by batch and write what is at the hook, (batch, seq, d) flattened, beside token and position.

    Raises HusaiError for a model, hook or tokens that cannot be used, and as `StoreWriter`.
    """
    subject = open_subject(request.model, request.device)
    hook = resolve(subject.model, request.hook, request.layer)
    tokens = inputs(subject, request)
    length = tokens.shape[1]
    if request.position is not None and not -length <= request.position < length:
        raise HusaiError(f"position: {request.position} does not exist; the input has positions 0 to {length - 1}")
    of = {
        "model_name": subject.name,
        "hook_name": hook,
        "tokens": str(request.tokens) if request.tokens else f"drawn with seed {request.seed}",
        "seq_len": length,
        "position": request.position,
    }
    kept = torch.arange(length) if request.position is None else torch.tensor([request.position % length])
    with StoreWriter(request.out, of, rows_per_shard=request.rows_per_shard, dtype=request.dtype) as writer:
        for batch in tokens.split(request.batch_size):
            x = _at(subject.model, hook, batch.to(request.device))[:, kept.to(request.device)]
            places = kept.expand(len(batch), -1)
            writer.append(x.flatten(0, 1).cpu(), token=batch[:, kept].flatten(), position=places.flatten().contiguous())
    return open_store(request.out)


def _at(model: "HookedTransformer", hook: str, tokens: Int[Tensor, "batch seq"]) -> Tensor:
    """(batch, seq, d) at a hook; heads are flattened. The rest of the model is not run."""
    found: list[Tensor] = []
    layer = int(hook.split(".")[1]) + 1 if hook.startswith("blocks.") else None
    with torch.no_grad():
        model.run_with_hooks(
            tokens,
            return_type=None,
            stop_at_layer=layer,
            fwd_hooks=[(hook, lambda value, hook: found.append(value))],  # TransformerLens passes `hook` by name
        )
    if not found:
        raise HusaiError(f"hook {hook}: the model does not pass through it")
    x = found[0].flatten(2) if found[0].ndim > 3 else found[0]
    if x.ndim != 3 or x.shape[:2] != tokens.shape or hook.endswith(("pattern", "attn_scores")):
        raise HusaiError(f"hook {hook}: has shape {tuple(found[0].shape)}, which is not one vector a position")
    return x


def resolve(model: "HookedTransformer", hook: str, layer: int | None) -> str:
    """The full name of a hook point; short names (resid_post) are of `layer`, or the last. Raises HusaiError."""
    layers = model.cfg.n_layers
    if layer is not None and not -layers <= layer < layers:
        raise HusaiError(f"layer: {layer} does not exist; the model has layers 0 to {layers - 1}")
    block = f"blocks.{(layers - 1 if layer is None else layer) % layers}"
    for name in (hook, f"{block}.hook_{hook}", f"{block}.attn.hook_{hook}", f"{block}.mlp.hook_{hook}", f"hook_{hook}"):
        if name in model.hook_dict:
            return name
    short = sorted({name.rsplit("hook_", 1)[1] for name in model.hook_dict if name.startswith(block)})
    raise HusaiError(f"hook: '{hook}' does not exist; short names are {', '.join(short)}")


def open_subject(reference: str, device: str) -> Subject:
    """The model that a name or folder means.

    A folder with config.json is read as TransformerLens' own (HookedTransformerConfig's keys, weights beside it) or as
    Hugging Face's; a MODEL of this project as everywhere else; any other name is asked of TransformerLens, which needs
    the network or a filled cache. Raises HusaiError if it cannot be opened.
    """
    path = Path(reference)
    with contextlib.redirect_stdout(io.StringIO()):  # TransformerLens prints what it moves where
        return _opened(reference, path, device)


def _opened(reference: str, path: Path, device: str) -> Subject:
    if (path / CONFIG).is_file():
        return Subject(_from_folder(path, device), path.resolve().name)
    if path.exists() or reference in reference_names():
        loaded = load_model(reference)
        if isinstance(loaded.model, Recurrent) or not isinstance(loaded.task, Task):
            raise HusaiError(
                f"model {reference}: is a recurrent network; `husai activations extract` writes its hidden states"
            )
        hooked = to_transformer_lens(loaded.model).to(device)
        return Subject(hooked, loaded.model.name, loaded.task, loaded.model.layout)
    return Subject(_pretrained(reference, device), reference)


def _pretrained(name: str, device: str) -> "HookedTransformer":
    """By TransformerLens, weights as they are (nothing folded or centred)."""
    from transformer_lens import HookedTransformer

    try:
        return HookedTransformer.from_pretrained_no_processing(name, device=device)
    except Exception as error:  # whatever the hub, its cache and the conversion raise means the same
        what = " ".join(str(error).split())[:200]
        raise HusaiError(f"model {name}: TransformerLens cannot load it ({error.__class__.__name__}: {what})") from None


def _hugging_face(folder: Path, device: str) -> "HookedTransformer":
    """A folder that `save_pretrained` wrote, weights as they are; its tokenizer, if there is one, comes along."""
    from transformer_lens import HookedTransformer, loading_from_pretrained
    from transformers import AutoTokenizer

    try:
        config = loading_from_pretrained.get_pretrained_model_config(str(folder), device=device)
        state = loading_from_pretrained.get_pretrained_state_dict(str(folder), config)
        known = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
        tokenizer = AutoTokenizer.from_pretrained(folder) if known else None
        model = HookedTransformer(config, tokenizer)
        model.load_and_process_state_dict(
            state,
            fold_ln=False,
            center_writing_weights=False,
            center_unembed=False,
            fold_value_biases=False,
            refactor_factored_attn_matrices=False,
        )
    except Exception as error:  # whatever is missing or unknown in the folder
        what = " ".join(str(error).split())[:200]
        raise HusaiError(
            f"{folder}: TransformerLens cannot load it as a Hugging Face model ({error.__class__.__name__}: {what})"
        ) from None
    return model.eval()


def _from_folder(folder: Path, device: str) -> "HookedTransformer":
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    try:
        keys = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        assert isinstance(keys, dict)
    except (OSError, ValueError, AssertionError):
        raise HusaiError(f"{folder / CONFIG}: is not a mapping in JSON") from None
    if "d_head" not in keys:  # HookedTransformerConfig cannot do without; Hugging Face's configs do not have it
        return _hugging_face(folder, device)
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise HusaiError(f"{folder}: holds no weights ({', '.join(WEIGHTS)})")
    try:
        model = HookedTransformer(HookedTransformerConfig.from_dict({**keys, "device": device}))
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        raise HusaiError(f"{folder / CONFIG}: is no HookedTransformerConfig ({' '.join(str(error).split())})") from None
    buffers = {name: value for name, value in model.state_dict().items() if name.endswith((".mask", ".IGNORE"))}
    try:
        model.load_state_dict({**buffers, **read_file(weights)})
    except RuntimeError as error:
        raise HusaiError(f"{weights}: does not fit {CONFIG} ({' '.join(str(error).split())[:200]})") from None
    return model.eval()


def inputs(subject: Subject, request: Request) -> Int[Tensor, "rows seq"]:
    """Token ids of all batches. Raises HusaiError if there are too few, or some that the model does not know."""
    wanted, config = request.batches * request.batch_size, subject.model.cfg
    if request.tokens is not None:
        tokens = _cut(_read_tokens(request.tokens, subject), request.seq_len or config.n_ctx, request.tokens)
    elif subject.task is not None:
        grid = subject.task.tokens(subject.layout)  # pyright: ignore[reportArgumentType]
        tokens = grid[torch.randint(len(grid), (wanted,), generator=generator("capture", request.seed))]
    else:
        shape = (wanted, request.seq_len or config.n_ctx)
        tokens = torch.randint(config.d_vocab, shape, generator=generator("capture", request.seed))
    if len(tokens) < wanted:
        raise HusaiError(
            f"{request.tokens}: holds {len(tokens)} sequences of {tokens.shape[1]} tokens; {request.batches} batches of "
            f"{request.batch_size} take {wanted}"
        )
    tokens = tokens[:wanted]
    if tokens.shape[1] > config.n_ctx:
        raise HusaiError(f"--seq-len {tokens.shape[1]}: exceeds the model's context of {config.n_ctx}")
    if int(tokens.min()) < 0 or int(tokens.max()) >= config.d_vocab:
        raise HusaiError(
            f"{request.tokens}: has token ids from {int(tokens.min())} to {int(tokens.max())}; the model knows 0 to "
            f"{config.d_vocab - 1}"
        )
    return tokens


def _cut(tokens: Tensor, length: int, path: Path) -> Int[Tensor, "rows seq"]:
    """Sequences as they are, if the file has any; a stream is cut into pieces of `length`."""
    if tokens.ndim == 2:
        return tokens[:, :length]
    if len(tokens) < length:
        raise HusaiError(f"{path}: holds {len(tokens)} tokens, less than one sequence of {length}; lower --seq-len")
    return tokens[: len(tokens) // length * length].view(-1, length)


def _read_tokens(path: Path, subject: Subject) -> Int[Tensor, "..."]:
    if not path.is_file():
        raise HusaiError(f"{path}: no such file")
    if path.suffix in (".safetensors", ".pt", ".pth"):
        found = [v for v in read_file(path).values() if not v.is_floating_point() and v.dtype != torch.bool]
        if len(found) != 1 or found[0].ndim not in (1, 2) or found[0].numel() == 0:
            raise HusaiError(f"{path}: must hold one tensor of whole numbers, (n,) or (n, seq)")
        return found[0].long()
    if subject.model.tokenizer is None:
        raise HusaiError(
            f"{path}: model {subject.name} has no tokenizer for text; give token ids (.pt or .safetensors)"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise HusaiError(f"{path}: is not text in UTF-8") from None
    return torch.as_tensor(subject.model.tokenizer(text)["input_ids"])
