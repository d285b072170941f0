"""What finished SAEs are run on when they are compared: a model's grid at a hook, or a store of activations."""

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from husai.api import read_at
from husai.errors import HusaiError
from husai.runs import LoadedModel
from husai.sae.dictionary import Dictionary
from husai.stores import Store, sample_rows
from husai.truth.planes import GroundTruth, find_truth


class Samples(NamedTuple):
    """sources: what each SAE encodes. x: what all reconstruct, which nulls are drawn from; None if that is not known.

    truth: the true planes of x, where there are any and SAEs read them too.
    """

    sources: list[Float[Tensor, "samples d_in"]]
    x: Float[Tensor, "samples d_out"] | None
    truth: GroundTruth | None = None


def samples_of_model(
    saes: Sequence[Dictionary],
    names: Sequence[str],
    model: LoadedModel,
    hook: str | None,
    source_hook: str | None = None,
) -> Samples:
    """The grid at the hook, by default the one that the SAEs were trained on. source_hook: what transcoders encode.

    Raises HusaiError if SAEs say that they are of another model or hook, or are of another width.
    """
    _require_same_of(saes, names, "model_name", model.model.name)
    read = read_at(model, hook, *saes, source_hook=source_hook)
    x, truth = read.activations.x, None
    if not any(sae.paired for sae in saes):
        with suppress(HusaiError):  # a hook without any Fourier family has none
            truth = find_truth(read.activations)
    return Samples([x if source is None else source for source in read.sources], x, truth)


def samples_of_store(saes: Sequence[Dictionary], names: Sequence[str], store: Store) -> Samples:
    """Rows that stand for the store. A transcoder encodes them; what it reconstructs is not known then.

    Raises HusaiError for a damaged store, and as `samples_of_model`.
    """
    for key in ("model_name", "hook_name"):
        if store.of.get(key):
            _require_same_of(saes, names, key, str(store.of[key]))
    for sae, name in zip(saes, names, strict=True):
        if sae.d_in != store.d:
            raise HusaiError(f"{name}: encodes {sae.d_in} dimensions, but {store.folder} has {store.d}")
    store.verify()
    x = sample_rows(store)
    return Samples([x] * len(saes), None if any(sae.paired for sae in saes) else x)


def _require_same_of(saes: Sequence[Dictionary], names: Sequence[str], key: str, wanted: str) -> None:
    """Compares the last part of names (pythia-70m of EleutherAI/pythia-70m), in any case."""
    for sae, name in zip(saes, names, strict=True):
        stated = sae.meta.get(key)
        if isinstance(stated, str) and stated.rsplit("/", 1)[-1].lower() != wanted.rsplit("/", 1)[-1].lower():
            what = key.removesuffix("_name")
            raise HusaiError(f"{name}: was trained on {what} {stated}, but the activations are of {what} {wanted}")
