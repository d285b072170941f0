"""One TopK step from its entries alone: select, decode and differentiate block by block, never the dense codes.

Twin of `TopK.losses` and autograd (Gao et al. 2024, arXiv 2406.04093, §2.3) for decoder rows of norm 1.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from husai.sae.architecture import Step
from husai.sae.kernels import sparse
from husai.sae.kernels.share import share
from husai.sae.params import Params

ROWS = 256  # samples a block: their scores fit in a core's cache
LATENTS = 64  # latents a block of the weights' gradients


@dataclass(frozen=True)
class Sparse:
    """One seed's step without further terms. residual: x − x̂."""

    gradients: Params
    mse: Tensor
    l0: Tensor
    fired: Tensor
    residual: Float[Tensor, "batch d_in"]


def sparse_step(params: Params, x: Float[Tensor, "batch d_in"], k: int) -> Sparse:
    """Squared error and its gradients of one seed (parameters without a seed axis) with the k largest scores active."""
    (batch, d), m = x.shape, len(params.b_enc)
    blocks = -(-batch // ROWS)
    W_enc, W_dec = params.W_enc.detach(), params.W_dec.detach()
    b_dec, samples, atoms = params.b_dec.detach().numpy(), x.numpy(), W_dec.numpy()
    bias = params.b_enc.detach() - params.b_dec.detach() @ W_enc
    index, (value, slope) = np.empty(batch * k, np.int32), np.empty((2, batch * k), np.float32)
    start, count = np.arange(0, batch * k, k), np.empty(batch, np.int64)
    error = np.empty((batch, d), np.float32)
    uses, squares = np.empty((blocks, m), np.int64), np.zeros(blocks)
    scale = np.float32(2 / batch)

    def forward(block: int) -> None:
        rows = slice(block * ROWS, min((block + 1) * ROWS, batch))
        scores = torch.addmm(bias, x[rows], W_enc).numpy()
        finite = sparse.largest(scores, k, index, value, start[rows], count[rows])
        entries = (index, value, start[rows], count[rows])
        squares[block] = sparse.decode(samples[rows], atoms, b_dec, scale, *entries, error[rows], slope)
        squares[block] *= 1.0 if finite else np.nan
        sparse.tally(index, start[rows], count[rows], uses[block])

    share(forward, blocks)
    column = np.empty(m + 1, np.int64)
    sparse.places(uses, column)
    used = column[-1]
    row_of, (value_of, slope_of) = np.empty(used, np.int32), np.empty((2, used), np.float32)

    def sort(block: int) -> None:
        rows = slice(block * ROWS, min((block + 1) * ROWS, batch))
        entries = (index, value, slope, start[rows], count[rows])
        sparse.sort_by_latent(block * ROWS, *entries, uses[block], row_of, value_of, slope_of)

    share(sort, blocks)
    made = Params(*(torch.empty_like(value) for value in (W_enc, bias, W_dec, params.b_dec.detach())))
    to_enc, to_bias, to_dec = (value.numpy() for value in (made.W_enc, made.b_enc, made.W_dec))

    def weights(block: int) -> None:
        bounds = (block * LATENTS, min((block + 1) * LATENTS, m))
        ordered = (column, row_of, value_of, slope_of)
        sparse.latent_gradients(*bounds, *ordered, scale, error, samples, b_dec, to_dec, to_enc, to_bias)

    share(weights, -(-m // LATENTS))
    wrong = torch.from_numpy(error)
    torch.sub(wrong.sum(0) * float(scale), W_enc @ made.b_enc, out=made.b_dec)
    mse, l0 = torch.tensor(squares.sum() / batch).float(), torch.tensor(count.sum() / batch)
    return Sparse(made, mse, l0, torch.from_numpy(np.diff(column) > 0), wrong.neg_())


def stacked(steps: list[Sparse], terms: dict[str, Tensor]) -> Step:
    """All seeds as the training loop wants them."""
    names = [name for name, _ in steps[0].gradients.items()]
    made = {name: torch.stack([dict(one.gradients.items())[name] for one in steps]) for name in names}
    mse, l0, fired = (torch.stack([getattr(one, name) for one in steps]) for name in ("mse", "l0", "fired"))
    return Step(Params.of(made), mse, terms, l0, fired)
