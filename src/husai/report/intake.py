"""Results as they lie on disk, read with suspicion: what a table, a text or an array must be before anything is made of it."""

import json
import math
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from pandas.api import types
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from husai.errors import HusaiError

MOST_ROWS = 50_000_000
MOST_BYTES = 2**28  # of one array, and of a text
LARGEST = 1e15
LABELS = (
    *("suite", "task", "p", "model", "hook", "tier", "architecture", "d_sae", "sparsity_param", "sparsity"),
    *("converged", "verified"),
)
TEXT, WHOLE, SEED, NUMBER, AMOUNT, FLAG = "text", "whole numbers", "seeds", "numbers", "known numbers", "true or false"
ANY = "anything"
RECORDS = {
    **dict.fromkeys(("suite", "task", "model", "hook", "tier", "architecture", "sparsity_param", "metric"), TEXT),
    **dict.fromkeys(("null", "run_id"), TEXT),
    **dict.fromkeys(("p", "d_sae", "step", "n"), WHOLE),
    **dict.fromkeys(("init_seed", "data_seed", "init_seed_b", "data_seed_b", "model_seed", "model_seed_b"), SEED),
    **dict.fromkeys(("value", "ci_low", "ci_high"), NUMBER),
    "sparsity": AMOUNT,
    **dict.fromkeys(("converged", "verified"), FLAG),
}
ATOMS = {"run_id": TEXT, "init_seed": WHOLE, "data_seed": WHOLE, "atom": WHOLE, "live": FLAG, "firing_rate": NUMBER}
TUNED = {"label": ANY, "k": NUMBER, "purity": NUMBER}  # of atoms, where there are true planes
TABLES = (RECORDS, ATOMS)
COSTS = {"run_id": TEXT}
DIMENSIONS = {"tuning_maps": 3, "tuning_atoms": 1}  # of arrays; of every other, 2


class _Gate(BaseModel):
    """What is read of a model's gate report."""

    model_config = ConfigDict(strict=True)

    op: str
    p: int
    accuracy: float
    key_frequencies: list[int]
    key_share: float
    fve: float
    base_loss: float
    restricted_loss: float
    excluded_loss: float
    variant: str
    passed: bool
    failed_conditions: list[str]
    conditions: list[str]
    spectrum_W_E: list[float] = Field(min_length=1)
    spectrum_W_L: list[float] | None
    spectrum_logits: list[float] = Field(min_length=1)


class _Subspace(BaseModel):
    model_config = ConfigDict(strict=True)

    label: str
    share: float


class _Planes(BaseModel):
    """What is true at a hook: planes and lines."""

    model_config = ConfigDict(strict=True)

    dim: int
    subspaces: list[_Subspace]
    unexplained: float | None


class _Atoms(BaseModel):
    """What is true of a source: planted atoms."""

    model_config = ConfigDict(strict=True)

    dim: int
    atoms: int
    l0: float
    largest_cosine: float
    firing_rates: list[float] = Field(min_length=2, max_length=2)


TEXTS: dict[str, TypeAdapter[Any]] = {
    "cells.json": TypeAdapter(list[str]),
    "gate.json": TypeAdapter(dict[str, _Gate]),
    "truth.json": TypeAdapter(dict[str, dict[str, _Atoms | _Planes]]),
}


def file_name(text: str) -> str:
    """A name from a table as a part of a file's name: without what would lead to another folder."""
    return re.sub(r"[^\w.,=:+-]", "_", text)


def read_text(path: Path) -> Any:
    """The plain data of one of TEXTS. Raises HusaiError for what is damaged, or is not what such a file holds."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise HusaiError(f"{path}: has {path.stat().st_size} bytes; at most {MOST_BYTES} are read")
        data = json.loads(path.read_text(encoding="utf-8"))
        TEXTS[path.name].validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise HusaiError(f"{path}: '{place}': {first['msg'].lower()}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise HusaiError(f"{path}: is not valid JSON ({error.__class__.__name__})") from None
    return data


def read_parquet(path: Path, columns: dict[str, str]) -> pd.DataFrame:
    """A table that has the columns, each of its kind. Raises HusaiError for what is damaged, too large or of another kind."""
    table: Any = None
    try:
        rows = pq.read_metadata(path).num_rows
        if rows <= MOST_ROWS:
            table = pd.read_parquet(path)
    except Exception as error:  # arbitrary bytes make readers fail in arbitrary ways
        raise HusaiError(f"{path}: is not a readable Parquet table ({error.__class__.__name__})") from None
    if rows > MOST_ROWS:
        raise HusaiError(f"{path}: says that it has {rows} rows; at most {MOST_ROWS} are read")
    require_columns(table, columns, path)
    return table


def require_columns(table: Any, columns: dict[str, str], path: Path) -> None:
    """Raises HusaiError unless the table has the columns once, each of its kind."""
    for name, kind in columns.items():
        if (table.columns == name).sum() != 1:
            raise HusaiError(f"{path}: has no column '{name}'; it needs {', '.join(columns)}")
        if not _is(table[name], kind):
            raise HusaiError(f"{path}: column '{name}' must hold {kind}")


def _is(column: Any, kind: str) -> bool:
    if kind == ANY:
        return True
    if kind == TEXT:
        return bool(types.is_string_dtype(column) and column.notna().all())
    if kind == FLAG:
        return types.is_bool_dtype(column) and bool(column.notna().all())
    if column.isna().all() and kind in (SEED, NUMBER):
        return True
    if not types.is_numeric_dtype(column) or types.is_bool_dtype(column) or types.is_complex_dtype(column):
        return False
    known = column.dropna().astype(float)
    if (known.abs() > (2.0**63 if kind == SEED else LARGEST)).any():
        return False
    if kind in (WHOLE, SEED) and not ((known >= 0).all() and (known % 1 == 0).all()):
        return False
    return kind in (SEED, NUMBER) or len(known) == len(column)


def require_consistent(records: Any, atoms: Any, truth: dict[str, Any], folder: Path) -> None:
    """Raises HusaiError unless every run has one set of labels, what is true of it, and a fit at its end."""
    runs = records.groupby("run_id", sort=True)
    several = runs[list(LABELS)].nunique().gt(1)
    if several.to_numpy().any():
        run, name = next((run, name) for run, name in several.stack().loc[lambda found: found].index)  # pyright: ignore
        raise HusaiError(f"{folder}: run {run} has more than one value of '{name}'; a run has one")
    for run, first in runs[["model", "hook"]].first().iterrows():
        if first["hook"] not in truth.get(first["model"], {}):
            of = f"model '{first['model']}' at '{first['hook']}'"
            raise HusaiError(f"{folder}: truth.json says nothing of {of}, which run {run} is of")
    for one in ("", "_b"):
        if (records[f"init_seed{one}"].notna() != records[f"data_seed{one}"].notna()).any():
            raise HusaiError(f"{folder}: records.parquet has rows with one of the two seeds of an SAE")
    fits = records[(records["metric"] == "explained_variance") & (records["null"] == "")]
    fits = fits[fits["step"] == fits["run_id"].map(runs["step"].max()).astype(int)]
    overall, single = fits[fits["init_seed"].isna()], fits[fits["init_seed"].notna() & fits["init_seed_b"].isna()]
    wanted = set(records["run_id"])
    for table, what in ((overall, "over all seeds"), (single, "of each seed")):
        if missing := sorted(wanted - set(table["run_id"])):
            raise HusaiError(f"{folder}: run {missing[0]} has no explained_variance {what} at its last step")
    if any("subspaces" in known for hooks in truth.values() for known in hooks.values()):
        require_columns(atoms, TUNED, folder / "atoms.parquet")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of one cell. Raises HusaiError for what is damaged, pickled, no numbers, or claims more than MOST_BYTES."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as file:
                    _require_small(file, member.filename)
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
    except HusaiError as error:
        raise HusaiError(f"{path}: {error}") from None
    except Exception as error:  # arbitrary bytes make readers fail in arbitrary ways
        raise HusaiError(f"{path}: is not a readable archive of arrays ({error.__class__.__name__})") from None
    for name, array in arrays.items():
        if array.ndim != DIMENSIONS.get(name, 2) or array.dtype.kind not in "fi":
            raise HusaiError(
                f"{path}: '{name}' is of {array.ndim} dimensions and dtype {array.dtype}, which it cannot be"
            )
    bins = arrays.get("reliability", np.zeros((0, 3)))
    if bins.shape[1] != 3 or not np.isfinite(bins).all():
        raise HusaiError(f"{path}: 'reliability' must have three columns of finite numbers")
    return arrays


def _require_small(file: Any, name: str) -> None:
    """Raises HusaiError, without a place, for an array whose header asks for too much."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    size = math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise HusaiError(f"'{name}' is a pickle, which would run code when loaded")
    if not 0 <= size <= MOST_BYTES:
        raise HusaiError(f"'{name}' says that it has {size} bytes; at most {MOST_BYTES} are read")
