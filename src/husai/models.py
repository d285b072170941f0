"""The kinds of model under study, and how each is trained, saved, read and named.

A transformer is read on the grid of a `Task`, a recurrent network on `Walks`. Either is samples of pairs (`a`, `b`) with
their `labels` in a `group`, so that little above this room needs to know which it has.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from husai.config import Recipe, RecurrentConfig, Trainable
from husai.errors import HusaiError
from husai.optimise import TrainedModel
from husai.recurrent.model import Recurrent, resolve_recurrent_hook
from husai.recurrent.train import train_recurrent
from husai.recurrent.walks import Walks
from husai.recurrent.weights import HEADER, from_tensors, recurrent_hash, save_recurrent
from husai.tasks import Task
from husai.transformer import weights as transformers
from husai.transformer.model import Transformer
from husai.transformer.model import resolve_hook as resolve_transformer_hook
from husai.transformer.train import train_transformer

Model = Transformer | Recurrent
Inputs = Task | Walks


def kind_of(config: Recipe) -> Literal["transformer", "recurrent"]:
    """The kind in the names of a run's weights files."""
    return "recurrent" if isinstance(config, RecurrentConfig) else "transformer"


def inputs_of(config: Recipe) -> Inputs:
    """What a model of this config is read on."""
    if isinstance(config, RecurrentConfig):
        return Walks(config.p, config.walks)
    return Task(config.task.op, config.task.p)


def train(
    config: Trainable,
    *,
    on_evaluation: Callable[[Any], None] = lambda _: None,
    on_checkpoint: Callable[[str, Model], None] = lambda _name, _model: None,
    device: str = "cpu",
) -> TrainedModel[Any, Any]:
    """Train the kind of model the config is of; see `train_transformer` and `train_recurrent`, which keeps no checkpoints."""
    if isinstance(config, RecurrentConfig):
        return train_recurrent(config, on_evaluation=on_evaluation, device=device)
    return train_transformer(config, on_evaluation=on_evaluation, on_checkpoint=on_checkpoint, device=device)


def save_weights(model: Model, path: Path) -> None:
    """Write a model as safetensors; what else is needed to run it goes to the header."""
    if isinstance(model, Recurrent):
        save_recurrent(model, path)
    else:
        transformers.save_weights(model, path)


def load_weights(path: Path) -> tuple[Model, tuple[str, ...]]:
    """The model in a weights file, and the names that were ignored; a header that names a cell tells a recurrent network.

    Raises HusaiError as `transformer.weights.load_weights` and `recurrent.weights.from_tensors` do.
    """
    header = transformers.read_header(path)
    if HEADER in header:
        return from_tensors(transformers.read_tensors(path), header, str(path)), ()
    return transformers.load_weights(path)


def weights_hash(model: Model) -> str:
    """12 hex digits that identify a model by what it computes and, for a recurrent network, on which walks."""
    return recurrent_hash(model) if isinstance(model, Recurrent) else transformers.weights_hash(model)


def require_inputs(model: Model, inputs: Inputs) -> None:
    """Raises HusaiError unless the model takes such inputs: of its kind, and of its modulus."""
    if model.p != inputs.p:
        raise HusaiError(f"model {model.name}: its modulus is {model.p}, the task's is {inputs.p}; they must be equal")
    if isinstance(model, Recurrent) != isinstance(inputs, Walks):
        kind, needed = (
            ("recurrent network", "walks") if isinstance(model, Recurrent) else ("transformer", "a task's grid")
        )
        raise HusaiError(f"model {model.name}: is a {kind} and is read on {needed}, not on {type(inputs).__name__}")


def logits(model: Model, inputs: Inputs) -> Float[Tensor, "samples p"]:
    """The logits of every sample, in the model's precision. Raises HusaiError as `require_inputs`."""
    require_inputs(model, inputs)
    if isinstance(model, Recurrent):
        assert isinstance(inputs, Walks)
        return model.logits(inputs)
    assert isinstance(inputs, Task)
    return model.logits(inputs)


def resolve_hook(model: Model, hook: str, layer: int | None = None) -> str:
    """The full name of a hook. Raises HusaiError for one that the model does not have."""
    if isinstance(model, Recurrent):
        return resolve_recurrent_hook(hook, layer)
    return resolve_transformer_hook(model.params, hook, layer)


def mlp_hooks(model: Model) -> tuple[str, str]:
    """Short names of what a layer's MLP reads (with LayerNorm, what that made of the residual stream) and of what it writes.

    Raises HusaiError for a recurrent network.
    """
    if isinstance(model, Recurrent):
        raise HusaiError(f"model {model.name}: has no MLP whose input and output are pairs; name hook and target hook")
    return ("ln2" if "ln_final.w" in model.params else "resid_mid"), "mlp_out"
