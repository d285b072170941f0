"""Does it agree with itself: scores of pairs of seeds beside their chance levels.

Atoms of signed codes have no sign, so that their cosines, and those of their nulls, count by magnitude.
"""

from functools import partial

import numpy as np

from husai.analysis.calibration import calibration
from husai.analysis.matching import agreement, pwmcc
from husai.analysis.nulls import DRAWN_NULLS, NullScore, null_matrices, pairwise, sampler
from husai.analysis.recovery import TRUE
from husai.analysis.rotated import plane_rotated
from husai.analysis.symmetry import Shifts, aligned, shifted, spaced
from husai.config import AnalysisConfig
from husai.measure.hook import Hook
from husai.measure.members import Members
from husai.measure.rows import Measurement, Row, null_rows, pair_rows, per_seed
from husai.seeding import generator

FREQUENT = 1e-3  # firing rate from which an atom counts for the figures named "frequent"


def stability_rows(result: Measurement, members: Members, hook: Hook, draws: int) -> None:
    if len(members.atoms) < 2:
        return
    scores, score = ("pwmcc", "max_cosine"), partial(agreement, abs=members.signed)
    observed = pairwise(members.atoms, score)
    for position, metric in enumerate(scores):
        pair_rows(result, metric, observed[..., position])
    shares = [(fit.energy[fit.live] / fit.energy.sum()).numpy() for fit in members.fits]
    weighted = np.eye(len(shares))
    for i, j in zip(*np.triu_indices(len(shares), 1), strict=True):
        weights = (shares[i], shares[j])
        weighted[i, j] = weighted[j, i] = pwmcc(members.atoms[i], members.atoms[j], abs=members.signed, weights=weights)
    pair_rows(result, "pwmcc_energy_weighted", weighted)
    live = zip(members.atoms, members.fits, strict=True)
    frequent = [atoms[fit.firing_rate[fit.live] >= FREQUENT] for atoms, fit in live]
    if min(len(atoms) for atoms in frequent) > 0:
        per_seed(result, "n_frequent", [float(len(atoms)) for atoms in frequent])
        pair_rows(result, "pwmcc_frequent", pairwise(frequent, partial(pwmcc, abs=members.signed)))
    for null in DRAWN_NULLS:
        draw = sampler(null, hook.x)
        matrices = null_matrices(draw, members.n_live, score, draws=draws, purpose=null)
        for position, metric in enumerate(scores):
            null_rows(result, metric, null, NullScore.of(matrices[..., position]))
    if hook.truth is not None:
        score_atoms, truth = partial(pwmcc, abs=members.signed), hook.truth
        streams = (generator("null-plane_rotated", draw) for draw in range(draws))
        turned = [pairwise([plane_rotated(atoms, truth, s) for atoms in members.atoms], score_atoms) for s in streams]
        null_rows(result, "pwmcc", "plane_rotated", NullScore.of(np.stack(turned)))


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
