"""What finished SAEs are run on when they are compared: a model's grid at a hook, or a store of activations."""

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from husai.api import read_at, require_trained_on
from husai.errors import HusaiError
from husai.runs import LoadedModel
from husai.sae.dictionary import Dictionary
from husai.sae.pairs import Pairs
from husai.shards import Store, sample_rows
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

    Raises HusaiError as `read_at`: if SAEs say that they are of another model or hook, or are of another width.
    """
    read = read_at(model, hook, *saes, source_hook=source_hook, names=names)
    x, truth = read.activations.x, None
    if not any(sae.paired for sae in saes):
        with suppress(HusaiError):  # a hook without any Fourier family has none
            truth = find_truth(read.activations)
    return Samples([x if source is None else source for source in read.sources], x, truth)


def samples_of_store(
    saes: Sequence[Dictionary], names: Sequence[str], store: Store, target: Store | None = None
) -> Samples:
    """Rows that stand for the store, and those of the target that are their pairs: what transcoders reconstruct.

    Transcoders encode the store; SAEs encode what they reconstruct, so the target if there is one. Without a target, what
    transcoders reconstruct is not known. Raises HusaiError for a damaged store, a target that none reconstructs or whose
    rows are no pairs, and as `samples_of_model`.
    """
    if target is not None and not any(sae.paired for sae in saes):
        raise HusaiError(f"{names[0]}: reconstructs what it encodes; leave out --target-shard-dir")
    for sae, name in zip(saes, names, strict=True):
        encoded = store if sae.paired or target is None else target
        _require_of(sae, name, encoded, "hook_name", ("encodes", sae.d_in))
        if sae.paired and target is not None:
            _require_of(sae, name, target, "hook_name_out", ("reconstructs", sae.d_out))
    if target is not None:
        Pairs(store, target)
        target.verify()
    store.verify()
    source, x = sample_rows(store), None if target is None else sample_rows(target)
    if target is None and not any(sae.paired for sae in saes):
        x = source
    return Samples([source if sae.paired or x is None else x for sae in saes], x)


def _require_of(sae: Dictionary, name: str, store: Store, hook: str, side: tuple[str, int]) -> None:
    """Raises HusaiError unless the store is of the SAE's model, hook and width, as far as they are stated."""
    for key, stated in (("model_name", "model_name"), ("hook_name", hook)):
        if store.of.get(key):
            require_trained_on(sae, name, stated, str(store.of[key]))
    verb, width = side
    if width != store.d:
        raise HusaiError(f"{name}: {verb} {width} dimensions, but {store.folder} has {store.d}")
