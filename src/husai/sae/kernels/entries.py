"""A step of one seed from its codes' entries alone: decode, sort and differentiate, never the dense codes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from husai.sae.kernels import sparse
from husai.sae.kernels.room import room
from husai.sae.kernels.share import share
from husai.sae.kernels.step import OneSeed
from husai.sae.params import Params

ROWS = 256  # samples a block: their scores fit in a core's cache


@dataclass(frozen=True)
class Entries:
    """What `sparse` calls entries, of a batch. width: places a sample has at most; a block starts at its first one's."""

    width: int
    index: np.ndarray
    value: np.ndarray
    slope: np.ndarray
    start: np.ndarray
    count: np.ndarray

    @classmethod
    def of(cls, batch: int, width: int) -> "Entries":
        """Uninitialised, `start` with the full width for every sample."""
        places = batch * width + 64
        index = room("index", places, dtype=torch.int32).numpy()
        value, slope = room("value", places).numpy(), room("slope", places).numpy()
        return cls(width, index, value, slope, np.arange(0, batch * width, width), np.empty(batch, np.int64))

    def rows(self, rows: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """index, value and the rows' start and count."""
        return self.index, self.value, self.start[rows], self.count[rows]


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
    fill: Callable[[int, slice], bool],
    made: Params,
    threads: int,
    amend: Callable[[int, slice], object] = lambda _block, _rows: None,
) -> OneSeed:
    """Squared error and its gradients, which go to `made`.

    fill(block, rows) writes the entries of a block and says whether all scores were finite; amend(block, rows) may change
    their slopes, which are the error's derivatives by the values.
    """
    (batch, d), m = x.shape, len(params.b_enc)
    parts = blocks_of(batch)
    samples, atoms, b_dec = x.numpy(), params.W_dec.numpy(), params.b_dec.numpy()
    places = batch * entries.width + 64
    row_of = room("row_of", places, dtype=torch.int32).numpy()
    value_of, slope_of = room("value_of", places).numpy(), room("slope_of", places).numpy()
    residual = room("error", batch, d)
    error, scale = residual.numpy(), np.float32(2 / batch)
    squares, column = np.zeros(len(parts)), np.empty((len(parts), m + 1), np.int64)
    fired, figures = np.empty((len(parts), m), np.bool_), np.empty((len(parts), 2))

    def forward(block: int) -> None:
        rows = parts[block]
        finite = fill(block, rows)
        index, value, start, count = entries.rows(rows)
        squares[block] = sparse.decode(
            samples[rows], atoms, b_dec, scale, index, value, start, count, error[rows], entries.slope
        )
        squares[block] *= 1.0 if finite else np.nan
        amend(block, rows)
        figures[block] = sparse.sort_block(
            rows.start,
            index,
            value,
            entries.slope,
            start,
            count,
            column[block],
            fired[block],
            row_of,
            value_of,
            slope_of,
        )

    share(forward, len(parts), threads)
    to_enc, to_bias, to_dec = (value.numpy() for value in (made.W_enc, made.b_enc, made.W_dec))
    base = entries.start[::ROWS].copy()
    latents = max(1, -(-m // (2 * threads)))

    def weights(block: int) -> None:
        first, last = block * latents, min((block + 1) * latents, m)
        ordered = (base, column, row_of, value_of, slope_of)
        sparse.latent_gradients(first, last, *ordered, scale, error, samples, b_dec, to_dec, to_enc, to_bias)

    share(weights, -(-m // latents), threads)
    torch.sub(residual.sum(0) * float(scale), params.W_enc @ made.b_enc, out=made.b_dec)
    active, peak = torch.from_numpy(figures).unbind(1)
    mse, l0 = torch.tensor(squares.sum() / batch).float(), active.sum() / batch
    alive = torch.from_numpy(fired.any(0))
    return OneSeed(mse, l0, alive, peak.max().float(), {}, residual.neg_())
