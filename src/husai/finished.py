"""Folders of finished SAEs, whoever trained them: found, scored together, and written down."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from husai.api import Score, measured, measured_at, scores_of
from husai.errors import HusaiError
from husai.measure import Hook, Measurement
from husai.runs import load_model
from husai.sae.dictionary import Dictionary
from husai.sae.formats import sae_folders
from husai.sae.weights import load_sae
from husai.samples import samples_of_store
from husai.shards import open_store
from husai.store.files import reason

TABLE = "scores.csv"


class Scored(NamedTuple):
    """SAEs, where they lie, and what was measured of them; scores: over all of them."""

    folders: list[Path]
    saes: list[Dictionary]
    measurement: Measurement
    scores: dict[str, Score]


def score_folders(
    given: Sequence[Path],
    model: str | None,
    hook: str | None = None,
    *,
    op: str | None = None,
    shard_dir: Path | None = None,
    source_hook: str | None = None,
    target_shard_dir: Path | None = None,
) -> Scored:
    """Score finished SAEs at a hook of a model, or, where there is no truth to be had, on a store of activations.

    source_hook, target_shard_dir: what transcoders encode that do not say it, and the store of what they reconstruct.
    Several SAEs are scored one by one and for their agreement. Raises HusaiError for what cannot be read or does not belong
    together, and as `husai.score`.
    """
    folders = sae_folders(given)
    saes = [load_sae(folder) for folder in folders]
    if (model is None) == (shard_dir is None):
        raise HusaiError("sae score: needs a model (--model) or a store of activations (--shard-dir), one of them")
    if shard_dir is None and target_shard_dir is not None:
        raise HusaiError("sae score: --target-shard-dir stands beside --shard-dir, not beside a model")
    if model is None and (hook is not None or source_hook is not None):
        raise HusaiError("sae score: --hook and --source-hook say how a model is read; a store holds one hook")
    if model is not None:
        measurement = measured(saes, load_model(model, op), hook, source_hook, [str(folder) for folder in folders])
    else:
        assert shard_dir is not None
        measurement = measured_at(saes, _hook_of(folders, saes, shard_dir, target_shard_dir))
    return Scored(folders, saes, measurement, scores_of(measurement))


def _hook_of(
    folders: Sequence[Path], saes: Sequence[Dictionary], shard_dir: Path, target_shard_dir: Path | None
) -> Hook:
    """Rows of a store, or of two that are pairs. Raises HusaiError if they are not what every SAE takes."""
    store, target = open_store(shard_dir), None if target_shard_dir is None else open_store(target_shard_dir)
    for folder, sae in zip(folders, saes, strict=True):
        if sae.paired and target is None:
            raise HusaiError(
                f"{folder}: is a transcoder; beside the store of what it encodes it needs that of its targets "
                "(--target-shard-dir), or a model (--model)"
            )
        if not sae.paired and target is not None:
            raise HusaiError(f"{folder}: reconstructs what it encodes; leave out --target-shard-dir")
    samples = samples_of_store(saes, [str(folder) for folder in folders], store, target)
    assert samples.x is not None
    return Hook(samples.x) if target is None else Hook(samples.x, source=samples.sources[0])


def write_scores(scored: Scored, out: Path) -> Path:
    """`scores.csv` in a folder: one row a number, of an SAE (`sae`), a pair (`sae_b` too) or all (neither).

    Raises HusaiError if it cannot be written.
    """
    names = [str(folder) for folder in scored.folders]
    lines = [
        {
            "sae": "" if row.seed is None else names[row.seed],
            "sae_b": "" if row.seed_b is None else names[row.seed_b],
            **row.columns(),
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
