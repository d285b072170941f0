"""What the gate looks at: the output of a model on all its inputs, and the weights that name its frequencies."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from husai.models import Inputs, Model
from husai.recurrent.model import Recurrent
from husai.recurrent.walks import Walks
from husai.tasks import GroupView, Task
from husai.transformer.model import Transformer, n_layers
from husai.truth.variants import gradient_symmetricity


class Evidence(NamedTuple):
    """Of one model on one set of inputs, with n the order of the group.

    accuracy: over every prediction there is. logits: of the group's rows, columns in group order. logit_map: W_L, if it is
    the whole path to the logits. embedding: what each token (or pair of tokens of one coordinate) writes. neurons: of the
    last MLP, or the units of the hidden state.
    """

    accuracy: float
    logits: Float[Tensor, "rows n"]
    logit_map: Float[Tensor, "d_mlp n"] | None
    embedding: Float[Tensor, "d n"]
    neurons: Float[Tensor, "rows neurons"]
    gradient_symmetricity: float | None


def evidence(model: Model, task: Inputs) -> Evidence:
    """In the model's precision; inputs are of the model's kind (`models.require_inputs`)."""
    if isinstance(model, Recurrent):
        assert isinstance(task, Walks)
        return _of_walks(model, task)
    assert isinstance(task, Task)
    return _of_grid(model, task)


def _of_grid(model: Transformer, task: Task) -> Evidence:
    view, logits = task.group, model.logits(task)
    return Evidence(
        accuracy=float((logits.argmax(-1) == task.labels).double().mean()),
        logits=logits[view.rows][:, view.answer_tokens],
        logit_map=_logit_map(model, view),
        embedding=_token_table(model.params["embed.W_E"], view).T,
        neurons=_neurons(model, task),
        gradient_symmetricity=gradient_symmetricity(model, task),
    )


def _of_walks(model: Recurrent, walks: Walks) -> Evidence:
    """Accuracy counts time 0 too, where the walks name their first state."""
    with torch.no_grad():
        hidden = model.hidden(walks.inputs)
    logits = hidden @ model.params["readout"]
    return Evidence(
        accuracy=float((logits.argmax(-1) == walks.states).double().mean()),
        logits=logits[:, 1:].flatten(0, 1),
        logit_map=None,
        embedding=model.params["weight_ih_l0"],
        neurons=hidden[:, 1:].flatten(0, 1),
        gradient_symmetricity=None,
    )


def _logit_map(model: Transformer, view: GroupView) -> Float[Tensor, "d_mlp n"] | None:
    """W_L = W_out·W_U with columns in group order; None where LayerNorm or a second layer makes it one path of many."""
    params = model.params
    if n_layers(params) != 1 or "ln_final.w" in params:
        return None
    w_l = params["blocks.0.mlp.W_out"] @ params["unembed.W_U"][:, : model.p]
    return w_l[:, view.answer_tokens]


def _token_table(w_e: Float[Tensor, "vocabulary d"], view: GroupView) -> Float[Tensor, "n d"]:
    """Token embeddings averaged by group coordinate (one token each, but for `squares`, where ±a share one)."""
    tokens = (view.token_coordinate >= 0).nonzero()[:, 0]
    coordinate = view.token_coordinate[tokens]
    table = w_e.new_zeros(view.n, w_e.shape[1]).index_add_(0, coordinate, w_e[tokens])
    return table / coordinate.bincount(minlength=view.n).clamp(min=1)[:, None]


def _neurons(model: Transformer, task: Task) -> Float[Tensor, "rows d_mlp"]:
    """The last MLP's neurons, after their activation function."""
    name = f"blocks.{model.n_layers - 1}.mlp.hook_post"
    posts: list[Tensor] = []

    def keep(hook: str, value: Tensor) -> Tensor:
        if hook == name:
            posts.append(value[:, -1])
        return value

    with torch.no_grad():
        for part in task.tokens(model.layout)[task.group.rows].split(4096):
            model.run(part, keep)
    return torch.cat(posts)
