"""The planes of a compiled model, written down from its construction. (docs/method.md §Compiled models)

Everything rests on loadings: what a hook holds is, but for a constant, Σ loading · function over functions of the pair:
cos w_m y and sin w_m y of a variable y, the indicators of zeros for mul and div, and products that are in no family.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from husai.config import CompiledConfig
from husai.tasks import Task
from husai.transformer.compiled import phases, rotation, slots
from husai.transformer.model import Transformer
from husai.truth.fourier import characters, n_frequencies
from husai.truth.planes import Variable, plane_of

NEGLIGIBLE = 1e-12  # variance; below, a family is what rounding leaves of terms that cancel


class KnownPlane(NamedTuple):
    """One family at a hook: `basis` is (d, dim) with orthonormal columns; planes of several variables may coincide.

    variance: what the family adds to the summed variance of the hook's dimensions; over their total, it is its share.
    """

    variable: Variable
    k: int
    basis: Float[Tensor, "d dim"]
    variance: float


# (variable, k) -> columns that multiply cos and sin of w_k y, or the indicators [a = 0], [b = 0], [a = b = 0] of `zero`
Loadings = dict[tuple[Variable, int], Float[Tensor, "d functions"]]


def known_planes(config: CompiledConfig, model: Transformer) -> dict[str, tuple[KnownPlane, ...]]:
    """Hook -> its planes at the read position, for `attn_out resid_mid mlp_post mlp_out resid_post`.

    model: what `compile_model(config)` returned, without noise.
    """
    task, turn = Task(config.task.op, config.task.p), rotation(config)
    w_out = model.params["blocks.0.mlp.W_out"].double()
    attention = {name: turn.T @ columns for name, columns in _attention(config, len(turn)).items()}
    neurons = _neurons(config, task, len(w_out))
    written = {name: w_out.T @ columns for name, columns in neurons.items()}
    stream = written | {name: columns + written.get(name, 0) for name, columns in attention.items()}
    read = _planes(attention, task)
    return {
        "attn_out": read,
        "resid_mid": read,
        "mlp_post": _planes(neurons, task),
        "mlp_out": _planes(written, task),
        "resid_post": _planes(stream, task),
    }


def _attention(config: CompiledConfig, d_model: int) -> Loadings:
    """The operands in their slots, before the rotation; pizza's shared slot holds half of each."""
    room, unit = slots(config), torch.eye(d_model, dtype=torch.float64)
    gain = 1.0 if config.kind == "clock" else 0.5
    loadings: Loadings = {
        (variable, key): gain * unit[:, slot.start + 2 * i : slot.start + 2 * i + 2]
        for i, key in enumerate(config.keys)
        for variable, slot in (("a", room.a), ("b", room.b))
    }
    if config.task.op in ("mul", "div"):
        none = torch.zeros(d_model, dtype=torch.float64)
        loadings["zero", 0] = torch.stack([unit[room.a.stop - 1], unit[room.b.stop - 1], none], dim=1)
    return loadings


def _neurons(config: CompiledConfig, task: Task, d_mlp: int) -> Loadings:
    """Fourier coefficients of relu(±x)², x = g·(cos(w_k u + α) + cos(w_k v + β)), g = 1 (pizza 1/2), over Z_n × Z_n."""
    n, gain = task.group.n, 1.0 if config.kind == "clock" else 0.5
    t = torch.arange(n)
    blocks, alone = [], []
    for key in config.keys:
        waves = characters(key, t, n)
        on_u, on_v = (gain * waves @ torch.stack([turn.cos(), -turn.sin()]) for turn in phases(config.kind).T)
        x = (on_u[:, None] + on_v[None]).permute(2, 0, 1)
        blocks.append(torch.stack([x, -x], dim=1).flatten(0, 1).relu().square())
        alone.append([torch.stack([y.T, -y.T], dim=1).flatten(0, 1).relu().square().mean(1) for y in (on_v, on_u)])
    spectrum = torch.fft.fft2(torch.cat(blocks), norm="forward")
    used = len(spectrum)
    silent = torch.zeros(d_mlp - used, dtype=torch.float64)

    def columns(row: int, column: int) -> Float[Tensor, "d_mlp functions"]:
        wave, nyquist = spectrum[:, row % n, column % n], 2 * row % n == 0 and 2 * column % n == 0
        parts = [wave.real] if nyquist else [2 * wave.real, -2 * wave.imag]
        return torch.stack([torch.cat([part, silent]) for part in parts], dim=1)

    loadings: Loadings = {}
    for k in range(1, n_frequencies(n) + 1):
        loadings |= {("a", k): columns(k, 0), ("b", k): columns(0, k), ("sum", k): columns(k, k)}
        if 2 * k != n:
            loadings["difference", k] = columns(k, -k)
    if config.task.op in ("mul", "div"):
        mean = spectrum[:, 0, 0].real
        a_zero, b_zero = (torch.cat(means) - mean for means in zip(*alone, strict=True))
        zero = torch.zeros(d_mlp, 3, dtype=torch.float64)
        zero[:used] = torch.stack([a_zero, b_zero, -mean - a_zero - b_zero], dim=1)
        zero[used] = torch.tensor([1.0, 1.0, 2.0])  # ([a = 0] + [b = 0])²
        loadings["zero", 0] = zero
    return loadings


def _planes(loadings: Loadings, task: Task) -> tuple[KnownPlane, ...]:
    """The column spans of the loadings, largest variance first."""
    zeros = torch.stack([task.a == 0, task.b == 0, (task.a == 0) & (task.b == 0)], dim=1).double()
    of_zeros = torch.linalg.qr(zeros - zeros.mean(0)).R.T
    found = []
    for (variable, k), columns in loadings.items():
        if (
            variable != "zero"
        ):  # orthogonal functions of mean square 1/2 on the group's rows; 1 at the Nyquist frequency
            energy = len(task.group.rows) / columns.shape[1]
            scaled = columns * energy**0.5
        else:
            scaled = columns @ of_zeros
        variance = float(scaled.square().sum()) / len(task.a)
        if variance > NEGLIGIBLE:
            found.append(KnownPlane(variable, k, plane_of(scaled), variance))
    return tuple(sorted(found, key=lambda plane: -plane.variance))
