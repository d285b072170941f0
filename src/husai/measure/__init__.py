"""Everything that is said about one ensemble at one point of training: fit, stability beside its nulls, recovery.

Composition only: each number is defined in `husai.analysis`.
"""

from husai.analysis.gram import Gram
from husai.analysis.nulls import adjusted
from husai.analysis.planted import AtomRecovery
from husai.analysis.stats import Interval, pair_interval
from husai.analysis.symmetry import EXACT_ATOMS
from husai.analysis.verdict import rung_sentence
from husai.config import AnalysisConfig
from husai.errors import HusaiError
from husai.measure.atoms import atom_table
from husai.measure.causes import CAUSES
from husai.measure.hook import Hook
from husai.measure.members import Members
from husai.measure.null_cache import NullCache
from husai.measure.reading import FIGURES
from husai.measure.recovery import (
    FIRING,
    READING_DRAWS,
    WIDE_READING_DRAWS,
    causal_rows,
    fit_rows,
    gram_rows,
    planted_rows,
    reading_rows,
    recovery_rows,
)
from husai.measure.rows import Measurement, Row
from husai.measure.stability import calibration_rows, code_rows, stability_rows, symmetry_rows

OVERLAPS = ("fourier_overlap", "decoder_overlap")
PAIRED = (
    *("pwmcc", "max_cosine", "shared_fraction", "reappearance"),
    *("activation_matching", "subspace_stability", "functional"),
)
BESIDE_UNTRAINED = ("relative_error", *Gram._fields, *OVERLAPS, *AtomRecovery._fields, *FIRING, *FIGURES, *CAUSES)

__all__ = ["Hook", "Measurement", "Members", "Row", "atom_table", "measure", "verdict"]


def measure(
    members: Members,
    hook: Hook,
    analysis: AnalysisConfig,
    *,
    final: bool,
    untrained: Measurement | None = None,
    cache: NullCache = NullCache(),  # noqa: B008
) -> Measurement:
    """All scores of one ensemble.

    final: use the draws and shifts meant for the end of training, else the smaller numbers meant for curves.
    untrained: the same ensemble's measurement at step 0, a null of `PAIRED` and `BESIDE_UNTRAINED`. cache: where draws of
    nulls at the end of training are kept.
    Raises HusaiError if no latent of an SAE fires on any input.
    """
    if 0 in members.n_live:
        index = members.n_live.index(0)
        alone = members.fits[index].explained_by_skip
        skip = "" if alone is None else f" (its skip connection alone explains {alone:.4f} of the variance)"
        raise HusaiError(
            f"SAE {index}: a dictionary without live atoms cannot be scored{skip}; weaken its sparsity penalty or raise k"
        )
    result = Measurement()
    wide = max(members.n_live) > EXACT_ATOMS
    draws = analysis.curve_null_draws if not final else analysis.wide_null_draws if wide else analysis.null_draws
    coded = (WIDE_READING_DRAWS if wide else READING_DRAWS) if final and members.full else 0
    fit_rows(result, members, hook)
    gram_rows(result, members, hook)
    reading_rows(result, members, hook, draws=coded)
    recovery_rows(result, members, hook)
    causal_rows(result, members, hook, draws=coded)
    planted_rows(result, members, hook)
    stability_rows(result, members, hook, draws, cache if final else NullCache())
    code_rows(result, members, hook, draws=coded)
    if final:
        calibration_rows(result, members, hook)
    if hook.shifts is not None:
        symmetry_rows(result, members, hook, hook.shifts, analysis, final=final, wide=wide)
    if untrained is not None:
        untrained_rows(result, untrained)
    return result


def untrained_rows(result: Measurement, untrained: Measurement) -> None:
    """Step 0 as a null: its own figure with its own interval, and scores of pairs adjusted by it."""
    for metric in PAIRED:
        if metric not in result.matrices or metric not in untrained.matrices:
            continue
        null, matrix = untrained.matrices[metric], result.matrices[metric]
        pairs = len(matrix) * (len(matrix) - 1) // 2
        result.rows.append(Row(metric, "untrained", *pair_interval(null), n=pairs))
        rescaled = adjusted(matrix, null)
        if rescaled is not None:
            result.rows.append(Row(f"{metric}_adjusted", "untrained", *pair_interval(rescaled), n=pairs))
        result.rows.append(Row(f"{metric}_difference", "untrained", *pair_interval(matrix - null), n=pairs))
    for metric in BESIDE_UNTRAINED:
        if any(row.metric == metric for row in untrained.rows):
            seeds = sum(row.metric == metric and row.seed is not None for row in untrained.rows)
            result.rows.append(Row(metric, "untrained", *untrained.value(metric), n=seeds))


def verdict(measurement: Measurement) -> str:
    """One sentence: which rungs of the ladder the agreement exceeds."""
    rungs = {r.null: Interval(r.value, r.low, r.high) for r in measurement.rows if r.metric == "pwmcc" and r.null}
    return rung_sentence(measurement.value("pwmcc"), rungs)
