"""Batches of normalised samples, a stream of its own for every seed."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from husai.activations import Normaliser
from husai.seeding import generator

Fresh = Callable[[int, torch.Generator], Float[Tensor, "count d_in"]]


class Batches:
    """Endless batches of normalised samples, one shuffled pass after another; each seed has its own order.

    The ragged end is left out. fresh: where given, each batch is drawn anew instead, (count, generator) → raw samples.
    """

    def __init__(
        self,
        samples: Float[Tensor, "samples d_in"],
        batch_size: int,
        data_seeds: tuple[int, ...],
        normaliser: Normaliser,
        fresh: Fresh | None = None,
    ) -> None:
        self.samples, self.batch_size, self.normaliser, self.fresh = samples, batch_size, normaliser, fresh
        self.generators = [generator("sae-data", seed) for seed in data_seeds]
        self.per_epoch = len(samples) // batch_size
        self.orders: Tensor = torch.empty(0)

    def at(self, step: int) -> Float[Tensor, "seeds batch d_in"]:
        """The batch at `step`; steps must be asked for in order."""
        if self.fresh is not None:
            drawn = torch.stack([self.fresh(self.batch_size, g) for g in self.generators])
            return self.normaliser(drawn).to(self.samples.device)
        place = step % self.per_epoch
        if place == 0:
            self.orders = torch.stack([torch.randperm(len(self.samples), generator=g) for g in self.generators])
        rows: Int[Tensor, "seeds batch"] = self.orders[:, place * self.batch_size : (place + 1) * self.batch_size]
        return self.samples[rows.to(self.samples.device)]
