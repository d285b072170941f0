"""A tiny decoder-only transformer as pure functions over a dictionary of TransformerLens-named parameters.

Two paths compute the same logits. `forward` runs every position and offers every intermediate value to a hook under
its TransformerLens name. `last_logits` computes only what the last position's logits need, and computes what samples
share only once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from husai.config import TransformerConfig
from husai.errors import HusaiError
from husai.memory import require_memory
from husai.tasks import Task

Params = dict[str, Tensor]
Hook = Callable[[str, Tensor], Tensor]
Activation = Literal["relu", "relu2"]

LN_EPS = 1e-5
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"relu": F.relu, "relu2": lambda x: F.relu(x).square()}
EXTRA_TOKENS = {"abe": 1, "husai": 4}
N_CTX = {"abe": 3, "husai": 7}
N_TOKENS = {"abe": 3, "husai": 5}  # positions that inputs use
OPERANDS = {"abe": (0, 1), "husai": (1, 3)}  # positions of a and b
N_LAYERS = {"abe": 1, "husai": 2}
SHORT_HOOKS = {
    "resid_pre": "hook_resid_pre",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "attn_scores": "attn.hook_attn_scores",
    "pattern": "attn.hook_pattern",
    "z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "mlp_pre": "mlp.hook_pre",
    "mlp_post": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
LN_HOOKS = {"ln1": "ln1.hook_normalized", "ln2": "ln2.hook_normalized"}


@dataclass(frozen=True)
class Transformer:
    """Weights, and what is needed to run them: the layout of the input, the modulus, the MLP's activation function.

    act: `relu`, or `relu2` = relu(x)², both as TransformerLens names them. name: how records call this model.
    verified: whether its gate was passed (None: not checked).
    """

    params: Params
    layout: str
    p: int
    name: str = "unnamed"
    verified: bool | None = field(default=None, compare=False)
    act: Activation = "relu"

    @property
    def n_layers(self) -> int:
        return n_layers(self.params)

    @property
    def n_parameters(self) -> int:
        return sum(value.numel() for value in self.params.values())

    def to(self, dtype: torch.dtype) -> "Transformer":
        return replace(self, params={name: value.to(dtype) for name, value in self.params.items()})

    def run(self, tokens: Int[Tensor, "batch pos"], hook: Hook) -> Float[Tensor, "batch pos d_out"]:
        """`forward` with this model's weights and activation function."""
        return forward(self.params, tokens, hook, act=self.act)

    def logits(self, task: Task, *, batch: int = 4096) -> Float[Tensor, "pairs p"]:
        """Logits of the p answers at the read position for the whole grid, without gradients."""
        tokens = task.tokens(self.layout)
        with torch.no_grad():
            rows = [last_logits(self.params, part, act=self.act) for part in tokens.split(batch)]
        return torch.cat(rows)[:, : self.p]


def n_layers(params: Params) -> int:
    return sum(name.endswith("attn.W_Q") for name in params)


def init_params(config: TransformerConfig, p: int, *, generator: torch.Generator, pos_scale: float = 1.0) -> Params:
    """Fresh float32 weights: matrices ~ N(0, 1/d_model), W_pos pos_scale times as large, biases 0, LayerNorm gains 1.

    `abe` has one layer, no LayerNorm and no biases, and p output logits; `husai` has two layers with LayerNorm and
    biases, and one logit a token of its vocabulary (427,765 parameters at p = 113).
    """
    d, heads, mlp, rich = config.d_model, config.n_heads, config.d_mlp, config.layout == "husai"
    d_head, vocabulary = d // heads, p + EXTRA_TOKENS[config.layout]
    room = 16 * d * (2 * p + N_LAYERS[config.layout] * (4 * d + 2 * mlp))  # values, gradients and two moments
    require_memory(room, f"transformer: d_model {d} with d_mlp {mlp}")
    d_out = vocabulary if rich else p
    params: Params = {}

    def matrix(name: str, *shape: int) -> None:
        params[name] = torch.randn(*shape, generator=generator) / math.sqrt(d)

    def bias(name: str, *shape: int, value: float = 0.0) -> None:
        if rich:
            params[name] = torch.full(shape, value)

    matrix("embed.W_E", vocabulary, d)
    matrix("pos_embed.W_pos", N_CTX[config.layout], d)
    params["pos_embed.W_pos"] *= pos_scale
    for layer in range(N_LAYERS[config.layout]):
        block = f"blocks.{layer}"
        for ln in ("ln1", "ln2"):
            bias(f"{block}.{ln}.w", d, value=1.0)
            bias(f"{block}.{ln}.b", d)
        for letter in "QKV":
            matrix(f"{block}.attn.W_{letter}", heads, d, d_head)
            bias(f"{block}.attn.b_{letter}", heads, d_head)
        matrix(f"{block}.attn.W_O", heads, d_head, d)
        bias(f"{block}.attn.b_O", d)
        matrix(f"{block}.mlp.W_in", d, mlp)
        bias(f"{block}.mlp.b_in", mlp)
        matrix(f"{block}.mlp.W_out", mlp, d)
        bias(f"{block}.mlp.b_out", d)
    bias("ln_final.w", d, value=1.0)
    bias("ln_final.b", d)
    matrix("unembed.W_U", d, d_out)
    bias("unembed.b_U", d_out)
    return params


def _keep(name: str, value: Tensor) -> Tensor:
    return value


def _add(value: Tensor, bias: Tensor | None) -> Tensor:
    return value if bias is None else value + bias


def _layer_norm(params: Params, name: str, x: Tensor, hook: Hook = _keep) -> Tensor:
    """LayerNorm with TransformerLens' hook points; the identity where the model has none."""
    if f"{name}.w" not in params:
        return x
    x = x - x.mean(-1, keepdim=True)
    scale = hook(f"{name}.hook_scale", (x.pow(2).mean(-1, keepdim=True) + LN_EPS).sqrt())
    normalised = hook(f"{name}.hook_normalized", x / scale)
    return normalised * params[f"{name}.w"] + params[f"{name}.b"]


def _project(params: Params, block: str, letter: str, x: Tensor) -> Tensor:
    """(…, d_model) to (…, heads, d_head)."""
    weight = params[f"{block}.attn.W_{letter}"]
    heads, d, d_head = weight.shape
    flat = x @ weight.permute(1, 0, 2).reshape(d, heads * d_head)
    return _add(flat.unflatten(-1, (heads, d_head)), params.get(f"{block}.attn.b_{letter}"))


def _output(params: Params, block: str, z: Tensor) -> Tensor:
    """(…, heads, d_head) to (…, d_model)."""
    weight = params[f"{block}.attn.W_O"]
    return _add(z.flatten(-2) @ weight.flatten(0, 1), params.get(f"{block}.attn.b_O"))


def _mlp(params: Params, block: str, x: Tensor, act: Activation, hook: Hook = _keep) -> Tensor:
    pre = hook(f"{block}.mlp.hook_pre", _add(x @ params[f"{block}.mlp.W_in"], params.get(f"{block}.mlp.b_in")))
    post = hook(f"{block}.mlp.hook_post", ACTIVATIONS[act](pre))
    return _add(post @ params[f"{block}.mlp.W_out"], params.get(f"{block}.mlp.b_out"))


def _unembed(params: Params, x: Tensor, hook: Hook = _keep) -> Tensor:
    return _add(_layer_norm(params, "ln_final", x, hook) @ params["unembed.W_U"], params.get("unembed.b_U"))


def _embed(params: Params, tokens: Tensor, hook: Hook = _keep) -> Tensor:
    embedded = hook("hook_embed", F.embedding(tokens, params["embed.W_E"]))
    positions = params["pos_embed.W_pos"][: tokens.shape[1]].expand_as(embedded)
    return embedded + hook("hook_pos_embed", positions)


def _block(params: Params, block: str, x: Tensor, act: Activation, hook: Hook = _keep) -> Tensor:
    """One whole layer at every position."""
    x = hook(f"{block}.hook_resid_pre", x)
    normalised = _layer_norm(params, f"{block}.ln1", x, hook)
    q, k, v = (hook(f"{block}.attn.hook_{s.lower()}", _project(params, block, s, normalised)) for s in "QKV")
    scores = torch.einsum("bqhe,bkhe->bhqk", q, k) / math.sqrt(q.shape[-1])
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
    scores = hook(f"{block}.attn.hook_attn_scores", scores.masked_fill(future, -torch.inf))
    pattern = hook(f"{block}.attn.hook_pattern", scores.softmax(-1))
    z = hook(f"{block}.attn.hook_z", torch.einsum("bhqk,bkhe->bqhe", pattern, v))
    x = hook(f"{block}.hook_resid_mid", x + hook(f"{block}.hook_attn_out", _output(params, block, z)))
    mlp_in = _layer_norm(params, f"{block}.ln2", x, hook)
    return hook(f"{block}.hook_resid_post", x + hook(f"{block}.hook_mlp_out", _mlp(params, block, mlp_in, act, hook)))


def forward(
    params: Params, tokens: Int[Tensor, "batch pos"], hook: Hook = _keep, *, act: Activation = "relu"
) -> Float[Tensor, "batch pos d_out"]:
    """Logits at every position. `hook(name, value)` sees every intermediate value and returns the one to go on with."""
    x = _embed(params, tokens, hook)
    for layer in range(n_layers(params)):
        x = _block(params, f"blocks.{layer}", x, act, hook)
    return _unembed(params, x, hook)


class Before(NamedTuple):
    """What the last layer receives at one position, (batch, d_model): before its attention, and before its MLP."""

    resid_pre: Tensor
    resid_mid: Tensor


# Last-layer hooks that are read by no other position, in the order in which the layer computes them.
RESUMABLE = ("attn.hook_z", "hook_attn_out", "hook_resid_mid", "mlp.hook_post", "hook_mlp_out", "hook_resid_post")


def resume(
    params: Params, tail: str, x: Float[Tensor, "batch d"], before: Before, *, act: Activation = "relu"
) -> Float[Tensor, "batch d_out"]:
    """Logits at a position where the last layer's hook `tail`, one of `RESUMABLE`, is x; without anything before it.

    Heads are flattened, as `husai.activations.extract` gives them.
    """
    block, (resid_pre, resid_mid) = f"blocks.{n_layers(params) - 1}", before
    if tail == "attn.hook_z":
        heads = len(params[f"{block}.attn.W_O"])
        x, tail = _output(params, block, x.unflatten(-1, (heads, -1))), "hook_attn_out"
    if tail == "hook_attn_out":
        x, tail = resid_pre + x, "hook_resid_mid"
    if tail == "hook_resid_mid":
        resid_mid = x
        x, tail = _mlp(params, block, _layer_norm(params, f"{block}.ln2", x), act), "hook_mlp_out"
    if tail == "mlp.hook_post":
        x, tail = _add(x @ params[f"{block}.mlp.W_out"], params.get(f"{block}.mlp.b_out")), "hook_mlp_out"
    if tail == "hook_mlp_out":
        x = resid_mid + x
    return _unembed(params, x)


class Shared(NamedTuple):
    """Values at one position that many samples share: `values` (rows, …) and the row of each sample, (batch,)."""

    values: Tensor
    row: Int[Tensor, "batch"]

    def of(self, samples: Int[Tensor, "samples"]) -> Tensor:
        """The values of some samples, (samples, …)."""
        flat = F.embedding(self.row[samples], self.values.flatten(1))
        return flat.unflatten(1, self.values.shape[1:])

    def map(self, function: Callable[[Tensor], Tensor]) -> "Shared":
        return Shared(function(self.values), self.row)


def last_logits(
    params: Params, tokens: Int[Tensor, "batch pos"], *, act: Activation = "relu"
) -> Float[Tensor, "batch d_out"]:
    """Logits at the last position only; equal to `forward(params, tokens)[:, -1]`, several times faster.

    The last layer is computed at the last position only. Below it, a position's state depends on the tokens up to it, so
    each layer is computed once a distinct prefix; and layer 0's keys and values once a distinct token.
    """
    layers, everyone = n_layers(params), torch.arange(len(tokens), device=tokens.device)
    stream = [_embed_shared(params, tokens[:, i], i) for i in range(tokens.shape[1])]
    for layer in range(layers - 1):
        stream = _block_shared(params, f"blocks.{layer}", stream, tokens, act)
    block, last = f"blocks.{layers - 1}", len(stream) - 1
    keys, values = _keys_and_values(params, block, stream)
    resid = _attend(params, block, stream[last], keys, values, everyone)
    return _unembed(params, resid + _mlp(params, block, _layer_norm(params, f"{block}.ln2", resid), act))


def _embed_shared(params: Params, tokens: Int[Tensor, "batch"], position: int) -> Shared:
    distinct, row = tokens.unique(return_inverse=True)
    return Shared(params["embed.W_E"][distinct] + params["pos_embed.W_pos"][position], row)


def _keys_and_values(params: Params, block: str, stream: list[Shared]) -> tuple[list[Shared], list[Shared]]:
    normalised = [at.map(lambda x: _layer_norm(params, f"{block}.ln1", x)) for at in stream]
    keys = [at.map(lambda x: _project(params, block, "K", x)) for at in normalised]
    return keys, [at.map(lambda x: _project(params, block, "V", x)) for at in normalised]


def _attend(
    params: Params, block: str, here: Shared, keys: list[Shared], values: list[Shared], samples: Int[Tensor, "samples"]
) -> Float[Tensor, "samples d_model"]:
    """The residual stream of some samples after attention at one position, which sees the positions of `keys`."""
    q = here.map(lambda x: _project(params, block, "Q", _layer_norm(params, f"{block}.ln1", x)))
    if len(q.values) == 1:  # one query for all, such as `=` in layer 0: scores come from tables
        tables = [at.map(lambda k: torch.einsum("he,rhe->rh", q.values[0], k)) for at in keys]
        scores = [table.of(samples) for table in tables]
    else:
        query = q.of(samples)
        scores = [(query * at.of(samples)).sum(-1) for at in keys]
    pattern = (torch.stack(scores, dim=-1) / math.sqrt(q.values.shape[-1])).softmax(-1)
    z = torch.zeros_like(values[0].of(samples))
    for j, at in enumerate(values):
        z = z + pattern[..., j : j + 1] * at.of(samples)
    return here.of(samples) + _output(params, block, z)


def _block_shared(
    params: Params, block: str, stream: list[Shared], tokens: Int[Tensor, "batch pos"], act: Activation
) -> list[Shared]:
    """One whole layer, computed once a distinct prefix."""
    keys, values = _keys_and_values(params, block, stream)
    prefix = torch.zeros_like(tokens[:, 0])
    after: list[Shared] = []
    for i, here in enumerate(stream):
        distinct, prefix = (prefix * (tokens.max() + 1) + tokens[:, i]).unique(return_inverse=True)
        one_each = prefix.new_empty(len(distinct)).scatter_(0, prefix, torch.arange(len(prefix), device=prefix.device))
        resid = _attend(params, block, here, keys[: i + 1], values[: i + 1], one_each)
        after.append(Shared(resid + _mlp(params, block, _layer_norm(params, f"{block}.ln2", resid), act), prefix))
    return after


def hook_names(params: Params) -> dict[str, str]:
    """Short name -> full TransformerLens name of every activation that can be read (LayerNorm scales left out).

    Layers count from 0.

    A short name without a layer means the last layer; `resid_post.0` or the full name picks another.
    """
    layers, has_ln = n_layers(params), "ln_final.w" in params
    names = {"embed": "hook_embed", "pos_embed": "hook_pos_embed"}
    if has_ln:
        names["ln_final"] = "ln_final.hook_normalized"
    for layer in range(layers):
        for short, tail in (SHORT_HOOKS | (LN_HOOKS if has_ln else {})).items():
            names[f"{short}.{layer}"] = f"blocks.{layer}.{tail}"
            names[short] = f"blocks.{layer}.{tail}"
    return names


def resolve_hook(params: Params, hook: str, layer: int | None = None) -> str:
    """The full name of `hook` (short or full). Raises HusaiError with the list of hooks if there is no such point."""
    names = hook_names(params)
    wanted = f"{hook}.{layer}" if layer is not None and f"{hook}.{layer}" in names else hook
    if layer is not None and not 0 <= layer < n_layers(params):
        raise HusaiError(f"layer: {layer} does not exist; the model has layers 0 to {n_layers(params) - 1}")
    full = names.get(wanted, wanted)
    if layer is not None and full.startswith("blocks.") and not full.startswith(f"blocks.{layer}."):
        raise HusaiError(f"hook: '{hook}' does not lie in layer {layer}; leave out one of the two")
    if full not in names.values():
        short = sorted(name for name in names if "." not in name)
        raise HusaiError(f"hook: '{hook}' does not exist in this model; allowed are {', '.join(short)} or full names")
    return full
