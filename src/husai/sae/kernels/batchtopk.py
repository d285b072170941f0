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
from husai.sae.kernels.entries import ROWS, Entries, encoder_bias, entry_step
from husai.sae.kernels.room import room
from husai.sae.kernels.share import serial, share
from husai.sae.kernels.step import OneSeed
from husai.sae.params import Params

ONE = int(np.float32(1).view(np.int32))
SAMPLE = 64  # samples by which the level is guessed
MARGIN = 1.25  # candidates gathered, relative to what is kept


def batch_step(params: Params, x: Float[Tensor, "batch d_in"], k: int, made: Params) -> OneSeed:
    """Squared error of one seed with the batch's B·k largest scores active; its gradients go to `made`.

    Of equal scores at the level the first are kept. seen: the smallest active score, infinity if none is.
    """
    with serial() as threads:
        entries = Entries.of(len(x), len(params.b_enc))
        finite = _gather(params, x, entries, k * len(x), threads)
        level, ties, least = _level(entries, k * len(x))

        def fill(block: int) -> bool:
            select.trim(*entries.rows[block], level, ties[block])
            return finite[block]

        for value in made.more.values():
            value.zero_()
        done = entry_step(params, x, entries, fill, made, threads)
        smallest = torch.tensor([least], dtype=torch.int32).view(torch.float32)
        return replace(done, seen={"smallest": smallest})


def _gather(params: Params, x: Tensor, entries: Entries, wanted: int, threads: int) -> list[bool]:
    """Fill in all scores above some level: at least `wanted`, or all positive ones. Returns which blocks are finite."""
    bias, parts = encoder_bias(params), x.split(ROWS)
    finite, asked = [True] * len(parts), MARGIN * wanted / len(x) * len(x[:SAMPLE])

    def scores(part: Tensor) -> np.ndarray:
        return torch.addmm(bias, part, params.W_enc, out=room("scores", len(part), len(bias))).numpy()

    while True:
        first, level = scores(x[:SAMPLE]).view(np.int32).ravel(), 0
        if select.count_above(first, 0) > asked:
            level, _ = select.bracket(first, int(asked), 0, int(first.max()), int(asked / 16), ONE)

        def gather(block: int, level: int = level) -> None:
            finite[block] = bool(select.all_above(scores(parts[block]), level, *entries.rows[block]))

        share(gather, len(parts), threads)
        if level == 0 or sum(count.sum() for *_, count in entries.rows) >= wanted:
            return finite
        asked *= 2


def _level(entries: Entries, wanted: int) -> tuple[int, list[int], int]:
    """Bits of the score above which all are kept, how many at it in each block, and the least kept."""
    found = [value.view(np.int32)[start[0] : start[0] + count.sum()] for _, value, start, count in entries.rows]
    every, none = np.concatenate(found), [0] * len(found)
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
