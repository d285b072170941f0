"""One ReLU step in blocks of samples, then of latents: the five dense products and single passes between them.

Twin of `ReLU.losses` and autograd; plain torch, no numba.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from husai.sae.kernels.room import room
from husai.sae.kernels.share import serial, share
from husai.sae.kernels.step import OneSeed
from husai.sae.params import Params

ROWS, LATENTS = 256, 256  # samples and latents a block


def relu_step(params: Params, x: Float[Tensor, "batch d_in"], l1: float, made: Params) -> OneSeed:
    """Squared error plus l1 · mean over batch of Σ_i f_i·‖W_dec,i‖, of one seed; its gradients go to `made`."""
    with serial() as threads:
        return _relu_step(params, x, l1, made, threads)


def _relu_step(params: Params, x: Tensor, l1: float, made: Params, threads: int) -> OneSeed:
    (batch, d), m = x.shape, len(params.b_enc)
    blocks, scale = -(-batch // ROWS), 2 / batch
    W_enc, b_enc, W_dec, b_dec = params
    bias, norms = b_enc - b_dec @ W_enc, W_dec.norm(dim=-1)
    pull, back = norms * (l1 / batch), W_dec.T * scale
    codes, slopes, error = room("codes", batch, m), room("slopes", batch, m), room("error", batch, d)
    code_sums, slope_sums = torch.empty(2, blocks, m)
    squares, active = torch.zeros(blocks, dtype=torch.float64), torch.zeros(blocks, dtype=torch.long)
    peaks = torch.empty(blocks)

    def forward(block: int) -> None:
        rows = slice(block * ROWS, (block + 1) * ROWS)
        f, e, s = codes[rows], error[rows], slopes[rows]
        torch.addmm(bias, x[rows], W_enc, out=f).relu_()
        torch.sub(b_dec, x[rows], out=e).addmm_(f, W_dec)
        active[block], peaks[block] = torch.sign(f, out=s).sum(), f.max()
        torch.addmm(pull, e, back, out=s)
        torch.ops.aten.threshold_backward.grad_input(s, f, 0, grad_input=s)
        torch.sum(f, 0, out=code_sums[block])
        torch.sum(s, 0, out=slope_sums[block])
        squares[block] = e.flatten().dot(e.flatten())

    share(forward, blocks, threads)
    strength = code_sums.sum(0)
    inward = strength * (l1 / batch) / norms.clamp(min=1e-30)

    def weights(block: int) -> None:
        part = slice(block * LATENTS, (block + 1) * LATENTS)
        to_dec = torch.addmm(W_dec[part] * inward[part, None], codes[:, part].T, error, alpha=scale)
        made.W_dec[part] = to_dec
        made.W_enc[:, part] = (x.T @ slopes[:, part]).addr_(b_dec, slope_sums[:, part].sum(0), alpha=-1)

    share(weights, -(-m // LATENTS), threads)
    torch.sum(slope_sums, 0, out=made.b_enc)
    torch.sub(error.sum(0) * scale, W_enc @ made.b_enc, out=made.b_dec)
    terms = {"l1": l1 / batch * strength.dot(norms)}
    l0 = active.sum().double() / batch
    return OneSeed((squares.sum() / batch).float(), l0, strength > 0, peaks.max(), terms, error.neg_())
