"""A recurrent network that reads one-hot inputs: one layer of torch.nn's GRU or LSTM, and a linear readout.

It stands beside the transformer as a model under study; what is true of it is for `husai.truth` to say.
"""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from husai.config import RecurrentShape
from husai.errors import HusaiError
from husai.memory import require_memory
from husai.recurrent.walks import Walks

Params = dict[str, Tensor]
Cell = Literal["gru", "lstm"]
HOOK = "hidden"
READOUT = "readout"


@dataclass(frozen=True)
class Recurrent:
    """Weights under torch.nn's names, the cell they belong to, and the walks they are read on.

    params: of `nn.GRU(p, d_hidden)` or `nn.LSTM(p, d_hidden)`, and `readout` (d_hidden, p). name: how records call this
    model. verified: whether its gate was passed (None: not checked).
    """

    params: Params
    cell: Cell
    walks: Walks
    name: str = "unnamed"
    verified: bool | None = field(default=None, compare=False)

    @property
    def p(self) -> int:
        """The modulus."""
        return self.walks.p

    @property
    def n_parameters(self) -> int:
        return sum(value.numel() for value in self.params.values())

    def to(self, dtype: torch.dtype) -> "Recurrent":
        return replace(self, params={name: value.to(dtype) for name, value in self.params.items()})

    def hidden(self, inputs: Int[Tensor, "walks time"]) -> Float[Tensor, "walks time d_hidden"]:
        """Hidden states after every input."""
        return hidden(self.params, inputs, self.cell)

    def logits(self, walks: Walks) -> Float[Tensor, "samples p"]:
        """Logits of all samples."""
        return self.samples(walks) @ self.params[READOUT]

    def samples(self, walks: Walks) -> Float[Tensor, "samples d_hidden"]:
        """Hidden states of all samples, walk by walk and in time order."""
        with torch.no_grad():
            return self.hidden(walks.inputs)[:, 1:].flatten(0, 1)


@lru_cache
def module_of(cell: Cell, p: int, d_hidden: int) -> nn.RNNBase:
    """torch.nn's module, without weights of its own."""
    kind = nn.GRU if cell == "gru" else nn.LSTM
    return kind(p, d_hidden, batch_first=True, device="meta")


def shapes(cell: Cell, p: int, d_hidden: int) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter."""
    module = module_of(cell, p, d_hidden)
    return {name: tuple(value.shape) for name, value in module.named_parameters()} | {READOUT: (d_hidden, p)}


def init_params(config: RecurrentShape, p: int, *, generator: torch.Generator) -> Params:
    """Every parameter uniform between ±1/√d_hidden, as torch.nn starts its recurrent layers."""
    bound = config.d_hidden**-0.5
    require_memory(64 * config.d_hidden * (config.d_hidden + p), f"recurrent: d_hidden {config.d_hidden}")
    return {
        name: bound * (2 * torch.rand(shape, generator=generator) - 1)
        for name, shape in shapes(config.cell, p, config.d_hidden).items()
    }


def hidden(params: Params, inputs: Int[Tensor, "walks time"], cell: Cell) -> Float[Tensor, "walks time d_hidden"]:
    """Hidden states after every input, from a state of zeros."""
    d_hidden, p = params[READOUT].shape
    weights = {name: value for name, value in params.items() if name != READOUT}
    one_hot = F.one_hot(inputs, p).to(params[READOUT].dtype)
    return functional_call(module_of(cell, p, d_hidden), weights, (one_hot,))[0]


def resolve_recurrent_hook(hook: str, layer: int | None = None) -> str:
    """The full name of the one hook there is. Raises HusaiError for any other, or for a layer."""
    if hook != HOOK or layer is not None:
        asked = f"'{hook}'" if layer is None else f"'{hook}' in layer {layer}"
        raise HusaiError(f"hook {asked}: a recurrent network has one hook, '{HOOK}', and no layers to choose from")
    return HOOK
