"""Does it fit, and does it find what is there: scores of single seeds beside their chance levels."""

import numpy as np
from jaxtyping import Float
from torch import Tensor

from husai.analysis.fit import relative_error
from husai.analysis.gram import Gram, gram
from husai.analysis.nulls import CODED_NULLS, DRAWN_NULLS, PURSUED_NULLS, coded_sampler, sampler
from husai.analysis.planted import AtomRecovery, atom_recovery
from husai.analysis.recovery import decoder_overlap, fourier_overlap
from husai.analysis.stats import seed_interval
from husai.measure.causes import cause_of_coded, rotation_of_coded
from husai.measure.hook import Hook
from husai.measure.members import Members
from husai.measure.reading import read
from husai.measure.rows import Measurement, Row, per_seed
from husai.seeding import generator

FIRING = ("firing_precision", "firing_recall", "firing_f1")
OVERLAP_DRAWS = 5  # dictionaries a recovery null is averaged over
READING_DRAWS = 3  # the same of nulls with codes, which take longer
WIDE_READING_DRAWS = 1  # the same of more atoms than are matched exactly: their means vary little


def fit_rows(result: Measurement, members: Members, hook: Hook) -> None:
    """The chance level of the relative error is that of a dictionary that reconstructs every sample as the mean."""
    for metric in ("explained_variance", "fvu", "relative_error", "l0", "dead"):
        per_seed(result, metric, [getattr(fit, metric) for fit in members.fits])
    result.rows.append(Row("relative_error", "mean", relative_error(hook.x - hook.x.mean(0), hook.x)))
    per_seed(result, "n_live", [float(n) for n in members.n_live])
    alone = [fit.explained_by_skip for fit in members.fits if fit.explained_by_skip is not None]
    if alone:
        per_seed(result, "explained_by_skip", alone)


def gram_rows(result: Measurement, members: Members, hook: Hook) -> None:
    """How alike a dictionary's own atoms are, beside as many drawn ones. Left out where a seed has a single live atom."""
    if min(members.n_live) < 2:
        return
    found = [gram(atoms) for atoms in members.atoms]
    for metric in Gram._fields:
        per_seed(result, metric, [getattr(one, metric) for one in found])
    for null in DRAWN_NULLS:
        drawn = [gram(atoms) for atoms in null_dictionaries(null, "gram", members, hook)]
        for metric in Gram._fields:
            values = np.array([getattr(one, metric) for one in drawn])
            result.rows.append(Row(metric, null, *seed_interval(values), n=OVERLAP_DRAWS))


def reading_rows(result: Measurement, members: Members, hook: Hook, *, draws: int) -> None:
    """Scores of codes, beside those of `draws` null dictionaries with codes, as many as the largest seed's live atoms."""
    found = [reading.figures for reading in members.readings]
    for metric in found[0]:
        per_seed(result, metric, [figures[metric] for figures in found])
    if not (draws and found[0]):
        return
    size, l0 = max(members.n_live), float(np.mean([fit.l0 for fit in members.fits]))
    for null in CODED_NULLS:
        draw = coded_sampler(null, hook.x, l0, signed=members.signed)
        drawn = (draw(size, generator(f"reading-{null}", index)) for index in range(draws))
        levels = [read(coded.codes, coded.atoms, hook).figures for coded in drawn]
        for metric in found[0]:
            values = seed_interval(np.array([figures[metric] for figures in levels]))
            result.rows.append(Row(metric, null, *values, n=draws))


def causal_rows(result: Measurement, members: Members, hook: Hook, *, draws: int) -> None:
    """What a model makes of the dictionaries, and of its own true planes (`rotation_true`). draws: as in `reading_rows`."""
    if not members.causes or hook.site is None:
        return
    metrics = tuple(members.causes[0])
    for metric in metrics:
        per_seed(result, metric, [causes[metric] for causes in members.causes])
    if hook.turning is not None:
        result.rows.append(Row("rotation_true", "", hook.rotation_true))
    if not draws:
        return
    size, l0 = max(members.n_live), float(np.mean([fit.l0 for fit in members.fits]))
    for null in PURSUED_NULLS:
        draw = coded_sampler(null, hook.site.x, l0, signed=members.signed)
        drawn = (draw(size, generator(f"causes-{null}", index)) for index in range(draws))
        levels = [cause_of_coded(coded, hook) for coded in drawn]
        for metric in metrics:
            values = seed_interval(np.array([causes[metric] for causes in levels]))
            result.rows.append(Row(metric, null, *values, n=draws))
    if "rotation" in metrics:
        for null in CODED_NULLS:
            draw = coded_sampler(null, hook.site.x, l0, signed=members.signed)
            drawn = (draw(size, generator(f"rotation-{null}", index)) for index in range(draws))
            values = seed_interval(np.array([rotation_of_coded(coded, hook) for coded in drawn]))
            result.rows.append(Row("rotation", null, *values, n=draws))


def recovery_rows(result: Measurement, members: Members, hook: Hook) -> None:
    if hook.truth is None:
        return
    weights = [fit.energy[fit.live] for fit in members.fits]
    for metric, score in (("fourier_overlap", fourier_overlap), ("decoder_overlap", decoder_overlap)):
        pairs = list(zip(members.atoms, weights, strict=True))
        per_seed(result, metric, [score(atoms, hook.truth, weight) for atoms, weight in pairs])
        per_seed(result, f"{metric}_unweighted", [score(atoms, hook.truth) for atoms in members.atoms])
        for null in DRAWN_NULLS:
            values = [score(drawn, hook.truth) for drawn in null_dictionaries(null, metric, members, hook)]
            result.rows.append(Row(metric, null, *seed_interval(np.array(values)), n=OVERLAP_DRAWS))


def null_dictionaries(null: str, purpose: str, members: Members, hook: Hook) -> list[Float[Tensor, "n d"]]:
    """A few dictionaries of a null, as large as the largest seed's."""
    draw, size = sampler(null, hook.x), max(members.n_live)
    return [draw(size, generator(f"{purpose}-{null}", index)) for index in range(OVERLAP_DRAWS)]


def planted_rows(result: Measurement, members: Members, hook: Hook) -> None:
    if hook.planted is None:
        return
    true = hook.planted.atoms
    result.rows.append(Row("l0_true", "", hook.planted.l0))
    found = [atom_recovery(atoms, true) for atoms in members.atoms]
    for metric in AtomRecovery._fields:
        per_seed(result, metric, [getattr(scores, metric) for scores in found])
    for metric in FIRING:
        per_seed(result, metric, [getattr(scores, metric) for scores in members.firings])
    for null in DRAWN_NULLS:
        drawn = [atom_recovery(atoms, true) for atoms in null_dictionaries(null, "planted", members, hook)]
        for metric in AtomRecovery._fields:
            values = np.array([getattr(scores, metric) for scores in drawn])
            result.rows.append(Row(metric, null, *seed_interval(values), n=OVERLAP_DRAWS))
