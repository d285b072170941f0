"""What is known of samples beside what they are, where a term of the loss asks for it: labels, and their order in time."""

from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from husai.errors import HusaiError
from husai.models import Inputs
from husai.recurrent.walks import Walks
from husai.shards import Store

POSITION = "position"  # the column of a store that tells the order of its rows


@dataclass(frozen=True)
class Known:
    """labels: whole numbers from 0, one a sample; None: not known.

    before: the row of the sample one step earlier, −1 where there is none; None: samples have no order.
    """

    labels: Int[Tensor, "samples"] | None = None
    before: Int[Tensor, "samples"] | None = None

    @classmethod
    def of(cls, inputs: Inputs) -> "Known":
        """The answers; on walks, also which step follows which."""
        before = None
        if isinstance(inputs, Walks):
            before = torch.where(inputs.time > 1, torch.arange(len(inputs.time)) - 1, -1)
        return cls(inputs.labels, before)


@dataclass(frozen=True)
class KnownOfStore:
    """What a store holds beside x, one shard at a time.

    labels: the column that they are read from. classes: its values, ascending; the first is label 0. ordered: whether to
    tell what precedes what. The row before a sample is the one above it in the same shard, if its position is one less.
    """

    store: Store
    labels: str | None = None
    classes: Int[Tensor, "classes"] | None = None
    ordered: bool = False

    @classmethod
    def read(cls, store: Store, labels: str | None, *, ordered: bool) -> "KnownOfStore":
        """Reads the columns once. Raises HusaiError if one is missing or not aligned, or if no row follows another."""
        values: list[Tensor] = []
        follows = False
        for index in range(len(store.shards)):
            if labels is not None:
                values = [torch.cat([*values, _column(store, index, labels)]).unique()]
            if ordered:
                follows = follows or bool((_before(store, index) >= 0).any())
        if ordered and not follows:
            raise HusaiError(
                f"{store.folder}: no row has a '{POSITION}' one above the row before it, so training.temporal has no pairs"
            )
        return cls(store, labels, values[0] if values else None, ordered)

    def block(self, shards: tuple[int, ...]) -> Known:
        """Of some shards, one after another; rows are counted within them."""
        labels = before = None
        if self.labels is not None and self.classes is not None:
            values = torch.cat([_column(self.store, index, self.labels) for index in shards])
            labels = torch.searchsorted(self.classes, values)
        if self.ordered:
            starts = [0, *accumulate(self.store.shards[index].rows for index in shards)]
            each = [_before(self.store, index) for index in shards]
            before = torch.cat(
                [torch.where(own < 0, own, own + start) for own, start in zip(each, starts, strict=False)]
            )
        return Known(labels, before)


def _column(store: Store, index: int, name: str) -> Int[Tensor, "rows"]:
    """An aligned column of a shard."""
    values, shard = store.aligned(index, name), store.shards[index]
    if values.is_floating_point() or values.numel() != shard.rows:
        raise HusaiError(f"{shard.path}: '{name}' must hold {shard.rows} whole numbers, one a row")
    return values.flatten().long()


def _before(store: Store, index: int) -> Int[Tensor, "rows"]:
    position = _column(store, index, POSITION)
    row = torch.arange(len(position))
    return torch.where((row > 0) & (position == position.roll(1) + 1), row - 1, -1)


@dataclass(frozen=True)
class Beside:
    """What is known of one batch. before: the samples one step earlier; a sample itself where it does not follow another."""

    labels: Int[Tensor, "seeds batch"] | None = None
    before: Float[Tensor, "seeds batch d_in"] | None = None
    follows: Bool[Tensor, "seeds batch"] | None = None

    @classmethod
    def join(cls, parts: list["Beside"]) -> "Beside":
        """One batch from its parts, in order."""
        columns = ([getattr(part, name) for part in parts] for name in ("labels", "before", "follows"))
        return cls(*(None if column[0] is None else torch.cat(column, dim=1) for column in columns))

    @classmethod
    def at(cls, rows: Int[Tensor, "seeds batch"], x: Float[Tensor, "samples d_in"], known: Known) -> "Beside":
        """Of some rows of x."""
        labels = None if known.labels is None else known.labels[rows]
        if known.before is None:
            return cls(labels)
        before = known.before[rows]
        follows = before >= 0
        return cls(labels, x[torch.where(follows, before, rows).to(x.device)], follows)
