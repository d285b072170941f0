"""One TopK step from its entries alone: select, decode and differentiate block by block, never the dense codes.

Twin of `TopK.losses` and autograd (Gao et al. 2024, arXiv 2406.04093, §2.3) for decoder rows of norm 1.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from husai.sae.kernels import select
from husai.sae.kernels.entries import ROWS, Entries, encoder_bias, entry_step
from husai.sae.kernels.room import room
from husai.sae.kernels.share import serial
from husai.sae.kernels.step import OneSeed
from husai.sae.params import Params


def sparse_step(params: Params, x: Float[Tensor, "batch d_in"], k: int, made: Params) -> OneSeed:
    """Squared error of one seed with the k largest scores of every sample active; its gradients go to `made`."""
    with serial() as threads:
        entries, bias, m = Entries.of(len(x), k), encoder_bias(params), len(params.b_enc)
        parts = x.split(ROWS)

        def fill(block: int) -> bool:
            part = parts[block]
            scores = torch.addmm(bias, part, params.W_enc, out=room("scores", len(part), m))
            return bool(select.largest(scores.numpy(), k, *entries.rows[block]))

        return entry_step(params, x, entries, fill, made, threads)
