"""Does it agree with itself: scores of pairs of seeds beside their chance levels.

Atoms of signed codes have no sign, so that their cosines, and those of their nulls, count by magnitude.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Float

from husai.analysis.agreement import Agreement
from husai.analysis.calibration import calibration
from husai.analysis.functional import functional
from husai.analysis.nulls import (
    CODED_NULLS,
    DRAWN_NULLS,
    Coded,
    NullScore,
    coded_sampler,
    null_matrices,
    pairwise,
    sampler,
)
from husai.analysis.recovery import TRUE
from husai.analysis.rungs import SCORES, directions, drawn, turned
from husai.analysis.stability import activation_matching, best_match, stability
from husai.analysis.subspace_stability import subspace_stability
from husai.analysis.symmetry import Shifts, aligned, shifted, spaced
from husai.config import AnalysisConfig
from husai.measure.hook import Hook
from husai.measure.members import Members
from husai.measure.null_cache import NullCache, NullKey
from husai.measure.rows import Measurement, Row, null_rows, pair_rows, per_seed
from husai.seeding import generator

NAN = float("nan")
FREQUENT = 1e-3  # firing rate from which an atom counts for the figures named "frequent"


def stability_rows(result: Measurement, members: Members, hook: Hook, draws: int, cache: NullCache) -> None:
    """What atoms and encoders have in common, beside `draws` draws of every rung that needs no training."""
    if len(members.atoms) < 2:
        return
    found = members.stability
    for metric, one in found.known.items():
        pair_rows(result, metric, one.both)
    _everywhere_rows(result, found.everywhere)
    shares = [(fit.energy[fit.live] / fit.energy.sum()).numpy() for fit in members.fits]
    pair_rows(result, "pwmcc_energy_weighted", weighted(found.pwmcc, shares))
    live = zip(members.atoms, members.fits, strict=True)
    frequent = [atoms[fit.firing_rate[fit.live] >= FREQUENT] for atoms, fit in live]
    if min(len(atoms) for atoms in frequent) > 0:
        per_seed(result, "n_frequent", [float(len(atoms)) for atoms in frequent])
        best = partial(best_match, abs=members.signed)
        pair_rows(result, "pwmcc_frequent", pairwise(frequent, lambda A, B: best(A, B).matching.cosines.mean()))
    for null in DRAWN_NULLS:
        key = NullKey(null, hook.fingerprint.under(null), SCORES, members.signed)

        def compute(n_live: tuple[int, ...], count: int, null: str = null) -> np.ndarray:
            return drawn(directions(null, hook.x, n_live), null, count, abs=members.signed)

        _level_rows(result, null, cache.draws(key, members.n_live, draws, compute))
    if hook.truth is not None:
        encoders = None if hook.source is not None else members.encoders or None
        turn = turned(members.atoms, encoders, hook.truth)
        kept = tuple(name for name in SCORES if encoders is not None or name != "shared_fraction")
        _level_rows(result, "plane_rotated", drawn(turn, "plane_rotated", draws, abs=members.signed), kept)


def _everywhere_rows(result: Measurement, shares: Float[np.ndarray, "seeds"]) -> None:
    """Without an interval: every seed's share rests on all seeds, so that they are no independent values."""
    result.rows += [Row("reappear_in_all", "", float(share), seed=seed) for seed, share in enumerate(shares)]
    result.rows.append(Row("reappear_in_all", "", float(shares.mean()), n=len(shares)))


def _level_rows(
    result: Measurement,
    null: str,
    table: Float[np.ndarray, "draws seeds seeds scores"],
    kept: tuple[str, ...] = SCORES,
) -> None:
    """The chance levels of the scores that were taken, of those `kept`."""
    for position, metric in enumerate(SCORES[:-1]):
        if metric in result.matrices and metric in kept:
            null_rows(result, metric, null, NullScore.of(table[..., position]))
    result.rows.append(Row("reappear_in_all", null, float(table[..., 0, -1].mean()), n=len(table)))


def weighted(found: Agreement, weights: Sequence[Float[np.ndarray, "n"]]) -> Float[np.ndarray, "seeds seeds"]:
    """The same matchings, each matched pair counted by the sum of its two atoms' weights."""
    matrix = np.eye(len(weights))
    for (i, j), matching in found.matched.items():
        pair = weights[i][matching.rows] + weights[j][matching.columns]
        matrix[i, j] = matrix[j, i] = (pair * matching.cosines).sum() / pair.sum()
    return matrix


def code_rows(result: Measurement, members: Members, hook: Hook, *, draws: int) -> None:
    """What codes have in common, beside `draws` times as many null dictionaries with codes, with as many live atoms.

    Where the rest of a model has to be run for every atom, what atoms do is asked before and after training only, and of one
    draw.
    """
    if len(members.atoms) < 2:
        return
    coded = [Coded(atoms, codes) for atoms, codes in zip(members.atoms, members.codes, strict=True)]
    linear = hook.genuine is not None and hook.genuine.readout is not None
    asked = hook.genuine is not None and (linear or members.full)
    found = alike(coded, hook, members.stability.pwmcc, signed=members.signed, asked=asked)
    for metric, one in found.items():
        pair_rows(result, metric, one.matrix)
    l0 = float(np.mean([fit.l0 for fit in members.fits]))
    for null in CODED_NULLS if draws else ():
        draw, levels = coded_sampler(null, hook.x, l0, signed=members.signed), {metric: [] for metric in found}
        for r in range(draws):
            stream = generator(f"null-{null}", 0, r)
            dictionaries = [draw(n, stream) for n in members.n_live]
            matched = stability([one.atoms for one in dictionaries], abs=members.signed).pwmcc
            ask = asked and (linear or r == 0)
            for metric, one in alike(dictionaries, hook, matched, signed=members.signed, asked=ask).items():
                levels[metric].append(one.matrix)
        for metric, matrices in levels.items():
            few = NullScore.of(np.stack(matrices))._replace(low=NAN, high=NAN)  # so few draws have no quantiles
            null_rows(result, metric, null, few)


def alike(coded: Sequence[Coded], hook: Hook, matched: Agreement, *, signed: bool, asked: bool) -> dict[str, Agreement]:
    """Whether latents say the same, span the same true planes and, if `asked`, do the same to a model's answers."""
    atoms, codes = [one.atoms for one in coded], [one.codes for one in coded]
    found = {"activation_matching": activation_matching(codes, abs=signed)}
    if hook.truth is not None:
        found["subspace_stability"] = subspace_stability(codes, atoms, hook.truth)
    if asked and hook.genuine is not None:
        found["functional"] = functional(matched.matched, codes, atoms, hook.genuine)
    return found


def calibration_rows(result: Measurement, members: Members, hook: Hook) -> None:
    """Whether atoms that seeds agree on are the true ones, where it is known which are."""
    if len(members.atoms) < 3 or not members.full:
        return
    if hook.planted is not None:
        known = hook.planted.atoms
        true = [(atoms @ known.T).abs().amax(1).numpy() >= TRUE for atoms in members.atoms]
    else:
        true = [reading.true.true for reading in members.readings if reading.true is not None]
    if len(true) < len(members.atoms):
        return
    rates = [fit.firing_rate[fit.live].numpy() for fit in members.fits]
    found = calibration(members.atoms, true, rates, abs=members.signed)
    result.reliability = np.array(found.bins)
    seeds = [(seed, float(value)) for seed, value in enumerate(found.per_seed) if not np.isnan(value)]
    if seeds:
        result.rows += [Row("calibration_auc", "", value, seed=seed) for seed, value in seeds]
        result.rows.append(Row("calibration_auc", "", *found.auc, n=len(seeds)))


def symmetry_rows(
    result: Measurement,
    members: Members,
    hook: Hook,
    shifts: Shifts,
    analysis: AnalysisConfig,
    *,
    final: bool,
    wide: bool,
) -> None:
    if len(members.atoms) < 2:
        return
    order = len(shifts.maps)
    averaged = spaced(1, order, analysis.curve_shifts if not final else analysis.shifts if wide else order)
    searched = spaced(0, order, order if final else analysis.curve_shifts)
    support = [float((atoms @ shifts.basis).pow(2).sum(1).mean()) for atoms in members.atoms]
    per_seed(result, "shift_support", support)
    on_average = partial(shifted, shifts=shifts, deltas=averaged, abs=members.signed)
    at_best = partial(aligned, shifts=shifts, deltas=searched, abs=members.signed)
    pair_rows(result, "shifted", pairwise(members.atoms, on_average))
    per_seed(result, "self_shift", [on_average(A, A) for A in members.atoms])
    pair_rows(result, "aligned", pairwise(members.atoms, at_best))
    matrices = null_matrices(
        sampler("data_points", hook.x),
        members.n_live,
        at_best,
        draws=analysis.aligned_null_draws if final else 1,
        purpose="aligned",
    )
    scored = NullScore.of(matrices)
    result.rows.append(Row("aligned", "data_points", scored.mean, scored.low, scored.high, n=len(scored.draws)))
