"""Training that goes on where it was cut off: everything that changes from step to step, on disk, without pickle.

A checkpoint is `step-<n>.safetensors` with all tensors and `step-<n>.json` with the rest and the checksums, written last.
The last two are kept. SAEs that were measured on the way lie beside them (`seen-<n>.safetensors`), so that a resumed run
can measure them again.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from husai.errors import HusaiError
from husai.sae.params import Params
from husai.shards import write_tensors
from husai.store.checksums import file_hash
from husai.store.files import write_atomic
from husai.store.places import checkpoint_folder

KEEP = 2


def snapshot(value: Any) -> Any:
    """A value that changes in training as plain values and tensors: generators, parameters, whatever has a state_dict."""
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, Params):
        return {name: tensor.detach() for name, tensor in value.items()}
    if hasattr(value, "state_dict"):
        return value.state_dict()
    if isinstance(value, list):
        return [snapshot(item) for item in value]
    return value


def put_back(value: Any, stored: Any) -> Any:
    """The value that `snapshot` saw, in the place of `value`, which is changed in place where it can be."""
    if isinstance(value, torch.Generator):
        value.set_state(stored)
    elif isinstance(value, Params):
        with torch.no_grad():
            for name, tensor in value.items():
                tensor.copy_(stored[name])
    elif hasattr(value, "load_state_dict"):
        value.load_state_dict(stored)
    elif isinstance(value, list):
        return [put_back(item, one) for item, one in zip(value, stored, strict=True)]
    else:
        return stored.to(value.device) if isinstance(value, Tensor) else stored
    return value


def pack(tree: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """The tree as JSON has it; its tensors go to `tensors`, and their names stay. Raises TypeError for anything else."""
    if isinstance(tree, Tensor):
        tensors[name] = tree.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(tree, dict):
        return {"items": [[key, pack(value, tensors, f"{name}.{key}")] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [pack(value, tensors, f"{name}.{i}") for i, value in enumerate(tree)]}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(f"{name}: a checkpoint cannot hold {type(tree).__name__}")


def unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    """What `pack` was given."""
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {key: unpack(value, tensors) for key, value in content}
    values = [unpack(value, tensors) for value in content]
    return values if kind == "list" else tuple(values)


class Seen(NamedTuple):
    """SAEs that were measured at `step`, on raw activations."""

    step: int
    params: Params


class Resumed(NamedTuple):
    """state: what `Trainer.restore` and the loop take. seen: the SAEs measured so far, in order."""

    state: dict[str, Any]
    seen: list[Seen]


class Checkpoints:
    """A folder of checkpoints of one run.

    about: everything that determines the run, as plain data; a run resumes only with the same. every: steps between
    checkpoints (None: none are written). source: the folder that is resumed from, by default this one. warn: is told when
    a damaged checkpoint is passed over.
    """

    def __init__(
        self,
        folder: Path,
        about: dict[str, Any],
        *,
        every: int | None = None,
        source: Path | None = None,
        warn: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.folder, self.about, self.every, self.source, self.warn = folder, about, every, source, warn
        self.seen: dict[int, str] = {}

    def require_none(self, why: str) -> None:
        """Raises HusaiError if a run was to go on from checkpoints that it cannot have."""
        if self.source is not None:
            raise HusaiError(f"{self.source}: {why}, so there is nothing to resume from; leave --resume-from out")

    def drop_unless_same(self, key: str) -> None:
        """Remove checkpoints of this folder whose `about` says otherwise of `key`, which may change from start to start."""
        for path in list(self.folder.glob("step-*.json")):
            with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                stored = json.loads(json.loads(path.read_text(encoding="utf-8"))["content"])["about"]
                if stored.get(key) != self.about.get(key):
                    self.remove()

    def due(self, step: int) -> bool:
        """Whether a checkpoint belongs after `step` updates."""
        return self.every is not None and step % self.every == 0

    def keep_seen(self, step: int, params: Params) -> None:
        """SAEs that are measured now, to be measured again if the run resumes. Kept only if checkpoints are."""
        if self.every is None:
            return
        path = self.folder / f"seen-{step:09d}.safetensors"
        write_tensors(path, {name: value.contiguous() for name, value in params.items()})
        self.seen[step] = file_hash(path)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint, then remove all but the last two. Raises HusaiError if it cannot be written."""
        tensors: dict[str, Tensor] = {}
        packed = pack(state, tensors)
        path = self.folder / f"step-{step:09d}.safetensors"
        write_tensors(path, tensors)
        content = {"step": step, "about": self.about, "tensors": file_hash(path), "seen": self.seen, "state": packed}
        text = json.dumps(content)
        write_atomic(path.with_suffix(".json"), json.dumps({"sha256": _hash(text), "content": text}))
        for old in sorted(self.folder.glob("step-*.json"))[:-KEEP]:
            old.unlink()
        whole = {found.stem for found in self.folder.glob("step-*.json")}
        for orphan in self.folder.glob("step-*.safetensors"):
            if orphan.stem not in whole:
                orphan.unlink()

    def load(self) -> Resumed | None:
        """The newest whole checkpoint; None if none was ever written.

        Raises HusaiError if the run is another one (naming the key), if all checkpoints are damaged, or if there is none
        where `source` says.
        """
        folder = self.source or self.folder
        found = sorted(folder.glob("step-*.json"), reverse=True) if folder.is_dir() else []
        passed_over: list[str] = []
        for path in found:
            try:
                resumed = self._read(path)
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                passed_over.append(f"{path}: is truncated or damaged ({error}); going back to the checkpoint before it")
                continue
            for text in passed_over:
                self.warn(text)
            return resumed
        if found:
            raise HusaiError(f"{folder}: every checkpoint in it is truncated or damaged; remove it to start anew")
        if self.source is not None:
            raise HusaiError(f"{folder}: holds no checkpoint (step-*.json) to resume from")
        return None

    def _read(self, path: Path) -> Resumed:
        """Raises ValueError for a wrong checksum, and what JSON and safetensors raise for damage."""
        outer = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(outer, dict) or not isinstance(outer["content"], str):
            raise ValueError("it holds something else")
        if _hash(outer["content"]) != outer["sha256"]:
            raise ValueError("its checksum is wrong")
        content = json.loads(outer["content"])
        require_same(content["about"], self.about, path.parent)
        tensors = _load(path.with_suffix(".safetensors"), content["tensors"])
        seen = [
            Seen(int(step), Params.of(_load(path.parent / f"seen-{int(step):09d}.safetensors", digest)))
            for step, digest in content["seen"].items()
        ]
        return Resumed(unpack(content["state"], tensors), seen)

    def remove(self) -> None:
        """The run is finished; nothing of this is needed any more."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _load(path: Path, digest: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path.name} is missing")
    if file_hash(path) != digest:
        raise ValueError(f"the checksum of {path.name} is wrong")
    return load_file(path)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def require_same(stored: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Raises HusaiError naming the first key that differs between the run of the checkpoints and this one."""
    before, after = _flat(stored), _flat(json.loads(json.dumps(now)))
    for key in [*before, *(key for key in after if key not in before)]:
        if before.get(key) != after.get(key):
            was, become = (repr(side[key]) if key in side else "absent" for side in (before, after))
            raise HusaiError(
                f"{folder}: cannot resume, since {key} was {was} and is now {become}; "
                "resume with what the run was started with, or remove the folder to start anew"
            )


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {name: tree}
    return {key: value for part in tree for key, value in _flat(tree[part], f"{name}.{part}".lstrip(".")).items()}


def source_folder(given: Path) -> Path:
    """What `--resume-from` means: a folder of checkpoints, or the run folder that they belong to.

    Raises HusaiError if there is neither.
    """
    for folder in (given, checkpoint_folder(given)):
        if folder.is_dir() and any(re.fullmatch(r"step-\d+\.json", path.name) for path in folder.iterdir()):
            return folder
    raise HusaiError(f"{given}: holds no checkpoint (step-*.json) to resume from")
