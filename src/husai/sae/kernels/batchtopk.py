"""One BatchTopK step from its entries alone. Twin of `BatchTopK.losses` and autograd for decoder rows of norm 1.

The level above which the batch's B·k largest scores lie is guessed from the first samples, somewhat too low. What exceeds
it is gathered as blocks are encoded, and the exact level is found among that. A guess that proves too high is lowered.
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from husai.sae.kernels import select
from husai.sae.kernels.entries import Entries, blocks_of, encoder_bias, entry_step
from husai.sae.kernels.room import room
from husai.sae.kernels.share import serial, share
from husai.sae.kernels.step import OneSeed
from husai.sae.params import Params

ONE = int(np.float32(1).view(np.int32))
MARGIN = 1.25  # candidates gathered, relative to what is kept


def batch_step(params: Params, x: Float[Tensor, "batch d_in"], k: int, made: Params) -> OneSeed:
    """Squared error of one seed with the batch's B·k largest scores active; its gradients go to `made`.

    Of equal scores at the level the first are kept. seen: the smallest active score, infinity if none is.
    """
    with serial() as threads:
        entries, bias, parts = Entries.of(len(x), len(params.b_enc)), encoder_bias(params), blocks_of(len(x))
        finite = _gather(params, bias, x, entries, parts, k * len(x), threads)
        level, ties, least = _level(entries, parts, k * len(x))

        def fill(block: int, rows: slice) -> bool:
            select.trim(*entries.rows(rows), level, ties[block])
            return bool(finite[block])

        for value in made.more.values():
            value.zero_()
        done = entry_step(params, x, entries, fill, made, threads)
        smallest = torch.tensor([least], dtype=torch.int32).view(torch.float32)
        return replace(done, seen={"smallest": smallest})


def _scores(params: Params, bias: Tensor, x: Tensor) -> np.ndarray:
    return torch.addmm(bias, x, params.W_enc, out=room("scores", len(x), len(bias))).numpy()


def _gather(
    params: Params, bias: Tensor, x: Tensor, entries: Entries, parts: list[slice], wanted: int, threads: int
) -> np.ndarray:
    """Fill in all scores above some level: at least `wanted`, or all positive ones. Returns which blocks are finite."""
    first = _scores(params, bias, x[parts[0]]).view(np.int32).ravel()
    finite, asked = np.empty(len(parts), np.bool_), MARGIN * wanted / len(x) * (parts[0].stop - parts[0].start)
    while True:
        level = 0
        if select.count_above(first, 0) > asked:
            level, _ = select.bracket(first, int(asked), 0, int(first.max()), int(asked / 16), ONE)

        def gather(block: int, level: int = level) -> None:
            rows = parts[block]
            finite[block] = select.all_above(_scores(params, bias, x[rows]), level, *entries.rows(rows))

        share(gather, len(parts), threads)
        if level == 0 or entries.count.sum() >= wanted:
            return finite
        first, asked = _scores(params, bias, x[parts[0]]).view(np.int32).ravel(), 2 * asked


def _level(entries: Entries, parts: list[slice], wanted: int) -> tuple[int, list[int], int]:
    """Bits of the score above which all are kept, how many at it in each block, and the least kept."""
    bits = entries.value.view(np.int32)
    starts = [entries.start[rows.start] for rows in parts]
    found = [bits[at : at + entries.count[rows].sum()] for at, rows in zip(starts, parts, strict=True)]
    every, none = np.concatenate(found), [0] * len(parts)
    if len(every) <= wanted:
        return 0, none, int(select.least_above(every, 0))
    low, high = int(every.min()) - 1, int(every.max())
    level, left = select.exact_level(every, wanted, low, high, low + (high - low) // 8)
    if left == 0:
        return level, none, int(select.least_above(every, level))
    ties = []
    for part in found:
        ties.append(min(left, select.count_at(part, level)))
        left -= ties[-1]
    return level, ties, level
