"""What the rest of a model makes of activations at a hook, as they are or changed. (docs/method.md §Causal scores)"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from husai.activations import Activations
from husai.models import Model
from husai.recurrent.model import READOUT, Recurrent
from husai.tasks import Task
from husai.transformer.model import RESUMABLE, Before, Transformer, resume

BATCH = 4096

Run = Callable[[Float[Tensor, "rows d"], Int[Tensor, "rows"]], Float[Tensor, "rows p"]]


@dataclass(frozen=True)
class Site:
    """A model from a hook on, over some samples.

    x: the activations there. logits: the p answers' logits, float32. rows: each sample's number among all samples.
    readout: (d, p), where logits are linear in x. run: logits of samples, by number, whose activations are replaced.
    """

    x: Float[Tensor, "samples d"]
    logits: Float[Tensor, "samples p"]
    rows: Int[Tensor, "samples"]
    readout: Float[Tensor, "d p"] | None
    run: Run

    @classmethod
    def of(cls, activations: Activations, model: Model) -> "Site":
        """The site that the activations were read at. model: the one they were read from."""
        x, everyone = activations.x, torch.arange(len(activations.x))
        if isinstance(model, Recurrent):
            readout = model.params[READOUT].float()
            return cls(x, x @ readout, everyone, readout, lambda changed, _: changed @ readout)
        run = _resuming(model, activations) or _replacing(model, activations)
        with torch.no_grad():
            logits = run(x, everyone)
        return cls(x, logits, everyone, _readout(model, activations), run)

    def among(self, rows: Int[Tensor, "rows"]) -> "Site":
        """The same over some of the samples."""
        return replace(self, x=self.x[rows], logits=self.logits[rows], rows=self.rows[rows])

    def after(
        self, amounts: Float[Tensor, "samples n"], directions: Float[Tensor, "n d"]
    ) -> Float[Tensor, "samples p"]:
        """Logits once `amounts` of some directions are added to the activations."""
        with torch.no_grad():
            if self.readout is not None:
                return self.logits + amounts.float() @ (directions.float() @ self.readout)
            return self.run(self.x + amounts.float() @ directions.float(), self.rows)


def _last_layer_tail(model: Transformer, activations: Activations) -> str | None:
    """The hook's name within the last layer, if it lies there at the read position and no other position reads it."""
    assert isinstance(activations.task, Task)
    last = activations.task.tokens(model.layout).shape[1] - 1
    tail = activations.hook.removeprefix(f"blocks.{model.n_layers - 1}.")
    return tail if tail in RESUMABLE and activations.position in (-1, last) else None


def _readout(model: Transformer, activations: Activations) -> Float[Tensor, "d p"] | None:
    """W_U, or W_out·W_U, where it is all that follows."""
    params, tail = model.params, _last_layer_tail(model, activations)
    if "ln_final.w" in params:
        return None
    w_u = params["unembed.W_U"][:, : model.p].float()
    if tail == "mlp.hook_post":
        return params[f"blocks.{model.n_layers - 1}.mlp.W_out"].float() @ w_u
    return w_u if tail in ("hook_mlp_out", "hook_resid_post") else None


def _resuming(model: Transformer, activations: Activations) -> Run | None:
    """Only what comes after the hook, at the read position, where that is all that can change."""
    tail = _last_layer_tail(model, activations)
    if tail is None:
        return None
    task, model = activations.task, model.to(torch.float32)
    assert isinstance(task, Task)
    block, found = f"blocks.{model.n_layers - 1}", {"hook_resid_pre": [], "hook_resid_mid": []}

    def keep(name: str, value: Tensor) -> Tensor:
        if (short := name.removeprefix(f"{block}.")) in found:
            found[short].append(value[:, -1])
        return value

    with torch.no_grad():
        for part in task.tokens(model.layout).split(BATCH):
            model.run(part, keep)
    before = Before(torch.cat(found["hook_resid_pre"]), torch.cat(found["hook_resid_mid"]))

    def run(changed: Tensor, rows: Tensor) -> Tensor:
        here = Before(before.resid_pre[rows], before.resid_mid[rows])
        return resume(model.params, tail, changed, here, act=model.act)[:, : model.p]

    return run


def _replacing(model: Transformer, activations: Activations) -> Run:
    """The whole model, with one value replaced on the way."""
    task, position, model = activations.task, activations.position, model.to(torch.float32)
    assert isinstance(task, Task)
    tokens, by_query = task.tokens(model.layout), activations.hook.endswith(("attn_scores", "pattern"))

    def run(changed: Tensor, rows: Tensor) -> Tensor:
        found = []
        for part, values in zip(tokens[rows].split(BATCH), changed.split(BATCH), strict=True):

            def put(name: str, value: Tensor, values: Tensor = values) -> Tensor:
                if name != activations.hook:
                    return value
                value = value.clone()
                here = value[:, :, position] if by_query else value[:, position]
                here.copy_(values.view_as(here))
                return value

            found.append(model.run(part, put)[:, -1, : model.p])
        return torch.cat(found)

    return run
