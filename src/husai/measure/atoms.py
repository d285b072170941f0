"""The table of atoms."""

from typing import Any

import numpy as np
import pandas as pd

from husai.analysis.matching import Matching
from husai.analysis.planted import FiringRecovery
from husai.analysis.recovery import best_subspace
from husai.measure.hook import Hook
from husai.measure.members import Members
from husai.sae.dictionary import SAEEnsemble


def atom_table(members: Members, ensemble: SAEEnsemble, hook: Hook) -> pd.DataFrame:
    """One row an atom and seed: how it fires, how well the other seeds match it, and what it is tuned to or recovers.

    match_mean, match_max: mean and largest cosine of the atom with its one-to-one partners in the other seeds (nan for
    dead atoms and for atoms left without a partner everywhere). reappears_in: number of other seeds in which an atom with a
    cosine of at least .7 is. true_atom: the planted atom matched to it (-1: none),
    with their |cosine| and the F1 of their firing.
    """
    tables = []
    paired = len(members.atoms) > 1
    best = _best(members) if paired else []
    for index, fit in enumerate(members.fits):
        live = fit.live.numpy()
        columns: dict[str, Any] = {
            "init_seed": ensemble.init_seeds[index],
            "data_seed": ensemble.data_seeds[index],
            "atom": np.arange(len(live)),
            "live": live,
            **{name: _spread(values, live) for name, values in members.readings[index].columns.items()},
            "firing_rate": fit.firing_rate.numpy(),
            "energy": fit.energy.numpy(),
        }
        for name in ("match_mean", "match_max", "reappears_in"):
            columns[name] = np.full(len(live), np.nan)
        if paired:
            columns["match_mean"][live], columns["match_max"][live] = members.stability.pwmcc.atoms[index], best[index]
            columns["reappears_in"][live] = members.stability.counts[index]
        if hook.planted is not None:
            columns |= _true_columns(live, members.matchings[index], members.firings[index])
        else:
            columns["decoder_overlap"] = np.full(len(live), np.nan)
            columns["subspace"] = np.full(len(live), "", dtype=object)
        if hook.truth is not None and live.any():
            share, where = best_subspace(members.atoms[index], hook.truth)
            columns["decoder_overlap"][live] = share.numpy()
            columns["subspace"][live] = [hook.truth.subspaces[i].label for i in where.tolist()]
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def _spread(values: Any, live: np.ndarray) -> np.ndarray:
    """Values of live latents at their places among all; the others get 'dead', −1, False or nan."""
    values = np.asarray(values)
    kind, fill = {
        "U": (object, "dead"),
        "i": (values.dtype, -1),
        "b": (bool, False),
        "f": (float, np.nan),
    }[values.dtype.kind]
    spread = np.full(len(live), fill, dtype=kind)
    spread[live] = values
    return spread


def _true_columns(live: np.ndarray, matching: Matching, firing: FiringRecovery) -> dict[str, np.ndarray]:
    """Of every latent, the true atom it is matched to, their |cosine| and the F1 of their firing."""
    latents = live.nonzero()[0][matching.columns]
    true_atom = np.full(len(live), -1)
    cosine, f1 = np.full(len(live), np.nan), np.full(len(live), np.nan)
    true_atom[latents], cosine[latents], f1[latents] = matching.rows, matching.cosines, firing.f1[matching.rows]
    return {"true_atom": true_atom, "true_cosine": cosine, "firing_f1": f1}


def _best(members: Members) -> list[np.ndarray]:
    """Per seed, the largest cosine of each atom with its partners in the other seeds; nan for an atom without any."""
    best = [np.full(len(atoms), np.nan) for atoms in members.atoms]
    for (i, j), found in members.stability.pwmcc.matched.items():
        best[i][found.rows] = np.fmax(best[i][found.rows], found.cosines)
        best[j][found.columns] = np.fmax(best[j][found.columns], found.cosines)
    return best
