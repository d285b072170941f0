"""A step of one seed from its codes' entries alone: decode, sort and differentiate, never the dense codes."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from husai.sae.kernels import sparse
from husai.sae.kernels.bits import LANES
from husai.sae.kernels.room import room
from husai.sae.kernels.share import share
from husai.sae.kernels.step import OneSeed
from husai.sae.params import Params

ROWS = 256  # samples a block: their scores fit in a core's cache


Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Entries:
    """What `sparse` calls entries, of a batch. width: places a sample has at most; a block starts at its first one's.

    rows: index, value, start and count of every block. Slices are made before the work on blocks, not in it: a few lines of
    Python are quick only while they are in the cache.
    """

    width: int
    slope: np.ndarray
    base: np.ndarray
    rows: list[Rows]

    @classmethod
    def of(cls, batch: int, width: int) -> "Entries":
        """Uninitialised, `start` with the full width for every sample."""
        places = batch * width + LANES
        index = room("index", places, dtype=torch.int32).numpy()
        value, slope = room("value", places).numpy(), room("slope", places).numpy()
        start, count = np.arange(0, batch * width, width), np.empty(batch, np.int64)
        base = start[::ROWS].copy()
        return cls(width, slope, base, [(index, value, start[rows], count[rows]) for rows in blocks_of(batch)])


def blocks_of(batch: int) -> list[slice]:
    """The samples of every block."""
    return [slice(start, min(start + ROWS, batch)) for start in range(0, batch, ROWS)]


def encoder_bias(params: Params) -> Float[Tensor, "d_sae"]:
    """What x·W_enc lacks to be the pre-activations."""
    return torch.sub(params.b_enc, params.b_dec @ params.W_enc)


def entry_step(
    params: Params,
    x: Float[Tensor, "batch d_in"],
    entries: Entries,
    fill: Callable[[int], bool],
    made: Params,
    threads: int,
    amend: Callable[[int], object] = lambda _: None,
) -> OneSeed:
    """Squared error and its gradients, which go to `made`.

    fill(block) writes the entries of a block and says whether all scores were finite; amend(block) may change their slopes,
    which are the error's derivatives by the values.
    """
    (batch, d), m = x.shape, len(params.b_enc)
    parts = blocks_of(batch)
    samples, atoms, b_dec = x.numpy(), params.W_dec.numpy(), params.b_dec.numpy()
    places = batch * entries.width + LANES
    row_of = room("row_of", places, dtype=torch.int32).numpy()
    moved = (row_of, room("value_of", places).numpy(), room("slope_of", places).numpy())
    residual = room("error", batch, d)
    error, scale = residual.numpy(), np.float32(2 / batch)
    squares, figures = [0.0] * len(parts), [(0, 0.0)] * len(parts)
    column, fired = np.empty((len(parts), m + 1), np.int64), np.empty((len(parts), m), np.bool_)
    decoding = [
        (samples[rows], atoms, b_dec, scale, *each, error[rows], entries.slope)
        for rows, each in zip(parts, entries.rows, strict=True)
    ]
    sorting = [
        (rows.start, *each[:2], entries.slope, *each[2:], column[block], fired[block], *moved)
        for block, (rows, each) in enumerate(zip(parts, entries.rows, strict=True))
    ]

    def forward(block: int) -> None:
        finite = fill(block)
        square = float(sparse.decode(*decoding[block]))
        squares[block] = square if finite else math.nan
        amend(block)
        active, largest = sparse.sort_block(*sorting[block])
        figures[block] = int(active), float(largest)

    share(forward, len(parts), threads)
    gradients = (value.numpy() for value in (made.W_dec, made.W_enc, made.b_enc))
    ordered = (entries.base, column, *moved, scale, error, samples, b_dec, *gradients)
    latents = max(1, -(-m // (2 * threads)))

    def weights(block: int) -> None:
        sparse.latent_gradients(block * latents, min((block + 1) * latents, m), *ordered)

    share(weights, -(-m // latents), threads)
    torch.sub(residual.sum(0) * float(scale), params.W_enc @ made.b_enc, out=made.b_dec)
    mse = torch.tensor(sum(squares) / batch, dtype=torch.float64).float()
    l0 = torch.tensor(sum(active for active, _ in figures) / batch, dtype=torch.float64)
    peak = torch.tensor(max(largest for _, largest in figures), dtype=torch.float32)
    return OneSeed(mse, l0, torch.from_numpy(fired.any(0)), peak, {}, residual.neg_())
