"""Activations on disk: folders of shards, written once, checked, and read shard by shard, however large they are.

A store is `shard-00000.safetensors` … with a tensor `x` (n, d) and, if wanted, integer tensors aligned with it, and
`store.json`, written last: width, dtype, rows and sha256 of every shard, and what the activations are of. Folders of other
origin are read too: `.safetensors` or `.pt` files (never pickled code) with one tensor (n, d) or (batch, seq, d) each.
"""

import json
import pickle
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from husai.activations import Normalisation, Normaliser, require_ordinary
from husai.errors import HusaiError
from husai.seeding import generator
from husai.store.checksums import file_hash
from husai.store.files import whole_file, write_atomic
from husai.store.folders import require_free

INDEX, UNFINISHED, FORMAT = "store.json", "UNFINISHED", 1
ROWS_PER_SHARD = 65536
SAMPLE = 16384  # rows that stand for a store where all of them would have to be in memory
PART = 2048  # rows summed at once
DTYPES = {
    str(kind).removeprefix("torch."): kind for kind in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
}


@dataclass(frozen=True)
class Shard:
    """One file. sha256: as the index has it; in a folder that is not ours, as the file was when the store was opened."""

    path: Path
    rows: int
    sha256: str


@dataclass(frozen=True)
class Store:
    """A folder of activations. of: what they are of (model, hook, …), as far as is known."""

    folder: Path
    d: int
    dtype: str
    shards: tuple[Shard, ...]
    of: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def read(self, index: int) -> Float[Tensor, "rows d"]:
        """One shard as float32. Raises HusaiError if it is truncated, or not what the index says."""
        shard = self.shards[index]
        x = _flat(_open_tensor(shard.path), shard.path)
        if x.shape != (shard.rows, self.d):
            raise HusaiError(f"{shard.path}: x has shape {tuple(x.shape)}; the store says {(shard.rows, self.d)}")
        return x.float()

    def aligned(self, index: int, name: str) -> Tensor:
        """What one shard holds beside x, by name. Raises HusaiError if there is no such tensor."""
        path = self.shards[index].path
        tensors = read_file(path)
        if name not in tensors:
            raise HusaiError(f"{path}: has no tensor '{name}'; it holds {', '.join(tensors)}")
        return tensors[name]

    def check(self, index: int) -> Float[Tensor, "rows d"]:
        """`read`, after comparing the checksum; raises HusaiError for another one, NaN and infinity too."""
        shard = self.shards[index]
        if file_hash(shard.path) != shard.sha256:
            raise HusaiError(
                f"{shard.path}: is truncated or damaged; its checksum is not the one in {INDEX}, or, without that, not the one "
                "it had when the store was opened"
            )
        x = self.read(index)
        require_ordinary(x, shard.path)
        return x

    def verify(self) -> None:
        """Checks every shard, one at a time in memory. Raises HusaiError as `check`."""
        for index in range(len(self.shards)):
            self.check(index)


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by name; what a `.pt` file holds bare is called x. Large files are mapped, not read."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        with warnings.catch_warnings():  # of pickle protocols, which the refusal below says better
            warnings.simplefilter("ignore")
            data = _load_pt(path)
    except pickle.UnpicklingError:
        raise HusaiError(
            f"{path}: is damaged, or a pickle that would run code when loaded; only plain tensors are read (weights_only=True)"
        ) from None
    except Exception as error:  # arbitrary bytes make readers fail in arbitrary ways
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise HusaiError(f"{path}: does not fit into the memory that is left; write smaller shards") from None
        raise HusaiError(f"{path}: is not a complete {path.suffix} file; it may be truncated") from None
    found = {"x": data} if isinstance(data, Tensor) else data
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise HusaiError(f"{path}: must hold a tensor, or tensors by name")
    return found


def _load_pt(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # the format before PyTorch 1.6 cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True)


def _open_tensor(path: Path) -> Tensor:
    """The activations in a file: the tensor x, or the only tensor of floating numbers there is."""
    tensors = read_file(path)
    floating = [value for value in tensors.values() if value.is_floating_point()]
    if "x" in tensors and tensors["x"].is_floating_point():
        return tensors["x"]
    if len(floating) != 1:
        raise HusaiError(f"{path}: holds {len(floating)} tensors of floating numbers; activations are one, or called x")
    return floating[0]


def _flat(x: Tensor, path: Path) -> Float[Tensor, "rows d"]:
    if x.ndim not in (2, 3) or 0 in x.shape:
        raise HusaiError(f"{path}: has shape {tuple(x.shape)}; activations are (rows, d) or (batch, seq, d)")
    return x.flatten(0, -2)


def open_store(folder: str | Path) -> Store:
    """A store, or a folder of shards that others wrote, which get their checksums here: a run that resumes refuses others.

    What shards hold is not checked yet: `fit_normaliser` does that.

    Raises HusaiError for what is missing, unfinished or empty, and for shards that disagree in width or dtype.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise HusaiError(f"{folder}: no such folder of activations")
    if (folder / UNFINISHED).exists():
        raise HusaiError(f"{folder}: was never finished; remove it and capture the activations again")
    return _read_index(folder) if (folder / INDEX).exists() else _foreign(folder)


def _read_index(folder: Path) -> Store:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        shards = tuple(Shard(folder / s["file"], int(s["rows"]), s["sha256"]) for s in index["shards"])
        store = Store(folder, int(index["d"]), str(index["dtype"]), shards, dict(index["of"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise HusaiError(f"{folder / INDEX}: is not the index of a store; it may be damaged") from None
    if not shards:
        raise HusaiError(f"{folder}: holds no activations")
    if missing := [shard.path.name for shard in shards if not shard.path.is_file()]:
        raise HusaiError(f"{folder}: {missing[0]} is missing ({len(missing)} of {len(shards)} shards)")
    return store


def _foreign(folder: Path) -> Store:
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".pt", ".pth"))
    if not paths:
        raise HusaiError(
            f"{folder}: is not a store of activations; it has neither {INDEX} nor .safetensors or .pt files"
        )
    shards, first = [], None
    for path in paths:
        x = _open_tensor(path)
        rows, kind = len(_flat(x, path)), (x.shape[-1], str(x.dtype).removeprefix("torch."))
        first = first or kind
        if kind != first:
            raise HusaiError(
                f"{path}: holds {kind[1]} of width {kind[0]}, but {paths[0].name} holds {first[1]} of width {first[0]}; "
                "the shards of a store are alike"
            )
        shards.append(Shard(path, rows, file_hash(path)))
    assert first is not None
    return Store(folder, *first, tuple(shards))


class StoreWriter:
    """Fills a new folder shard by shard; a `with` block that ends well makes it a store, any other leaves nothing.

    Raises HusaiError if the folder is not free or cannot be written.
    """

    def __init__(
        self, folder: Path, of: dict[str, Any], *, rows_per_shard: int = ROWS_PER_SHARD, dtype: str = "float32"
    ) -> None:
        if dtype not in DTYPES:
            raise HusaiError(f"dtype {dtype}: must be {', '.join(DTYPES)}")
        require_free(folder)
        self.folder, self.of, self.rows_per_shard, self.dtype = folder, of, rows_per_shard, DTYPES[dtype]
        self.shards: list[Shard] = []
        self.waiting: list[dict[str, Tensor]] = []

    def __enter__(self) -> Self:
        write_atomic(self.folder / UNFINISHED, "")
        return self

    def append(self, x: Float[Tensor, "rows d"], **aligned: Tensor) -> None:
        """Further rows; aligned: integer tensors of as many. Raises HusaiError for another width or other names."""
        new = {"x": x.to(self.dtype), **aligned}
        if any(len(value) != len(x) for value in aligned.values()):
            raise HusaiError(f"{self.folder}: tensors beside x must have its {len(x)} rows")
        known = self.waiting[0] if self.waiting else new
        if known.keys() != new.keys() or known["x"].shape[1:] != x.shape[1:]:
            raise HusaiError(
                f"{self.folder}: rows of width {x.shape[1:]} with {', '.join(aligned) or 'nothing'} do not fit"
            )
        self.waiting.append({name: value.detach().cpu() for name, value in new.items()})
        while sum(len(part["x"]) for part in self.waiting) >= self.rows_per_shard:
            self._flush()

    def _flush(self) -> None:
        """Write the next shard: a temporary file, then a rename."""
        together = {name: torch.cat([part[name] for part in self.waiting]) for name in self.waiting[0]}
        rest = {name: value[self.rows_per_shard :] for name, value in together.items()}
        shard = {name: value[: self.rows_per_shard].contiguous() for name, value in together.items()}
        path = self.folder / f"shard-{len(self.shards):05d}.safetensors"
        write_tensors(path, shard)
        self.shards.append(Shard(path, len(shard["x"]), file_hash(path)))
        self.d = shard["x"].shape[1]
        self.waiting = [{name: value.clone() for name, value in rest.items()}]

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        try:
            if kind is None:
                self._close()
        finally:
            if not (self.folder / INDEX).exists():
                shutil.rmtree(self.folder, ignore_errors=True)

    def _close(self) -> None:
        if sum(len(part["x"]) for part in self.waiting):
            self._flush()
        if not self.shards:
            raise HusaiError(f"{self.folder}: no activations were given")
        index = {
            "format": FORMAT,
            "d": self.d,
            "dtype": str(self.dtype).removeprefix("torch."),
            "of": self.of,
            "shards": [{"file": s.path.name, "rows": s.rows, "sha256": s.sha256} for s in self.shards],
        }
        write_atomic(self.folder / INDEX, json.dumps(index, indent=2) + "\n")
        (self.folder / UNFINISHED).unlink()


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file, whole or not at all. Raises HusaiError if it cannot be written."""
    with whole_file(path) as temporary:
        save_file(tensors, temporary)


def fit_normaliser(store: Store, how: Normalisation = "scalar") -> Normaliser:
    """`Normaliser.fit` of all rows, in one pass in float64, which also checks every shard.

    Parts are merged by Chan, Golub & LeVeque's update (1979). Raises HusaiError as `Store.check`, or if rows do not vary.
    """
    mean, spread, count = *torch.zeros(2, store.d, dtype=torch.float64), 0
    for index in range(len(store.shards)):
        for part in store.check(index).split(PART):
            own = part.double()
            shift = own.mean(0) - mean
            total = count + len(own)
            spread = spread + (own - own.mean(0)).pow(2).sum(0) + shift.pow(2) * (count * len(own) / total)
            mean, count = mean + shift * len(own) / total, total
    deviation = (spread / count).sqrt()
    return Normaliser.of(mean.float(), deviation.float(), float(deviation.norm()), str(store.folder), how)


def sample_rows(store: Store, count: int = SAMPLE) -> Float[Tensor, "count d"]:
    """At most `count` rows that stand for the store: one drawn from each of as many equal stretches of it, in order.

    The draw is the same for every seed of an SAE.
    """
    total = len(store)
    if total <= count:
        return torch.cat([store.read(index) for index in range(len(store.shards))])
    edges = torch.arange(count, dtype=torch.float64) * (total / count)
    places = (
        edges + torch.rand(count, generator=generator("store-sample"), dtype=torch.float64) * (total / count)
    ).long()
    return torch.cat([store.read(index)[rows] for index, rows in _by_shard(store, places)])


def _by_shard(store: Store, places: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Row numbers within each shard, of sorted row numbers within the store."""
    start = 0
    for index, shard in enumerate(store.shards):
        inside = places[(places >= start) & (places < start + shard.rows)] - start
        if len(inside):
            yield index, inside
        start += shard.rows
