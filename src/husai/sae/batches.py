"""Batches of normalised samples, a stream of its own for every seed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from husai.activations import Normaliser
from husai.sae.known import Beside, Known, KnownOfStore
from husai.seeding import generator
from husai.shards import Store

Fresh = Callable[[int, torch.Generator], Float[Tensor, "count d_in"]]


class Batches:
    """Endless batches of normalised samples, one shuffled pass after another; each seed has its own order.

    The ragged end is left out. fresh: where given, each batch is drawn anew instead, (count, generator) → raw samples.
    known: what is known of the samples.
    """

    def __init__(
        self,
        samples: Float[Tensor, "samples d_in"],
        batch_size: int,
        data_seeds: tuple[int, ...],
        normaliser: Normaliser,
        fresh: Fresh | None = None,
        known: Known | None = None,
    ) -> None:
        self.known = known or Known()
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
        self.rows: Int[Tensor, "seeds batch"] = self.orders[:, place * self.batch_size : (place + 1) * self.batch_size]
        flat = self.rows.flatten().to(self.samples.device)
        return self.samples.index_select(0, flat).unflatten(0, self.rows.shape)

    def beside(self) -> Beside:
        """What is known of the batch that `at` gave last."""
        return Beside.at(self.rows, self.samples, self.known)

    def state_dict(self) -> dict[str, Any]:
        """Where the streams stand, and the orders of this pass."""
        return {"streams": [g.get_state() for g in self.generators], "orders": self.orders}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for stream, stored in zip(self.generators, state["streams"], strict=True):
            stream.set_state(stored)
        self.orders = state["orders"]


class StoreBatches:
    """The same of a store that need not fit into memory: each pass visits the shards in another order.

    Shards are read in blocks of as many as `buffer_rows` holds (at least one), whose rows are shuffled together. One block
    is in memory, which all seeds share: the order of the shards is the same for all of them, that of rows within a block
    each seed's own, so that a seed sees the same rows alone as in a stack. With a block for the whole store, the orders are
    those of `Batches`.
    """

    def __init__(
        self,
        store: Store,
        batch_size: int,
        data_seeds: tuple[int, ...],
        normaliser: Normaliser,
        buffer_rows: int,
        device: str,
        known: KnownOfStore | None = None,
    ) -> None:
        self.store, self.batch_size, self.normaliser, self.device = store, batch_size, normaliser, device
        self.buffer_rows, self.known = buffer_rows, known or KnownOfStore(store)
        self.per_epoch = len(store) // batch_size
        self.streams = [generator("sae-data", seed) for seed in data_seeds]
        self.loaded: tuple[int, ...] = ()
        self.block = torch.empty(0, store.d)

    def at(self, step: int) -> Float[Tensor, "seeds batch d_in"]:
        """The batch at `step`; steps must be asked for in order."""
        if step % self.per_epoch == 0:
            self._begin(step // self.per_epoch)
        parts, known, wanted = [], [], self.batch_size
        self.taken += wanted
        while wanted:
            if self.place == self.orders.shape[1]:
                self._shuffle(self.blocks.pop(0))
            self._load()
            rows = self.orders[:, self.place : self.place + wanted]
            parts.append(self.block[rows])
            known.append(Beside.at(rows, self.block, self.known_of_block))
            self.place += rows.shape[1]
            wanted -= rows.shape[1]
        self.parts = known
        return self.normaliser(torch.cat(parts, dim=1)).to(self.device)

    def beside(self) -> Beside:
        """What is known of the batch that `at` gave last."""
        found = Beside.join(self.parts)
        before = None if found.before is None else self.normaliser(found.before).to(self.device)
        return replace(found, before=before)

    def _begin(self, epoch: int) -> None:
        """Start a pass: shards in a new order, in blocks; within a block they lie as they do in the store."""
        self.epoch, self.taken, self.start = epoch, 0, [stream.get_state() for stream in self.streams]
        shuffled = torch.randperm(len(self.store.shards), generator=generator("sae-shards", 0, epoch)).tolist()
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
        self.orders, self.place = torch.empty(len(self.streams), 0, dtype=torch.long), 0

    def _shuffle(self, block: tuple[int, ...]) -> None:
        self.wanted, self.place = block, 0
        rows = sum(self.store.shards[index].rows for index in block)
        self.orders = torch.stack([torch.randperm(rows, generator=stream) for stream in self.streams])

    def _load(self) -> None:
        """Have the wanted block in memory, in the place of the one before."""
        if self.loaded == self.wanted:
            return
        self.block = torch.empty(0, self.store.d)
        self.block = torch.empty(self.orders.shape[1], self.store.d)
        start = 0
        for index in self.wanted:
            rows = self.store.shards[index].rows
            self.block[start : start + rows] = self.store.read(index)
            start += rows
        self.known_of_block = self.known.block(self.wanted)
        self.loaded = self.wanted

    def state_dict(self) -> dict[str, Any]:
        """Where the pass began, and how far it is; the rest follows."""
        return {"epoch": self.epoch, "taken": self.taken, "streams": self.start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for stream, stored in zip(self.streams, state["streams"], strict=True):
            stream.set_state(stored)
        self._begin(state["epoch"])
        left = self.taken = state["taken"]
        while left:
            self._shuffle(self.blocks.pop(0))
            self.place = min(left, self.orders.shape[1])
            left -= self.place
