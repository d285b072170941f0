"""Kinds of control: one score on trial, where it must show nothing, or must find what is there.

A score joins by its name: in `drawn_scores` if it scores atoms alone, in `code_scores` if it scores codes, in TRAINED if it
is in a suite's records. (docs/method.md §Controls)
"""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import ks_2samp
from torch import Tensor

from husai.analysis.fit import evaluate_fit
from husai.analysis.matching import max_cosine, pwmcc
from husai.analysis.nulls import DRAWN_NULLS, Draw, coded_sampler, pairwise, sampler
from husai.analysis.planted import atom_recovery, firing_recovery, match_true
from husai.analysis.recovery import decoder_overlap, fourier_overlap, tuning
from husai.analysis.stats import (
    Interval,
    difference_p,
    monte_carlo_p,
    pair_interval,
    pair_mean,
    seed_interval,
)
from husai.analysis.subspaces import subspace_recovery
from husai.measure import Hook, Members
from husai.measure.causes import cause_of_coded, rotation_of_coded
from husai.report.results import CellView
from husai.report.text import has
from husai.sae.dictionary import Dictionary
from husai.seeding import generator

SEEDS, ATOMS = 5, 64  # dictionaries of a drawn experiment, and atoms of each
EXPERIMENTS = 200  # drawn experiments put on trial, and as many that their null is made of
DRAWS = 499  # orders of the rows that a code is scored in, and null dictionaries that a model is asked of
ALPHA = 0.05

Kind = Literal["negative", "positive"]
Test = Literal["drawn", "counted", "trained"]


class Control(NamedTuple):
    """One score on trial: `value` beside `level`, the null at which it must sit (negative) or which it must exceed.

    test: how p was found, from two sets of drawn dictionaries, by counting draws, or from trained SAEs seed by seed.
    """

    kind: Kind
    test: Test
    question: str
    source: str
    score: str
    value: Interval
    null: str
    level: Interval
    p: float


# --- drawn dictionaries at the null they were drawn from ---


def drawn_scores(hook: Hook) -> dict[str, Callable[[list[Tensor]], float]]:
    """The figure of one experiment's dictionaries, by the name of its score; a score of atoms alone joins here."""
    scores: dict[str, Callable[[list[Tensor]], float]] = {
        "pwmcc": lambda drawn: pair_mean(pairwise(drawn, pwmcc)),
        "max_cosine": lambda drawn: pair_mean(pairwise(drawn, max_cosine)),
    }
    if (truth := hook.truth) is not None:
        scores["fourier_overlap_unweighted"] = lambda drawn: _mean(fourier_overlap(atoms, truth) for atoms in drawn)
        scores["decoder_overlap_unweighted"] = lambda drawn: _mean(decoder_overlap(atoms, truth) for atoms in drawn)
    if (planted := hook.planted) is not None:
        scores["gt_mcc"] = lambda drawn: _mean(atom_recovery(atoms, planted.atoms).gt_mcc for atoms in drawn)
    return scores


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def drawn_controls(hook: Hook, source: str, *, experiments: int = EXPERIMENTS) -> list[Control]:
    """Experiments drawn from each null, against other experiments of that null.

    p: Kolmogorov-Smirnov, of the two sets. (Their Monte-Carlo p-values share the null's draws, so a test of these for
    uniformity would take dependent numbers for independent ones. As ranks they are uniform iff the two sets are alike.)
    """
    found, scores = [], drawn_scores(hook)
    for null in DRAWN_NULLS:
        draw = sampler(null, hook.x)
        on_trial, reference = (
            [_experiment(draw, generator(f"{purpose}-{null}", 0, r)) for r in range(experiments)]
            for purpose in ("control", "null")
        )
        for score, statistic in scores.items():
            drawn, level = (np.array([statistic(atoms) for atoms in ensembles]) for ensembles in (on_trial, reference))
            false = np.mean([monte_carlo_p(value, level) <= ALPHA for value in drawn])
            question = f"drawn `{null}` dictionaries (p ≤ {ALPHA:g} in {false:.1%} of {experiments})"
            p = float(ks_2samp(drawn, level).pvalue)  # pyright: ignore[reportAttributeAccessIssue]
            found.append(Control("negative", "drawn", question, source, score, _spread(drawn), null, _spread(level), p))
    return found


def _experiment(draw: Draw, stream: torch.Generator) -> list[Tensor]:
    return [draw(ATOMS, stream) for _ in range(SEEDS)]


def _spread(draws: Float[np.ndarray, "draws"]) -> Interval:
    """Mean and the range of 95% of the draws."""
    return Interval(float(draws.mean()), *(float(q) for q in np.quantile(draws, [0.025, 0.975])))


# --- codes against the grid in another order ---


def code_scores(hook: Hook, atoms: Float[Tensor, "n_live d"]) -> dict[str, Callable[[Tensor], float]]:
    """The figure of the live atoms' codes, by the name of its score; a score of codes joins here."""
    scores: dict[str, Callable[[Tensor], float]] = {}
    if (family := hook.families) is not None:
        scores["purity"] = lambda codes: float(np.nanmean(tuning(codes, family).purity))
    if (planted := hook.planted) is not None:
        active, matching = planted.codes > 0, match_true(atoms, planted.atoms)
        scores["firing_f1"] = lambda codes: firing_recovery(codes != 0, active, matching).firing_f1
    return scores


def row_controls(kind: Kind, question: str, source: str, dictionary: Dictionary, hook: Hook) -> list[Control]:
    """Do codes know which row they are on? One-sided Monte-Carlo p over random orders of the rows.

    A stand-in's rows could stand in any order, so this null is exact there.
    """
    codes = dictionary.encode(hook.x)
    live = evaluate_fit(dictionary, hook.x, codes).live
    codes, found = codes[:, live], []
    for score, statistic in code_scores(hook, dictionary.atoms[live]).items():
        stream = generator("control-rows", 0)
        draws = np.array([statistic(codes[torch.randperm(len(codes), generator=stream)]) for _ in range(DRAWS)])
        value = Interval(statistic(codes), float("nan"), float("nan"))
        p = monte_carlo_p(value.mean, draws)
        found.append(
            Control(kind, "counted", question, source, score, value, "rows in another order", _spread(draws), p)
        )
    return found


# --- a model and dictionaries that were trained on something else ---

FOLLOWED = {"subspace_recovered": "data_top_k", "rotation": "data_top_k", "ablation": "data_pursued"}


def model_controls(kind: Kind, question: str, source: str, dictionaries: list[Dictionary], hook: Hook) -> list[Control]:
    """Does a model follow these dictionaries, on its own activations? One-sided Monte-Carlo p over null dictionaries.

    They have as many atoms and the same L0, and know the covariance, which is what a stand-in keeps. What is compared
    with each is the mean over the dictionaries, which varies less, so that the test errs on the side of finding nothing.
    """
    assert hook.site is not None
    hook = hook.with_samples(hook.site.x)
    members = Members.of(dictionaries, hook)
    size, l0 = max(members.n_live), _mean(fit.l0 for fit in members.fits)
    figures = [reading.figures | causes for reading, causes in zip(members.readings, members.causes, strict=True)]
    levels = {null: _followed(null, size, l0, hook) for null in dict.fromkeys(FOLLOWED.values())}
    found = []
    for score, null in FOLLOWED.items():
        values, draws = np.array([one[score] for one in figures]), np.array([one[score] for one in levels[null]])
        value, p = seed_interval(values), monte_carlo_p(float(values.mean()), draws)
        found.append(Control(kind, "counted", question, source, score, value, null, _spread(draws), p))
    return found


def _followed(null: str, size: int, l0: float, hook: Hook) -> list[dict[str, float]]:
    """The scores that are read against this null, of its draws."""
    draw, stream = coded_sampler(null, hook.x, l0), generator(f"control-{null}", 0)
    drawn = (draw(size, stream) for _ in range(DRAWS))
    if null.endswith("_pursued"):
        return [cause_of_coded(coded, hook) for coded in drawn]
    assert hook.truth is not None
    assert hook.families is not None
    found = []
    for coded in drawn:
        planes = subspace_recovery(coded.codes, coded.atoms, hook.truth, hook.families).aggregate
        found.append({"subspace_recovered": planes.recovered, "rotation": rotation_of_coded(coded, hook)})
    return found


# --- SAEs against SAEs ---

TRAINED = (
    "pwmcc",
    "max_cosine",
    "fourier_overlap",
    "decoder_overlap",
    "gt_mcc",
    "subspace_recovered",
    "rotation",
    "ablation",
)


def trained_controls(
    kind: Kind, question: str, cell: CellView, other: CellView, null: str, scores: tuple[str, ...] = TRAINED
) -> list[Control]:
    """The SAEs of one cell against those of another with the same seeds; p is that of their difference, seed by seed."""
    found = []
    for score in scores:
        if not (has(cell, score) and has(other, score)):
            continue
        if len(cell.per_seed(score)):
            difference = seed_interval(cell.per_seed(score) - other.per_seed(score))
        else:
            difference = pair_interval(cell.matrix(score) - other.matrix(score))
        p = difference_p(difference, cell.seeds)
        found.append(
            Control(kind, "trained", question, cell.title, score, cell.value(score), null, other.value(score), p)
        )
    return found
