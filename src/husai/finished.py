"""Folders of finished SAEs, whoever trained them: found, scored together, and written down."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from husai.api import Score, measured, measured_at, scores_of
from husai.errors import HusaiError
from husai.measure import Hook, Measurement
from husai.runs import load_model, reason
from husai.sae.dictionary import Dictionary
from husai.sae.weights import CONFIG, load_sae
from husai.stores import open_store, sample_rows

TABLE = "scores.csv"


class Scored(NamedTuple):
    """SAEs, where they lie, and what was measured of them; scores: over all of them."""

    folders: list[Path]
    saes: list[Dictionary]
    measurement: Measurement
    scores: dict[str, Score]


def sae_folders(given: Sequence[Path]) -> list[Path]:
    """Each path that is an SAE's folder, and those in each that holds some, such as a run of several seeds.

    Raises HusaiError for a path that is neither, and one that is named twice.
    """
    found: list[Path] = []
    for path in given:
        if (path / CONFIG).is_file():
            found.append(path)
            continue
        inside = [place for place in path.iterdir() if (place / CONFIG).is_file()] if path.is_dir() else []
        if not inside:
            raise HusaiError(f"{path}: is not a SAELens folder (no {CONFIG}), and holds none")
        found += sorted(inside, key=_in_order)
    for path in found:
        if sum(path.resolve() == other.resolve() for other in found) > 1:
            raise HusaiError(f"{path}: is named twice; an SAE agrees with itself in full")
    return found


def _in_order(path: Path) -> list[tuple[int, str]]:
    """seed-2-2 before seed-10-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def score_folders(
    given: Sequence[Path],
    model: str | None,
    hook: str | None = None,
    *,
    op: str | None = None,
    shard_dir: Path | None = None,
) -> Scored:
    """Score finished SAEs at a hook of a model, or, where there is no truth to be had, on a store of activations.

    Several SAEs are scored one by one and for their agreement. Raises HusaiError for what cannot be read or does not belong
    together, and as `husai.score`.
    """
    folders = sae_folders(given)
    saes = [load_sae(folder) for folder in folders]
    if (model is None) == (shard_dir is None):
        raise HusaiError("sae score: needs a model (--model) or a store of activations (--shard-dir), one of them")
    if model is not None:
        measurement = measured(saes, load_model(model, op), hook)
    else:
        assert shard_dir is not None
        store = open_store(shard_dir)
        store.verify()
        for folder, sae in zip(folders, saes, strict=True):
            if sae.paired:
                raise HusaiError(f"{folder}: is a transcoder; it is scored on a model (--model)")
            if sae.d_in != store.d:
                raise HusaiError(f"{folder}: has {sae.d_in} dimensions, but {shard_dir} has {store.d}")
            there, wanted = sae.meta.get("hook_name"), store.of.get("hook_name")
            if there and wanted and there != wanted:
                raise HusaiError(f"{folder}: was trained on {there}, but {shard_dir} is of {wanted}")
        measurement = measured_at(saes, Hook(sample_rows(store)))
    return Scored(folders, saes, measurement, scores_of(measurement))


def write_scores(scored: Scored, out: Path) -> Path:
    """`scores.csv` in a folder: one row a number, of an SAE (`sae`), a pair (`sae_b` too) or all (neither).

    Raises HusaiError if it cannot be written.
    """
    names = [str(folder) for folder in scored.folders]
    lines = [
        {
            "sae": "" if row.seed is None else names[row.seed],
            "sae_b": "" if row.seed_b is None else names[row.seed_b],
            "metric": row.metric,
            "null": row.null,
            "value": row.value,
            "ci_low": row.low,
            "ci_high": row.high,
            "n": row.n,
        }
        for row in scored.measurement.rows
    ]
    path = out / TABLE
    try:
        out.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(lines).to_csv(path, index=False)
    except OSError as error:
        raise HusaiError(f"{path}: cannot be written ({reason(error)})") from None
    return path
