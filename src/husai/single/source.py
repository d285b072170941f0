"""What a command asks for, and what its SAEs are trained on and measured at."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from husai.activations import Activations, extract
from husai.config import SAEConfig
from husai.errors import HusaiError
from husai.measure import Hook
from husai.models import mlp_hooks
from husai.runs import check_gate, load_model
from husai.sae.pairs import Pairs, Samples
from husai.shards import Store, open_store, sample_rows


@dataclass(frozen=True)
class Request:
    """What a command asked for.

    model: may be None if there is a shard_dir, a store that is trained on in place of the model's grid; SAEs are then
    scored on the model, or without one on a sample of the store. epochs: passes over what is trained on, in place of the
    config's steps. resume_from: checkpoints to go on from, beside the run's own. hook: None means resid_post. A transcoder
    reconstructs target_hook from hook, by default what an MLP writes from what it reads, or target_shard_dir from shard_dir.
    """

    model: str | None
    hook: str | None
    layer: int | None
    position: int
    op: str | None
    config: SAEConfig
    out: Path
    allow_unverified: bool
    device: str
    quiet: bool
    epochs: float | None = None
    shard_dir: Path | None = None
    resume_from: Path | None = None
    deterministic: bool = False
    target_hook: str | None = None
    target_shard_dir: Path | None = None


class Source(NamedTuple):
    """What SAEs are trained on (`samples`) and measured at (`hook`), and what the report says of it.

    model: None if it is not known. verified: whether its gate passed; None if there was none.
    """

    samples: Samples
    hook: Hook
    model: str | None
    place: str
    verified: bool | None
    meta: dict[str, Any]


def open_source(request: Request) -> Source:
    """What the request trains on. Raises HusaiError for bad input and GateFailed for a model that is not ground truth."""
    store, target = open_stores(request)
    if request.model is None:
        if store is None:
            raise HusaiError("sae train: needs a MODEL, a store of activations (--shard-dir), or both")
        name, place = store.of.get("model_name"), _named(store)
        about = {"model_name": name, "hook_name": place}
        if target is None:
            return Source(store, Hook(sample_rows(store)), name, place, None, about)
        pairs, hook = Pairs(store, target), Hook(sample_rows(target), source=sample_rows(store))
        return Source(
            pairs, hook, name, f"{place} to {_named(target)}", None, about | {"hook_name_out": _named(target)}
        )
    loaded = load_model(request.model, request.op)
    model, _ = check_gate(loaded, allow_unverified=request.allow_unverified)
    reads, writes = mlp_hooks(model) if request.config.sae.paired else ("resid_post", None)
    reads, writes = request.hook or reads, request.target_hook or writes
    activations = extract(model, loaded.task, reads, layer=request.layer, position=request.position)
    _require_width(store, activations)
    meta = {"model_name": model.name, "hook_name": activations.hook, "task": loaded.task.op, "p": model.p}
    meta |= {"verified": bool(model.verified)}
    samples, verified = activations.x if store is None else store, bool(model.verified)
    if writes is None:
        return Source(samples, Hook.of(activations, model), model.name, activations.hook, verified, meta)
    aim = extract(model, loaded.task, writes, layer=request.layer, position=request.position)
    _require_width(target, aim)
    hook = replace(Hook.of(aim, model), source=activations.x)
    place, meta = f"{activations.hook} to {aim.hook}", meta | {"hook_name_out": aim.hook}
    return Source(Pairs(samples, aim.x if target is None else target), hook, model.name, place, verified, meta)


def open_stores(request: Request) -> tuple[Store | None, Store | None]:
    """Of inputs and of targets. Raises HusaiError unless there is a target where, and only where, one is reconstructed."""
    kind, store, target = request.config.sae, request.shard_dir, request.target_shard_dir
    if not kind.paired and (target is not None or request.target_hook is not None):
        raise HusaiError(f"{kind.architecture}: reconstructs its input; leave out the target, or train a transcoder")
    if kind.paired and (store is None) != (target is None):
        raise HusaiError(
            f"{kind.architecture}: needs stores of inputs and of targets (--shard-dir, --target-shard-dir); one is missing"
        )
    return (None if store is None else open_store(store)), (None if target is None else open_store(target))


def _named(store: Store) -> str:
    return str(store.of.get("hook_name", store.folder))


def _require_width(store: Store | None, activations: Activations) -> None:
    if store is not None and store.d != activations.x.shape[1]:
        raise HusaiError(f"{store.folder}: has width {store.d}; {activations.hook} has {activations.x.shape[1]}")


def recipe_of(request: Request, samples: Samples) -> SAEConfig:
    """The request's config, with epochs as steps."""
    config = request.config
    if request.epochs is None:
        return config
    steps = math.ceil(request.epochs * len(samples) / config.training.batch_size)
    return config.model_copy(update={"training": config.training.model_copy(update={"steps": steps})})
