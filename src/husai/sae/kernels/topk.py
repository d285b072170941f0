"""One TopK step from its entries alone: select, decode and differentiate block by block, never the dense codes.

Twin of `TopK.losses` and autograd (Gao et al. 2024, arXiv 2406.04093, §2.3) for decoder rows of norm 1.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from husai.sae.kernels import sparse
from husai.sae.kernels.room import room
from husai.sae.kernels.share import serial, share
from husai.sae.kernels.step import OneSeed
from husai.sae.params import Params

ROWS = 256  # samples a block: their scores fit in a core's cache
GROUP = 2  # blocks of samples that the weights' gradients take from the cache at once


def sparse_step(params: Params, x: Float[Tensor, "batch d_in"], k: int, made: Params) -> OneSeed:
    """Squared error of one seed with the k largest scores active; its gradients go to `made`."""
    with serial() as threads:
        return _sparse_step(params, x, k, made, threads)


def _sparse_step(params: Params, x: Tensor, k: int, made: Params, threads: int) -> OneSeed:
    (batch, d), m = x.shape, len(params.b_enc)
    blocks = -(-batch // ROWS)
    W_enc, b_enc, W_dec, _ = params
    b_dec, samples, atoms = params.b_dec.numpy(), x.numpy(), W_dec.numpy()
    bias = b_enc - params.b_dec @ W_enc
    index, row_of = room("index", 2, batch * k, dtype=torch.int32).numpy()
    value, slope, value_of, slope_of = room("entries", 4, batch * k).numpy()
    start, count = np.arange(0, batch * k, k), np.empty(batch, np.int64)
    residual = room("error", batch, d)
    error = residual.numpy()
    uses, squares = np.empty((blocks, m), np.int64), np.zeros(blocks)
    scale = np.float32(2 / batch)

    def forward(block: int) -> None:
        rows = slice(block * ROWS, min((block + 1) * ROWS, batch))
        scores = torch.addmm(bias, x[rows], W_enc, out=room("scores", len(x[rows]), m)).numpy()
        finite = sparse.largest(scores, k, index, value, start[rows], count[rows])
        entries = (index, value, start[rows], count[rows])
        squares[block] = sparse.decode(samples[rows], atoms, b_dec, scale, *entries, error[rows], slope)
        squares[block] *= 1.0 if finite else np.nan
        sparse.tally(index, start[rows], count[rows], uses[block])

    share(forward, blocks, threads)
    column = np.empty(m + 1, np.int64)
    sparse.places(uses, column)

    def sort(block: int) -> None:
        rows = slice(block * ROWS, min((block + 1) * ROWS, batch))
        entries = (index, value, slope, start[rows], count[rows])
        sparse.sort_by_latent(block * ROWS, *entries, uses[block], row_of, value_of, slope_of)

    share(sort, blocks, threads)
    to_enc, to_bias, to_dec = (value.numpy() for value in (made.W_enc, made.b_enc, made.W_dec))

    latents = max(1, -(-m // (2 * threads)))

    def weights(block: int) -> None:
        bounds = (block * latents, min((block + 1) * latents, m))
        ordered = (column, uses, row_of, value_of, slope_of)
        sparse.latent_gradients(*bounds, GROUP, *ordered, scale, error, samples, b_dec, to_dec, to_enc, to_bias)

    share(weights, -(-m // latents), threads)
    torch.sub(residual.sum(0) * float(scale), W_enc @ made.b_enc, out=made.b_dec)
    mse, l0 = torch.tensor(squares.sum() / batch).float(), torch.tensor(count.sum() / batch)
    peak = torch.tensor(value_of[: column[m]].max(initial=0))
    return OneSeed(mse, l0, torch.from_numpy(np.diff(column) > 0), peak, {}, residual.neg_())
