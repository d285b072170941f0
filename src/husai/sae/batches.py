"""Batches of normalised samples, a stream of its own for every seed."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from husai.activations import Normaliser
from husai.seeding import generator
from husai.stores import Store

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
        flat = rows.flatten().to(self.samples.device)
        return self.samples.index_select(0, flat).unflatten(0, rows.shape)

    def state_dict(self) -> dict[str, Any]:
        """Where the streams stand, and the orders of this pass."""
        return {"streams": [g.get_state() for g in self.generators], "orders": self.orders}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for stream, stored in zip(self.generators, state["streams"], strict=True):
            stream.set_state(stored)
        self.orders = state["orders"]


class StoreBatches:
    """The same of a store that need not fit into memory: each seed visits the shards in an order of its own each pass.

    Shards are read in blocks of as many as `buffer_rows` holds (at least one), whose rows are shuffled together; a seed
    has one block in memory. With a block for the whole store, the orders are those of `Batches`.
    """

    def __init__(
        self,
        store: Store,
        batch_size: int,
        data_seeds: tuple[int, ...],
        normaliser: Normaliser,
        buffer_rows: int,
        device: str,
    ) -> None:
        self.store, self.batch_size, self.normaliser, self.device = store, batch_size, normaliser, device
        self.per_epoch = len(store) // batch_size
        self.readers = [Reader(store, seed, buffer_rows) for seed in data_seeds]

    def at(self, step: int) -> Float[Tensor, "seeds batch d_in"]:
        """The batch at `step`; steps must be asked for in order."""
        if step % self.per_epoch == 0:
            for reader in self.readers:
                reader.begin(step // self.per_epoch)
        raw = torch.stack([reader.take(self.batch_size) for reader in self.readers])
        return self.normaliser(raw).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        return {"readers": [reader.state_dict() for reader in self.readers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for reader, stored in zip(self.readers, state["readers"], strict=True):
            reader.load_state_dict(stored)


class Reader:
    """One seed's way through a store."""

    def __init__(self, store: Store, seed: int, buffer_rows: int) -> None:
        self.store, self.seed, self.buffer_rows = store, seed, buffer_rows
        self.stream = generator("sae-data", seed)
        self.loaded: tuple[int, ...] = ()
        self.block = torch.empty(0, store.d)

    def begin(self, epoch: int) -> None:
        """Start a pass: shards in a new order, in blocks; within a block they lie as they do in the store."""
        self.epoch, self.taken, self.start = epoch, 0, self.stream.get_state()
        shuffled = torch.randperm(len(self.store.shards), generator=generator("sae-shards", self.seed, epoch)).tolist()
        blocks: list[list[int]] = []
        room = 0
        for index in shuffled:
            rows = self.store.shards[index].rows
            if not blocks or rows > room:
                blocks.append([])
                room = self.buffer_rows
            blocks[-1].append(index)
            room -= rows
        self.blocks = [tuple(sorted(block)) for block in blocks]
        self.order, self.place = torch.empty(0, dtype=torch.long), 0

    def take(self, count: int) -> Float[Tensor, "count d_in"]:
        """The next rows of this pass, raw."""
        parts = []
        self.taken += count
        while count:
            if self.place == len(self.order):
                self._shuffle(self.blocks.pop(0))
            self._load()
            rows = self.order[self.place : self.place + count]
            parts.append(self.block[rows])
            self.place += len(rows)
            count -= len(rows)
        return torch.cat(parts)

    def _shuffle(self, block: tuple[int, ...]) -> None:
        self.wanted, self.place = block, 0
        self.order = torch.randperm(sum(self.store.shards[index].rows for index in block), generator=self.stream)

    def _load(self) -> None:
        """Have the wanted block in memory, in the place of the one before."""
        if self.loaded == self.wanted:
            return
        self.block = torch.empty(0, self.store.d)
        self.block = torch.empty(len(self.order), self.store.d)
        start = 0
        for index in self.wanted:
            rows = self.store.shards[index].rows
            self.block[start : start + rows] = self.store.read(index)
            start += rows
        self.loaded = self.wanted

    def state_dict(self) -> dict[str, Any]:
        """Where the pass began, and how far it is; the rest follows."""
        return {"epoch": self.epoch, "taken": self.taken, "stream": self.start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stream.set_state(state["stream"])
        self.begin(state["epoch"])
        left = self.taken = state["taken"]
        while left:
            self._shuffle(self.blocks.pop(0))
            self.place = min(left, len(self.order))
            left -= self.place
