"""One step of a ReLU or JumpReLU SAE with numba: from its entries alone where codes are sparse, else in dense blocks.

Twin of `ReLU.losses` and `JumpReLU.losses` and autograd. Which of the two ways is taken follows from the first samples of
the batch, so that a resumed training takes the same.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from husai.sae.kernels import gate as kernels
from husai.sae.kernels.entries import ROWS, Entries, blocks_of, encoder_bias, entry_step
from husai.sae.kernels.room import room
from husai.sae.kernels.share import serial, share
from husai.sae.kernels.step import OneSeed
from husai.sae.params import Params

SAMPLE = 64  # samples by which the share of codes is judged
DENSE = 0.25  # share from which dense products are faster


class Gate(NamedTuple):
    """Weights of the penalties (λ of l1, step and tanh), tanh's scale, the band's width, whether h feels the band."""

    l1: float = 0.0
    step: float = 0.0
    tanh: float = 0.0
    scale: float = 0.0
    bandwidth: float = 0.0
    to_input: bool = False

    def over(self, batch: int) -> tuple[np.float32, np.float32, np.float32, np.float32, np.float32, bool]:
        """With weights a sample, as the kernels take it."""
        l1, step, tanh = (np.float32(weight / batch) for weight in self[:3])
        return l1, step, tanh, np.float32(self.scale), np.float32(self.bandwidth), self.to_input


def threshold_step(params: Params, x: Float[Tensor, "batch d_in"], gate: Gate, made: Params, term: str) -> OneSeed:
    """Squared error and the gate's penalty, named `term`, of one seed; its gradients go to `made`.

    Thresholds are `threshold` of the parameters, or 0.
    """
    with serial() as threads:
        bias, level = encoder_bias(params), params.more.get("threshold", torch.zeros_like(params.b_enc))
        low = level - 0.5001 * gate.bandwidth
        some = torch.addmm(bias, x[:SAMPLE], params.W_enc) > low
        way = _sparse if some.sum() < DENSE * some.numel() else _dense
        done, penalty, inward, outward = way(params, x, gate, made, threads, level, low)
        made.W_dec.addcmul_(params.W_dec, (inward / params.W_dec.norm(dim=-1).clamp(min=1e-30))[:, None])
        for value in made.more.values():
            value.copy_(outward)
        return replace(done, terms={term: torch.tensor(penalty).float()})


Way = tuple[OneSeed, float, Tensor, Tensor]


def _sparse(params: Params, x: Tensor, gate: Gate, made: Params, threads: int, level: Tensor, low: Tensor) -> Way:
    m, settings, threshold, bound = len(level), gate.over(len(x)), level.numpy(), low.numpy()
    entries, bias, norms = Entries.of(len(x), m), encoder_bias(params), params.W_dec.norm(dim=-1).numpy()
    parts = x.split(ROWS)
    sums, totals = np.empty((2, len(parts), m), np.float32), np.zeros(len(parts))

    def fill(block: int) -> bool:
        part = parts[block]
        hidden = torch.addmm(bias, part, params.W_enc, out=room("scores", len(part), m)).numpy()
        kernels.passing(hidden, threshold, bound, settings[4], *entries.rows[block])
        return bool(kernels.finite(hidden))

    def amend(block: int) -> None:
        index, value, start, count = entries.rows[block]
        both = (sums[0, block], sums[1, block])
        totals[block] = kernels.price(index, value, entries.slope, start, count, threshold, norms, settings, *both)

    done = entry_step(params, x, entries, fill, made, threads, amend)
    inward, outward = torch.from_numpy(sums.sum(1)).unbind()
    return done, float(totals.sum()), inward, outward


def _dense(params: Params, x: Tensor, gate: Gate, made: Params, threads: int, level: Tensor, low: Tensor) -> Way:
    (batch, d), m, parts = x.shape, len(level), blocks_of(len(x))
    W_enc, _, W_dec, b_dec = (params.W_enc, params.b_enc, params.W_dec, params.b_dec)
    bias, norms, scale, settings = encoder_bias(params), W_dec.norm(dim=-1), 2 / batch, gate.over(batch)
    threshold, back = level.numpy(), W_dec.T * scale
    codes, slopes, error = room("codes", batch, m), room("slopes", batch, m), room("error", batch, d)
    sums, figures = torch.empty(4, len(parts), m), torch.zeros(3, len(parts), dtype=torch.float64)
    squares, peaks, bent = figures

    def forward(block: int) -> None:
        rows = parts[block]
        f, e, s = codes[rows], error[rows], slopes[rows]
        hidden = torch.addmm(bias, x[rows], W_enc, out=room("scores", len(f), m))
        peaks[block] = float(kernels.let_through(hidden.numpy(), threshold, f.numpy()))
        torch.sub(b_dec, x[rows], out=e).addmm_(f, W_dec)
        squares[block] = e.flatten().dot(e.flatten()) if kernels.finite(hidden.numpy()) else torch.nan
        torch.mm(e, back, out=s)
        inward, outward, to_bias, uses = (part.numpy() for part in sums[:, block])
        extra = torch.zeros(m)
        if gate.tanh:
            t = torch.mul(f, norms * gate.scale, out=room("tanh", len(f), m)).tanh_()
            bent[block] = t.sum()
            steep = t.square_().neg_().add_(1).mul_(gate.tanh * gate.scale / batch)
            s.addcmul_(steep, norms)
            extra = steep.mul_(f).sum(0)
        part = (hidden.numpy(), f.numpy(), s.numpy())
        kernels.price_dense(*part, threshold, norms.numpy(), settings, inward, outward, to_bias, uses)
        sums[0, block] += extra

    share(forward, len(parts), threads)
    inward, outward, to_bias, uses = sums.sum(1)
    latents = max(1, -(-m // (2 * threads)))

    def weights(block: int) -> None:
        part = slice(block * latents, (block + 1) * latents)
        torch.mm(codes[:, part].T, error, out=made.W_dec[part]).mul_(scale)
        made.W_enc[:, part] = (x.T @ slopes[:, part]).addr_(b_dec, to_bias[part], alpha=-1)

    share(weights, -(-m // latents), threads)
    made.b_enc.copy_(to_bias)
    torch.sub(error.sum(0) * scale, W_enc @ made.b_enc, out=made.b_dec)
    active, total = uses.double().sum(), 0.0
    if gate.l1:
        total = float(inward.dot(norms))
    elif gate.step:
        total = gate.step / batch * float(active)
    elif gate.tanh:
        total = gate.tanh / batch * float(bent.sum())
    mse, peak = (squares.sum() / batch).float(), peaks.max().float()
    return OneSeed(mse, active / batch, uses > 0, peak, {}, error.neg_()), total, inward, outward
