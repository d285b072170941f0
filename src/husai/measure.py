"""Everything that is said about one ensemble at one point of training: fit, stability beside its nulls, recovery.

Composition only: each number is defined in `husai.analysis`.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from husai.activations import Activations
from husai.analysis.fit import Fit, evaluate_fit
from husai.analysis.matching import Matching, agreement, cosines, match, pwmcc
from husai.analysis.nulls import DRAWN_NULLS, NullScore, adjusted, null_matrices, pairwise, sampler
from husai.analysis.planted import AtomRecovery, FiringRecovery, atom_recovery, firing_recovery, match_true
from husai.analysis.recovery import Tuning, best_subspace, decoder_overlap, fourier_overlap, tuning
from husai.analysis.stats import Interval, monte_carlo_p, pair_interval, seed_interval
from husai.analysis.symmetry import EXACT_ATOMS, Shifts, aligned, answer_shifts, shift_maps, shifted
from husai.analysis.verdict import rung_sentence
from husai.config import AnalysisConfig
from husai.errors import HusaiError
from husai.sae.base import Dictionary, SAEEnsemble
from husai.seeding import generator
from husai.tasks import Task
from husai.truth.planes import Families, GroundTruth, answer_families, describe, families, find_truth
from husai.truth.synthetic import Circles, Planted

FREQUENT = 1e-3  # firing rate from which an atom counts for the figures named "frequent"
MIN_P_DRAWS = 20  # with fewer draws a p-value cannot fall below .05 and none is given
OVERLAP_DRAWS = 5  # dictionaries a recovery null is averaged over
FIRING = ("firing_precision", "firing_recall", "firing_f1")


class Row(NamedTuple):
    """One number. `seed`, `seed_b` index the ensemble's members (None: the figure is over all of them).

    null: '' for an observed score; the null's name for a null, an adjusted score or a p-value.
    n: how many things were averaged (pairs, seeds or draws).
    """

    metric: str
    null: str
    value: float
    low: float = float("nan")
    high: float = float("nan")
    n: int = 1
    seed: int | None = None
    seed_b: int | None = None


@dataclass(frozen=True)
class Hook:
    """What SAEs are trained on and measured against, at a hook of a transformer or from a synthetic source.

    x: the samples. truth: their true planes; planted: their true atoms (None: there are none to recover). shifts: their
    symmetry. families: the functions that codes are read against. task: the grid, if the samples are one.
    """

    x: Float[Tensor, "samples d"]
    truth: GroundTruth | None = None
    shifts: Shifts | None = None
    families: Families | None = None
    task: Task | None = None
    planted: Planted | None = None

    @classmethod
    def of(cls, activations: Activations) -> "Hook":
        """A hook without any Fourier family has no truth; its stability can still be measured."""
        x, task = activations.x, activations.task
        try:
            truth = find_truth(activations)
        except HusaiError:
            return cls.without_truth(activations)
        return cls(x, truth, shift_maps(activations, truth), families(task), task)

    @classmethod
    def without_truth(cls, activations: Activations) -> "Hook":
        """A hook where there is nothing to recover; codes can still be read as functions of the grid."""
        return cls(activations.x, families=families(activations.task), task=activations.task)

    @classmethod
    def of_circles(cls, circles: Circles) -> "Hook":
        """Codes are read as functions of the answer alone, since nothing else is known of a sample."""
        shifts = answer_shifts(circles.x, circles.answers, circles.p, circles.truth)
        return cls(circles.x, circles.truth, shifts, answer_families(circles.answers, circles.p))

    @classmethod
    def of_planted(cls, planted: Planted) -> "Hook":
        return cls(planted.x, planted=planted)

    def describe(self) -> dict[str, Any]:
        """The truth as plain data."""
        return self.planted.describe() if self.planted else describe(self.truth)


@dataclass(frozen=True)
class Members:
    """An ensemble encoded once: fit and live unit atoms of every seed; tuning or recovery, where the hook allows them.

    matchings: of true atoms with live ones. firings: how the matched latents fire.
    """

    fits: list[Fit]
    atoms: list[Float[Tensor, "n_live d"]]
    tunings: list[Tuning]
    matchings: list[Matching]
    firings: list[FiringRecovery]

    @classmethod
    def of(cls, ensemble: SAEEnsemble, hook: Hook) -> "Members":
        return cls.of_dictionaries([ensemble.member(index) for index in range(len(ensemble))], hook)

    @classmethod
    def of_dictionaries(cls, dictionaries: list[Dictionary], hook: Hook) -> "Members":
        found = cls([], [], [], [], [])
        for dictionary in dictionaries:
            codes = dictionary.encode(hook.x)
            fit = evaluate_fit(dictionary, hook.x, codes)
            found.fits.append(fit)
            found.atoms.append(dictionary.atoms[fit.live])
            if hook.families is not None:
                found.tunings.append(tuning(codes, hook.families))
            if hook.planted is not None and fit.live.any():
                matching = match_true(found.atoms[-1], hook.planted.atoms)
                found.matchings.append(matching)
                found.firings.append(firing_recovery(codes[:, fit.live] > 0, hook.planted.codes > 0, matching))
        return found

    @property
    def n_live(self) -> tuple[int, ...]:
        return tuple(len(atoms) for atoms in self.atoms)


@dataclass
class Measurement:
    """Rows of numbers and the S×S matrices behind them; `nulls` by null name for the headline score."""

    rows: list[Row] = field(default_factory=list)
    matrices: dict[str, Float[np.ndarray, "seeds seeds"]] = field(default_factory=dict)
    nulls: dict[str, NullScore] = field(default_factory=dict)

    def overall(self) -> dict[str, Interval]:
        """Observed figures over all seeds, by metric."""
        return {r.metric: Interval(r.value, r.low, r.high) for r in self.rows if r.seed is None and not r.null}

    def value(self, metric: str, null: str = "") -> Interval:
        """The ensemble's figure for a metric (mean over seeds or pairs)."""
        row = next(r for r in self.rows if r.metric == metric and r.null == null and r.seed is None)
        return Interval(row.value, row.low, row.high)


def measure(
    members: Members,
    hook: Hook,
    analysis: AnalysisConfig,
    *,
    final: bool,
    untrained: Measurement | None = None,
) -> Measurement:
    """All scores of one ensemble.

    final: use the draws and shifts meant for the end of training, else the smaller numbers meant for curves.
    untrained: the same ensemble's measurement at step 0, a null of pwmcc, max_cosine and the overlaps.
    Raises HusaiError if no latent of an SAE fires on any input.
    """
    if 0 in members.n_live:
        raise HusaiError(
            f"SAE {members.n_live.index(0)}: a dictionary without live atoms cannot be scored; "
            "weaken its sparsity penalty or raise k"
        )
    result = Measurement()
    wide = max(members.n_live) > EXACT_ATOMS
    draws = analysis.curve_null_draws if not final else analysis.wide_null_draws if wide else analysis.null_draws
    _fit_rows(result, members)
    _recovery_rows(result, members, hook)
    _planted_rows(result, members, hook)
    _stability_rows(result, members, hook, draws)
    if hook.shifts is not None:
        _symmetry_rows(result, members, hook, hook.shifts, analysis, final=final, wide=wide)
    if untrained is not None:
        _untrained_rows(result, untrained)
    return result


def _per_seed(result: Measurement, metric: str, values: list[float]) -> None:
    result.rows += [Row(metric, "", value, seed=index) for index, value in enumerate(values)]
    result.rows.append(Row(metric, "", *seed_interval(np.array(values)), n=len(values)))


def _fit_rows(result: Measurement, members: Members) -> None:
    for metric in ("explained_variance", "fvu", "l0", "dead"):
        _per_seed(result, metric, [getattr(fit, metric) for fit in members.fits])
    _per_seed(result, "n_live", [float(n) for n in members.n_live])
    for metric in ("purity", "frequency_purity") if members.tunings else ():
        _per_seed(result, metric, [float(np.nanmean(getattr(tuned, metric))) for tuned in members.tunings])


def _recovery_rows(result: Measurement, members: Members, hook: Hook) -> None:
    if hook.truth is None:
        return
    weights = [fit.energy[fit.live] for fit in members.fits]
    for metric, score in (("fourier_overlap", fourier_overlap), ("decoder_overlap", decoder_overlap)):
        pairs = list(zip(members.atoms, weights, strict=True))
        _per_seed(result, metric, [score(atoms, hook.truth, weight) for atoms, weight in pairs])
        _per_seed(result, f"{metric}_unweighted", [score(atoms, hook.truth) for atoms in members.atoms])
        for null in DRAWN_NULLS:
            values = [score(drawn, hook.truth) for drawn in _null_dictionaries(null, metric, members, hook)]
            result.rows.append(Row(metric, null, *seed_interval(np.array(values)), n=OVERLAP_DRAWS))


def _null_dictionaries(null: str, purpose: str, members: Members, hook: Hook) -> list[Float[Tensor, "n d"]]:
    """A few dictionaries of a null, as large as the largest seed's."""
    draw, size = sampler(null, hook.x), max(members.n_live)
    return [draw(size, generator(f"{purpose}-{null}", index)) for index in range(OVERLAP_DRAWS)]


def _planted_rows(result: Measurement, members: Members, hook: Hook) -> None:
    if hook.planted is None:
        return
    true = hook.planted.atoms
    result.rows.append(Row("l0_true", "", hook.planted.l0))
    found = [atom_recovery(atoms, true) for atoms in members.atoms]
    for metric in AtomRecovery._fields:
        _per_seed(result, metric, [getattr(scores, metric) for scores in found])
    for metric in FIRING:
        _per_seed(result, metric, [getattr(scores, metric) for scores in members.firings])
    for null in DRAWN_NULLS:
        drawn = [atom_recovery(atoms, true) for atoms in _null_dictionaries(null, "planted", members, hook)]
        for metric in AtomRecovery._fields:
            values = np.array([getattr(scores, metric) for scores in drawn])
            result.rows.append(Row(metric, null, *seed_interval(values), n=OVERLAP_DRAWS))


def _stability_rows(result: Measurement, members: Members, hook: Hook, draws: int) -> None:
    if len(members.atoms) < 2:
        return
    scores = ("pwmcc", "max_cosine")
    observed = pairwise(members.atoms, agreement)
    for position, metric in enumerate(scores):
        _pair_rows(result, metric, observed[..., position])
    shares = [(fit.energy[fit.live] / fit.energy.sum()).numpy() for fit in members.fits]
    weighted = np.eye(len(shares))
    for i, j in zip(*np.triu_indices(len(shares), 1), strict=True):
        weighted[i, j] = weighted[j, i] = pwmcc(members.atoms[i], members.atoms[j], weights=(shares[i], shares[j]))
    _pair_rows(result, "pwmcc_energy_weighted", weighted)
    live = zip(members.atoms, members.fits, strict=True)
    frequent = [atoms[fit.firing_rate[fit.live] >= FREQUENT] for atoms, fit in live]
    if min(len(atoms) for atoms in frequent) > 0:
        _per_seed(result, "n_frequent", [float(len(atoms)) for atoms in frequent])
        _pair_rows(result, "pwmcc_frequent", pairwise(frequent, pwmcc))
    for null in DRAWN_NULLS:
        draw = sampler(null, hook.x)
        matrices = null_matrices(draw, members.n_live, agreement, draws=draws, purpose=null)
        for position, metric in enumerate(scores):
            _null_rows(result, metric, null, NullScore.of(matrices[..., position]))


def _pair_rows(result: Measurement, metric: str, matrix: Float[np.ndarray, "seeds seeds"]) -> None:
    result.matrices[metric] = matrix
    above = zip(*np.triu_indices(len(matrix), 1), strict=True)
    result.rows += [Row(metric, "", float(matrix[i, j]), seed=int(i), seed_b=int(j)) for i, j in above]
    result.rows.append(Row(metric, "", *pair_interval(matrix), n=len(matrix) * (len(matrix) - 1) // 2))


def _null_rows(result: Measurement, metric: str, null: str, score: NullScore) -> None:
    """The null itself, the score adjusted by it (where the null leaves room), and the Monte-Carlo p."""
    matrix, count = result.matrices[metric], len(score.draws)
    if metric == "pwmcc":
        result.nulls[null] = score
    result.rows.append(Row(metric, null, score.mean, score.low, score.high, n=count))
    rescaled = adjusted(matrix, score.pairs)
    if rescaled is not None:
        result.rows.append(Row(f"{metric}_adjusted", null, *pair_interval(rescaled), n=count))
    result.rows.append(Row(f"{metric}_difference", null, *pair_interval(matrix - score.pairs), n=count))
    if count >= MIN_P_DRAWS:
        p_value = monte_carlo_p(pair_interval(matrix).mean, score.draws)
        result.rows.append(Row(f"{metric}_p", null, p_value, n=count))


def _symmetry_rows(
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
    _per_seed(result, "shift_support", support)
    _pair_rows(result, "shifted", pairwise(members.atoms, lambda A, B: shifted(A, B, shifts, averaged)))
    _per_seed(result, "self_shift", [shifted(A, A, shifts, averaged) for A in members.atoms])
    _pair_rows(result, "aligned", pairwise(members.atoms, lambda A, B: aligned(A, B, shifts, searched)))
    matrices = null_matrices(
        sampler("data_points", hook.x),
        members.n_live,
        lambda A, B: aligned(A, B, shifts, searched),
        draws=analysis.aligned_null_draws if final else 1,
        purpose="aligned",
    )
    scored = NullScore.of(matrices)
    result.rows.append(Row("aligned", "data_points", scored.mean, scored.low, scored.high, n=len(scored.draws)))


def spaced(first: int, order: int, count: int) -> list[int]:
    """At most `count` shifts from first … order − 1, evenly spaced."""
    every = np.arange(first, order)
    return every[np.linspace(0, len(every) - 1, min(count, len(every))).round().astype(int)].tolist()


def _untrained_rows(result: Measurement, untrained: Measurement) -> None:
    """Step 0 as a null: its own figure with its own interval, and pwmcc and max_cosine adjusted by it."""
    for metric in ("pwmcc", "max_cosine"):
        if metric not in result.matrices:
            continue
        null, matrix = untrained.matrices[metric], result.matrices[metric]
        pairs = len(matrix) * (len(matrix) - 1) // 2
        result.rows.append(Row(metric, "untrained", *pair_interval(null), n=pairs))
        rescaled = adjusted(matrix, null)
        if rescaled is not None:
            result.rows.append(Row(f"{metric}_adjusted", "untrained", *pair_interval(rescaled), n=pairs))
        result.rows.append(Row(f"{metric}_difference", "untrained", *pair_interval(matrix - null), n=pairs))
    for metric in ("fourier_overlap", "decoder_overlap", *AtomRecovery._fields, *FIRING):
        if any(row.metric == metric for row in untrained.rows):
            seeds = sum(row.metric == metric and row.seed is not None for row in untrained.rows)
            result.rows.append(Row(metric, "untrained", *untrained.value(metric), n=seeds))


def atom_table(members: Members, ensemble: SAEEnsemble, hook: Hook) -> pd.DataFrame:
    """One row an atom and seed: how it fires, how well the other seeds match it, and what it is tuned to or recovers.

    match_mean, match_max: mean and largest cosine of the atom with its one-to-one partners in the other seeds (nan for
    dead atoms and for atoms left without a partner everywhere). true_atom: the planted atom matched to it (-1: none),
    with their |cosine| and the F1 of their firing.
    """
    tables = []
    matches = _matches(members.atoms)
    for index, fit in enumerate(members.fits):
        live = fit.live.numpy()
        columns: dict[str, Any] = {
            "init_seed": ensemble.init_seeds[index],
            "data_seed": ensemble.data_seeds[index],
            "atom": np.arange(len(live)),
            "live": live,
            **(members.tunings[index]._asdict() if members.tunings else {}),
            "firing_rate": fit.firing_rate.numpy(),
            "energy": fit.energy.numpy(),
        }
        for name in ("match_mean", "match_max"):
            columns[name] = np.full(len(live), np.nan)
        if matches:
            columns["match_mean"][live], columns["match_max"][live] = matches[index]
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


def _true_columns(live: np.ndarray, matching: Matching, firing: FiringRecovery) -> dict[str, np.ndarray]:
    """Of every latent, the true atom it is matched to, their |cosine| and the F1 of their firing."""
    latents = live.nonzero()[0][matching.columns]
    true_atom = np.full(len(live), -1)
    cosine, f1 = np.full(len(live), np.nan), np.full(len(live), np.nan)
    true_atom[latents], cosine[latents], f1[latents] = matching.rows, matching.cosines, firing.f1[matching.rows]
    return {"true_atom": true_atom, "true_cosine": cosine, "firing_f1": f1}


def _matches(atoms: list[Tensor]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per seed, mean and maximum over the other seeds of each atom's matched cosine."""
    if len(atoms) < 2:
        return []
    results = []
    for i, own in enumerate(atoms):
        found = np.full((len(atoms), len(own)), np.nan)
        for j, other in enumerate(atoms):
            if i != j:
                matching: Matching = match(cosines(own, other))
                found[j, matching.rows] = matching.cosines
        partnered = ~np.isnan(found).all(0)
        mean, best = np.full(len(own), np.nan), np.full(len(own), np.nan)
        mean[partnered], best[partnered] = np.nanmean(found[:, partnered], 0), np.nanmax(found[:, partnered], 0)
        results.append((mean, best))
    return results


def verdict(measurement: Measurement) -> str:
    """One sentence: which rungs of the ladder the agreement exceeds."""
    rungs = {r.null: Interval(r.value, r.low, r.high) for r in measurement.rows if r.metric == "pwmcc" and r.null}
    return rung_sentence(measurement.value("pwmcc"), rungs)
