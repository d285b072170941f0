"""Inputs and targets: what a transcoder encodes, and what it reconstructs."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from husai.activations import Normaliser
from husai.config import SAEConfig
from husai.errors import HusaiError
from husai.sae.batches import Batches, Fresh, StoreBatches
from husai.sae.known import Known, KnownOfStore
from husai.sae.precision import unit_of
from husai.shards import SAMPLE, Store, fit_normaliser, sample_rows


@dataclass(frozen=True)
class Pairs:
    """Inputs x and targets, row by row: two tensors, or two stores whose shards have equally many rows.

    Raises HusaiError where they cannot belong together.
    """

    x: Float[Tensor, "samples d_in"] | Store
    target: Float[Tensor, "samples d_out"] | Store

    def __post_init__(self) -> None:
        x, target = self.x, self.target
        if isinstance(x, Store) and isinstance(target, Store):
            _require_alike(x, target)
        elif isinstance(x, Store) or isinstance(target, Store):
            raise HusaiError("inputs and targets: one is a store, the other is not; give two stores, or none")
        elif len(x) != len(target):
            raise HusaiError(f"inputs and targets: are {len(x)} and {len(target)} rows; they must be pairs")

    def __len__(self) -> int:
        return len(self.x)


Samples = Float[Tensor, "samples d_in"] | Store | Pairs


def split(samples: Samples) -> tuple[Tensor | Store, Tensor | Store | None]:
    """What is encoded and, where that is another activation, what is reconstructed."""
    return (samples.x, samples.target) if isinstance(samples, Pairs) else (samples, None)


def _require_alike(x: Store, target: Store) -> None:
    """Rows of two stores are pairs if the same was captured, shard by shard, at two hooks."""
    for key in sorted({*x.of, *target.of} - {"hook_name"}):
        mine, theirs = x.of.get(key), target.of.get(key)
        if mine != theirs:
            raise HusaiError(
                f"{target.folder}: its {key} is {theirs!r}, but that of {x.folder} is {mine!r}; rows must be pairs"
            )
    rows, others = ([shard.rows for shard in store.shards] for store in (x, target))
    if rows != others:
        place = next((i for i, pair in enumerate(zip(rows, others, strict=False)) if len({*pair}) > 1), None)
        where = f"{len(rows)} and {len(others)} shards" if place is None else f"{rows[place]} and {others[place]} rows"
        shard = "" if place is None else f" in shard {place}"
        raise HusaiError(f"{x.folder} and {target.folder}: hold {where}{shard}; rows must be pairs, shard by shard")


class Side(NamedTuple):
    """Inputs or targets: how they are normalised, the samples that stand for them (normalised), and their batches."""

    normaliser: Normaliser
    samples: Float[Tensor, "samples d"]
    batches: Batches | StoreBatches


def held_of(x: Tensor | Store, config: SAEConfig) -> Float[Tensor, "samples d"]:
    """Raw samples that stand for all."""
    return sample_rows(x, min(SAMPLE, config.training.buffer_rows)) if isinstance(x, Store) else x


def common_unit(x: Samples, config: SAEConfig) -> float:
    """What inputs and targets are multiplied by where they are raw and precision is low: what the larger ones need."""
    if config.training.normalise != "none" or not config.training.low_precision:
        return 1.0
    return min(unit_of(held_of(part, config)) for part in split(x) if part is not None)


def side(
    x: Tensor | Store,
    config: SAEConfig,
    what: str,
    device: str,
    unit: float,
    fresh: Fresh | None = None,
    known: Known | KnownOfStore | None = None,
) -> Side:
    """Samples that are multiplied by `unit` beside their normalisation.

    Raises HusaiError for samples that hold NaN or do not vary, and for a damaged store.
    """
    recipe, how = config.training, config.training.normalise
    normaliser = fit_normaliser(x, how) if isinstance(x, Store) else Normaliser.fit(x, what, how)
    if unit != 1:
        normaliser = replace(normaliser, scale=unit)
    held = held_of(x, config)
    samples, order = normaliser(held).to(device), (recipe.batch_size, config.data_seeds, normaliser)
    if isinstance(x, Store):
        columns = known if isinstance(known, KnownOfStore) else None
        return Side(normaliser, samples, StoreBatches(x, *order, recipe.buffer_rows, device, columns))
    return Side(normaliser, samples, Batches(samples, *order, fresh, known if isinstance(known, Known) else None))


def require_fit(x: Samples, config: SAEConfig, fresh: Fresh | None) -> None:
    """Raises HusaiError unless there is a target where, and only where, the architecture reconstructs one."""
    name, paired = config.sae.architecture, config.sae.paired
    if paired and not isinstance(x, Pairs):
        raise HusaiError(f"sae.architecture {name}: reconstructs a target, which is missing beside the activations")
    if isinstance(x, Pairs) and not paired:
        raise HusaiError(
            f"sae.architecture {name}: reconstructs its input; leave out the target, or train a transcoder"
        )
    if paired and fresh is not None:
        raise HusaiError(f"sae.architecture {name}: needs pairs, so it cannot train on samples that are drawn anew")
