"""Transformers whose weights are written down, not trained: `clock` and `pizza`. (docs/method.md §Compiled models)

In the group coordinates of `husai.tasks.GroupView`, with w_k = 2πk/n and one complex number a key for each operand,
E_a = (e^{iw_k u})_k and E_b = (e^{iw_k v})_k, both 0 for a token without a coordinate, the answer is read off

    clock: E_a·E_b = e^{iw_k s}        pizza: ((E_a + E_b)/2)² = cos²(w_k(u − v)/2)·e^{iw_k s}

as logit(c) = scale · Σ_k Re(… e^{−iw_k c}), with real cosines and sines. Attention copies E_a and E_b, neurons with
activation x² (two relu2 neurons each) multiply, the unembedding compares with every answer.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from husai.config import CompiledConfig
from husai.errors import HusaiError
from husai.memory import require_memory
from husai.seeding import generator
from husai.tasks import Task
from husai.transformer.model import N_CTX, Params, Transformer

MARGIN = 30.0  # nats by which the right logit exceeds every other: the loss is then below the gate's tolerance of 1e-12
MIN_MARGIN = 1e-3  # of the circuit at scale 1; below, float32 weights would blur what the gate measures
SATURATED = 50.0  # score of the one position looked at; e^-50 of the weight for the others is 0 in float64
DEFAULT_D_MODEL, DEFAULT_D_MLP = 128, 512
OPS = {"clock": ("add", "sub", "mul", "div"), "pizza": ("add", "sub")}
READOUT = {"clock": 1 / 3, "pizza": 4 / 3}


class Slots(NamedTuple):
    """Where things stand in the residual stream before its rotation.

    token: the embedding; a, b: the operands as attention copied them (one shared slot for pizza, which needs only their
    mean); answer: what the MLP writes. Each holds cosine and sine of every key in turn, and for mul and div last an
    indicator of zero. marks: position of a, position of b, `=`. needed: dimensions in all.
    """

    token: slice
    a: slice
    b: slice
    answer: slice
    marks: tuple[int, int, int]
    needed: int


def slots(config: CompiledConfig) -> Slots:
    """The residual stream of a compiled model."""
    width = 2 * len(config.keys) + (config.task.op in ("mul", "div"))
    parts = [slice(i * width, (i + 1) * width) for i in range(4 if config.kind == "clock" else 3)]
    end = parts[-1].stop
    return Slots(parts[0], parts[1], parts[-2], parts[-1], (end, end + 1, end + 2), end + 3)


def phases(kind: str) -> Float[Tensor, "squares 2"]:
    """Phases (α, β) of a key's squares (cos(w_k u + α) + cos(w_k v + β))²; each is read out at −α − β.

    clock: 6, with 2πj/6 and 2π·4j/6. pizza: 3, with α = β = 2πj/3. Over j the read-outs cancel all but the product.
    """
    if kind == "clock":
        return torch.arange(6, dtype=torch.float64)[:, None] * torch.tensor([1.0, 4.0]) * (2 * math.pi / 6)
    return torch.arange(3, dtype=torch.float64)[:, None].expand(3, 2) * (2 * math.pi / 3)


def waves(keys: tuple[int, ...], coordinate: Int[Tensor, "rows"], n: int) -> Float[Tensor, "rows columns"]:
    """cos(w_k x) and sin(w_k x) of every key in turn; 0 in the rows of coordinate −1, which means none."""
    angle = (coordinate[:, None] * torch.tensor(keys) % n).double() * (2 * math.pi / n)
    columns = torch.stack([angle.cos(), angle.sin()], dim=-1).flatten(1)
    return columns * (coordinate >= 0)[:, None]


def margin(kind: str, keys: tuple[int, ...], n: int) -> float:
    """The least by which the right logit exceeds another one over all pairs in Z_n, at scale 1.

    clock: min over offsets o ≠ 0 of Σ_k (1 − cos w_k o). pizza: each term times cos²(w_k d/2), min over d = u − v too.
    """
    half = torch.tensor(keys, dtype=torch.float64)[:, None] * torch.arange(n) * (math.pi / n)
    gaps = 2 * half.sin().square()[:, 1:]
    damping = half.cos().square() if kind == "pizza" else torch.ones(len(keys), 1, dtype=torch.float64)
    return float((damping.T @ gaps).min())


def logit_scale(config: CompiledConfig) -> float:
    """The factor in the unembedding that gives every pair a logit margin of `MARGIN`."""
    return MARGIN / margin(config.kind, config.keys, Task(config.task.op, config.task.p).group.n)


def analytic_logits(config: CompiledConfig) -> Float[Tensor, "pairs p"]:
    """The logits that the model has without noise, by the formula above, in float64.

    mul and div: MARGIN·([a = 0] + [b = 0])² for answer 0; where an operand is 0, nothing for the other answers.
    """
    task = Task(config.task.op, config.task.p)
    view, keys = task.group, config.keys
    e_a, e_b = (
        torch.view_as_complex(waves(keys, view.token_coordinate[x], view.n).unflatten(1, (-1, 2)).contiguous())
        for x in (task.a, task.b)
    )
    e_b = e_b.conj() if task.op in ("sub", "div") else e_b
    answers = waves(keys, view.token_coordinate, view.n)
    carried = e_a * e_b if config.kind == "clock" else ((e_a + e_b) / 2).square()
    logits = logit_scale(config) * torch.view_as_real(carried.resolve_conj()).flatten(1) @ answers.T
    if view.n < task.p:
        logits[:, 0] = MARGIN * ((task.a == 0).double() + (task.b == 0).double()).square()
    return logits


def compile_model(config: CompiledConfig) -> Transformer:
    """The model in float64: layout `abe`, activation relu2, no biases, parameters under TransformerLens names.

    Raises HusaiError for an op the circuit cannot compute, keys that are no distinct frequencies of the op's group or
    cannot tell the answers apart, and widths that are too small.
    """
    task = Task(config.task.op, config.task.p)
    _check(config, task)
    room = slots(config)
    d_model, d_mlp = _width(config, "d_model"), _width(config, "d_mlp")
    require_memory(16 * d_model * (d_model + 2 * d_mlp + 2 * task.p), f"d_model {d_model} with d_mlp {d_mlp}")
    params = {
        **_embedding(config, task, room, d_model),
        **_attention(config, task, room, d_model),
        **_mlp(config, room, d_model, d_mlp),
        "unembed.W_U": _unembedding(config, task, room, d_model),
    }
    params = _rotated(params, rotation(config))
    noise = generator("compiled-noise", config.seed)
    for name, value in params.items():
        size = config.noise * value.square().mean().sqrt()
        params[name] = value + size * torch.randn(value.shape, dtype=torch.float64, generator=noise)
    return Transformer(params, "abe", task.p, name=f"{config.kind}-{task.op}-p{task.p}", act="relu2")


def rotation(config: CompiledConfig) -> Float[Tensor, "d_model d_model"]:
    """The orthogonal matrix that turns the residual stream; row i is where its dimension i ends up."""
    d = _width(config, "d_model")
    if not config.rotate:
        return torch.eye(d, dtype=torch.float64)
    random = torch.randn(d, d, dtype=torch.float64, generator=generator("compiled-rotation", config.seed))
    q, r = torch.linalg.qr(random)
    return q * r.diagonal().sign()


def _check(config: CompiledConfig, task: Task) -> None:
    n, keys, kind = task.group.n, config.keys, config.kind
    if task.op not in OPS[kind]:
        why = ""
        if kind == "pizza" and task.op in ("mul", "div"):
            why = f": in Z_{n}, of even order, no keys tell s from s + {n // 2} where u - v is {n // 2}"
        raise HusaiError(f"op: a {kind} cannot compute {task.op}{why}; allowed are {', '.join(OPS[kind])}")
    allowed = f"allowed are distinct frequencies from 1 to {(n - 1) // 2}"
    for i, key in enumerate(keys):
        if 2 * key == n:
            raise HusaiError(f"keys: {key} is the Nyquist frequency of Z_{n}, which is no plane; {allowed}")
        if not 1 <= key <= (n - 1) // 2:
            folded = f" (it is the same frequency as {n - key})" if n // 2 < key < n else ""
            raise HusaiError(f"keys: {key} is not a frequency of Z_{n} for {task.op} mod {task.p}{folded}; {allowed}")
        if key in keys[:i]:
            raise HusaiError(f"keys: {key} is listed twice; {allowed}")
    if (found := margin(kind, keys, n)) < MIN_MARGIN:
        raise HusaiError(
            f"keys: {', '.join(map(str, keys))} cannot tell all answers of a {kind} mod {task.p} apart (margin "
            f"{found:.1g} at scale 1, needed is {MIN_MARGIN:g}); choose other keys or more of them"
        )
    for name, needed in _needed(config).items():
        if _width(config, name) < needed:
            given = getattr(config, name)
            raise HusaiError(f"{name}: {given} is too small; a {kind} of {len(keys)} keys needs {needed}")


def _needed(config: CompiledConfig) -> dict[str, int]:
    """The least widths: d_model as `slots` says; two relu2 neurons a square, and one neuron for zeros."""
    squares = len(phases(config.kind)) * len(config.keys)
    return {"d_model": slots(config).needed, "d_mlp": 2 * squares + (config.task.op in ("mul", "div"))}


def _width(config: CompiledConfig, name: str) -> int:
    """The width asked for, else the usual one or more if the circuit needs more."""
    given = {"d_model": config.d_model, "d_mlp": config.d_mlp}[name]
    usual = {"d_model": DEFAULT_D_MODEL, "d_mlp": DEFAULT_D_MLP}[name]
    return given or max(usual, _needed(config)[name])


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def _embedding(config: CompiledConfig, task: Task, room: Slots, d_model: int) -> Params:
    """Every token's waves and zero indicator; marks on the two operands' positions and on `=`."""
    coordinate, columns = task.group.token_coordinate, 2 * len(config.keys)
    w_e, w_pos = _zeros(task.p + 1, d_model), _zeros(N_CTX["abe"], d_model)
    w_e[: task.p, room.token][:, :columns] = waves(config.keys, coordinate, task.group.n)
    w_e[: task.p, room.token][:, columns:] = (coordinate < 0)[:, None].double()
    w_e[task.p, room.marks[2]] = 1
    w_pos[0, room.marks[0]] = w_pos[1, room.marks[1]] = 1
    return {"embed.W_E": w_e, "pos_embed.W_pos": w_pos}


def _attention(config: CompiledConfig, task: Task, room: Slots, d_model: int) -> Params:
    """Heads that copy the operands, each of width as the slots: one fixed on a and one on b.

    pizza for add treats both alike, so one head suffices: with W_Q = W_K = 0 it weighs all three positions 1/3.
    b is conjugated (its sines change sign) for sub and div.
    """
    width, columns = room.token.stop, 2 * len(config.keys)
    conjugate = torch.ones(width, dtype=torch.float64)
    if task.op in ("sub", "div"):
        conjugate[1:columns:2] = -1
    copy = torch.ones(width, dtype=torch.float64)
    if config.kind == "clock":
        heads = [(0, room.a, copy), (1, room.b, conjugate)]
    elif task.op == "add":
        heads = [(None, room.a, copy * 3 / 2)]
    else:
        heads = [(0, room.a, copy / 2), (1, room.b, conjugate / 2)]
    w_q, w_k, w_v = (_zeros(len(heads), d_model, width) for _ in range(3))
    w_o = _zeros(len(heads), width, d_model)
    for head, (position, slot, gains) in enumerate(heads):
        if position is not None:
            w_q[head, room.marks[2], 0] = SATURATED * math.sqrt(width)
            w_k[head, room.marks[position], 0] = 1
        w_v[head, room.token] = torch.eye(width, dtype=torch.float64)
        w_o[head, :, slot] = gains.diag()
    return {f"blocks.0.attn.W_{letter}": w for letter, w in zip("QKVO", (w_q, w_k, w_v, w_o), strict=True)}


def _mlp(config: CompiledConfig, room: Slots, d_model: int, d_mlp: int) -> Params:
    """Squares of a key in turn, each as a neuron and its negative; the last used neuron sees zeros, the rest is silent."""
    w_in, w_out = _zeros(d_model, d_mlp), _zeros(d_mlp, d_model)
    angles = phases(config.kind)
    neuron = 0
    for i in range(len(config.keys)):
        for alpha, beta in angles.tolist():
            for sign in (1, -1):
                for slot, phase in {room.a.start: alpha, room.b.start: beta}.items():
                    w_in[slot + 2 * i, neuron] = sign * math.cos(phase)
                    w_in[slot + 2 * i + 1, neuron] = -sign * math.sin(phase)
                w_out[neuron, room.answer.start + 2 * i] = READOUT[config.kind] * math.cos(alpha + beta)
                w_out[neuron, room.answer.start + 2 * i + 1] = -READOUT[config.kind] * math.sin(alpha + beta)
                neuron += 1
    if config.task.op in ("mul", "div"):
        w_in[[room.a.stop - 1, room.b.stop - 1], neuron] = 1
        w_out[neuron, room.answer.stop - 1] = 1
    return {"blocks.0.mlp.W_in": w_in, "blocks.0.mlp.W_out": w_out}


def _unembedding(config: CompiledConfig, task: Task, room: Slots, d_model: int) -> Float[Tensor, "d_model p"]:
    w_u, columns = _zeros(d_model, task.p), 2 * len(config.keys)
    w_u[room.answer][:columns] = logit_scale(config) * waves(config.keys, task.group.token_coordinate, task.group.n).T
    w_u[room.answer][columns:, 0] = MARGIN
    return w_u


def _rotated(params: Params, turn: Float[Tensor, "d_model d_model"]) -> Params:
    """The same function with a residual stream x·turn: what writes to the stream is turned, what reads, turned back."""
    writes = ("embed.W_E", "pos_embed.W_pos", "blocks.0.attn.W_O", "blocks.0.mlp.W_out")
    return {name: w @ turn if name in writes else turn.T @ w for name, w in params.items()}
