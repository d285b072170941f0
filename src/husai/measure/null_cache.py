"""Draws of nulls on disk: the cells of a sweep that ask for the same chance level pay for it once. (docs/method.md §Chance)

What a draw depends on is hashed, code and all; an entry that cannot be trusted is drawn anew.
"""

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from husai.store.files import whole_file
from husai.store.provenance import code_hash

DRAWING_CODE = ("analysis", "sae/topk.py", "seeding.py")  # of the package; a change here makes other draws
DAMAGE = (OSError, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)

Compute = Callable[[tuple[int, ...], int], Float[np.ndarray, "draws seeds seeds *scores"]]


class Fingerprint(NamedTuple):
    """What nulls draw from: the samples' width and hashes of their covariance and of the samples without their mean.

    Taken once a hook: it reads all samples.
    """

    d: int
    covariance: str
    points: str

    @classmethod
    def of(cls, x: Float[Tensor, "samples d"]) -> "Fingerprint":
        centred = (x - x.mean(0)).float()
        covariance = (centred.double().T @ centred.double()) / len(x)
        return cls(x.shape[1], _digest(covariance), _digest(centred))

    def under(self, rung: str) -> str:
        """The part that the rung's draws depend on: `ambient` only the width, `data` also the covariance, others all."""
        return {"ambient": f"d {self.d}", "data": f"covariance {self.covariance}"}.get(rung, f"points {self.points}")


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().numpy().data).hexdigest()


@dataclass(frozen=True)
class NullKey:
    """What draws depend on besides the numbers of live atoms; two nulls of equal keys have equal draws.

    rung: name of the null. drawn_from: `Fingerprint.under` it. scores: names of the pairwise scores in their order, with
    any number they depend on. abs: whether cosines count by magnitude.
    """

    rung: str
    drawn_from: str
    scores: tuple[str, ...]
    abs: bool

    def text(self, n_live: tuple[int, ...]) -> str:
        return json.dumps({**asdict(self), "n_live": n_live, "code": CODE}, sort_keys=True)


CODE = code_hash(*DRAWING_CODE)  # as imported, whatever becomes of the files while a sweep runs


@dataclass(frozen=True)
class NullCache:
    """A folder of draws that several processes may use at once; without a folder, everything is computed.

    An entry is a file `KEY-DRAWS.npz`. The first R of its draws serve whoever asks for R, since every draw has a stream of
    its own.
    """

    folder: Path | None = None

    def draws(
        self, key: NullKey, n_live: tuple[int, ...], count: int, compute: Compute
    ) -> Float[np.ndarray, "draws seeds seeds *scores"]:
        """`count` draws of S null dictionaries with the numbers of live atoms `n_live`, in their order.

        compute(n_live, count) → the draws, of which the r-th must depend on r, the key and n_live alone. It is called with
        n_live in rising order, with a folder or without, so that seeds in another order share an entry. Scores may be
        directed; one of single dictionaries is repeated along its row. Raises HusaiError if the folder cannot be
        written.
        """
        order = sorted(range(len(n_live)), key=lambda seed: n_live[seed])
        rising = tuple(n_live[seed] for seed in order)
        drawn = compute(rising, count) if self.folder is None else self._kept(self.folder, key, rising, count, compute)
        place = np.argsort(order)  # where each seed stands in the rising order
        return drawn[:, place][:, :, place]

    def _kept(
        self, folder: Path, key: NullKey, n_live: tuple[int, ...], count: int, compute: Compute
    ) -> Float[np.ndarray, "draws seeds seeds *scores"]:
        text = key.text(n_live)
        name = hashlib.sha256(text.encode()).hexdigest()[:24]
        for path, held in _entries(folder, name):
            if held >= count and (found := _read(path, text, (held, len(n_live), len(n_live)))) is not None:
                return found[:count]
        drawn = compute(n_live, count)
        _write(folder / f"{name}-{count}.npz", text, drawn)
        return drawn


def _entries(folder: Path, name: str) -> Iterator[tuple[Path, int]]:
    """Files of one key with the number of draws that each should hold, fewest first."""
    found = [(re.fullmatch(rf"{name}-(\d+)", path.stem), path) for path in folder.glob(f"{name}-*.npz")]
    return ((path, count) for count, path in sorted((int(match[1]), path) for match, path in found if match))


def _read(path: Path, text: str, shape: tuple[int, int, int]) -> np.ndarray | None:
    """The draws of an entry; None unless it is whole (its file has checksums), of this key and of this shape."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as entry:
            drawn, stated = entry["draws"], str(entry["key"])
    except DAMAGE:
        return None
    return drawn if stated == text and drawn.shape[:3] == shape else None


def outdated(folder: Path) -> list[Path]:
    """Entries of a folder that serve nobody any more: drawn with other code, or damaged."""
    return [path for path in sorted(folder.glob("[!.]*.npz")) if _drawn_with(path) != CODE]


def _drawn_with(path: Path) -> str | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as entry:
            return json.loads(str(entry["key"]))["code"]
    except (*DAMAGE, TypeError):
        return None


def _write(path: Path, text: str, drawn: np.ndarray) -> None:
    """Whole or not at all: readers see a whole entry or none."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, draws=drawn, key=np.array(text))
